"""The host's apt sources, read to learn which mirror it uses and which keys it trusts. Pure.

Formats: sources.list(5), both the one-line style and deb822.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

_RELEASES = frozenset(
    {"bullseye", "bookworm", "trixie", "forky", "duke", "sid"}
    | {"oldoldstable", "oldstable", "stable", "testing", "unstable"}
)


@dataclass(frozen=True, slots=True)
class Source:
    """One archive that apt knows.

    :ivar signed_by: a keyring's path or, in deb822, the armoured key itself; "" for apt's own.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


def parse_sources(text: str, *, deb822: bool) -> tuple[Source, ...]:
    """All enabled binary archives in one file of sources; what is malformed is left to apt."""
    return tuple(_deb822(text) if deb822 else _one_line(text))


def debian_mirrors(sources: Iterable[Source]) -> tuple[Source, ...]:
    """The archives that may hold Debian itself, likeliest first, each mirror once.

    An archive of a third party can use Debian's suite names too, so a path that ends in
    ``/debian`` or Debian's own keyring counts for more.
    """
    ranked: dict[str, tuple[int, Source]] = {}
    for source in sources:
        if source.suite not in _RELEASES or "main" not in source.components:
            continue
        path = PurePosixPath(urlsplit(source.uri).path)
        score = 2 * (path.name == "debian") + ("debian-archive" in source.signed_by)
        known = ranked.get(source.uri)
        if known is None or known[0] < score:
            ranked[source.uri] = (score, source)
    return tuple(source for _, source in sorted(ranked.values(), key=lambda item: -item[0]))


def render_source(source: Source, *, suite: str, keyring: str) -> str:
    """A deb822 stanza for `suite` on the same mirror, with the keys that the host trusts for it.

    ``Trusted: yes`` is not carried over: executables are taken only with a signature.
    """
    signed_by = source.signed_by or keyring
    lines = ["Types: deb", f"URIs: {source.uri}", f"Suites: {suite}", "Components: main"]
    if signed_by:
        lines.append(f"Signed-By: {signed_by}")
    return "\n".join(lines) + "\n"


def _deb822(text: str) -> Iterator[Source]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace() and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(
                    uri=uri,
                    suite=suite,
                    components=tuple(fields.get("components", "").split()),
                    signed_by=fields.get("signed-by", ""),
                )


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if not found:
            continue
        given, uri, suite, components = found.groups()
        options = {
            option.split("=", 1)[0].lower(): option.split("=", 1)[1]
            for option in (given or "").split()
            if "=" in option
        }
        yield Source(
            uri=uri,
            suite=suite,
            components=tuple(components.split()),
            signed_by=options.get("signed-by", ""),
        )
