"""Whatever happens to a mesh that serves from shards: what holds at every step, and that it ends
well. Each run is one seed; `MESHD_LIVES` in the environment is how many there are.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest

from meshd.config.settings import Split
from meshd.mesh.record import Stage
from meshd.planner.reshard import CALM_S, PAUSE_S
from meshd.quality import EXACT, quality_of, shortfalls
from meshd.units.spec import EngineKind
from tests.unit.shards.shard_lab import BUDGET, LabWorkshop, good, sharing_box
from tests.unit.splits.split_lab import Box, SplitLab
from tests.unit.worlds import hardware

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.experts.wish import ShardWish

RUNS = int(os.environ.get("MESHD_LIVES", "8"))
STORM_S = 120.0
# After which what was decided is done everywhere.
GRACE_S = 20.0
# Counted, cut and measured anew, one after the other, after the calm that a change waits for.
HEAL_S = CALM_S + PAUSE_S + 120.0


def poor(_: ShardWish) -> float:
    return 0.7


class Storm:
    def __init__(self, lab: SplitLab, draw: Random) -> None:
        self._lab = lab
        self._draw = draw
        self._ends: list[tuple[float, Callable[[], None]]] = []
        self.events: list[str] = []
        self._seen = {box.id: box.observation for box in lab.boxes.values()}

    def blow(self) -> None:
        for at, end in [one for one in self._ends if one[0] <= self._lab.now_s]:
            self._ends.remove((at, end))
            end()
        if self._draw.random() < 0.12:
            box = self._draw.choice(list(self._lab.boxes.values()))
            fault = self._draw.choice(
                [self._dies, self._brain_goes, self._asks_exact, self._rots, self._fails,
                 self._loses, self._shrinks, self._reads_others]
            )  # fmt: skip
            self.events.append(f"{self._lab.now_s:g} {box.id} {fault.__name__}")
            fault(box)

    def end(self) -> None:
        for _, end in self._ends:
            end()
        self._ends = []

    def _later(self, end: Callable[[], None]) -> None:
        self._ends.append((self._lab.now_s + self._draw.uniform(2, 40), end))

    def _dies(self, box: Box) -> None:
        if box.id in self._lab.gone:
            return
        self._lab.die(box.id)
        box.running, box.lent = (), ()
        self._later(partial(self._returns, box))

    def _returns(self, box: Box) -> None:
        self._lab.gone.discard(box.id)
        self._lab.moved_s = self._lab.now_s
        self._brain_goes(box)

    @staticmethod
    def _brain_goes(box: Box) -> None:
        box.born_again()
        shop = workshop(box)
        box.shards = replace(shop, settled=type(shop.settled)(), began={}, looked=False)

    def _asks_exact(self, box: Box) -> None:
        (model,) = box.config.models
        box.config = replace(box.config, models=(replace(model, quality=EXACT),))

        def back() -> None:
            box.config = replace(box.config, models=(replace(model, quality=BUDGET),))

        self._later(back)

    @staticmethod
    def _rots(box: Box) -> None:
        workshop(box).made.clear()
        workshop(box).began.clear()

    def _fails(self, box: Box) -> None:
        workshop(box).broken = "no llama-imatrix"
        self._later(lambda: setattr(workshop(box), "broken", ""))

    def _loses(self, box: Box) -> None:
        workshop(box).loses = poor

        def back() -> None:
            # What it measured then stays so, until it is cut anew.
            workshop(box).loses = good
            workshop(box).made.clear()

        self._later(back)

    def _reads_others(self, box: Box) -> None:
        workshop(box).calibration = self._draw.choice(["b", "d"]) * 64
        self._later(lambda: setattr(workshop(box), "calibration", "c" * 64))

    def _shrinks(self, box: Box) -> None:
        seen = self._seen[box.id]
        smaller = replace(hardware(ram_gib=self._draw.uniform(3.5, 7.5)), hostname=box.id)
        box.observation = replace(seen, hardware=smaller)
        self._later(lambda: setattr(box, "observation", seen))


def workshop(box: Box) -> LabWorkshop:
    assert isinstance(box.shards, LabWorkshop)
    return box.shards


def check(lab: SplitLab, since: dict[tuple[str, str], float]) -> None:
    """:param since: since when something holds that may only hold for a while."""
    there = [box for name, box in sorted(lab.boxes.items()) if name not in lab.gone]
    views = [record for box in lab.boxes.values() if (record := box.record) is not None]
    wishes = [one.wishes[0] for one in sorted(views, key=lambda one: one.id) if one.wishes]
    budget = quality_of(wishes[0].quality) if wishes else EXACT
    wrong = set()
    for box in there:
        engine = box.process(EngineKind.LLAMA, "big")
        record = box.record
        assert record is not None
        running = record.assignment("big")
        if engine is None or not engine.spec.reads[0].startswith("/shards/"):
            continue
        key = engine.spec.reads[0].removeprefix("/shards/").removesuffix(".gguf")
        if workshop(box).looked and key not in workshop(box).made:
            wrong.add((box.id, "runs a shard that is not there"))
        if running is not None and running.stage is Stage.READY:
            assert running.shard, "it says that it serves the whole model"
            if budget.exact or shortfalls(budget, running.measured):
                wrong.add((box.id, "serves less than is asked for"))
    for one in list(since):
        if one not in wrong:
            del since[one]
    for one in wrong:
        began_s = since.setdefault(one, lab.now_s)
        assert lab.now_s - began_s <= GRACE_S, one


@pytest.mark.parametrize("seed", range(RUNS))
def test_random_life(seed: int) -> None:
    draw = Random(seed)
    lab = SplitLab()
    lab.moved_s = lab.now_s
    names = ["ada", "bob", "cleo", "dora"][: draw.randint(2, 4)]
    for name in names:
        ram_gib = draw.choice([7.0, 8.0, 8.5])
        sharing_box(lab, name, split=Split.NEVER, ram_gib=ram_gib, seed=draw.randint(1, 3))
    storm = Storm(lab, draw)
    since: dict[tuple[str, str], float] = {}
    lab.step_s = 1.0
    try:
        while lab.now_s < 1000 + STORM_S:
            storm.blow()
            lab.step()
            check(lab, since)
        storm.end()
        lab.moved_s = lab.now_s
        lab.step_s = 2.0
        ends_s = lab.now_s + HEAL_S
        while set(lab.hosts("big")) != set(names):
            lab.step()
            check(lab, since)
            assert lab.now_s < ends_s, f"only {lab.hosts('big')} of {names}: {lab.story()}"
    except AssertionError as error:
        raise AssertionError(f"{error}\n" + "\n".join(storm.events)) from error
