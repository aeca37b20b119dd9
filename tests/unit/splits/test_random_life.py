"""Whatever happens to a mesh with splits: what holds at every step, and that it ends well.

Each run is one seed: boxes, models and faults are drawn from it, so that a failure can be had
again. `MESHD_LIVES` in the environment is how many there are.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from meshd.config.settings import (
    Config,
    DemandSettings,
    ModelSettings,
    NodeSettings,
    Reserve,
    Split,
)
from meshd.mesh.record import LeaseStage
from meshd.planner.view import Candidate
from meshd.units.spec import EngineKind
from tests.unit.splits.life_lab import LAG_MOST, Engine, LifeBox, LifeLab
from tests.unit.splits.split_lab import STEP_S, observation
from tests.unit.worlds import MIB, facts, hardware, wants

# More than any of the boxes has; more than most; little. All of them together fit all boxes.
MODELS = {
    "big": facts(layers=16, layer_bytes=512 * MIB),
    "mid": facts(layers=12, layer_bytes=256 * MIB),
    "small": facts(layers=8, layer_bytes=128 * MIB),
}
STORM_S = 60.0
CALM_S = 80.0
# Longer than any probation and any time after which something is tried again.
PROBATIONS_S = 8000.0
RUNS, CHUNKS = int(os.environ.get("MESHD_LIVES", "24")), 4


def mesh(draw: Random) -> LifeLab:
    lab = LifeLab(draw)
    names = ["ada", "bob", "cleo", "dora", "emil"][: draw.randint(3, 5)]
    models = ["big", *draw.sample(["mid", "small"], draw.randint(0, 2))]
    holders = {model: set(draw.sample(names, draw.randint(1, len(names)))) for model in models}
    for name in names:
        config = Config(
            node=NodeSettings(name=name, reserve=Reserve(512 * MIB, 512 * MIB)),
            models=tuple(
                wants(model, context=2048, slots=1)
                for model in models
                if name in holders[model] and (draw.random() < 0.7 or name == min(holders[model]))
            ),
            demand=DemandSettings(dwell_s=5.0),
        )
        candidates = tuple(
            Candidate(model, MODELS[model], f"{model}:1", fingerprint=model.ljust(32, "0"))
            for model in models
            if name in holders[model]
        )
        seen = observation(hardware(ram_gib=draw.choice([5.5, 6.5, 7.0])), name, *candidates)
        box = LifeBox(name, config, seen, lab)
        lab.boxes[name] = box
    return lab


class Storm:
    """Faults at random, each of which passes."""

    def __init__(self, lab: LifeLab, draw: Random) -> None:
        self._lab = lab
        self._draw = draw
        self._ends: list[tuple[float, object]] = []
        self._configs = {box.id: box.config for box in lab.all()}

    def blow(self) -> None:
        now_s = self._lab.now_s
        due = [end for at, end in self._ends if at <= now_s]
        self._ends = [one for one in self._ends if one[0] > now_s]
        for end in due:
            end()  # type: ignore[operator]
        if self._draw.random() < 0.1:
            fault = self._draw.choice(
                [
                    self._dies,
                    self._brain_goes,
                    self._brains_go,
                    self._is_lost,
                    self._is_lost,
                    self._is_cut_off,
                    self._lags,
                    self._lags,
                    self._is_suspected,
                    self._is_reconfigured,
                    self._is_drained,
                    self._seeds_fail,
                    self._shrinks,
                ]
            )
            fault()

    def _box(self) -> LifeBox:
        return self._draw.choice(list(self._lab.all()))

    def _note(self, *what: object) -> None:
        self._lab.events.append(f"{self._lab.now_s:.1f} {' '.join(map(str, what))}")

    def _after(self, least_s: float, most_s: float, end: object) -> None:
        self._ends.append((self._lab.now_s + self._draw.uniform(least_s, most_s), end))

    def _dies(self) -> None:
        box = self._box()
        if box.silent_s is not None:
            return
        self._note(box.id, "dies")
        box.power_off()
        self._after(0.5, 20, lambda: self._wakes(box))

    def _wakes(self, box: LifeBox) -> None:
        self._note(box.id, "is there again")
        box.on()

    def _brain_goes(self) -> None:
        box = self._box()
        if box.silent_s is not None:
            return
        self._note(box.id, "brain")
        box.off()
        self._after(0.5, 3, lambda: self._wakes(box))

    def _brains_go(self) -> None:
        for box in self._lab.all():
            if box.silent_s is None and self._draw.random() < 0.6:
                self._note(box.id, "brain")
                box.off()
                self._after(0.5, 1.5, partial(self._wakes, box))

    def _is_lost(self) -> None:
        ends = [
            (box, one, node)
            for box in self._lab.all()
            for one in box.processes.values()
            if isinstance(one, Engine) and one.linked
            for node in one.linked
        ]
        if ends:
            box, engine, node = self._draw.choice(ends)
            self._note(box.id, "loses", node)
            box.lose(node, engine.spec.name)
            engine.linked = None
            engine.restarts += 1

    def _is_cut_off(self) -> None:
        box, other = self._box(), self._box()
        if box is not other:
            self._note(box.id, "does not reach", other.id)
            box.unreached.add(other.id)
            self._after(1, 15, lambda: box.unreached.discard(other.id))

    def _lags(self) -> None:
        box, other = self._box(), self._box()
        key = box.id, other.id
        self._lab.lags[key] = self._draw.randint(1, LAG_MOST)
        self._note(box.id, "hears late of", other.id, self._lab.lags[key])
        self._after(2, 20, lambda: self._lab.lags.pop(key, None))

    def _is_suspected(self) -> None:
        box = self._box()
        self._note(box.id, "is suspected")
        self._lab.suspects[box.id] = self._lab.now_s + self._draw.uniform(0.5, 3)

    def _is_reconfigured(self) -> None:
        box = self._box()
        models: list[ModelSettings] = []
        for model in self._configs[box.id].models:
            chance = self._draw.random()
            if chance < 0.3:
                models.append(replace(model, split=Split.NEVER))
            elif chance < 0.6:
                models.append(replace(model, context=4096))
            elif chance < 0.8:
                models.append(model)
        self._note(box.id, "is told", [(one.name, one.split, one.context) for one in models])
        box.config = replace(box.config, models=tuple(models))
        self._after(3, 20, lambda: self._is_told_back(box))

    def _is_told_back(self, box: LifeBox) -> None:
        self._note(box.id, "is told as before")
        box.config = self._configs[box.id]

    def _is_drained(self) -> None:
        box = self._box()
        self._note(box.id, "is drained")
        box.draining = True
        self._after(3, 20, lambda: setattr(box, "draining", False))

    def _seeds_fail(self) -> None:
        box = self._box()
        self._note(box.id, "does not seed")
        box.seeds_fail = True
        self._after(3, 20, lambda: setattr(box, "seeds_fail", False))

    def _shrinks(self) -> None:
        box = self._box()
        box.used_bytes = self._draw.choice([1, 2, 4]) * 1024 * MIB
        self._note(box.id, "has less memory", box.used_bytes >> 20)
        self._after(3, 20, lambda: setattr(box, "used_bytes", 0))

    def passes(self) -> None:
        self._note("all is well")
        for box in self._lab.all():
            if box.silent_s is not None:
                box.on()
            box.config = self._configs[box.id]
            box.draining, box.seeds_fail, box.used_bytes = False, False, 0
            box.unreached.clear()
        self._lab.lags.clear()
        self._lab.suspects.clear()


def live(seed: int) -> LifeLab:
    """One run. :raises AssertionError: something did not hold."""
    draw = Random(seed)
    lab = mesh(draw)
    storm = Storm(lab, draw)
    try:
        for _ in range(int(STORM_S / STEP_S)):
            storm.blow()
            lab.step()
        storm.passes()
        lab.run(CALM_S / 4)
        lab.now_s += PROBATIONS_S
        lab.run(CALM_S * 3 / 4)
        all_is_well(lab)
    except AssertionError as error:
        told = "\n".join((*lab.events, *map(str, lab.story())))
        raise AssertionError(f"seed {seed} at {lab.now_s:.1f}: {error}\n{told}") from None
    return lab


def fits(lab: LifeLab, model: str) -> bool:
    """Whether there is room for it beside what runs. None is made: splits do not move, and what an
    empty node could serve alone is not split because nodes are half full.
    """
    rooms = {
        box.id: box.observation.hardware.ram.total_bytes - box.config.node.reserve.ram_bytes
        for box in lab.all()
    }
    free = {
        box.id: rooms[box.id]
        - sum(one.size_bytes for one in box.processes.values() if isinstance(one, Engine))
        for box in lab.all()
    }
    # With caches and buffers, and the prompts that an engine may keep.
    weights = sum(layer.weight_bytes for layer in MODELS[model].layers)
    need = weights * 3 // 2 + 600 * MIB
    holders = [
        box.id for box in lab.all() if any(one.model == model for one in box.observation.candidates)
    ]
    if weights <= min(rooms.values()):
        return any(free[one] >= need for one in holders)
    return sum(free.values()) >= need and any(free[one] > 2048 * MIB for one in holders)


def all_is_well(lab: LifeLab) -> None:
    wanted = {model.name for box in lab.all() for model in box.config.models}
    needed: dict[str, set[str]] = {box.id: set() for box in lab.all()}
    for model in sorted(wanted):
        engines = [
            (box, one)
            for box in lab.all()
            if (one := box.process(EngineKind.LLAMA, model)) is not None
        ]
        if not engines and not fits(lab, model):
            continue
        assert len(engines) == 1, f"{model} runs on {[box.id for box, _ in engines]}"
        ((box, engine),) = engines
        assert box.answers(engine.spec.unit, engine.pid), f"{model} does not answer on {box.id}"
        needed[box.id].add(engine.spec.unit)
        assert isinstance(engine, Engine)
        for node in engine.linked or {}:
            needed[box.id].add(f"mesh-guard@{model}.service")
            lent = f"{model}.{box.id}"
            needed[node] |= {f"mesh-rpc@{lent}.service", f"mesh-guard@{lent}.service"}
    for box in lab.all():
        assert box.processes.keys() == needed[box.id], (
            f"{box.id} runs {sorted(box.processes)}, needed are {sorted(needed[box.id])}"
        )
        assert box.record is not None
        assert all(one.stage is LeaseStage.READY for one in box.record.leases), box.record.leases


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_whatever_happens_it_ends_well(chunk: int) -> None:
    for seed in range(chunk * RUNS // CHUNKS, (chunk + 1) * RUNS // CHUNKS):
        live(seed)
