"""Carrying out what a pass decided: the applier is asked, and what came of it is remembered."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from meshd import pipeline
from meshd.errors import UserError
from meshd.pipeline import Proposal
from meshd.planner.lent import Lent
from meshd.planner.view import Running
from meshd.units.spec import Applier, Desired
from meshd.until_stopped import until_stopped

_log = structlog.get_logger(__name__)

_APPLY_DEADLINE_S = 20.0

Doors = tuple[tuple[str, ...], tuple[str, ...]]
"""Where the gateway listens for clients, and for other nodes."""


class KeepsRunning(Protocol):
    """The port to what a next life goes by."""

    def load_running(self) -> tuple[tuple[Running, ...], int, tuple[Lent, ...]]: ...

    def save_running(
        self, running: tuple[Running, ...], generation: int, lent: tuple[Lent, ...] = ()
    ) -> None: ...


class CarryOut:
    """:ivar running: what ran in the life before, to begin with; ``lent`` what it lent.

    :ivar generation: counts what was asked of the applier.
    :ivar errors: what went wrong the last time, one line each.
    """

    def __init__(self, applier: Applier, memory: KeepsRunning, stop_asked: asyncio.Event) -> None:
        self._applier = applier
        self._memory = memory
        self._stop_asked = stop_asked
        self._doors: Doors | None = None
        self.running, self.generation, self.lent = memory.load_running()
        self._kept = _arrangements(self.running), self.lent
        self.errors: tuple[str, ...] = ()

    async def __call__(self, proposal: Proposal, doors: Doors) -> Proposal:
        """Do it, where there is anything to do; the proposal with what runs then."""
        if not proposal.actions and doors == self._doors:
            self.errors = ()
            # A split begins before anything of it is started.
            if (_arrangements(proposal.running), proposal.lent) != self._kept:
                self._save(proposal)
            return proposal
        proposal = await self._apply(proposal, doors)
        for line in self.errors:
            _log.error("apply", error=line)
        return proposal

    def _save(self, proposal: Proposal) -> None:
        self._kept = _arrangements(proposal.running), proposal.lent
        self._memory.save_running(proposal.running, self.generation, proposal.lent)

    async def _apply(self, proposal: Proposal, doors: Doors) -> Proposal:
        self.generation += 1
        for action in proposal.actions:
            _log.info("unit changes", action=action.kind, unit=action.unit, reason=action.reason)
        # Remembered before it is done: after a crash half way, the diff finds the rest.
        self._save(proposal)
        desired = Desired(self.generation, proposal.specs, *doors, leave=proposal.left_alone)
        try:
            # Whoever stops us stops the hand too: its answer may never come.
            outcome = await until_stopped(
                self._applier.apply(desired), self._stop_asked, deadline_s=_APPLY_DEADLINE_S
            )
            self.errors = outcome.errors if outcome else ("stopped before it was applied",)
            # Answered, well or not: to try an address again and again would cut off its clients.
            self._doors = doors
        except TimeoutError:
            self.errors = (f"applying took more than {_APPLY_DEADLINE_S:.0f} s",)
        except UserError as error:
            self.errors = (str(error),)
        try:
            return pipeline.with_engines(proposal, await self._applier.observe())
        except UserError as error:
            self.errors = (*self.errors, f"cannot see what came of it: {error}")
        return proposal


def _arrangements(running: tuple[Running, ...]) -> tuple[tuple[str, int], ...]:
    return tuple((one.decision.model, one.decision.term) for one in running if one.decision.links)
