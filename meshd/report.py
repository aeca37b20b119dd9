"""What a plan would change, as `meshd plan` prints it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meshd.planner.plan import Decision

GIB = 1024**3
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Change:
    """One unit that would change. :ivar action: start, stop or restart."""

    action: str
    unit: str
    reason: str
    load_bytes: int


@dataclass(frozen=True, slots=True)
class PlanReport:
    """:ivar warnings: findings of the configuration that do not stop it.

    :ivar mesh: every model of the mesh; empty where the node is alone.
    """

    decisions: tuple[Decision, ...]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()
    mesh: tuple[Placed, ...] = ()

    @property
    def changes_anything(self) -> bool:
        """Whether an engine would start, restart or stop, here or on another node."""
        return bool(self.changes) or any(placed.moves for placed in self.mesh)


@dataclass(frozen=True, slots=True)
class PlacedOn:
    """One node and one model. :ivar stage: how far it is, ``planned`` before anything happened."""

    node: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a split model. :ivar layers: how many, the output layer not counted."""

    node: str
    device: str
    layers: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Possible:
    """How one node would serve a model. :ivar tokens_s: predicted, 0 when unknown.

    :ivar problem: why it cannot. :ivar parts: of a split that it would be the host of.
    """

    node: str
    strategy: str
    tokens_s: float
    context: int = 0
    slots: int = 0
    problem: str = ""
    parts: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Another group for a split of this node's, or a node that may take no part in one."""

    nodes: tuple[str, ...]
    tokens_s: float
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the mesh runs a model.

    :ivar wanted: replicas that there should be. :ivar demand: requests a minute.
    :ivar leaving: nodes that give it back, and why. :ivar excluded: those that cannot, and why.
    :ivar possible: how nodes would serve it, the fastest first; bounded.
    :ivar lost: what this node considered when it looked for others to split it with.
    """

    model: str
    wanted: int
    demand: float
    on: tuple[PlacedOn, ...]
    leaving: tuple[PlacedOn, ...] = ()
    excluded: tuple[PlacedOn, ...] = ()
    excluded_more: int = 0
    blockers: tuple[str, ...] = ()
    next_step: str = ""
    notes: tuple[str, ...] = ()
    possible: tuple[Possible, ...] = ()
    lost: tuple[Lost, ...] = ()

    @property
    def moves(self) -> bool:
        return bool(self.leaving) or any(one.stage == PLANNED for one in self.on)


PLANNED = "planned"
"""The stage of a replica of which nothing has happened yet."""

_SIGNS = {"start": "+", "stop": "-", "restart": "~"}


def lines(report: PlanReport, *, explain: bool = False) -> Iterator[str]:
    """The report as text for a terminal.

    :param explain: with every way to serve each model, predicted, and why it was not taken.
    """
    yield from report.warnings
    for placed in report.mesh:
        yield from placed_lines(placed)
        if explain:
            yield from explained_lines(placed)
    if report.mesh:
        yield ""
        yield "On this node:"
        if not report.decisions:
            yield "    nothing"
    for decision in report.decisions:
        yield from decision_lines(decision)
    yield ""
    if not report.changes:
        where = " on this node" if report.changes_anything else ""
        yield f"Nothing would change{where}."
        return
    for change in report.changes:
        load = f", reads {size(change.load_bytes)}" if change.load_bytes else ""
        yield f"  {_SIGNS[change.action]} {change.action:<8}{change.unit}  ({change.reason}{load})"
    counts = dict.fromkeys(_SIGNS, 0)
    for change in report.changes:
        counts[change.action] += 1
    total = sum(change.load_bytes for change in report.changes)
    yield ""
    yield (
        f"{counts['start']} to start, {counts['restart']} to restart, {counts['stop']} to stop; "
        f"{size(total)} to load."
    )


def placed_lines(placed: Placed) -> Iterator[str]:
    """One model of the mesh: where it runs, where it does not, and why."""
    rate = f", {placed.demand:.3g} requests a minute" if placed.demand >= 0.01 else ""
    yield f"{placed.model}: {placed.wanted} wanted{rate}"
    for one in placed.on:
        yield f"    {one.node}: {one.stage} ({one.reason})"
    for one in placed.leaving:
        yield f"    {one.node}: gives it back ({one.reason})"
    for one in placed.excluded:
        yield f"    not on {one.node}: {one.reason} [{one.stage}]"
    if placed.excluded_more:
        yield f"    nor on {placed.excluded_more} more nodes"
    for text in (*placed.blockers, *placed.notes):
        yield f"    {text}"
    if placed.next_step:
        yield f"    next: {placed.next_step}"


def explained_lines(placed: Placed) -> Iterator[str]:
    """Who could serve a model and how fast, and what this node's search for a split left aside."""
    if placed.possible:
        yield "    could be served by:"
    for one in placed.possible:
        if one.problem:
            yield f"        {one.node}: not, {one.problem}"
            continue
        speed = f"{one.tokens_s:g} tokens/s" if one.tokens_s else "speed unknown"
        yield (
            f"        {one.node}: {one.strategy}, {speed}, context {one.context}, {one.slots} slots"
        )
        for part in one.parts:
            yield (
                f"            {part.node} {part.device}: {part.layers} layers, "
                f"{size(part.size_bytes)}"
            )
    if placed.lost:
        yield "    this node's search for a split:"
    for lost in placed.lost:
        who = ", ".join(lost.nodes)
        yield f"        {who}{': ' if who else ''}{lost.reason} [{lost.code}]"


def decision_lines(decision: Decision) -> Iterator[str]:
    """One model: what happens to it, where its memory goes, and why."""
    if decision.served:
        yield (
            f"{decision.model}: {decision.strategy}, context {decision.context}, "
            f"{decision.slots} slots, {size(decision.memory_bytes)}"
            + (f", {decision.tokens_s:g} tokens/s expected" if decision.tokens_s else "")
        )
        for use in decision.memory:
            yield (
                f"    {use.device}: {size(use.total_bytes)} = weights {size(use.weights_bytes)}"
                f" + KV {size(use.kv_bytes)} + compute {size(use.compute_bytes)}"
            )
    else:
        yield f"{decision.model}: waits"
    for reason in (*decision.reasons, *decision.blockers):
        yield f"    {reason.text} [{reason.code}]"
    if decision.next_step:
        yield f"    next: {decision.next_step}"


def size(size_bytes: int) -> str:
    """A size for people: MiB below one GiB, else GiB with one decimal."""
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"
