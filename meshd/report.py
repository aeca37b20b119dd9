"""What a plan would change, as `meshd plan` prints it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meshd.planner.plan import Decision
from meshd.quality import Fidelity
from meshd.shard_line import ShardStatus, kept, quality
from meshd.ways import ways_alone, ways_lines, ways_of

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
    :ivar measured: of an expert shard: what it loses.
    """

    node: str
    strategy: str
    tokens_s: float
    context: int = 0
    slots: int = 0
    problem: str = ""
    parts: tuple[Piece, ...] = ()
    measured: tuple[Fidelity, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Another way of this node's, or a node that may take no part in a split.

    :ivar strategy: "" where it would have been a split, or is not said.
    """

    nodes: tuple[str, ...]
    tokens_s: float
    code: str
    reason: str
    strategy: str = ""
    measured: tuple[Fidelity, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the mesh runs a model.

    :ivar wanted: replicas that there should be. :ivar demand: requests a minute.
    :ivar leaving: nodes that give it back, and why. :ivar excluded: those that cannot, and why.
    :ivar possible: how nodes would serve it, the fastest first; bounded.
    :ivar lost: what else this node considered.
    :ivar shards: all nodes' expert shards of it.
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
    shards: tuple[ShardStatus, ...] = ()

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
            yield from ways_lines(ways_of(placed))
            yield from parts_lines(placed)
    if report.mesh:
        yield ""
        yield "On this node:"
        if not report.decisions:
            yield "    nothing"
    for decision in report.decisions:
        yield from decision_lines(decision)
        if explain and not report.mesh:
            yield from ways_lines(ways_alone(decision))
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


def parts_lines(placed: Placed) -> Iterator[str]:
    """What each offered split would put where."""
    for one in placed.possible:
        if one.parts:
            yield f"    {one.node}'s split, context {one.context}, {one.slots} slots:"
        for part in one.parts:
            held = f"{part.layers} layers, {size(part.size_bytes)}"
            yield f"        {part.node} {part.device}: {held}"


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
    if decision.shard is not None:
        shard = decision.shard
        losses = quality(shard.measured) or "not measured"
        yield f"    shard: {kept(shard.experts, shard.experts_all, shard.mass)}; {losses}"
    for reason in (*decision.reasons, *decision.blockers):
        yield f"    {reason.text} [{reason.code}]"
    if decision.next_step:
        yield f"    next: {decision.next_step}"


def size(size_bytes: int) -> str:
    """A size for people: MiB below one GiB, else GiB with one decimal."""
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"
