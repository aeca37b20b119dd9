"""All ways to serve a model in one table: how fast each is, what it loses, why it lost. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshd.config.findings import printable
from meshd.planner.plan import Decision, Strategy
from meshd.shard_line import progress, quality

if TYPE_CHECKING:
    from meshd.report import Placed, PlacedOn
    from meshd.shard_line import ShardStatus

_HEAD = (" ", "STRATEGY", "NODES", "TOKENS/S", "QUALITY", "WHY")
_EXACT = "exact"
_HERE = "this node"


@dataclass(frozen=True, slots=True)
class Way:
    """:ivar taken: the model is served so, or is to be. :ivar tokens_s: 0 where not known.

    :ivar loses: in words, ``exact`` for nothing, "" where that is not known yet.
    """

    strategy: str
    nodes: tuple[str, ...]
    tokens_s: float
    loses: str
    why: str
    taken: bool = False


def ways_of(placed: Placed) -> tuple[Way, ...]:
    """Those that nodes offer, those that this node weighed, and shards that are not ready."""
    on = {one.node: one for one in placed.on}
    found = [
        Way(
            one.strategy,
            tuple(dict.fromkeys((one.node, *(part.node for part in one.parts)))),
            one.tokens_s,
            _loses(one.strategy, quality(one.measured)),
            one.problem or _why(placed, one.node, on.get(one.node)),
            taken=not one.problem and one.node in on,
        )
        for one in placed.possible
    ]
    for lost in placed.lost:
        strategy = lost.strategy or (Strategy.PIPELINE if len(lost.nodes) > 1 else "")
        loses = _loses(strategy, quality(lost.measured))
        why = f"{lost.reason} [{lost.code}]"
        found.append(Way(strategy, lost.nodes, lost.tokens_s, loses, why))
    offering = {one.nodes[0] for one in found if one.strategy == Strategy.EXPERT_SHARD}
    found.extend(_under_way(one) for one in placed.shards if one.node not in offering)
    return _in_order(found)


def ways_alone(decision: Decision) -> tuple[Way, ...]:
    """Of a node that is in no mesh."""
    found = [
        Way(
            str(one.strategy or ""),
            (_HERE,) if one.nodes == (decision.node,) else one.nodes,
            one.tokens_s,
            _loses(str(one.strategy or ""), quality(one.measured)),
            f"{one.reason.text} [{one.reason.code}]",
        )
        for one in decision.considered
    ]
    if decision.served:
        lost = quality(decision.shard.measured) if decision.shard else ""
        found.append(
            Way(
                decision.strategy,
                (_HERE,),
                decision.tokens_s,
                _loses(decision.strategy, lost),
                decision.reasons[0].text if decision.reasons else "",
                taken=True,
            )
        )
    return _in_order(found)


def ways_lines(ways: Sequence[Way]) -> Iterator[str]:
    """The table; nothing where there is no way at all."""
    if not ways:
        return
    rows: list[tuple[str, ...]] = [
        _HEAD,
        *(
            (
                ">" if one.taken else "",
                one.strategy or "-",
                ", ".join(one.nodes) or "-",
                f"{one.tokens_s:g}" if one.tokens_s else "-",
                one.loses or "-",
                one.why,
            )
            for one in ways
        ),
    ]
    # What other nodes say of themselves cannot steer the terminal.
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"    {'  '.join(cells).rstrip()}"


def _why(placed: Placed, node: str, on: PlacedOn | None) -> str:
    if on is not None:
        return f"{on.stage}: {on.reason}"
    for one in (*placed.leaving, *placed.excluded):
        if one.node == node:
            return f"{one.reason} [{one.stage}]"
    if placed.wanted == 0:
        return "nobody asks for it"
    return f"{placed.wanted} wanted" + (
        f", {len(placed.on)} placed" if len(placed.on) < placed.wanted else ""
    )


def _under_way(one: ShardStatus) -> Way:
    # The table has a column for what it loses.
    said = progress(replace(one, measured=()))
    return Way(Strategy.EXPERT_SHARD, (one.node,), 0.0, quality(one.measured), said)


def _loses(strategy: str, lost: str) -> str:
    if strategy == Strategy.EXPERT_SHARD:
        return lost
    return "" if strategy in ("", Strategy.WAIT) else _EXACT


def _in_order(ways: Iterable[Way]) -> tuple[Way, ...]:
    """What is taken first, then the fastest; what has no figure as it was said."""
    return tuple(sorted(ways, key=lambda one: (not one.taken, -one.tokens_s)))
