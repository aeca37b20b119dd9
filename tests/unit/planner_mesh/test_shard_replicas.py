"""Which nodes serve a model from expert shards, by what they say of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.mesh.record import Assignment, Offer, Stage
from meshd.planner.mesh_plan import MeshPlan, Placement
from meshd.planner.plan import Code, Strategy
from meshd.planner.replicas import place_replicas
from meshd.quality import Fidelity
from tests.unit.planner_mesh.meshes import mesh, node, offer, runs, where, wish

LOSES = (Fidelity("prose", 0.96, 1.04, 0.05), Fidelity("code", 0.93, 1.06, 0.08))
ASKED = "min_top1=0.9"


def shard(speed: float = 30.0, measured: tuple[Fidelity, ...] = LOSES) -> Offer:
    strategy = Strategy.EXPERT_SHARD
    return replace(offer("mix", speed=speed), strategy=strategy, measured=measured)


def serves(measured: tuple[Fidelity, ...] = LOSES) -> Assignment:
    return replace(runs("mix"), shard="k" * 24, measured=measured, experts=12, experts_all=16)


def placement(plan: MeshPlan) -> Placement:
    found = plan.placement("mix")
    assert found is not None
    return found


def test_every_node_that_has_a_shard_serves_it() -> None:
    wishes = (wish("mix", quality=ASKED),)
    plan = place_replicas(mesh(node("a", shard(), wishes=wishes), node("b", shard())), {})
    assert where(plan, "mix") == ["a", "b"]


def test_no_more_than_the_configuration_allows() -> None:
    wishes = (wish("mix", most=1, quality=ASKED),)
    plan = place_replicas(mesh(node("a", shard(31.0), wishes=wishes), node("b", shard())), {})
    assert where(plan, "mix") == ["a"]


def test_a_whole_model_that_is_better_is_all_there_is() -> None:
    wishes = (wish("mix", quality=ASKED),)
    whole = node("c", offer("mix", speed=60.0), wishes=wishes)
    plan = place_replicas(mesh(node("a", shard()), node("b", shard()), whole), {})
    assert where(plan, "mix") == ["c"]


@pytest.mark.parametrize(
    ("quality", "measured", "why"),
    [
        ("exact", LOSES, "only a part of its experts is here"),
        ("exact", (), "its shard was not measured"),
        (ASKED, (), "its shard was not measured"),
        ("min_top1=0.95", LOSES, "top-1 agreement on code is 0.930, not 0.95"),
        ("of a newer version", LOSES, "only a part of its experts is here"),
    ],
)
def test_a_shard_below_the_quality_is_neither_begun_nor_kept(
    quality: str, measured: tuple[Fidelity, ...], why: str
) -> None:
    wishes = (wish("mix", quality=quality),)
    plan = place_replicas(mesh(node("a", shard(measured=measured), wishes=wishes)), {})
    assert where(plan, "mix") == []
    (excluded,) = [one for one in placement(plan).excluded if one.code is Code.BELOW_QUALITY]
    assert why in excluded.text

    has = node("a", shard(measured=measured), wishes=wishes, running=[serves(measured)])
    (release,) = placement(place_replicas(mesh(has), {})).releases
    assert (release.node, release.code) == ("id-a", Code.MISPLACED)
    assert why in release.text


def test_shards_go_when_a_faster_whole_model_answers_and_not_before() -> None:
    wishes = (wish("mix", quality=ASKED),)
    both = [node(one, shard(), wishes=wishes, running=[serves()]) for one in ("a", "b")]
    loads = node("c", offer("mix", speed=60.0), running=[runs("mix", Stage.LOADING)])
    assert placement(place_replicas(mesh(*both, loads), {})).releases == ()
    answers = node("c", offer("mix", speed=60.0), running=[runs("mix")])
    gone = placement(place_replicas(mesh(*both, answers), {})).releases
    assert sorted((one.node, one.text) for one in gone) == [
        ("id-a", "c serves it exactly, at 60 tokens/s"),
        ("id-b", "c serves it exactly, at 60 tokens/s"),
    ]


def test_a_whole_model_that_is_hardly_faster_does_not_take_over() -> None:
    wishes = (wish("mix", quality=ASKED),)
    has = node("a", shard(50.0), wishes=wishes, running=[serves()])
    other = node("c", offer("mix", speed=60.0), running=[runs("mix")])
    assert not [
        one for one in placement(place_replicas(mesh(has, other), {})).releases
        if one.code is Code.MISPLACED
    ]  # fmt: skip
