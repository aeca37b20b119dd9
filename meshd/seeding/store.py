"""The tensor cache on disk: files by content, a manifest per model, and nothing unknown between.

rpc-server believes whatever lies in ``rpc/`` under the right name, so a file there is either in a
manifest, with the size and time that it had when it was whole, or it goes.

=================  ==============================================================
rpc/NAME           a tensor's content, named by its FNV-1a 64: what rpc-server reads
manifests/F.json   of the model with fingerprint F, see `manifest`
partial/F/...      tensors that are being fetched from a peer
work/              temporary files; renamed into rpc/ when whole and synced
unclean            there while somebody keeps the store open
lock               held for moments, by whoever changes any of it
=================  ==============================================================

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from meshd.errors import UserError
from meshd.files import sync_folder, write_atomically
from meshd.seeding import manifest as manifests
from meshd.seeding.manifest import Blob, Manifest, ManifestError
from meshd.seeding.namer import Stored
from meshd.seeding.quota import Disk, Held, Quota, evictions
from meshd.seeding.tensor_list import SeedTensor

_log = structlog.get_logger(__name__)

MODELS_MAX = 256
_READ_BYTES = 1 << 20
_HELD = "held"


class StoreError(UserError):
    """The cache cannot take what it should."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that was not what it should be, and was removed."""

    cache_name: str
    why: str


def disk_of(folder: Path) -> Disk:
    about = os.statvfs(folder)
    return Disk(about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize)


