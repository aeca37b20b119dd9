"""Which nodes of the mesh run which models. Pure: one view and one demand, one answer everywhere.

What runs stays where it is. What is missing is placed in this order: models that somebody's
configuration asks for by name and that run nowhere; their further replicas; then what demand asks
for, hottest first, and further expert shards, in memory that is idle. Only the first two make a
popular replica give way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from meshd.mesh.record import Stage
from meshd.mesh.view import MeshView
from meshd.planner.case import Case, Runs
from meshd.planner.eligible import Mesh, eligible, mesh_of, misplaced, summed
from meshd.planner.explain import placement_of
from meshd.planner.heat import replicas_for
from meshd.planner.holding import holding
from meshd.planner.mesh_plan import MeshPlan, Release
from meshd.planner.plan import Code
from meshd.planner.ranking import order
from meshd.planner.shard_replicas import outdone, shards_for
from meshd.planner.table import Table
from meshd.planner.wishes import Wanted, wanted

_RUNS = (Stage.LOADING, Stage.READY)


def place_replicas(view: MeshView, demand: Mapping[str, float]) -> MeshPlan:
    """Decide for every model that somebody's configuration names.

    :param demand: requests a minute over the whole mesh, by model or alias; what is not finite
        or below zero counts as none.
    """
    mesh = mesh_of(view)
    cases = [_case(asked, mesh, demand) for asked in wanted(view)]
    table = Table(mesh, cases)
    named = [case for case in cases if case.asked.least > 0]
    for case in named:
        table.keep_claims(case, case.asked.least)
    for case in named:
        if not case.count:
            table.place(case, 1)
    for case in named:
        table.place(case, case.asked.least)
    hottest_first = sorted(cases, key=lambda case: (-case.rate, case.asked.model))
    for case in hottest_first:
        table.keep_claims(case, case.number)
    for case in hottest_first:
        table.place(case, case.number)
    for case in cases:
        _give_back(case)
    names = {case.asked.model for case in cases}
    return MeshPlan(tuple(placement_of(case) for case in cases), tuple(_orphans(mesh, names)))


def _case(asked: Wanted, mesh: Mesh, demand: Mapping[str, float]) -> Case:
    may = eligible(asked, mesh)
    names = (asked.model, *asked.aliases)
    rate = sum(asks for name in names if 0 <= (asks := demand.get(name, 0.0)) < math.inf)
    case = Case(asked, may, rate)
    for node, assignment in mesh.assigned.get(asked.model, {}).items():
        if assignment.stage not in _RUNS:
            continue
        one, offer = mesh.known[node], mesh.offer(asked.model, node)
        memory = summed(assignment.memory or (offer.memory if offer is not None else ()))
        held = holding(node, memory, assignment.parts, mesh.records)
        runs = Runs(node, order(asked, one), assignment, one.alive, memory, held)
        problem = misplaced(asked, one, assignment, may.fingerprint) or outdone(
            asked, one, assignment, may, mesh
        )
        if problem:
            case.strays.append((runs, problem))
        else:
            case.running.append(runs)
    case.running.sort(key=lambda runs: runs.order)
    answers = any(runs.alive and runs.assignment.stage is Stage.READY for runs in case.running)
    case.number = replicas_for(rate, len(case.running), asked.least, asked.most, answers=answers)
    case.number = max(case.number, shards_for(asked, may, mesh))
    return case


def _give_back(case: Case) -> None:
    """Take leave of what is too many, the worst first, and never of the last that answers."""
    while True:
        alive = [runs for runs in case.running if runs.alive]
        if len(alive) <= case.number or not alive[-1].assignment.settled:
            break
        answering = sum(runs.assignment.stage is Stage.READY for runs in alive[:-1])
        if case.number and not answering:
            break
        worst = alive[-1]
        case.running.remove(worst)
        code, text = Code.SURPLUS, f"{case.number} wanted, {len(alive)} run"
        if not case.number:
            code, text = Code.NO_DEMAND, "hardly anybody asks for it any more"
        case.releases.append(Release(case.asked.model, worst.node, code, text))
    # Those that run where they should not go when a successor answers; at once where none comes.
    answered = any(runs.assignment.stage is Stage.READY and runs.alive for runs in case.running)
    if case.strays and (answered or not case.count):
        case.releases.extend(
            Release(case.asked.model, runs.node, Code.MISPLACED, problem)
            for runs, problem in case.strays
        )
        case.strays = []


def _orphans(mesh: Mesh, names: set[str]) -> Iterator[Release]:
    text = "no node's configuration names it any more"
    for model in sorted(mesh.assigned.keys() - names):
        for node, assignment in sorted(mesh.assigned[model].items()):
            if assignment.stage in (*_RUNS, Stage.CLAIMED):
                yield Release(model, node, Code.NOT_ASKED_FOR, text)
