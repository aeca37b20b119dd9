"""What people are told of expert shards: in `meshd status`, `meshd mesh members` and the plan."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from meshd.cli.mesh import table
from meshd.cli.status import _lines
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.mesh.record import Assignment, NodeRecord, ShardRecord, ShardStage, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_status import followed_status, member_lines
from meshd.planner.plan import ShardUse
from meshd.quality import Budget, Fidelity
from meshd.shard_line import ShardStatus, progress, quality, shape
from meshd.shard_status import with_shards
from meshd.status import ModelStatus, NodeStatus

LOST = (Fidelity("prose", 0.9624, 1.021, 0.02), Fidelity("code", 0.971, 1.0251, 0.03))
USE = ShardUse("k1", "/s/k1.gguf", 12, 16, 0.8376, LOST)
MODEL = ModelStatus(
    "moe",
    ModelState.READY,
    "expert-shard",
    "mesh-llama@moe.service",
    7,
    0,
    4096,
    2,
    3 * 1024**3,
    "",
)
MAKING = ShardRecord(
    "moe", "fp", ShardStage.MAKING, 12, "r", "k2", 11, 0.8, 0.4, "measures it on code"
)
REFUSED = replace(MAKING, stage=ShardStage.REFUSED, measured=LOST, detail="", progress=0.0)


def record(node: str, *shards: ShardRecord, serves: str = "") -> NodeRecord:
    running = Assignment("moe", "fp", Stage.READY, shard=serves, measured=LOST if serves else ())
    return NodeRecord(node, name=node, shards=shards, assignments=(running,) if serves else ())


def view(*records: NodeRecord) -> MeshView:
    members = tuple(MemberView(one.id, 1, Status.ALIVE, one) for one in records)
    return MeshView("box1", members)


def text(*models: ModelStatus) -> list[str]:
    status = NodeStatus("box1", "auto", "serving", (), 1, "llama.cpp", (), "", (), models)
    return list(_lines(status))[2:]


def test_a_model_that_a_shard_serves_says_what_it_loses_in_one_line() -> None:
    ready = ShardRecord("moe", "fp", ShardStage.READY, 12, "r", "k1", 12, 0.8376, measured=LOST)
    model = with_shards(MODEL, USE, "box1", view(record("box1", ready, serves="k1")))
    assert text(model) == [
        "model    moe: ready, expert-shard (12 of 16 experts, 83 % of routing; "
        "top-1 0.962 prose, 0.971 code; perplexity x1.03), context 4096 x 2 slots, 3.0 GiB"
    ]


def test_a_node_that_is_alone_says_so_too() -> None:
    (one,) = with_shards(MODEL, USE, "box1", None).shards
    assert (one.me, one.serves, one.stage, one.experts_all) == (True, True, "ready", 16)
    loading = replace(MODEL, state=ModelState.LOADING)
    assert not with_shards(loading, USE, "box1", None).shards[0].serves


def test_the_next_one_that_is_made_while_the_old_one_serves_has_a_line() -> None:
    found = with_shards(MODEL, USE, "box1", view(record("box1", MAKING, serves="k1")))
    assert text(found)[1:] == [
        "         shard: being made 40 %, 11 experts, 80 % of routing: measures it on code"
    ]
    assert [(one.stage, one.serves) for one in found.shards] == [("ready", True), ("making", False)]


def test_a_shard_under_way_and_what_it_waits_for() -> None:
    waits = replace(MODEL, state=ModelState.WAITING, strategy="wait", detail="too large")
    wanted = ShardRecord("moe", "fp", ShardStage.WANTED, 12, detail="box2 counts its experts")
    found = with_shards(waits, None, "box1", view(record("box1", wanted)), experts_all=16)
    assert text(found) == [
        "model    moe: waiting",
        "         too large",
        "         shard: waits: box2 counts its experts",
    ]


def test_a_refused_one_says_by_how_much() -> None:
    waits = replace(MODEL, state=ModelState.WAITING, strategy="wait")
    found = with_shards(
        waits, None, "box1", view(record("box1", REFUSED)), experts_all=16,
        budget=Budget(min_top1=0.97),
    )  # fmt: skip
    assert text(found)[1] == (
        "         shard: refused, 11 of 16 experts, 80 % of routing; "
        "top-1 0.962 prose, 0.971 code; perplexity x1.03: "
        "top-1 agreement on prose is 0.962, not 0.97"
    )
    told = replace(REFUSED, detail="the disk is full")
    found = with_shards(waits, None, "box1", view(record("box1", told)), budget=Budget(max_kl=0.0))
    assert found.shards[0].detail == "the disk is full"


def test_of_other_nodes_shards_a_model_says_the_worst_and_json_all() -> None:
    far = replace(MODEL, strategy="elsewhere", nodes=("box2", "box3"))
    worse = replace(LOST[0], top1=0.91, perplexity_ratio=1.2)
    third = replace(record("box3", serves="k3"), assignments=(
        Assignment("moe", "fp", Stage.READY, shard="k3", measured=(worse,)),
    ))  # fmt: skip
    found = with_shards(
        far, None, "box1", view(record("box1"), record("box2", MAKING, serves="k1"), third)
    )
    assert text(found) == [
        "model    moe: ready on box2, box3 from shards (top-1 0.910 prose, 0.971 code; "
        "perplexity x1.20), context 4096 x 2 slots"
    ]
    hostile = replace(worse, domain="\x1b[2Jx")
    nasty = replace(found, shards=(replace(found.shards[1], measured=(hostile,)),))
    assert all(line.isprintable() for line in text(nasty))
    assert [(one.node, one.stage, one.serves) for one in found.shards] == [
        ("box2", "making", False),
        ("box2", "ready", True),
        ("box3", "ready", True),
    ]
    again = msgspec.json.decode(msgspec.json.encode(found), type=ModelStatus)
    assert again == found


def test_a_client_of_the_mesh_knows_it_from_its_table() -> None:
    targets = (
        Target(
            "id-2", "", True, 2, name="box2", shard="k", experts=12, experts_all=16, measured=LOST
        ),
        Target("id-3", "", True, 2, name="box3"),
    )
    table = RoutingTable(routes=(Route("moe", ModelState.READY, targets),))
    (model,) = followed_status(table)
    assert text(model) == [
        "model    moe: ready on box2, box3 from shards (top-1 0.962 prose, 0.971 code; "
        "perplexity x1.03), context 0 x 4 slots"
    ]
    assert [(one.node, one.experts, one.experts_all) for one in model.shards] == [("box2", 12, 16)]


def test_another_model_s_shards_are_not_its() -> None:
    other = replace(MAKING, model="other")
    assert with_shards(MODEL, None, "box1", view(record("box1", other))) == MODEL


def test_members_have_a_column_of_shards_once_there_are_any() -> None:
    plain = list(table(member_lines(view(record("box1")), {}, {})))
    assert "SHARDS" not in plain[0]
    ready = ShardRecord("moe", "fp", ShardStage.READY, 12, "r", "k1", 12, 0.8376, measured=LOST)
    lines = list(table(member_lines(view(record("box1", ready, serves="k1"), record("b")), {}, {})))
    assert lines[0].endswith("MODELS  SHARDS")
    assert lines[2].endswith("  -")
    assert lines[1].endswith(
        "moe     moe ready, 12 experts, 83 % of routing; top-1 0.962 prose, 0.971 code; "
        "perplexity x1.03"
    )


@pytest.mark.parametrize(
    ("top1", "ratio", "words"),
    [
        (0.9499999, 1.0500001, "top-1 0.949 prose; perplexity x1.06"),
        (0.95, 1.05, "top-1 0.950 prose; perplexity x1.05"),
        (0.29, 1.1, "top-1 0.290 prose; perplexity x1.10"),
        (1.0, 1.0, "top-1 1.000 prose; perplexity x1.00"),
        (0.5, float("inf"), "top-1 0.500 prose; perplexity xinf"),
    ],
)
def test_what_misses_a_bound_does_not_look_as_if_it_kept_it(
    top1: float, ratio: float, words: str
) -> None:
    assert quality((Fidelity("prose", top1, ratio, 0.1),)) == words


def test_nothing_known_is_nothing_said() -> None:
    nothing = ShardStatus("moe", "box1", True, ShardStage.RANKING)
    assert (quality(()), shape(nothing), progress(nothing)) == ("", "", "experts are being counted")
