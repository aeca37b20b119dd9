"""One computation for all nodes that see the same: placement is pure, so it may be remembered."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meshd.mesh.demand import rates, total
from meshd.mesh.view import MeshView
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.replicas import place_replicas

_KEPT = 256
_AGE_STEP_S = 0.5
_RATE_STEP = math.log(1.2)

HeatKey = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """:ivar rates: requests a minute by model, in steps of 1.2 times, which are the ``key``.

    :ivar exact: before they were rounded.

    Origins publish what moved by a fifth: a finer reckoning is noise, and shares no work.
    """

    rates: Mapping[str, float]
    key: HeatKey
    exact: Mapping[str, float]


def heat_of(found: Mapping[str, float]) -> Heat:
    key = tuple(
        (model, round(math.log(rate) / _RATE_STEP)) for model, rate in found.items() if rate > 0
    )
    return Heat({model: math.exp(step * _RATE_STEP) for model, step in key}, key, found)


COLD = heat_of({})


class Planning:
    """:ivar computed: placements worked out, of :ivar asked: asked for."""

    def __init__(self) -> None:
        self.computed = 0
        self.asked = 0
        self._plans: OrderedDict[object, MeshPlan] = OrderedDict()
        self._rosters: OrderedDict[int, int] = OrderedDict()
        self._heats: OrderedDict[object, Heat] = OrderedDict()

    def heat(self, entries: Iterable[tuple[bytes, float]]) -> Heat:
        """What is in demand, from payloads and their ages, which are rounded to share the work."""
        key = tuple(sorted((payload, round(age_s / _AGE_STEP_S)) for payload, age_s in entries))
        found = self._heats.get(key)
        if found is None:
            aged = [(payload, steps * _AGE_STEP_S) for payload, steps in key]
            found = self._heats[key] = heat_of(rates(total(aged)))
            _trim(self._heats)
        return found

    def plan(self, view: MeshView, heat: Heat) -> MeshPlan:
        self.asked += 1
        key = (view.digest, heat.key)
        found = self._plans.get(key)
        if found is None:
            self.computed += 1
            found = self._plans[key] = place_replicas(view, heat.rates)
            _trim(self._plans)
        return found

    def roster(self, view: MeshView) -> int:
        """Equal while nobody comes, goes or is missed."""
        found = self._rosters.get(view.digest)
        if found is None:
            found = hash(tuple((m.id, m.incarnation, m.status.value) for m in view.members))
            self._rosters[view.digest] = found
            _trim(self._rosters)
        return found


def _trim(table: OrderedDict[Any, Any]) -> None:
    if len(table) > _KEPT:
        table.popitem(last=False)
