"""A group that was found, as a decision with its reasons. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from meshd.mesh.record import Part
from meshd.mesh.view import MeshView
from meshd.models.facts import GgufFacts
from meshd.planner.fit import Shape
from meshd.planner.group import Group, Host, Lending
from meshd.planner.layout import RAM
from meshd.planner.pace import rounded, ubatch_s
from meshd.planner.plan import Code, Decision, DeviceUse, Layout, Reason, Strategy


def reasons(
    group: Group, first: Shape, host: Host, lenders: Sequence[Lending], solo: Decision
) -> tuple[Reason, ...]:
    """Why this way. :param first: the shape that would have been best."""
    names = {one.node: one.name for one in lenders}
    members = tuple(dict.fromkeys(one.node for one in group.pieces if one.node != host.node))
    who = ", ".join(names.get(node, node) for node in members)
    tokens_s = rounded(1 / group.token_s)
    found = [Reason(Code.CHOSEN, f"too large for this node alone: split with {who}")]
    if solo.served:
        text = f"split with {who} it makes {tokens_s:g} tokens/s, alone {solo.tokens_s:g}"
        found = [Reason(Code.CHOSEN, text)]
    unknown = [
        names.get(one.node, one.node)
        for one in lenders
        if one.node in members and not all(place.pace.measured for place in one.places)
    ]
    if not all(pace.measured for pace in host.paces.values()):
        unknown.append("this node")
    if unknown:
        text = f"speed not measured yet on {', '.join(unknown)}: a cautious guess is used"
        found.append(Reason(Code.UNMEASURED, text))
    if (group.shape.context, group.shape.slots) != (first.context, first.slots):
        shape = group.shape
        text = (
            f"context {shape.context} and {shape.slots} slots rather than {first.context} and "
            f"{first.slots}, so that it fits"
        )
        found.append(Reason(Code.TRIMMED, text))
    return tuple(found)


def split_decision(
    solo: Decision,
    facts: GgufFacts,
    host: Host,
    group: Group,
    view: MeshView,
    why: tuple[Reason, ...],
) -> Decision:
    """The group as this node's decision, in place of `solo`."""
    parts = tuple(
        Part(one.node, one.device, one.layers, one.memory.engine_bytes) for one in group.pieces
    )
    own = [one for one in group.pieces if one.node == host.node and one.device != RAM]
    counts = [one.layers for one in own]
    if counts:
        counts[-1] += 1
    memory = [
        DeviceUse(
            one.device, one.memory.weights_bytes, one.memory.kv_bytes, one.memory.compute_bytes
        )
        for one in own
    ]
    ram = group.host_memory
    memory.append(DeviceUse(RAM, ram.weights_bytes, ram.kv_bytes, ram.compute_bytes))
    nodes = {host.node, *(part.node for part in parts)}
    records = {one.id: one.record for one in view.members if one.id in nodes}
    lent = tuple(part for part in parts if part.node != host.node)
    first = sum(part.layers for part in parts[: parts.index(lent[0])])
    return replace(
        solo,
        strategy=Strategy.PIPELINE,
        node=host.node,
        context=group.shape.context,
        slots=group.shape.slots,
        layout=Layout(tuple(one.device for one in own), tuple(counts)),
        memory=tuple(memory),
        reasons=why,
        blockers=(),
        next_step="",
        parts=parts,
        tokens_s=rounded(1 / group.token_s),
        ubatch_s=round(
            ubatch_s(
                facts, lent, records, host.node, context=group.shape.context, first_layer=first
            ),
            3,
        ),
    )
