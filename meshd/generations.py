"""The last good configurations, kept so that a bad file can never leave a node with none.

A generation is one JSON file holding the text of every configuration file, so that it can be
restored exactly as it was written, comments included.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshd.config.load import SourceFile
from meshd.files import write_atomically

KEPT = 10
_SIZE_LIMIT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Generation:
    """:ivar saved_s: Unix time. :ivar summary: what it served, for people."""

    number: int
    saved_s: float
    files: tuple[SourceFile, ...]
    summary: str = ""


class GenerationStore:
    """The numbered generations in one folder.

    :param folder: created on first save, 0700: a configuration may name secrets' places.
    """

    def __init__(self, folder: Path, *, kept: int = KEPT) -> None:
        self._folder = folder
        self._kept = kept

    def newest_first(self) -> list[Generation]:
        """Every generation that can be read; a damaged one is passed over."""
        found = []
        for path in sorted(self._folder.glob("[0-9]*.json"), reverse=True):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                if path.stat().st_size <= _SIZE_LIMIT_BYTES:
                    found.append(msgspec.json.decode(path.read_bytes(), type=Generation))
        return found

    def save(self, files: tuple[SourceFile, ...], *, now_s: float, summary: str = "") -> Generation:
        """Keep `files` as the newest generation, unless the newest already is the same.

        :raises OSError: when the folder cannot be written.
        """
        known = self.newest_first()
        if known and known[0].files == files:
            return known[0]
        number = known[0].number + 1 if known else 1
        generation = Generation(number, now_s, files, summary)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(
            self._folder / f"{number:08}.json", msgspec.json.encode(generation), mode=0o600
        )
        for old in sorted(self._folder.glob("[0-9]*.json"), reverse=True)[self._kept :]:
            old.unlink(missing_ok=True)
        return generation


def previous(
    generations: list[Generation], current: tuple[SourceFile, ...], *, number: int | None = None
) -> Generation | None:
    """The generation to roll back to: `number`, else the newest that differs from `current`."""
    if number is not None:
        return next((g for g in generations if g.number == number), None)
    return next((g for g in generations if g.files != current), None)
