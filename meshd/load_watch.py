"""Watches engines load: since when, how long it should take, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from meshd.files import write_atomically
from meshd.load_times import (
    FILE_MAX_BYTES,
    Load,
    LoadTime,
    LoadTimes,
    content_of,
    decode,
    encode,
)
from meshd.pipeline import Answers, Proposal
from meshd.status import engine_of
from meshd.units.spec import EngineKind, EngineState

_log = structlog.get_logger(__name__)

# The last part takes as long as it takes.
_DONE_MOST = 0.9

_LOADS = (EngineState.STARTING, EngineState.RUNNING)


@dataclass(slots=True)
class _Seen:
    """:ivar load: None once it is done. :ivar whole: its beginning was seen."""

    pid: int
    load: Load | None
    whole: bool


class LoadWatch:
    """:ivar times: of this node's loads so far."""

    def __init__(
        self, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """:param path: where they are kept, None for nowhere. :param clock: monotonic seconds."""
        self._path = path
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._models: dict[str, str] = {}
        self._first = True
        self.times = _read(path) if path else LoadTimes()

    def look(self, proposal: Proposal, answers: Answers) -> None:
        """After a pass has acted: note which engines began to load, and which are done."""
        now_s = self._clock()
        before, self._seen, self._models = self._seen, {}, {}
        times = self.times
        for spec in proposal.specs:
            if spec.kind is not EngineKind.LLAMA:
                continue
            engine = engine_of(proposal.engines, spec.name)
            if engine is None or engine.pid is None or engine.state not in _LOADS:
                continue
            self._models[spec.model] = engine.unit
            seen = before.get(engine.unit)
            content = content_of(proposal.node.candidate(spec.model))
            if seen is None or seen.pid != engine.pid:
                load = Load(round(self.times.predicted_s(content, spec.load_bytes), 1), now_s)
                seen = _Seen(engine.pid, load, whole=not self._first)
            if seen.load is not None and answers(engine.unit, engine.pid):
                if seen.whole:
                    took_s = now_s - seen.load.since_s
                    times = times.after(LoadTime(content, round(took_s, 3), spec.load_bytes))
                seen = _Seen(engine.pid, None, seen.whole)
            self._seen[engine.unit] = seen
        self._first = False
        if times != self.times:
            self.times = times
            self._keep()

    def now(self) -> Mapping[str, Load]:
        """The loads under way, by model; each says the same until it is done."""
        return {
            model: seen.load
            for model, unit in self._models.items()
            if (seen := self._seen.get(unit)) is not None and seen.load is not None
        }

    def progress(self) -> Mapping[str, float]:
        """How far the loads are, 0 to 1 in steps of a tenth, by model: those of a known length.

        By time: an engine does not say, and what it reads from memory is not counted as read.
        """
        now_s = self._clock()
        return {
            model: int(min(_DONE_MOST, (now_s - load.since_s) / load.load_s) * 10) / 10
            for model, load in self.now().items()
            if load.load_s > 0
        }

    def _keep(self) -> None:
        if self._path is None:
            return
        try:
            write_atomically(self._path, encode(self.times))
        except OSError as error:
            # A guess less after the next start.
            _log.warning("load times could not be kept", error=str(error))


def _read(path: Path) -> LoadTimes:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ValueError("too long")
        return decode(path.read_bytes())
    except FileNotFoundError:
        return LoadTimes()
    except (OSError, ValueError) as error:
        _log.warning("load times of an earlier life are not known", error=str(error))
        return LoadTimes()
