"""Facts kept over restarts, so that a start does not parse headers that it knows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from meshd.files import write_atomically
from meshd.models.facts import GgufFacts, LayerFacts
from meshd.models.gguf_facts import read_facts, split_files
from meshd.models.gguf_header import GgufError

# To be raised when the same header gives other facts than before.
_FORMAT = 3
_ENTRIES_MAX = 256
_CACHE_BYTES_MAX = 32 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    """:ivar signature: size in bytes and mtime in ns of every part."""

    signature: tuple[tuple[int, int], ...]
    facts: GgufFacts


@dataclass(frozen=True, slots=True)
class _Content:
    format: str
    entries: dict[str, _Entry]


class FactsCache:
    """Facts by path, valid while size and modification time of every part stay.

    The file is only a cache: one that is missing, damaged or of another version is begun anew, and
    one that cannot be written is done without. Not for use from several threads at once.
    """

    def __init__(self, path: Path, *, read: Callable[[Path], GgufFacts] = read_facts) -> None:
        self._path = path
        self._read = read
        self._entries = _load(path)

    def facts(self, model: Path) -> GgufFacts:
        """Read the facts of a model, from its headers only when they are not known.

        :raises GgufError: as `read_facts`; failures are not remembered.
        """
        files = split_files(model)
        key = str(files[0])
        signature = tuple(_signature(file) for file in files)
        entry = self._entries.pop(key, None)
        if entry is not None and entry.signature == signature:
            self._entries[key] = entry  # the last used stay
            return entry.facts
        facts = self._read(files[0])
        self._entries[key] = _Entry(signature, facts)
        while len(self._entries) > _ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        self._save()
        return facts

    def _save(self) -> None:
        content = msgspec.json.encode(_Content(_format(), self._entries))
        # A cache that cannot be written costs time at the next start, and nothing else.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, content)


def _signature(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise GgufError(f"{file}: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def _format() -> str:
    names = [field.name for kind in (GgufFacts, LayerFacts) for field in fields(kind)]
    return f"{_FORMAT} {' '.join(names)}"


def _load(path: Path) -> dict[str, _Entry]:
    try:
        if path.stat().st_size > _CACHE_BYTES_MAX:
            return {}
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return {}
    return content.entries if content.format == _format() else {}
