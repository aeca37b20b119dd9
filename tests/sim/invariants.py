"""What must hold whatever happens, watched from outside: what nodes see, and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.deeds import Deeds
from tests.sim.findings import Bounds, Findings
from tests.sim.views import Views

if TYPE_CHECKING:
    from tests.sim.world import World


class Watch:
    """Everything that is watched in one run."""

    def __init__(self, world: World, bounds: Bounds) -> None:
        self.findings = Findings(lambda: world.clock.now_s)
        self.views = Views(world, bounds, self.findings)
        self.deeds = Deeds(world, bounds, self.findings, self.views)

    def look(self) -> None:
        """To be called every `views.LOOK_S`."""
        self.deeds.look(self.views.look())

    def settle(self) -> None:
        """At the end of a run, when everything has come to rest."""
        self.views.written_by_others()
        self.deeds.settle_accounts()
