"""The shards' files that lie here, what is known of each, and how much they may take. Blocks.

=====================  ===============================================================
shards/KEY.gguf        a shard: engines read it
shards/...             what a writer left half done
experts/shards/K.json  its `shard_note`; a file without one is none
=====================  ===============================================================
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import structlog

from meshd.errors import UserError
from meshd.experts import shard_note
from meshd.experts.shard_note import NoteError, ShardNote, is_key
from meshd.experts.work_tools import Written
from meshd.files import sync_folder, write_atomically
from meshd.seeding.quota import Disk, Held, Quota, evictions

_log = structlog.get_logger(__name__)

SHARDS_MAX = 64
# A shard that was given up may be wanted again when a node comes back.
STAYS_S = 86_400
QUOTA = Quota()
_READ_BYTES = 1 << 20


class ShardShelf:
    """:param files: for engines to read. :param notes: ours alone.

    :param clock: Unix seconds.
    """

    def __init__(
        self,
        files: Path,
        notes: Path,
        disk: Callable[[Path], Disk],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._notes = notes
        self._disk = disk
        self._clock = clock

    def make(self) -> None:
        """Make the folders. :raises OSError: that is not possible."""
        self._notes.mkdir(parents=True, exist_ok=True)
        self._files.mkdir(parents=True, exist_ok=True)
        # Engines run as other users: they read, and list, and no more.
        self._files.chmod(0o755)

    def path(self, key: str) -> Path:
        """:raises UserError: the key is none, and so no name of a file."""
        if not is_key(key):
            raise UserError(f"{key!r} is no key of a shard")
        return self._files / f"{key}.gguf"

    def note(self, key: str) -> ShardNote | None:
        """None where there is no such shard, or it is not as it was left; that goes."""
        path = self.path(key)
        at = self._note_path(key)
        try:
            with at.open("rb") as file:
                found = shard_note.decode(file.read(shard_note.BYTES_MAX + 1), key)
            about = path.lstat()
            if (about.st_size, about.st_mtime_ns) != (found.size_bytes, found.mtime_ns):
                raise NoteError("the file was written to")
        except FileNotFoundError:
            at.unlink(missing_ok=True)
            return None
        except NoteError as error:
            _log.warning("a shard is of no use", key=key, why=str(error))
            self.remove(key)
            return None
        return found

    def notes(self) -> Iterator[ShardNote]:
        """Of all shards that lie here."""
        for path in sorted(self._notes.glob("*.json"))[: 4 * SHARDS_MAX]:
            found = self.note(path.stem) if is_key(path.stem) else None
            if found is not None:
                yield found

    def adopt(self, key: str, fingerprint: str, written: Written) -> ShardNote:
        """A file is whole and synced. :raises OSError: it cannot be noted."""
        path = self.path(key)
        path.chmod(0o644)
        now = int(self._clock())
        about = path.stat()
        if about.st_size != written.size_bytes:
            raise UserError(f"{path}: is not as it was written", hint="check the disk")
        note = ShardNote(
            key, fingerprint, written.size_bytes, written.sha256, about.st_mtime_ns, now, now
        )
        self.remember(note)
        return note

    def remember(self, note: ShardNote) -> None:
        """:raises OSError: it cannot be written."""
        write_atomically(self._note_path(note.key), shard_note.encode(note))

    def used(self, key: str) -> None:
        """It is wished or served now. :raises OSError: that cannot be written down."""
        note = self.note(key)
        if note is not None:
            self.remember(replace(note, used_s=int(self._clock())))

    def remove(self, key: str) -> None:
        """The note first: a file without one is none."""
        self._note_path(key).unlink(missing_ok=True)
        self.path(key).unlink(missing_ok=True)

    def make_room(self, key: str, needed_bytes: int, keep: Collection[str]) -> None:
        """Until so much more may be written: what was half done and nobody wishes goes, then
        shards, least recently used first.

        :param key: of the shard that it is for: what is half done of it is taken into account.
        :raises UserError: there is no room.
        """
        have = sum(_allocated(path) for path in self._halves() if key in path.name)
        self._sweep({*keep, key}, older_than_s=0.0)
        needed = max(0, needed_bytes - have)
        held = self._held()
        disk = self._disk(self._files)
        allowed = Quota(share=1.0, keep_free=QUOTA.keep_free).allowed_bytes(
            disk, sum(one.size_bytes for one in held)
        )
        gone = evictions(held, needed, allowed, keep)
        if gone is None:
            free = max(0, allowed - sum(one.size_bytes for one in held))
            raise UserError(
                f"a shard needs {needed / 1e9:.2f} GB more in {self._files}, "
                f"{free / 1e9:.2f} GB may be taken",
                hint="make room on this disk",
            )
        self._evict(gone, "made room")

    def tidy(self, keep: Collection[str]) -> None:
        """What nobody wished for a day goes as far as all together take more than their share of
        the disk; likewise what was half done.
        """
        self._sweep(keep, older_than_s=STAYS_S)
        held, now_s = self._held(), self._clock()
        young = {one.cache_name for one in held if now_s - one.used_s < STAYS_S}
        disk = self._disk(self._files)
        allowed = QUOTA.allowed_bytes(disk, sum(one.size_bytes for one in held))
        kept = young | set(keep)
        gone = evictions(held, 0, allowed, kept)
        if gone is None:
            gone = tuple(one.cache_name for one in held if one.cache_name not in kept)
        self._evict(gone, "was not wished any more")

    def verify(self, note: ShardNote, step: Callable[[int], None]) -> bool:
        """Read it and compare its SHA-256; it goes where that differs.

        :param step: called with the bytes of each piece that was read; may raise to give up.
        :raises OSError: the disk fails.
        """
        digest = hashlib.sha256()
        with self.path(note.key).open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
                step(len(piece))
            # It was not needed in memory, and what is needed should stay there.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        now = self.note(note.key)
        if now is None or now.sha256 != note.sha256:
            return False
        if digest.hexdigest() != note.sha256:
            _log.error("a shard was damaged", key=note.key)
            self.remove(note.key)
            return False
        self.remember(replace(now, verified_s=int(self._clock())))
        return True

    def _evict(self, keys: Collection[str], why: str) -> None:
        for key in keys:
            _log.info("a shard was removed", key=key, why=why)
            self.remove(key)
        if keys:
            sync_folder(self._files)

    def _held(self) -> tuple[Held, ...]:
        return tuple(Held(one.key, one.size_bytes, one.used_s) for one in self.notes())

    def _halves(self) -> Iterator[Path]:
        """What is in the folder and no shard."""
        known = {f"{one.key}.gguf" for one in self.notes()}
        for path in self._files.iterdir():
            if path.name not in known:
                yield path

    def _sweep(self, keep: Collection[str], older_than_s: float) -> None:
        now_s = self._clock()
        for path in list(self._halves()):
            if any(key in path.name for key in keep):
                continue
            try:
                if path.is_file() and now_s - path.lstat().st_mtime >= older_than_s:
                    path.unlink()
                    _log.info("what was half done of a shard was removed", file=path.name)
            except FileNotFoundError:
                continue

    def _note_path(self, key: str) -> Path:
        return self._notes / f"{key}.json"


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
