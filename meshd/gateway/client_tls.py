"""TLS for clients from elsewhere, with a certificate that somebody else renews."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from meshd.errors import UserError

_log = structlog.get_logger("meshd.gateway")

_Seen = tuple[str, str, tuple[tuple[int, int, int], ...]]


class ClientTls:
    """:ivar wanted: the settings ask for TLS; while there is no context then, nobody gets in.

    :ivar context: with the newest certificate that could be used, None without one.
    :ivar error: why the newest cannot be used, "" when all is well.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.context: ssl.SSLContext | None = None
        self.error = ""
        self._seen: _Seen | None = None

    async def look(self, certificate: str, key: str) -> None:
        """Take what lies there if it is new. Connections that are open keep what they have.

        :param certificate: PEM file with the chain, "" for no TLS. :param key: PEM file.
        """
        seen = (certificate, key, await asyncio.to_thread(_signature, certificate, key))
        if seen == self._seen:
            return
        same_files = self._seen is not None and self._seen[:2] == seen[:2]
        self._seen, self.wanted = seen, bool(certificate)
        if not same_files:
            self.context = None  # no certificate of other settings
        if not certificate:
            self.error = ""
            return
        try:
            self.context = await asyncio.to_thread(_load, certificate, key)
        except UserError as error:
            # Two files do not change at once: the next look may find them whole.
            self.error = str(error)
            then = "the last good one stays" if self.context else "nobody else gets in"
            _log.warning(f"gateway.tls not usable, {then}", error=self.error)
        else:
            self.error = ""
            _log.info("certificate for clients loaded", file=certificate)


def _load(certificate: str, key: str) -> ssl.SSLContext:
    """:raises UserError: the files cannot be used."""
    for path in (certificate, key):
        try:
            with Path(path).open("rb") as file:
                file.read(1)
        except (OSError, ValueError) as error:
            raise UserError(
                f"gateway.tls: {path}: {getattr(error, 'strerror', None) or error}",
                hint="the user _meshd must be able to read it",
            ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With a password of our own, OpenSSL asks no terminal for one.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise UserError(
            f"gateway.tls: {certificate} and {key}: {_reason(error)}",
            hint="PEM files are needed: the chain, and its key without a password",
        ) from None
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return "not a certificate and its key"


def _signature(*paths: str) -> tuple[tuple[int, int, int], ...]:
    found = []
    for path in paths:
        try:
            about = Path(path).stat()
        except (OSError, ValueError):
            found.append((0, 0, 0))
        else:
            found.append((about.st_ino, about.st_ctime_ns, about.st_size))
    return tuple(found)
