"""Keeps out web pages that come under a name of their own (DNS rebinding).

A page of evil.example can have its name resolve to 127.0.0.1 after it was loaded; the browser then
lets it read what a server on this machine answers. Its requests still say ``Host: evil.example``,
and no page can change that. Addresses cannot be rebound, so they always fit.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

_MAX_KNOWN = 1024
_MAX_FILE_BYTES = 64 * 1024


class HostCheck:
    """Which Host headers fit. Verdicts are kept, so that to ask again costs one look-up."""

    __slots__ = ("_all", "_names", "_parents", "_verdicts")

    def __init__(self, names: Iterable[str]) -> None:
        """:param names: of this machine; ``*.example.org`` for all below a name, ``*`` for any."""
        given = {bare_host(name) for name in names}
        self._all = "*" in given
        self._names = {"localhost", *given}
        self._parents = (".localhost", *(name[1:] for name in given if name.startswith("*.")))
        self._verdicts: dict[str, bool] = {}

    def fits(self, host: str) -> bool:
        """:param host: the header's value, "" where there is none: browsers always send one."""
        verdict = self._verdicts.get(host)
        if verdict is None:
            verdict = self._judge(host)
            if len(self._verdicts) >= _MAX_KNOWN:
                self._verdicts.clear()
            if len(host) <= 256:
                self._verdicts[host] = verdict
        return verdict

    def _judge(self, host: str) -> bool:
        if self._all or not host:
            return True
        name = bare_host(host)
        return name in self._names or name.endswith(self._parents) or _is_address(name)


def bare_host(text: str) -> str:
    """``Name.Example.:8080`` as ``name.example``; an IPv6 address without its brackets."""
    text = text.strip().lower()
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return address if not port or port.startswith(":") else text
    host, colon, port = text.rpartition(":")
    if colon and ":" not in host and (not port or port.isdigit()):
        text = host
    return text.rstrip(".")


def names_of(hostname: str, hosts: str = "", resolv: str = "") -> frozenset[str]:
    """The names of a machine. Pure; no name server is asked, which could take its time.

    :param hosts: text of /etc/hosts: a line with the host name says its other names.
    :param resolv: text of /etc/resolv.conf, for the domains that the machine is in.
    """
    hostname = hostname.strip().lower().rstrip(".")
    if not hostname:
        return frozenset()
    short = hostname.partition(".")[0]
    names = {hostname, short, f"{short}.local"}
    for words in _lines(hosts):
        if names & set(words[1:]):
            names.update(words[1:])
    for words in _lines(resolv):
        if words[0] in ("domain", "search"):
            names.update(f"{short}.{domain.strip('.')}" for domain in words[1:] if domain != ".")
    return frozenset(names)


def machine_names() -> frozenset[str]:
    """The names of this machine. Reads two small files."""
    return names_of(
        socket.gethostname(), _text(Path("/etc/hosts")), _text(Path("/etc/resolv.conf"))
    )


def _lines(text: str) -> list[list[str]]:
    split = (line.partition("#")[0].lower().split() for line in text.splitlines())
    return [words for words in split if words]


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
