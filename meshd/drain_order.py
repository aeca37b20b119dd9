"""That this node is drained, kept under /run: it ends with `meshd drain --undo`, or with a boot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from meshd.drain import Drain
from meshd.errors import UserError
from meshd.files import write_atomically

MOST_S = 86_400.0
# What other nodes do is heard as an event; that an answer ended, within a second.
_LOOK_S = 2.0

_log = structlog.get_logger(__name__)


class DrainOrder:
    """Whether this node is drained, remembered over restarts of the brain.

    :ivar now: None while it is not.
    :ivar cut: requests that had not ended when their time was over.
    """

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """:param path: of its file, None for none. :param clock: monotonic since the boot."""
        self._path = path
        self._clock = clock
        self._was_over = False
        self.cut = 0
        self.now = self._load()

    def begin(self, deadline_s: float) -> None:
        """:raises UserError: it cannot be remembered, or no time is so long."""
        if not 0 <= deadline_s <= MOST_S:
            raise UserError("the deadline of a drain is between 0s and 1d", hint="--deadline 5min")
        now_s = self._clock()
        drain = Drain(self.now.since_s if self.now else now_s, now_s + deadline_s)
        if self._path is not None:
            try:
                write_atomically(self._path, msgspec.json.encode(drain))
            except OSError as error:
                raise UserError(f"{self._path}: cannot be written: {error.strerror}") from error
        self.now, self.cut, self._was_over = drain, 0, False

    def end(self) -> None:
        """:raises UserError: its file cannot be removed."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{self._path}: cannot be removed: {error.strerror}") from error
        self.now, self.cut, self._was_over = None, 0, False

    def look(self, busy: Mapping[str, int]) -> None:
        """Note what is cut at the moment when the time is over."""
        if self.now is not None and not self._was_over and self.now.over(self._clock()):
            self._was_over = True
            self.cut = sum(busy.values())

    def again_s(self) -> float | None:
        """When to look again although nothing was heard."""
        if self.now is None:
            return None
        left_s = self.now.left_s(self._clock())
        return min(_LOOK_S, left_s) if left_s else _LOOK_S

    def _load(self) -> Drain | None:
        if self._path is None:
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Drain)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("the drain is not known any more", file=str(self._path), error=str(error))
            return None
