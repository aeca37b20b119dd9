"""The models on this machine's disks, each with its facts and its fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from meshd.errors import UserError
from meshd.models.facts import GgufFacts
from meshd.models.facts_cache import FactsCache
from meshd.models.fingerprint import fingerprint
from meshd.models.shelf import scan

_log = structlog.get_logger(__name__)

HELD_MAX = 64
_PRINTS_MAX = 512


@dataclass(frozen=True, slots=True)
class Book:
    """One model on disk.

    :ivar identity: changes when any of its files is replaced here: paths, sizes and times.
    :ivar fingerprint: of its content, the same on every machine.
    :ivar modified_s: Unix time of the newest of its files.
    """

    facts: GgufFacts
    identity: str
    fingerprint: str
    modified_s: int


class Library:
    """Reads what it does not know yet. Blocking, and for one thread at a time."""

    def __init__(self, facts: FactsCache) -> None:
        self._facts = facts
        self._prints: dict[str, str] = {}
        self._unreadable: set[Path] = set()

    def book(self, model: Path) -> Book:
        """:raises UserError: its header cannot be read. :raises OSError: nor the file itself."""
        facts = self._facts.facts(model)
        stamps = [(file, Path(file).stat()) for file in facts.files]
        identity = "|".join(f"{file}:{st.st_size}:{st.st_mtime_ns}" for file, st in stamps)
        known = self._prints.pop(identity, None)
        self._prints[identity] = known or fingerprint([Path(file) for file in facts.files])
        while len(self._prints) > _PRINTS_MAX:
            del self._prints[next(iter(self._prints))]
        modified_s = max(int(stamp.st_mtime) for _, stamp in stamps)
        return Book(facts, identity, self._prints[identity], modified_s)

    def held(self, folders: Sequence[Path]) -> tuple[Book, ...]:
        """Every readable model in the folders, at most `HELD_MAX`; projectors are none."""
        books: list[Book] = []
        unreadable: set[Path] = set()
        for file in scan(folders):
            if len(books) == HELD_MAX:
                break
            try:
                book = self.book(file)
            except (UserError, OSError) as error:
                unreadable.add(file)
                if file not in self._unreadable:
                    _log.warning("a file in the model folders is no model", error=str(error))
                continue
            if not book.facts.mmproj:
                books.append(book)
        self._unreadable = unreadable
        return tuple(books)
