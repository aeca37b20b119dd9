"""Single tensors from whichever peer has them, resumed where the last try ended."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from meshd.errors import UserError
from meshd.mesh.peer_http import SourceError
from meshd.models.gguf_header import Header
from meshd.seeding.peer_source import PeerSource
from meshd.seeding.tensor_list import SeedTensor
from meshd.seeding.wish import SeedWish

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

ROUNDS = 3
PAUSE_S = 2.0
_PIECE_BYTES = 1 << 20


class FetchError(UserError):
    """No peer gave it."""


class Fetch:
    """Of one model. Blocking, for one thread."""

    def __init__(
        self,
        tls_folder: Path | None,
        wish: SeedWish,
        folder: Path,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """:param folder: for what is half there."""
        self._wish = wish
        self._folder = folder
        self._pause = pause
        self._sources = (
            [] if tls_folder is None else [PeerSource(*one, tls_folder) for one in wish.sources]
        )
        self._sums: dict[str, str] | None = None

    def headers(self) -> tuple[Header, ...]:
        """:raises FetchError: no peer tells."""
        with self._closing():
            return self._try_all(lambda source: source.headers(self._wish.fingerprint))

    def pieces(self, tensor: SeedTensor, step: Callable[[int], None]) -> Iterator[bytes]:
        """The tensor's bytes, once all of them are here.

        :param step: called with the bytes that are here so far; may raise to give up.
        :raises FetchError: no peer gives them.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(tensor)
        with self._closing():
            if self._sums is None:
                self._sums = self._known_sums()
            self._try_all(lambda source: self._receive(source, tensor, path, step))
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def right(self, tensor: SeedTensor, sha256: str) -> bool:
        """It was stored: forget the half, and compare with what peers say of it.

        False where it differs; whoever sent it is asked last then.
        """
        self._path(tensor).unlink(missing_ok=True)
        said = (self._sums or {}).get(tensor.name)
        if said is None or said == sha256:
            return True
        _log.warning("a tensor came damaged", tensor=tensor.name, node=self._sources[0].node)
        self._sources.append(self._sources.pop(0))
        return False

    @property
    def peers(self) -> int:
        return len(self._sources)

    def _receive(
        self, source: PeerSource, tensor: SeedTensor, path: Path, step: Callable[[int], None]
    ) -> None:
        with path.open("ab", buffering=0) as file:
            have = file.tell()
            if have > tensor.size_bytes:
                file.truncate(0)
                have = 0
            step(have)
            if have == tensor.size_bytes:
                return
            rest = source.read(
                self._wish.fingerprint, tensor.file, tensor.offset + have, tensor.size_bytes - have
            )
            for piece in rest:
                view = memoryview(piece)
                while view:
                    view = view[os.write(file.fileno(), view) :]
                have += len(piece)
                step(have)

    def _path(self, tensor: SeedTensor) -> Path:
        # Names are a model's words; what lies on the disk is named by us.
        key = f"{tensor.name} {tensor.file} {tensor.offset} {tensor.size_bytes}"
        return self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _known_sums(self) -> dict[str, str]:
        sums: dict[str, str] = {}
        for source in self._sources:
            manifest = source.manifest(self._wish.fingerprint)
            if manifest is not None:
                for name, blob in manifest.blobs.items():
                    sums.setdefault(name, blob.sha256)
        return sums

    def _try_all(self, ask: Callable[[PeerSource], _T]) -> _T:
        """Each source in turn; the one that worked last is asked first the next time."""
        if not self._sources:
            raise FetchError(f"{self._wish.model}: its file is not here and no peer is known")
        why = ""
        for round_ in range(ROUNDS):
            if round_:
                self._pause(PAUSE_S * round_)
            for source in list(self._sources):
                try:
                    return ask(source)
                except (SourceError, ValueError) as error:
                    why = str(error)
                    _log.warning("a peer did not give a tensor", node=source.node, why=why)
                    self._sources.remove(source)
                    self._sources.append(source)
        raise FetchError(f"{self._wish.model}: no peer gives its weights: {why}")

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            for source in self._sources:
                source.close()
