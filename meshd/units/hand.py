"""The hand: the one part with privileges. Makes systemd's engines those that the brain wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.paths import Paths
from meshd.units.allow import MAX_ENGINES
from meshd.units.desired_file import RESULT, read_desired, write_outcome
from meshd.units.diff import Action, ActionKind, diff
from meshd.units.hand_gateway import move_gateway
from meshd.units.observe import UNITS, dropins, observe
from meshd.units.port import Systemd
from meshd.units.render import dropin_path, render_dropin
from meshd.units.spec import Desired, EngineSpec, Outcome
from meshd.units.steps import Step, StepKind, steps
from meshd.units.waves import downward, upward

_MAX_ERRORS = 200
# A brain that writes faster than that has lost its mind; the path unit would call again anyhow.
_MAX_ROUNDS = 50

Refusals = Callable[[EngineSpec], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What root allows in one round.

    :ivar refusals: why an engine may not be started, see `meshd.units.allow`.
    :ivar listen: addresses that the gateway may have; ``peers`` its door for other nodes.
    """

    refusals: Refusals
    listen: frozenset[str] = frozenset()
    peers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Files:
    """:ivar units: folder of transient units. :ivar owners: who may write `paths.desired`."""

    paths: Paths
    owners: tuple[int, ...]
    units: Path = UNITS
    result: Path = RESULT


async def run_hand(files: Files, systemd: Systemd, look: Callable[[], Allowance]) -> Outcome:
    """Apply what is wanted until nothing newer is wanted, and answer each time.

    :param look: what root allows now; asked once a round.
    :raises UserError: `paths.desired` cannot be trusted or read, or systemd does not answer.
    """
    desired = read_desired(files.paths.desired, files.owners)
    for _ in range(_MAX_ROUNDS):
        outcome = await converge(desired, files, systemd, look())
        write_outcome(files.result, outcome)
        newest = read_desired(files.paths.desired, files.owners)
        if newest == desired:
            break
        desired = newest
    return outcome


async def converge(
    desired: Desired, files: Files, systemd: Systemd, allowance: Allowance
) -> Outcome:
    """One round. What is refused is left as it is, and the rest goes on.

    :raises SystemdError: systemd does not answer at all.
    """
    wanted, texts, errors = await asyncio.to_thread(
        _check, desired, files.paths, allowance.refusals
    )
    refused = {spec.unit for spec in desired.engines} - texts.keys()
    # Who is in both is wanted.
    spared = refused | (set(desired.leave) - texts.keys())
    running = [one for one in await observe(systemd, files.units) if one.unit not in spared]
    actions = diff(running, wanted, lambda spec: texts[spec.unit])
    ours = set(dropins(files.units)) - spared
    work = _Work(files, systemd, errors)
    planned = steps(actions, texts, ours)
    for wave in downward(step.unit for step in planned if step.kind is StepKind.STOP):
        await work.together(planned, StepKind.STOP, wave)
    for kind in (StepKind.REMOVE, StepKind.WRITE, StepKind.RELOAD):
        await work.in_turn(planned, kind)
    for wave in upward(step.unit for step in planned if step.kind is StepKind.START):
        await work.together(planned, StepKind.START, wave)
    work.errors += await move_gateway(
        desired.listen,
        allowance.listen,
        files.units,
        systemd,
        peers=desired.peers,
        allowed_peers=allowance.peers,
    )
    return Outcome(
        generation=desired.generation,
        started=work.done(actions, ActionKind.START),
        stopped=work.done(actions, ActionKind.STOP),
        restarted=work.done(actions, ActionKind.RESTART),
        errors=tuple(work.errors[:_MAX_ERRORS]),
    )


def _check(
    desired: Desired, paths: Paths, refusals: Refusals
) -> tuple[list[EngineSpec], dict[str, str], list[str]]:
    """The specs that pass, their texts by unit, and what is wrong with the others."""
    wanted: list[EngineSpec] = []
    texts: dict[str, str] = {}
    errors = [
        f"{spec.unit[:100]}: more than {MAX_ENGINES} engines are wanted"
        for spec in desired.engines[MAX_ENGINES:]
    ]
    for spec in desired.engines[:MAX_ENGINES]:
        found = list(refusals(spec))
        if spec.unit in texts:
            found.append(f"{spec.unit}: wanted twice")
        if not found:
            try:
                texts[spec.unit] = render_dropin(spec, paths)
                wanted.append(spec)
            except ValueError as error:
                found.append(f"{spec.unit}: {error}")
        errors += found
    return wanted, texts, errors


@dataclass(slots=True)
class _Work:
    """Steps being done; a unit with a failed step is left out of the rest."""

    files: Files
    systemd: Systemd
    errors: list[str]
    failed: set[str] = field(default_factory=set)

    async def together(
        self, planned: Iterable[Step], kind: StepKind, units: Collection[str]
    ) -> None:
        chosen = (step for step in planned if step.kind is kind and step.unit in units)
        await asyncio.gather(*map(self._attempt, chosen))

    async def in_turn(self, planned: Iterable[Step], kind: StepKind) -> None:
        for step in planned:
            if step.kind is kind:
                await self._attempt(step)

    def done(self, actions: Iterable[Action], kind: ActionKind) -> tuple[str, ...]:
        return tuple(a.unit for a in actions if a.kind is kind and a.unit not in self.failed)

    async def _attempt(self, step: Step) -> None:
        # "" stands for systemd itself: after a failed reload nothing starts from old text.
        if step.unit in self.failed or (step.kind is StepKind.START and "" in self.failed):
            self.failed.add(step.unit)
            return
        try:
            await self._doer(step)
        except (UserError, OSError) as error:
            self.failed.add(step.unit)
            place = "" if step.unit in str(error) else f"{step.unit}: "
            self.errors.append(f"{place}{error}")

    def _doer(self, step: Step) -> Awaitable[None]:
        match step.kind:
            case StepKind.STOP:
                return self.systemd.stop(step.unit)
            case StepKind.START:
                return self.systemd.start(step.unit)
            case StepKind.RELOAD:
                return self.systemd.reload()
            case StepKind.WRITE:
                return asyncio.to_thread(
                    _write, dropin_path(step.unit, self.files.units), step.text
                )
            case StepKind.REMOVE:
                return asyncio.to_thread(_remove, dropin_path(step.unit, self.files.units))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    write_atomically(path, text.encode(errors="surrogateescape"))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    # An administrator's own drop-ins may lie beside it.
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
