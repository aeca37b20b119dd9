"""Reads all files with API keys, and keeps what was good in those that are broken now."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshd.keys.key import ApiKey
from meshd.keys.key_file import KeyFile, parse_keys
from meshd.keys.key_ring import KeyRing, ring
from meshd.keys.yaml_nodes import MAX_BYTES

CREDENTIAL = "mesh.keys"
"""Of systemd: this one, and those whose names begin so and a dot."""

_MAX_FILES = 1000

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class KeyPlaces:
    """Where keys are written.

    :ivar folder: with files ``*.yaml``. :ivar credentials: ``$CREDENTIALS_DIRECTORY`` or None.
    """

    folder: Path
    credentials: Path | None = None

    def files(self) -> list[Path]:
        """All of them, in the order in which they count.

        :raises OSError: the folder is there and cannot be listed.
        """
        found = [*_in_folder(self.folder, lambda name: name.endswith(".yaml"))]
        if self.credentials is not None:
            found += _in_folder(
                self.credentials,
                lambda name: name in ("keys", CREDENTIAL) or name.startswith(f"{CREDENTIAL}."),
            )
        return found[:_MAX_FILES]

    def signature(self) -> Signature:
        """Another one whenever some file is another one."""
        try:
            files = self.files()
        except OSError as error:
            return (("", error.errno or 0, 0, 0),)
        return tuple(_signature(path) for path in files)


def places(folder: Path, environment: Mapping[str, str] = os.environ) -> KeyPlaces:
    """:param folder: `Paths.keys`."""
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    return KeyPlaces(folder, Path(credentials) if credentials else None)


class KeyFolder:
    """:ivar ring: as last read."""

    def __init__(self, where: KeyPlaces) -> None:
        self.where = where
        self.ring = KeyRing()
        self._good: dict[Path, tuple[ApiKey, ...]] = {}

    def read(self) -> KeyRing:
        """Read everything anew. Blocking; never fails: what cannot be read is an error in it.

        A file that was good and is broken now still gives its old keys. One that is broken from
        the start gives those of its keys that are in order.
        """
        try:
            files = self.where.files()
        except OSError as error:
            files = [*self._good]
            self.ring = ring(_all(self._good, files), [f"{self.where.folder}: {error.strerror}"])
            return self.ring
        good: dict[Path, tuple[ApiKey, ...]] = {}
        errors: list[str] = []
        for path in files:
            said = _read(path)
            before = self._good.get(path)
            if said is None:
                continue  # removed while we looked
            if said.errors and before is not None:
                errors += (f"{error}; its keys from before still count" for error in said.errors)
                good[path] = before
            else:
                errors += said.errors
                good[path] = said.keys
        self._good = good
        self.ring = ring(_all(good, files), errors)
        return self.ring


def read_keys(folder: Path, environment: Mapping[str, str] = os.environ) -> KeyRing:
    """All keys of this node, once. Blocking."""
    return KeyFolder(places(folder, environment)).read()


def _all(good: Mapping[Path, tuple[ApiKey, ...]], files: Iterable[Path]) -> Iterator[ApiKey]:
    for path in files:
        yield from good.get(path, ())


def _in_folder(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in paths:
        if wanted(path.name) and not path.name.startswith("."):
            yield path


def _read(path: Path) -> KeyFile | None:
    try:
        # Not to hang on a pipe that somebody put there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                return KeyFile(errors=(f"{path}: is not a file",))
            if about.st_mode & 0o022:
                return KeyFile(
                    errors=(
                        f"{path}: can be written by others than its owner: chmod go-w {path}, and "
                        "see who has keys in it",
                    )
                )
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None if not path.is_symlink() else KeyFile(errors=(f"{path}: leads nowhere",))
    except OSError as error:
        return KeyFile(errors=(f"{path}: cannot be read: {error.strerror}",))
    return parse_keys(str(path), data)


def _signature(path: Path) -> tuple[str, int, int, int]:
    try:
        about = path.stat()
    except OSError as error:
        return str(path), error.errno or 0, 0, 0
    # Changed by chmod too: a file that could not be read may be readable now.
    return str(path), about.st_ino, about.st_ctime_ns, about.st_size
