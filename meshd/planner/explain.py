"""What came of one model, in the words that `meshd plan` prints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from meshd.planner.case import Case
from meshd.planner.mesh_plan import Excluded, Placement, Replica
from meshd.planner.plan import Code, Reason

EXCLUDED_SHOWN = 32

_NEXT_STEP = {
    Code.NOT_OFFERED: "let a node have the model's file, or fetch it",
    Code.NO_MODEL: "put the model's file on a node, or correct models[].source",
    Code.NO_MEMORY: "free memory, add a node, or choose a smaller model, context or slots",
    Code.NOT_PINNED: "start one of the nodes that models[].nodes names, or name another",
    Code.ROLE: "let a node serve: node.role auto, serve or standby",
    Code.FAILED_HERE: "see why its engine failed: meshd status, journalctl -u 'mesh-llama@*'",
    Code.OTHER_CONTENT: "put the same file on all nodes",
    Code.SUSPECT: "none: it is decided in a moment whether that node is gone",
    Code.DRAINING_HERE: "none: it is placed again when the node has given it back",
    Code.DRAINED_NODE: "start another node that has it, or end the drain: meshd drain --undo there",
    Code.NO_ENGINE: "meshd engine install",
}


def placement_of(case: Case) -> Placement:
    asked = case.asked
    staying = (
        Replica(
            runs.node,
            runs.assignment.stage,
            Reason(Code.KEPT, "runs here" if runs.alive else "runs here, silent for a moment"),
            runs.memory,
            runs.assignment.parts,
        )
        for runs in case.running
    )
    strays = tuple(
        Replica(
            runs.node,
            runs.assignment.stage,
            Reason(Code.MISPLACED, f"{problem}; stays until another one answers"),
            runs.memory,
            runs.assignment.parts,
        )
        for runs, problem in case.strays
    )
    right = (*staying, *case.coming)
    blockers, next_step = _blockers(case, len(right))
    notes = (*asked.notes, *case.may.notes)
    if len(right) > case.number:
        notes = (*notes, f"{len(right)} run, {case.number} wanted: given back when it is time")
    ordered = sorted(case.may.excluded.items(), key=lambda item: (len(item[1]), item[0]))
    excluded = (Excluded(node, code, text) for code, them in ordered for node, text in them)
    excluded_count = sum(map(len, case.may.excluded.values()))
    return Placement(
        model=asked.model,
        fingerprint=case.may.fingerprint,
        context=asked.context,
        slots=asked.slots,
        quality=asked.quality,
        aliases=asked.aliases,
        demand=case.rate,
        wanted=case.number,
        replicas=(*right, *strays),
        releases=tuple(case.releases),
        excluded=tuple(islice(excluded, EXCLUDED_SHOWN)),
        excluded_more=max(0, excluded_count - EXCLUDED_SHOWN),
        blockers=blockers,
        next_step=next_step,
        notes=notes,
    )


def _blockers(case: Case, count: int) -> tuple[tuple[Reason, ...], str]:
    missing = case.number - count
    if missing <= 0:
        return (), ""
    # Nodes that could hold it, were their memory not taken, come before those that never could.
    taken = {replica.node for replica in case.coming}
    taken.update(runs.node for runs in case.running)
    full = [node for node in case.may.nodes if node not in taken]
    reasons = []
    if full:
        text = f"{_nodes(len(full))} could serve it if memory were idle: {_some(full)}"
        reasons.append(Reason(Code.NO_MEMORY, text))
    reasons.extend(_grouped(case.may.excluded))
    if not full and taken and count:
        reasons.insert(0, Reason(Code.NO_MEMORY, f"all {_nodes(len(taken))} that can, do"))
    if not reasons:
        reasons.append(Reason(Code.NOT_OFFERED, "there is no node that could serve it"))
    if count >= case.asked.least:
        return tuple(reasons), "none: more replicas come when memory is idle"
    return tuple(reasons), _NEXT_STEP.get(reasons[0].code, "see meshd plan on the nodes named here")


def _grouped(excluded: Mapping[Code, list[tuple[str, str]]]) -> list[Reason]:
    """One sentence a cause, the commonest first."""
    return [
        Reason(code, f"{_nodes(len(them))} ({_some([node for node, _ in them])}): {them[0][1]}")
        for code, them in sorted(excluded.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _some(nodes: list[str], most: int = 3) -> str:
    shown = ", ".join(nodes[:most])
    return shown if len(nodes) <= most else f"{shown} and {len(nodes) - most} more"
