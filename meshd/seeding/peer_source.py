"""Ranges of a model's files from the peer door of a node that holds it.

`GET /mesh/v1/models/FINGERPRINT/INDEX` with Range, over the mesh's mutual TLS; see
`gateway.model_files` for the other end. Blocking, with a deadline on every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from meshd.mesh.peer_http import PeerHttp, SourceError
from meshd.models.gguf_header import GgufError, Header, parse_header
from meshd.seeding import manifest as manifests
from meshd.seeding.manifest import Manifest, ManifestError

PARTS_MAX = 512
_WHAT = "a part of the model"


class PeerSource:
    """One peer. Keeps one connection. For one thread at a time."""

    def __init__(
        self,
        node: str,
        address: str,
        tls_folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param address: ``host:port`` of its peer door."""
        self.node = node
        self._http = PeerHttp(node, address, tls_folder, clock)

    def headers(self, fingerprint: str) -> tuple[Header, ...]:
        """The headers of all parts. :raises SourceError: it has not got them, or not whole."""
        first, parts = self._header(fingerprint, 0)
        return (first, *(self._header(fingerprint, part)[0] for part in range(1, parts)))

    def manifest(self, fingerprint: str) -> Manifest | None:
        """What it knows of the tensors' contents, None where it never cached any."""
        try:
            with self._http.get(f"/mesh/v1/models/{fingerprint}/manifest") as answer:
                if answer.status != 200:
                    return None
                text = b"".join(self._http.pieces(answer, manifests.MAX_BYTES))
            found = manifests.decode(text)
        except (SourceError, ManifestError):
            return None
        return found if found.fingerprint == fingerprint else None

    def read(self, fingerprint: str, part: int, offset: int, size_bytes: int) -> Iterator[bytes]:
        """The bytes of one range, in pieces. :raises SourceError: it ended early or is too slow."""
        path = _path(fingerprint, part)
        with self._http.range(path, offset, size_bytes, _WHAT) as (answer, got, _):
            if got != size_bytes:
                raise SourceError(f"{self.node} has other bytes than its header says")
            left = size_bytes
            for piece in self._http.pieces(answer, size_bytes):
                left -= len(piece)
                yield piece
            if left:
                raise SourceError(f"{self.node} ended {left} bytes early")

    def close(self) -> None:
        self._http.close()

    def _header(self, fingerprint: str, part: int) -> tuple[Header, int]:
        path = _path(fingerprint, part)
        with self._http.range(path, 0, 1, _WHAT) as (answer, got, size_bytes):
            if got != 1:
                raise SourceError(f"{self.node} gives another range than was asked for")
            b"".join(self._http.pieces(answer, got))
            count = answer.headers.get("X-Mesh-Parts", "")
        parts = int(count) if count.isascii() and count.isdigit() else 0
        if not 0 < parts <= PARTS_MAX:
            raise SourceError(f"{self.node} does not say in how many files the model lies")
        reader = _Ahead(self, fingerprint, part, size_bytes)
        try:
            return parse_header(
                reader, Path(f"{self.node}:{fingerprint}/{part}"), size_bytes
            ), parts
        except GgufError as error:
            raise SourceError(str(error)) from error


class _Ahead:
    """A peer's file as `parse_header` reads it."""

    def __init__(self, source: PeerSource, fingerprint: str, part: int, size_bytes: int) -> None:
        self._source, self._fingerprint, self._part = source, fingerprint, part
        self._size_bytes = size_bytes
        self._at = 0

    def read(self, size: int, /) -> bytes:
        wanted = min(size, self._size_bytes - self._at)
        pieces = self._source.read(self._fingerprint, self._part, self._at, wanted)
        data = b"".join(pieces)
        self._at += len(data)
        return data


def _path(fingerprint: str, part: int) -> str:
    return f"/mesh/v1/models/{fingerprint}/{part}"
