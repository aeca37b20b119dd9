"""Writes the file of a shard from the files of its model.

The kernel copies (sendfile), and a second thread hashes what it wrote, some blocks behind, while it
is still in memory; neither holds the interpreter's lock. Nothing is mapped: mapped pages would
count as this process's memory, and a source that becomes shorter meanwhile would end it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from meshd.errors import UserError
from meshd.experts.open_source import FULL, ChangedError, OpenSource
from meshd.experts.ranking import Selection
from meshd.experts.shard_layout import Run, ShardLayout, Source, shard_layout
from meshd.experts.write_journal import Checkpoint, WriteJournal
from meshd.files import sync_folder
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_headers

_BLOCK_BYTES = 8 << 20
_READ_BYTES = 1 << 20
# How far the hash may lag behind the copy.
_BLOCKS_MAX = 8
# A killed run loses two of them at most. Each syncs, which hurts where there are many.
_CHECKPOINT_BYTES = 256 << 20
# For the journal, and so that a file system is not filled to its last byte.
_STAYS_FREE_BYTES = 64 << 20
_NO_FINGERPRINT = "0" * 16

Progress = Callable[[int, int], None]


class StoppedError(UserError):
    """The caller asked for it; what was written is gone on with the next time."""


@dataclass(frozen=True, slots=True)
class Written:
    """:ivar sha256: of the whole file, 64 hex digits."""

    path: Path
    size_bytes: int
    sha256: str


def shard_bytes(files: tuple[str, ...], selection: Selection) -> int:
    """Size of the file that `write_shard` would write.

    :raises UserError: no shard can be made of these files, or not with these experts.
    """
    return shard_layout(_source(files, _NO_FINGERPRINT), selection).size_bytes


def write_shard(
    files: tuple[str, ...],
    selection: Selection,
    target: Path,
    *,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Written:
    """Write `target` anew, or go on with what an interrupted run wrote of it.

    Blocks for as long as that takes, so it is for a thread. Until it is whole and synced, the file
    has another name (`partial_files`), by which it is found again.

    :param files: all parts of the model, in order.
    :param progress: is told the bytes that are done, and how many there will be.
    :param stopped: is asked before each block.

    :raises StoppedError: `stopped` said so.
    :raises UserError: no shard can be made of these files, or not with these experts; there is no
        room; the source changed; another process writes the same.
    :raises OSError: the folder cannot be written.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(OpenSource(file)) for file in files]
        layout = shard_layout(_source(files, _fingerprint(files)), selection)
        partial, journal_path = partial_files(target)
        output = _locked(partial, stack)
        identity = hashlib.sha256(
            layout.header + repr([source.signature for source in sources]).encode()
        ).hexdigest()
        journal = WriteJournal(journal_path, identity)
        stack.callback(journal.close)
        try:
            job = _Job(layout, sources, output, journal, progress, stopped)
            sha256 = job.run(target.parent)
            for source in sources:
                source.check_unchanged()
            os.fchmod(output, 0o644)
            os.fsync(output)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in FULL
            if full or isinstance(error, ChangedError) or not journal.checkpoints:
                discard(target)
            if full:
                size_gb = layout.size_bytes / 1e9
                raise UserError(
                    f"{target.parent}: no room for a shard of {size_gb:.2f} GB",
                    hint="free some of it",
                ) from error
            raise
        partial.replace(target)
        journal_path.unlink()
        sync_folder(target.parent)
    return Written(target, layout.size_bytes, sha256)


def partial_files(target: Path) -> tuple[Path, Path]:
    """Names of what is written of `target`, and of its journal, until it is whole."""
    return target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.journal")


def discard(target: Path) -> None:
    """Remove what an interrupted run left of `target`, if there is anything.

    :raises OSError: it cannot be removed.
    """
    for path in partial_files(target):
        path.unlink(missing_ok=True)


