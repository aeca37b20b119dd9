"""What is expected of an engine, before anything was measured of it."""

from __future__ import annotations

from dataclasses import replace

from meshd.engine_work import work_of, works
from meshd.load_times import LoadTime, LoadTimes
from meshd.node.speed import Speed
from meshd.pipeline import Proposal
from meshd.planner.layout import RAM
from meshd.planner.plan import Decision, DeviceUse, Plan, Strategy
from meshd.units.spec import EngineKind, EngineSpec
from tests.unit.worlds import GIB, facts, gpu, node

ARGV = ("/usr/bin/llama-server", "--ubatch-size", "512")
DECISION = Decision(
    "m", Strategy.SOLO_CPU, "box", 4096, 2, memory=(DeviceUse(RAM, 4 * GIB, GIB, GIB),)
)


def test_a_model_s_own_figures() -> None:
    model = facts()
    work = work_of(model, DECISION, node(), ARGV, load_s=3)
    assert (work.batch, work.load_s, work.batch_s) == (2048, 3, 0)
    assert work.token_flop == 2 * model.parameters
    # Queries times keys and weights times values, each a multiplication and an addition.
    assert work.depth_flop == 32 * 32 * (128 + 128) * 2
    assert work_of(model, DECISION, node(), (*ARGV, "--batch-size", "64"), load_s=0).batch == 64


def test_the_slowest_device_that_holds_weights_counts() -> None:
    speeds = (Speed("GPU-1", "k", 1, 10**14), Speed(RAM, "k", 1, 10**11))
    world = replace(node(gpu()), speeds=speeds)
    both = replace(DECISION, memory=(*DECISION.memory, DeviceUse("GPU-1", GIB, GIB, GIB)))
    alone = replace(DECISION, memory=(DeviceUse("GPU-1", GIB, GIB, 0), DeviceUse(RAM, 0, GIB, 0)))
    model = facts()
    flop = 2048 * 2 * model.parameters
    assert work_of(model, both, world, ARGV, load_s=0).batch_s == flop / 10**11
    assert work_of(model, alone, world, ARGV, load_s=0).batch_s == flop / 10**14
    # What was not measured says nothing.
    unknown = replace(world, speeds=speeds[:1])
    assert work_of(model, both, unknown, ARGV, load_s=0).batch_s == 0


def test_of_a_split_the_planner_has_predicted_it() -> None:
    split = replace(DECISION, strategy=Strategy.PIPELINE, ubatch_s=1.5)
    assert work_of(facts(), split, node(), ARGV, load_s=0).batch_s == 6


def test_engines_are_found_by_their_unit_and_nothing_else_is() -> None:
    engine = EngineSpec(EngineKind.LLAMA, "m", "m", ARGV, load_bytes=GIB)
    guard = replace(engine, kind=EngineKind.GUARD)
    world = node(models={"m": facts()})
    times = LoadTimes((LoadTime("m:1", 7.0, GIB),))
    proposal = Proposal(world, Plan((DECISION,)), (engine, guard), (), (), ())
    found = works(proposal, times)
    assert list(found) == ["mesh-llama@m.service"]
    assert found["mesh-llama@m.service"].load_s == 7
