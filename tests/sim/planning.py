"""One computation for all nodes that see the same: placement is pure, so it may be remembered."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping

from meshd.mesh.view import MeshView
from meshd.planner.heat import HIGH_PER_REPLICA, LOW_PER_REPLICA, SLEEP, WAKE
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.replicas import place_replicas

_KEPT = 64
_EDGES = sorted(
    {
        SLEEP,
        WAKE,
        *(step * n for n in range(1, 200) for step in (HIGH_PER_REPLICA, LOW_PER_REPLICA)),
    }
)


def heat_key(rates: Mapping[str, float]) -> tuple[tuple[str, int], ...]:
    """What placement reads from rates: their order, and between which thresholds each one is."""
    order = sorted(rates, key=lambda model: (-rates[model], model))
    return tuple((model, bisect_left(_EDGES, rates[model])) for model in order)


class Planning:
    """:ivar computed: placements worked out, of :ivar asked: asked for."""

    def __init__(self) -> None:
        self.computed = 0
        self.asked = 0
        self._plans: OrderedDict[object, MeshPlan] = OrderedDict()
        self._rosters: OrderedDict[int, int] = OrderedDict()

    def plan(self, view: MeshView, rates: Mapping[str, float]) -> MeshPlan:
        self.asked += 1
        key = (view.digest, heat_key(rates))
        found = self._plans.get(key)
        if found is None:
            self.computed += 1
            found = self._plans[key] = place_replicas(view, rates)
            if len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        return found

    def roster(self, view: MeshView) -> int:
        """Equal while nobody comes, goes or is missed."""
        found = self._rosters.get(view.digest)
        if found is None:
            found = hash(tuple((m.id, m.incarnation, m.status.value) for m in view.members))
            self._rosters[view.digest] = found
            if len(self._rosters) > _KEPT:
                self._rosters.popitem(last=False)
        return found
