"""The engines of one simulated node: they take memory and time, fail, and outlive their brain."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from meshd.mesh.record import MemoryUse
from meshd.planner.claims import Engine
from tests.sim.clock import Clock, Event
from tests.sim.fleet import Machine, Model

STOP_S = 0.8


class OverMemoryError(AssertionError):
    """An engine was started in memory that others hold."""


@dataclass(slots=True)
class Run:
    """One engine. :ivar started_s: when it was told to start. ``ready_s``: first answer."""

    model: str
    memory: tuple[MemoryUse, ...]
    state: Engine
    started_s: float
    load_s: float = 0.0
    ready_s: float = 0.0
    due: Event | None = None
    detail: str = ""


class Engines:
    """:ivar changed: called after an engine's state changed by itself."""

    def __init__(
        self, machine: Machine, clock: Clock, seed: int, changed: Callable[[], None]
    ) -> None:
        self.machine = machine
        self.clock = clock
        self.changed = changed
        self.runs: dict[str, Run] = {}
        self.starts = 0
        self.stops = 0
        self._random = random.Random(f"engines {seed} {machine.id}")

    def state(self, model: str) -> Engine:
        run = self.runs.get(model)
        return run.state if run is not None else Engine.ABSENT

    def progress(self, model: str) -> float:
        """In halves: what others need to see it move."""
        run = self.runs.get(model)
        if run is None or run.state is not Engine.STARTING or not run.load_s:
            return 0.0
        part = (self.clock.now_s - run.started_s) / run.load_s
        return 0.5 if part >= 0.5 else 0.0

    def used_bytes(self, device: str) -> int:
        """Failed ones hold nothing; those that are being stopped do until they are gone."""
        return sum(
            use.size_bytes
            for run in self.runs.values()
            if run.state is not Engine.FAILED
            for use in run.memory
            if use.device == device
        )

    def start(self, model: Model, memory: tuple[MemoryUse, ...], *, fails: float) -> None:
        """:raises OverMemoryError: it does not fit beside what runs."""
        for use in memory:
            capacity = self.machine.memory_bytes(use.device)
            if self.used_bytes(use.device) + use.size_bytes > capacity:
                raise OverMemoryError(
                    f"{self.machine.id}: {model.name} needs {use.size_bytes} on {use.device}, "
                    f"{self.used_bytes(use.device)} of {capacity} are in use"
                )
        self.starts += 1
        load_s = model.load_s * self._random.uniform(0.9, 1.2)
        run = Run(model.name, memory, Engine.STARTING, self.clock.now_s, load_s)
        self.runs[model.name] = run
        if self._random.random() < fails:
            run.due = self.clock.after(
                load_s * self._random.random(), self._turn, run, Engine.FAILED
            )
        else:
            run.due = self.clock.after(load_s, self._turn, run, Engine.ANSWERS)

    def crash(self, model: str) -> None:
        """It dies and is started again at once, as systemd does."""
        run = self.runs.get(model)
        if run is None or run.state is not Engine.ANSWERS:
            return
        run.started_s = self.clock.now_s
        run.due = self.clock.after(run.load_s, self._turn, run, Engine.ANSWERS)
        run.state = Engine.STARTING
        self.changed()

    def stop(self, model: str) -> None:
        """Its requests end, then it is gone."""
        run = self.runs.get(model)
        if run is None or run.detail == "stopping":
            return
        if run.due is not None:
            run.due.cancel()
        self.stops += 1
        run.detail = "stopping"
        run.due = self.clock.after(STOP_S, self._gone, run)

    def forget(self, model: str) -> None:
        """A failed one leaves no trace."""
        run = self.runs.get(model)
        if run is not None and run.state is Engine.FAILED:
            del self.runs[model]

    def power_off(self) -> None:
        for run in self.runs.values():
            if run.due is not None:
                run.due.cancel()
        self.runs.clear()

    def _turn(self, run: Run, state: Engine) -> None:
        run.state = state
        run.ready_s = self.clock.now_s
        run.detail = "its engine ended with status 1" if state is Engine.FAILED else ""
        self.changed()

    def _gone(self, run: Run) -> None:
        if self.runs.get(run.model) is run:
            del self.runs[run.model]
        self.changed()
