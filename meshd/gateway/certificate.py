"""The certificate of this node in the mesh, as the brain last wrote it."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from meshd.errors import UserError
from meshd.mesh.tls import client_context, server_context

_log = structlog.get_logger("meshd.gateway")

_FILES = ("ca.pem", "cert.pem", "key.pem")
_Signature = tuple[tuple[int, int, int], ...]


class Certificate:
    """:ivar server: for the peer door, None where there is no mesh. :ivar client: for callers."""

    def __init__(self) -> None:
        self.server: ssl.SSLContext | None = None
        self.client: ssl.SSLContext | None = None
        self._seen: tuple[str, _Signature] = ("", ())
        self._error = ""

    async def look(self, folder: str) -> bool:
        """Take what lies there if it is new; whether it was. What cannot be used is passed over.

        :param folder: with ``ca.pem``, ``cert.pem`` and ``key.pem``; "" for no mesh.
        """
        seen = (folder, await asyncio.to_thread(_signature, folder))
        if seen == self._seen:
            return False
        if not folder:
            self.server = self.client = None
        else:
            try:
                self.server, self.client = await asyncio.to_thread(_load, Path(folder))
            except UserError as error:
                # Three files do not change at once: the next look may find them whole.
                if str(error) != self._error:
                    self._error = str(error)
                    _log.warning(
                        "certificate not usable, the last good one stays", error=str(error)
                    )
                return False
        self._seen, self._error = seen, ""
        return True


def _load(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return server_context(folder), client_context(folder)


def _signature(folder: str) -> _Signature:
    if not folder:
        return ()
    found = []
    for name in _FILES:
        try:
            about = Path(folder, name).stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((about.st_ino, about.st_mtime_ns, about.st_size))
    return tuple(found)
