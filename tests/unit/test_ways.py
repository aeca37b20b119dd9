"""`meshd plan --explain`: every way to serve a model in one table, mixtures and others alike."""

from __future__ import annotations

from dataclasses import replace

from meshd.planner.plan import (
    Code,
    Considered,
    Decision,
    DeviceUse,
    Reason,
    ShardUse,
    Strategy,
)
from meshd.quality import Fidelity
from meshd.report import Lost, Piece, Placed, PlacedOn, PlanReport, Possible, lines
from meshd.shard_line import ShardStatus

GIB = 1024**3
LOST = (Fidelity("prose", 0.9624, 1.021, 0.02), Fidelity("code", 0.971, 1.0251, 0.03))
WORSE = (Fidelity("prose", 0.91, 1.1, 0.2),)
MOE = Placed(
    model="moe",
    wanted=1,
    demand=0.0,
    on=(PlacedOn("box1", "ready", "runs here"),),
    excluded=(PlacedOn("box2", Code.SOLO_FASTER, "box1 is faster alone"),),
    possible=(
        Possible("box1", Strategy.EXPERT_SHARD, 31.5, 4096, 2, measured=LOST),
        Possible("box2", Strategy.SOLO_OFFLOAD, 12.0, 4096, 2),
        Possible(
            "box3", Strategy.PIPELINE, 18.25, 4096, 1,
            parts=(Piece("box3", "ram", 20, 3 * GIB), Piece("box2", "GPU-1", 28, 4 * GIB)),
        ),
        Possible("box4", Strategy.WAIT, 0.0, problem="it has no file of it"),
    ),
    lost=(
        Lost(("box1",), 9.5, Code.SLOWER, "all experts in RAM", Strategy.SOLO_OFFLOAD),
        Lost(("box1", "box9"), 0.0, Code.NO_MEMORY, "box9 has no room for a layer of it"),
        Lost((), 0.0, Code.FAR, "3 more nodes cannot take part"),
    ),
    shards=(
        ShardStatus("moe", "box1", True, "ready", True, 12, 16, 0.8376, LOST),
        ShardStatus("moe", "box5", False, "refused", False, 8, 0, 0.6, WORSE, detail="it loses"),
        ShardStatus("moe", "box6", False, "making", False, 10, progress=0.5),
    ),
)  # fmt: skip


def text(report: PlanReport) -> list[str]:
    return list(lines(report, explain=True))


def test_the_ways_of_a_mixture_in_a_mesh() -> None:
    assert text(PlanReport((), (), mesh=(MOE,)))[:21] == [
        "moe: 1 wanted",
        "    box1: ready (runs here)",
        "    not on box2: box1 is faster alone [solo-is-faster]",
        "       STRATEGY      NODES       TOKENS/S  QUALITY"
        "                                          WHY",
        "    >  expert-shard  box1        31.5      "
        "top-1 0.962 prose, 0.971 code; perplexity x1.03  ready: runs here",
        "       pipeline      box3, box2  18.25     exact"
        "                                            1 wanted",
        "       solo-offload  box2        12        exact"
        "                                            box1 is faster alone [solo-is-faster]",
        "       solo-offload  box1        9.5       exact"
        "                                            all experts in RAM [slower]",
        "       wait          box4        -         -"
        "                                                it has no file of it",
        "       pipeline      box1, box9  -         exact"
        "                                            "
        "box9 has no room for a layer of it [not-enough-memory]",
        "       -             -           -         -"
        "                                                "
        "3 more nodes cannot take part [too-far-away]",
        "       expert-shard  box5        -         top-1 0.910 prose; perplexity x1.10"
        "              refused, 8 experts, 60 % of routing: it loses",
        "       expert-shard  box6        -         -"
        "                                                being made 50 %, 10 experts",
        "    box3's split, context 4096, 1 slots:",
        "        box3 ram: 20 layers, 3.0 GiB",
        "        box2 GPU-1: 28 layers, 4.0 GiB",
        "",
        "On this node:",
        "    nothing",
        "",
        "Nothing would change.",
    ]


def test_without_explain_there_is_no_table() -> None:
    assert not any("STRATEGY" in line for line in lines(PlanReport((), (), mesh=(MOE,))))


def test_a_dense_model_that_waits_for_everybody() -> None:
    dense = Placed("big", 1, 0.0, (), possible=(Possible("b", "wait", 0.0, problem="too large"),))
    assert text(PlanReport((), (), mesh=(dense,)))[1:3] == [
        "       STRATEGY  NODES  TOKENS/S  QUALITY  WHY",
        "       wait      b      -         -        too large",
    ]
    nobody = Placed("big", 1, 0.0, ())
    assert text(PlanReport((), (), mesh=(nobody,)))[:2] == ["big: 1 wanted", ""]


def test_who_could_too_says_how_many_are_wanted() -> None:
    two = Possible("b", Strategy.SOLO_CPU, 3.0)
    dense = Placed("m", 2, 0.0, (PlacedOn("a", "planned", "asked for"),), possible=(two,))
    assert text(PlanReport((), (), mesh=(dense,)))[3].endswith("exact    2 wanted, 1 placed")
    idle = replace(dense, wanted=0, on=())
    assert text(PlanReport((), (), mesh=(idle,)))[2].endswith("exact    nobody asks for it")


def test_a_node_that_is_alone_has_the_table_below_its_decision() -> None:
    slower = Reason(Code.SLOWER, "layers in RAM")
    use = ShardUse("k", "/s/k.gguf", 12, 16, 0.8376, LOST)
    decision = Decision(
        "moe", Strategy.EXPERT_SHARD, "id-1", 4096, 2,
        memory=(DeviceUse("ram", 3, 2, 1),),
        reasons=(Reason(Code.CHOSEN, "a shard keeps the quality asked for"),),
        tokens_s=20.0,
        considered=(
            Considered(("id-1",), 11.0, slower, Strategy.SOLO_OFFLOAD),
            Considered((), 0.0, Reason(Code.NO_PEER, "no other node is there")),
        ),
        shard=use,
    )  # fmt: skip
    assert text(PlanReport((decision,), ()))[2:9] == [
        "    shard: 12 of 16 experts, 83 % of routing; "
        "top-1 0.962 prose, 0.971 code; perplexity x1.03",
        "    a shard keeps the quality asked for [chosen]",
        "       STRATEGY      NODES      TOKENS/S  QUALITY"
        "                                          WHY",
        "    >  expert-shard  this node  20        "
        "top-1 0.962 prose, 0.971 code; perplexity x1.03  a shard keeps the quality asked for",
        "       solo-offload  this node  11        exact"
        "                                            layers in RAM [slower]",
        "       -             -          -         -"
        "                                                "
        "no other node is there [nobody-near-enough]",
        "",
    ]
    assert not any("STRATEGY" in line for line in lines(PlanReport((decision,), ())))