class _Job:
    """One run of the writer."""

    def __init__(
        self,
        layout: ShardLayout,
        sources: Sequence[OpenSource],
        output: int,
        journal: WriteJournal,
        progress: Progress,
        stopped: Callable[[], bool],
    ) -> None:
        self._layout = layout
        self._sources = sources
        self._output = output
        self._journal = journal
        self._progress = progress
        self._stopped = stopped
        self._digest = hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._hashing = ThreadPoolExecutor(1, "shard-hash")
        self._syncing = ThreadPoolExecutor(1, "shard-sync")

    def run(self, folder: Path) -> str:
        """Returns the whole file's SHA-256."""
        with self._hashing, self._syncing:
            done = self._verified()
            os.ftruncate(self._output, done)
            self._check_room(folder, self._layout.size_bytes - done)
            self._write(done)
            return self._digest.hexdigest()

    def _verified(self) -> int:
        """How much of what lies there is as the journal says. Leaves the digest there."""
        checkpoints = self._journal.checkpoints
        good, good_digest, end = 0, self._digest.copy(), 0
        for one in checkpoints:
            if one.end > self._layout.size_bytes:
                break
            while end < one.end:
                self._may_go_on()
                count = self._hash(end, min(_BLOCK_BYTES, one.end - end))
                if not count:
                    break
                end += count
                self._progress(end, self._layout.size_bytes)
            if end != one.end or self._digest.hexdigest() != one.sha256:
                break
            good, good_digest = good + 1, self._digest.copy()
        self._digest = good_digest
        self._journal.keep(good)
        return checkpoints[good - 1].end if good else 0

    def _write(self, done: int) -> None:
        hashed: deque[Future[int]] = deque()
        synced: Future[None] | None = None
        next_checkpoint = done + _CHECKPOINT_BYTES
        os.lseek(self._output, done, os.SEEK_SET)
        for block in _blocks(self._layout, done):
            self._may_go_on()
            for run in block:
                self._copy(run)
            size = sum(run.size for run in block)
            hashed.append(self._hashing.submit(self._hash, done, size))
            done += size
            if len(hashed) > _BLOCKS_MAX:
                hashed.popleft().result()
            if done >= next_checkpoint:
                next_checkpoint = done + _CHECKPOINT_BYTES
                if synced is not None:
                    synced.result()
                so_far = self._hashing.submit(lambda: self._digest.copy().hexdigest())
                synced = self._syncing.submit(self._checkpoint, done, so_far)
            self._progress(done, self._layout.size_bytes)
        # The rest goes to the disk while the last blocks are hashed.
        rest = self._syncing.submit(os.fdatasync, self._output)
        for future in hashed:
            future.result()
        if synced is not None:
            synced.result()
        rest.result()

    def _may_go_on(self) -> None:
        if self._stopped():
            raise StoppedError("the writing of a shard was stopped; it goes on from there")

    def _copy(self, run: Run) -> None:
        if run.source >= 0:
            self._sources[run.source].send(self._output, run.start, run.size)
            return
        data = memoryview(bytes(run.size))
        if run.source == _HEADER:
            data = memoryview(self._layout.header)[run.start : run.start + run.size]
        while data:
            data = data[os.write(self._output, data) :]

    def _hash(self, start: int, size: int) -> int:
        """Take so many bytes of what was written into the digest; fewer where the file ends."""
        done = 0
        while done < size:
            piece = self._buffer[: min(len(self._buffer), size - done)]
            count = os.preadv(self._output, [piece], start + done)
            if not count:
                break
            self._digest.update(piece[:count])
            done += count
        return done

    def _checkpoint(self, end: int, sha256: Future[str]) -> None:
        os.fdatasync(self._output)
        self._journal.add(Checkpoint(end, sha256.result()))

    def _check_room(self, folder: Path, needed: int) -> None:
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        if needed + _STAYS_FREE_BYTES > free:
            raise UserError(
                f"{folder}: a shard needs {needed / 1e9:.2f} GB more there, and "
                f"{_STAYS_FREE_BYTES / 1e9:.2f} GB have to stay free; {free / 1e9:.2f} GB are",
                hint="free some of it",
            )


_HEADER = -2
"""In place of a source's number: bytes of the layout's header."""


def _blocks(layout: ShardLayout, start: int) -> Iterator[list[Run]]:
    """Runs that together fill one block after the other, from that byte of the file on."""
    block: list[Run] = []
    left, skip = _BLOCK_BYTES, start
    for run in (Run(_HEADER, 0, len(layout.header)), *layout.runs):
        first = min(skip, run.size)
        skip -= first
        while first < run.size:
            size = min(run.size - first, left)
            block.append(Run(run.source, run.start + first, size))
            first, left = first + size, left - size
            if not left:
                yield block
                block, left = [], _BLOCK_BYTES
    if block:
        yield block


def _locked(partial: Path, stack: ExitStack) -> int:
    """The unfinished file, open and this process's alone."""
    output = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, output)
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other one may have finished, and given the file its name, since it was opened.
        if os.path.samestat(os.fstat(output), partial.stat()):
            return output
    except (BlockingIOError, FileNotFoundError):
        pass
    raise UserError(f"{partial}: another process writes it")


def _fingerprint(files: tuple[str, ...]) -> str:
    try:
        return fingerprint([Path(file) for file in files])
    except OSError as error:
        raise UserError(f"{error.filename or files[0]}: {error.strerror or error}") from error


def _source(files: tuple[str, ...], content: str) -> Source:
    if not files:
        raise UserError("a shard is made of a model, and none was named")
    first = Path(files[0])
    found, headers = read_headers(first)
    if [str(one) for one in found] != [str(Path(file).absolute()) for file in files]:
        raise UserError(f"{first}: the model has {len(found)} files, not these {len(files)}")
    with contextlib.suppress(OSError), first.open("rb") as file:
        keys = file.read(headers[0].data_offset)
        if len(keys) == headers[0].data_offset:
            return Source(first, headers, keys, content)
    raise UserError(f"{first}: it changed while it was read")
