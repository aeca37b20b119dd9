"""Puts the tensors of one wish into the store: from files that are here, or from peers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshd.errors import UserError
from meshd.models.gguf_header import read_header
from meshd.seeding.fetch import Fetch
from meshd.seeding.manifest import Manifest
from meshd.seeding.namer import CHUNK_BYTES, Namer, Stored
from meshd.seeding.store import Store
from meshd.seeding.tensor_list import SeedTensor, of_layers, seedable
from meshd.seeding.wish import SeedStage, SeedWish


class StoppedError(Exception):
    """Nobody wants it any more."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What seeding takes. Everything may be called from a thread.

    :ivar rpc_server: where the engine's executable is. :raises UserError: there is none.
    :ivar tls_folder: this node's certificate in its mesh, for peers; None where there is no mesh.
    """

    store: Store
    rpc_server: Callable[[], Path]
    tls_folder: Path | None = None


Progress = Callable[[SeedStage, int, int], None]
"""Called with what is done, in bytes, of how much. May raise `StoppedError`."""


def _tensors(
    wish: SeedWish, manifest: Manifest | None, fetch: Fetch | None
) -> tuple[SeedTensor, ...]:
    """Every tensor that could be cached, not of these layers only."""
    if manifest is not None:
        return manifest.tensors
    if fetch is not None:
        return seedable(fetch.headers())
    return seedable([read_header(Path(file)) for file in wish.files])


def missing(manifest: Manifest | None, tensors: Sequence[SeedTensor]) -> tuple[SeedTensor, ...]:
    if manifest is None:
        return tuple(tensors)
    return tuple(tensor for tensor in tensors if tensor.name not in manifest.blobs)


def needed_names(manifest: Manifest | None, wish: SeedWish) -> frozenset[str]:
    """The cache names that a wish needs, of those that are there."""
    if manifest is None:
        return frozenset()
    wanted = of_layers(manifest.tensors, wish.first_layer, wish.layers)
    return frozenset(
        manifest.blobs[tensor.name].cache_name for tensor in wanted if tensor.name in manifest.blobs
    )


def seed(
    tools: Tools,
    wish: SeedWish,
    keep: frozenset[str],
    progress: Progress,
    pause: Callable[[float], object] = time.sleep,
) -> int:
    """Store what is missing of the wish, tensor by tensor; a lookup when nothing is.

    What was stored stays, also when it ends early.

    :param keep: cache names that other wishes need.
    :param pause: waits for so many seconds before peers are asked again, or less.
    :returns: the bytes that were stored.
    :raises UserError: no room, no source, an rpc-server that does not work.
    :raises OSError: a file cannot be read or written.
    """
    store = tools.store
    manifest = store.manifest(wish.fingerprint)
    fetch = None
    if not wish.files:
        fetch = Fetch(tools.tls_folder, wish, store.partial(wish.fingerprint), pause)
    tensors = _tensors(wish, manifest, fetch)
    manifest = store.begin(wish.fingerprint, wish.model, tensors)
    wanted = of_layers(tensors, wish.first_layer, wish.layers)
    lacking = missing(manifest, wanted)
    total = sum(tensor.size_bytes for tensor in wanted)
    missing_bytes = sum(tensor.size_bytes for tensor in lacking)
    done = total - missing_bytes
    stage = SeedStage.SEEDING if wish.files else SeedStage.FETCHING
    progress(stage, done, total)
    if not lacking:
        return 0
    # One tensor lies there twice while it is named after it was fetched.
    largest = max(tensor.size_bytes for tensor in lacking)
    spare = 0 if wish.files else largest
    store.make_room(missing_bytes + spare, keep | needed_names(manifest, wish))
    with store.work_folder() as folder, Namer(tools.rpc_server(), folder, largest) as namer:
        for tensor in lacking:
            before = done

            def step(count: int, before: int = before) -> None:
                progress(stage, before + count, total)

            if fetch is not None:
                stored = _fetched(fetch, tensor, namer, step)
            else:
                pieces = _local(wish.files[tensor.file], tensor, step)
                stored = namer.store(tensor.size_bytes, pieces)
            store.adopt(wish.fingerprint, tensor.name, stored)
            done += tensor.size_bytes
            progress(stage, done, total)
    return missing_bytes


def _local(file: str, tensor: SeedTensor, step: Callable[[int], None]) -> Iterator[bytes]:
    with Path(file).open("rb", buffering=0) as source:
        os.posix_fadvise(
            source.fileno(), tensor.offset, tensor.size_bytes, os.POSIX_FADV_SEQUENTIAL
        )
        source.seek(tensor.offset)
        left = tensor.size_bytes
        while left:
            piece = source.read(min(left, CHUNK_BYTES))
            if not piece:
                raise UserError(f"{file}: cut short", hint="download or copy it again")
            left -= len(piece)
            yield piece
            step(tensor.size_bytes - left)


def _fetched(fetch: Fetch, tensor: SeedTensor, namer: Namer, step: Callable[[int], None]) -> Stored:
    for _ in range(fetch.peers + 1):
        stored = namer.store(tensor.size_bytes, fetch.pieces(tensor, step))
        if fetch.right(tensor, stored.sha256):
            return stored
    raise UserError(f"{tensor.name} is damaged at every peer: its SHA-256 is not what they say")


def verify_all(store: Store, progress: Progress) -> tuple[int, dict[str, str]]:
    """Read every cached file; what is damaged is removed.

    :returns: the bytes that were read, and for each damaged file's name what was wrong with it.
    :raises UserError: there is no cache that could be read.
    """
    store.make()
    try:
        damaged = {finding.cache_name: finding.why for finding in store.check()}
        held = store.held()
        done, total = 0, sum(file.size_bytes for file in held)

        def step(count: int) -> None:
            nonlocal done
            done += count
            progress(SeedStage.CHECKING, done, total)

        for file in held:
            if not store.verify(file.cache_name, step):
                damaged[file.cache_name] = "has another content than was stored"
    except OSError as error:
        raise UserError(f"{error.filename or store.folder}: {error.strerror}") from error
    return done, damaged
