"""The benchmark of splits, with a model small enough for a test: real engines, a real wire."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshd.engine.locate import Place
from meshd.node.speed import RAM, Speed
from meshd.node.speed_model import ModelShape
from tools.bench_split import __main__ as bench
from tools.bench_split import models, predict, rig
from tools.bench_split.relay import Wire, precise_loop, round_trip_s

SPEED = Speed(RAM, "k", 10_000_000_000, 10**11, 5_000_000_000, 10**11)
SHAPE = ModelShape(layers=4, width=512, feed_forward=1024, heads=8, kv_heads=2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Place) -> str:
    monkeypatch.setenv("MESHD_ENGINE_ROOT", str(engine.root))
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setitem(models.MODELS, "small", SHAPE)
    return "small"


def test_a_wire_has_its_delay_and_no_more() -> None:
    async def took() -> tuple[float, float]:
        wire = Wire()
        quick_s = await round_trip_s(wire)
        wire.delay_s = 0.01
        return quick_s, await round_trip_s(wire)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        quick_s, slow_s = runner.run(took())
    assert quick_s < 0.01
    assert 0.02 <= slow_s < 0.02 + 0.01


def test_real_engines_are_held_against_the_planner(small: str) -> None:
    async def rows() -> list[bench.Row]:
        found = [one async for one in bench.rows([small], [1, 3], [0.0, 50.0], 1, SPEED)]
        assert found[0] is SPEED
        return [one for one in found if isinstance(one, bench.Row)]

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        alone, near, far = runner.run(rows())
    assert (alone.stages, near.stages, far.stages) == (1, 3, 3)
    assert min(alone.actual, near.actual, far.actual) > 0
    # Two members of 50 ms each: a token takes both ways, one after the other, and not a third.
    assert far.rtt_ms >= 50
    assert 6 < far.predicted < 10
    assert 4 < far.actual < 10
    assert near.actual > far.actual
    assert far.error_ratio == pytest.approx(far.actual / far.predicted - 1)


def test_layers_are_shared_out_in_order(small: str) -> None:
    facts = bench.read_facts(models.model(small))
    parts = rig.parts_of(facts, 3)
    assert [part.layers for part in parts] == [1, 1, 2]
    assert [part.node for part in parts] == [predict.HOST, "member1", "member2"]
    near = predict.predicted_tokens_s(facts, parts, SPEED, 0.001, 10**9)
    far = predict.predicted_tokens_s(facts, parts, SPEED, 0.021, 10**9)
    assert 1 / far - 1 / near == pytest.approx(0.04)
