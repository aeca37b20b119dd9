"""What else there was than the group that a split was given, and why each lost. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from meshd.models.facts import GgufFacts
from meshd.planner.fit import Shape
from meshd.planner.group import Group, Host, Lending, Search
from meshd.planner.kv import layer_bytes
from meshd.planner.pace import rounded
from meshd.planner.plan import Code, Considered, Reason
from meshd.planner.workload import settings_of

RIVALS_MOST = 8
# Each rival is a search of its own.
_SEARCHED_MOST = 8

GIB = 1024**3

_NEXT_STEP = {
    Code.OTHER_BUILD: "upgrade the engine there, so that all nodes have the same",
    Code.RTT_UNKNOWN: "none: the way to them is being measured",
    Code.FAILED_AS_MEMBER: "see why it failed: meshd status there, journalctl -u 'mesh-rpc@*'",
}


def of_group(host: str, group: Group, reason: Reason) -> Considered:
    nodes = tuple(dict.fromkeys((host, *(one.node for one in group.pieces))))
    return Considered(nodes, rounded(1 / group.token_s), reason)


def others_than(
    chosen: Group,
    search: Search,
    host: str,
    lenders: Sequence[Lending],
) -> tuple[Considered, ...]:
    """The best group with each node that was left out, and without each that was taken, best first.

    In a large mesh only the first that were left out are named: a search for each would take long.
    """
    taken = {one.node for one in chosen.pieces} - {host}
    names = {one.node: one.name for one in lenders}
    left = [one for one in lenders if one.node not in taken]
    if len(lenders) > _SEARCHED_MOST:
        text = "its layers would be read more slowly, or it is farther away"
        return tuple(
            Considered((host, one.node), 0.0, Reason(Code.SLOWER, text))
            for one in left[:RIVALS_MOST]
        )
    found: dict[tuple[str, ...], Considered] = {}
    for one in left:
        group = search.best(lenders, force=one.node)
        name = names.get(one.node, one.node)
        if group is None:
            reason = Reason(Code.NO_MEMORY, f"{name} has no room for a layer of it")
            found[one.node,] = Considered((host, one.node), 0.0, reason)
            continue
        text = _slower(chosen, group, f"with {name}")
        if one.penalty and group.token_s <= chosen.token_s:
            text = f"{name} is needed for other models"
        rival = of_group(host, group, Reason(Code.SLOWER, text))
        found.setdefault(tuple(sorted(rival.nodes)), rival)
    for node in sorted(taken):
        without = tuple(one for one in lenders if one.node != node)
        group = search.best(without) if without else None
        name = names.get(node, node)
        if group is None:
            continue
        rival = of_group(
            host, group, Reason(Code.SLOWER, _slower(chosen, group, f"without {name}"))
        )
        found.setdefault(tuple(sorted(rival.nodes)), rival)
    same = tuple(sorted((host, *taken)))
    ordered = sorted(
        (one for nodes, one in found.items() if nodes != same),
        key=lambda one: (-one.tokens_s, one.nodes),
    )
    return tuple(ordered[:RIVALS_MOST])


def why_nobody(
    facts: GgufFacts,
    least: Shape,
    host: Host,
    lenders: Sequence[Lending],
    barred: Sequence[tuple[str, str, Code, str]],
) -> tuple[tuple[Reason, ...], str]:
    """Why no split is possible, and what a person can do."""
    counts: dict[Code, list[str]] = {}
    for _, name, code, _ in barred:
        counts.setdefault(code, []).append(name)
    away = ", ".join(
        f"{len(them)} {code.replace('-', ' ')}"
        for code, them in sorted(counts.items(), key=lambda item: (-len(item[1]), item[0]))
    )
    if not lenders:
        step = next((text for code, text in _NEXT_STEP.items() if code in counts), "")
        text = f"no other node can hold a part of it ({away})" if away else "no other node is there"
        return (Reason(Code.NO_PEER, text),), step
    wanted = whole_bytes(facts, least)
    have = sum(host.rooms.values()) + sum(
        place.room_bytes for one in lenders for place in one.places
    )
    shape = f"context {least.context} and {least.slots} slots"
    text = (
        f"split with up to {len(lenders)} near nodes it needs {wanted / GIB:.1f} GiB and buffers "
        f"for {shape}; all have {have / GIB:.1f} GiB together"
    )
    text += f" ({away} cannot take part)" if away else ""
    return (Reason(Code.NO_MEMORY, text),), "free memory, add a node, or lower context or slots"


def whole_bytes(facts: GgufFacts, shape: Shape) -> int:
    """Weights and KV cache of all layers, wherever they lie."""
    settings = settings_of(facts, shape)
    widest = max((layer.value_elements for layer in facts.layers), default=0)
    layers = sum(
        layer.weight_bytes + layer_bytes(facts, layer, settings, value_widest=widest)
        for layer in facts.layers
        if not layer.prediction
    )
    tied = 0 if facts.tied_embeddings else facts.output_bytes
    return layers + facts.embedding_bytes + facts.other_bytes + tied


def _slower(chosen: Group, other: Group, how: str) -> str:
    return f"{rounded(1 / other.token_s):g} tokens/s {how}, {rounded(1 / chosen.token_s):g} chosen"
