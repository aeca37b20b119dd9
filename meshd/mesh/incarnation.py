"""How often this node has started: of two things it said, the higher incarnation is the newer."""

from __future__ import annotations

from pathlib import Path

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.mesh.identity import folder_of

# Beyond it only a broken or a lying peer counts; what carries it is a signed 64-bit number.
MAX_INCARNATION = 2**62


class IncarnationStore:
    """The counter beside the node's key. It outlives restarts; a lost one is learnt from the mesh.

    :raises UserError: from every call, when the file cannot be written.
    """

    def __init__(self, state: Path) -> None:
        self._path = folder_of(state) / "incarnation"

    def next_incarnation(self) -> int:
        """A number higher than any before, on disk before it is returned."""
        return self._write(min(self._last() + 1, MAX_INCARNATION))

    def remember(self, incarnation: int) -> None:
        """The mesh knows us by this one: later ones must be higher. Absurd ones are passed over."""
        if self._last() < incarnation <= MAX_INCARNATION:
            self._write(incarnation)

    def _last(self) -> int:
        """0 for a lost or damaged file: the mesh then tells us what it last heard."""
        try:
            with self._path.open("rb") as file:
                digits = file.read(32).strip()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror}") from error
        if not digits.isdigit():
            return 0
        number = int(digits)
        return number if number <= MAX_INCARNATION else 0

    def _write(self, incarnation: int) -> int:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, b"%d\n" % incarnation, mode=0o600)
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written: {error.strerror}",
                hint=f"ls -ld {self._path.parent}; df {self._path.parent}",
            ) from error
        return incarnation
