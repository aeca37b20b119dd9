"""Progress of something long: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 24
_TERMINAL_S, _LOG_S = 0.1, 10.0
# Before that what is left is a guess.
_GUESS_S = 2.0


class Bar:
    """:param out: stderr, since stdout may be JSON. :param clock: monotonic seconds."""

    def __init__(self, name: str, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._out, self._clock = name, out, clock
        self._terminal = out.isatty()
        self._every_s = _TERMINAL_S if self._terminal else _LOG_S
        self._began_s = clock()
        self._begun: float | None = None
        # Something quick is said once, by its outcome.
        self._next_s = self._began_s + self._every_s

    def show(self, share: float, stage: str = "") -> None:
        """:param share: 0 to 1; where it begins above 0, that much was there already."""
        now_s = self._clock()
        if self._begun is None:
            self._begun = share
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._every_s
        done, took_s = share - self._begun, now_s - self._began_s
        text = f"{share:4.0%}"
        if done > 0 and took_s >= _GUESS_S:
            text += f", {_duration((1 - share) * took_s / done)} left"
        said = f"{self._name}: {stage}" if stage else self._name
        if self._terminal:
            full = "#" * int(_WIDTH * min(1.0, share))
            self._out.write(f"\r\x1b[K{said} [{full:{_WIDTH}}] {text}")
        else:
            self._out.write(f"{said} {text}\n")
        self._out.flush()

    def end(self) -> None:
        if self._terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