class Store:
    """One per process and folder; several processes may have the same folder."""

    def __init__(
        self,
        folder: Path,
        quota: Quota = Quota(),  # noqa: B008 - immutable
        disk: Callable[[Path], Disk] = disk_of,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._quota = quota
        self._disk = disk
        self._clock = clock
        self._manifests: dict[str, tuple[tuple[int, int], Manifest]] = {}

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def partial(self, fingerprint: str) -> Path:
        return self.folder / "partial" / fingerprint

    def manifest_path(self, fingerprint: str) -> Path:
        return self.folder / "manifests" / f"{fingerprint}.json"

    @property
    def _files(self) -> Path:
        return self.folder / "rpc"

    @property
    def _marker(self) -> Path:
        return self.folder / "unclean"

    @contextlib.contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A folder for temporary files, which goes with the context or after this process.

        :raises OSError: the disk fails.
        """
        with self._lock():
            folder = Path(tempfile.mkdtemp(dir=self.work))
            _as_parent(folder)
            descriptor = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def make(self) -> None:
        """Make the folders. :raises StoreError: that is not possible."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            folders = self._files, self.work, self.manifest_path("").parent
            for folder in (self.folder, *folders):
                if not folder.is_dir():
                    folder.mkdir()
                    # Engines run as other users: they read, and list, and no more.
                    folder.chmod(0o755)
                    _as_parent(folder)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: the tensor cache cannot be kept: {error.strerror}"
            ) from error

    def open(self) -> bool:
        """Keep it open until `close`; whether the last one who did was cut off.

        After that every file has to be verified before it is used, and what was half fetched or
        half written is thrown away.

        :raises StoreError: the folder cannot be made or written.
        """
        self.make()
        try:
            with self._lock():
                unclean = self._marker.exists()
                if unclean:
                    for one in self._all():
                        blobs = {n: replace(b, verified_s=0) for n, b in one.blobs.items()}
                        self._write(replace(one, blobs=blobs))
                    shutil.rmtree(self.folder / "partial", ignore_errors=True)
                else:
                    write_atomically(self._marker, b"")
                for left in self.work.iterdir():
                    _remove_abandoned(left)
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}") from error
        if unclean:
            _log.warning("the tensor cache was left open; it is verified before it is used")
        return unclean

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._marker.unlink(missing_ok=True)
            sync_folder(self.folder)

    def manifest(self, fingerprint: str) -> Manifest | None:
        """None where there is none that can be used."""
        path = self.manifest_path(fingerprint)
        try:
            about = path.stat()
            stamp = about.st_mtime_ns, about.st_ino
            known = self._manifests.get(fingerprint)
            if known is not None and known[0] == stamp:
                return known[1]
            if about.st_size > manifests.MAX_BYTES:
                return None
            found = manifests.decode(path.read_bytes())
        except (OSError, ManifestError):
            return None
        if found.fingerprint != fingerprint:
            return None
        self._manifests[fingerprint] = stamp, found
        return found

    def all(self) -> tuple[Manifest, ...]:
        """Every model's."""
        return tuple(self._all())

    def begin(self, fingerprint: str, model: str, tensors: Sequence[SeedTensor]) -> Manifest:
        """Have a manifest for this model.

        :raises StoreError: there are too many models, or the fingerprint is none.
        :raises OSError: it cannot be written.
        """
        if not manifests.is_fingerprint(fingerprint):
            raise StoreError(f"{model}: {fingerprint!r} is no fingerprint")
        with self._lock():
            known = self.manifest(fingerprint)
            if known is not None and known.tensors == tuple(tensors):
                return known
            if known is None and sum(1 for _ in self._all()) >= MODELS_MAX:
                raise StoreError(f"{self.folder}: it knows {MODELS_MAX} models already")
            fresh = Manifest(fingerprint, model, tuple(tensors))
            self._write(fresh)
            return fresh

    def check(self) -> tuple[Finding, ...]:
        """Compare size and time of every file with its manifest; remove what differs, and strays.

        :raises OSError: the folder cannot be read or written.
        """
        with self._lock():
            known = {blob.cache_name: blob for one in self._all() for blob in one.blobs.values()}
            findings = []
            present = set()
            with os.scandir(self._files) as entries:
                for entry in entries:
                    blob = known.get(entry.name)
                    why = _difference(entry, blob)
                    if why:
                        _remove(Path(entry.path))
                        if blob is not None:
                            findings.append(Finding(entry.name, why))
                        else:
                            _log.warning("a stranger in the tensor cache", file=entry.name)
                    else:
                        present.add(entry.name)
            removed = {finding.cache_name for finding in findings}
            gone = sorted(known.keys() - present - removed)
            findings += [Finding(name, "was gone") for name in gone]
            self._forget({finding.cache_name: finding.why for finding in findings})
            return tuple(findings)

    def verify(self, cache_name: str, step: Callable[[int], None]) -> bool:
        """Read one file and compare its SHA-256; it goes when that differs.

        :param step: called with the bytes of each piece that was read; may raise to give up.
        :raises OSError: the disk fails.
        """
        blob = self._blob(cache_name)
        if blob is None:
            return False
        digest = hashlib.sha256()
        try:
            with (self._files / cache_name).open("rb", buffering=0) as file:
                while piece := file.read(_READ_BYTES):
                    digest.update(piece)
                    step(len(piece))
        except FileNotFoundError:
            return False
        right = digest.hexdigest() == blob.sha256
        with self._lock():
            if right:
                self._update({cache_name}, lambda old: replace(old, verified_s=self._now()))
            else:
                _remove(self._files / cache_name)
                self._forget({cache_name: "its content was damaged"})
        return right

    def used(self, cache_names: Collection[str]) -> None:
        """A wish needs these now. :raises OSError: that cannot be written down."""
        with self._lock():
            self._update(frozenset(cache_names), lambda old: replace(old, used_s=self._now()))

    def make_room(self, needed_bytes: int, keep: Collection[str]) -> None:
        """Remove what was least recently used until so much more may be written.

        :param keep: cache names that stay.
        :raises StoreError: there is no room for it.
        :raises OSError: the disk fails.
        """
        with self._lock():
            held = self.held()
            disk = self._disk(self.folder)
            allowed = self._quota.allowed_bytes(disk, sum(file.size_bytes for file in held))
            gone = evictions(held, needed_bytes, allowed, keep)
            if gone is None:
                kept = sum(file.size_bytes for file in held if file.cache_name in keep)
                raise StoreError(
                    f"the tensor cache needs {_gb(needed_bytes)} more, and may have "
                    f"{_gb(max(0, allowed - kept))} ({_gb(disk.free_bytes)} free in {self.folder})",
                    hint="make room on this disk",
                )
            for name in gone:
                _remove(self._files / name)
            self._forget(dict.fromkeys(gone, "made room"))

    def adopt(self, fingerprint: str, tensor: str, stored: Stored) -> Blob:
        """Take a file that is whole and synced; the manifest says so afterwards.

        :raises StoreError: the model has no manifest (any more).
        :raises OSError: the disk fails.
        """
        target = self._files / stored.cache_name
        with self._lock():
            known = self._blob(stored.cache_name)
            if known is not None and known.sha256 == stored.sha256 and _sound(target, known):
                stored.path.unlink()  # another model has the same content
            else:
                stored.path.replace(target)
                sync_folder(self._files)
            now = self._now()
            blob = Blob(
                stored.cache_name, stored.size_bytes, stored.sha256,
                target.stat().st_mtime_ns, now, now,
            )  # fmt: skip
            one = self.manifest(fingerprint)
            if one is None:
                raise StoreError(f"{self.manifest_path(fingerprint)} is gone")
            self._write(replace(one, blobs={**one.blobs, tensor: blob}))
            return blob

    def held(self) -> tuple[Held, ...]:
        """What is there according to the manifests."""
        found: dict[str, Held] = {}
        for one in self._all():
            for blob in one.blobs.values():
                before = found.get(blob.cache_name)
                used_s = max(blob.used_s, before.used_s if before else 0)
                found[blob.cache_name] = Held(blob.cache_name, blob.size_bytes, used_s)
        return tuple(found.values())

    def stalest(self) -> Blob | None:
        """The file whose content was not verified for the longest time."""
        blobs = (blob for one in self._all() for blob in one.blobs.values())
        return min(blobs, key=lambda blob: blob.verified_s, default=None)

    def _now(self) -> int:
        return int(self._clock())

    def _all(self) -> Iterator[Manifest]:
        for path in sorted(self.manifest_path("").parent.glob("*.json"))[:MODELS_MAX]:
            found = self.manifest(path.stem)
            if found is None:
                _log.warning("a manifest of the tensor cache is of no use", file=str(path))
                _remove(path)
            else:
                yield found

    def _blob(self, cache_name: str) -> Blob | None:
        return next(
            (b for one in self._all() for b in one.blobs.values() if b.cache_name == cache_name),
            None,
        )

    def _update(self, names: Collection[str], change: Callable[[Blob], Blob]) -> None:
        for one in list(self._all()):
            blobs = {
                tensor: change(blob) if blob.cache_name in names else blob
                for tensor, blob in one.blobs.items()
            }
            if blobs != one.blobs:
                self._write(replace(one, blobs=blobs))

    def _forget(self, gone: Mapping[str, str]) -> None:
        for name, why in gone.items():
            _log.info("a cached tensor was removed", file=name, why=why)
        for one in list(self._all()):
            blobs = {t: blob for t, blob in one.blobs.items() if blob.cache_name not in gone}
            if len(blobs) != len(one.blobs):
                self._write(replace(one, blobs=blobs))

    def _write(self, manifest: Manifest) -> None:
        write_atomically(self.manifest_path(manifest.fingerprint), manifests.encode(manifest))
        self._manifests.pop(manifest.fingerprint, None)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        # Read-only: whoever made the file, others can lock it too.
        descriptor = os.open(self.folder / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _difference(entry: os.DirEntry[str], blob: Blob | None) -> str:
    if blob is None:
        return "is in no manifest"
    about = entry.stat(follow_symlinks=False)
    if about.st_size != blob.size_bytes:
        return f"has {about.st_size} bytes, not {blob.size_bytes}"
    if about.st_mtime_ns != blob.mtime_ns or not entry.is_file(follow_symlinks=False):
        return "was written to"
    return ""


def _sound(path: Path, blob: Blob) -> bool:
    try:
        about = path.lstat()
    except OSError:
        return False
    return (about.st_size, about.st_mtime_ns) == (blob.size_bytes, blob.mtime_ns)


def _as_parent(path: Path) -> None:
    """What root makes on the command line belongs to meshd's user, as all around it."""
    if os.geteuid() == 0:
        about = path.parent.stat()
        os.chown(path, about.st_uid, about.st_gid)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Unless its process still runs: that holds a lock in it."""
    try:
        descriptor = os.open(folder / _HELD, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        _remove(folder)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
