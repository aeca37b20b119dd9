"""Expert shards from the first node to the last, over whole nodes under a virtual clock."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from statistics import mean

import pytest

from meshd.config.settings import Split
from meshd.experts.shard_key import shard_key
from meshd.mesh.record import NodeRecord, ShardRecord, ShardStage, Stage
from meshd.pipeline import node_view
from meshd.planner.place import budgets_of
from meshd.planner.plan import Code, Decision, Strategy
from meshd.planner.reshard import CALM_S, GAIN, PAUSE_S
from meshd.planner.shard_capacity import capacity
from meshd.planner.view import Candidate
from meshd.quality import EXACT, Budget
from meshd.shard_wants import ShardWant
from meshd.stuck_workers import PATIENCE_S
from meshd.units.spec import EngineKind
from tests.unit.planner_shards.rankings import falling
from tests.unit.shards.shard_lab import FINGERPRINT, MIXTURE, sharing_box, workshops
from tests.unit.splits.split_lab import SplitLab
from tests.unit.worlds import MIB, facts, hardware, wants

NAMES = ("ada", "bob", "cleo")


@pytest.fixture
def lab() -> SplitLab:
    lab = SplitLab()
    # A split is so far away that it is slow, and shards are worth their work.
    lab.rtt_ms = 30.0
    lab.moved_s = lab.now_s
    for name in NAMES:
        sharing_box(lab, name, split=Split.NEVER)
    return lab


def decision(lab: SplitLab, name: str) -> Decision:
    share = lab.boxes[name].last.share  # type: ignore[union-attr]
    assert share is not None
    return next(one for one in share.could if one.model == "big")


def serving(lab: SplitLab) -> dict[str, str]:
    """By box, the key of the shard that answers."""
    found = {}
    for name in lab.hosts("big"):
        record = lab.boxes[name].record
        assert record is not None
        assignment = record.assignment("big")
        if assignment is not None and assignment.stage is Stage.READY and assignment.shard:
            found[name] = assignment.shard
    return found


def all_serve(lab: SplitLab, *names: str) -> bool:
    return serving(lab).keys() == set(names)


def test_every_node_serves_from_a_shard_of_its_own(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    keys = serving(lab)
    assert len(set(keys.values())) == 3, "each has other experts"
    selections = [workshops(lab)[name].made[key].selection for name, key in keys.items()]
    for block in range(len(MIXTURE.layers)):
        everywhere = set.union(*(set(one[block]) for one in selections))
        assert everywhere == set(range(16)), "every expert has a home"
    for name, key in keys.items():
        engine = lab.boxes[name].process(EngineKind.LLAMA, "big")
        assert engine is not None
        assert engine.spec.reads == (f"/shards/{key}.gguf",)
        record = lab.boxes[name].record
        assert record is not None
        running, offer = record.assignment("big"), record.offer("big")
        assert running is not None
        assert offer is not None
        assert (offer.strategy, running.experts_all) == (Strategy.EXPERT_SHARD, 16)
        assert running.measured == offer.measured != ()
        assert running.fingerprint == FINGERPRINT, "it stands for the whole model"


def test_one_node_counts_for_all(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    assert sum(one.counted for one in workshops(lab).values()) == 1
    digests = {one.found[FINGERPRINT].digest for one in workshops(lab).values()}
    assert len(digests) == 1


def test_nothing_is_begun_before_the_mesh_is_calm(lab: SplitLab) -> None:
    lab.run(8)
    assert all(not one.began for one in workshops(lab).values())
    lab.run(8)
    assert any(one.began for one in workshops(lab).values())


def test_another_counts_when_one_cannot(lab: SplitLab) -> None:
    lab.run(11)
    (first,) = [name for name, one in workshops(lab).items() if one.began]
    workshops(lab)[first].broken = "no llama-imatrix"
    lab.until(lambda: any(one.counted for one in workshops(lab).values()), 30)
    assert not workshops(lab)[first].counted
    record = lab.boxes[first].record
    assert record is not None
    # It can still take the ranking that the other made.
    workshops(lab)[first].broken = ""
    lab.until(lambda: all_serve(lab, *NAMES), 60)


def test_exact_is_the_default_and_gets_no_shard() -> None:
    lab = SplitLab()
    for name in NAMES:
        sharing_box(lab, name, quality=EXACT, split=Split.NEVER)
    lab.run(30)
    assert not any(one.began or one.made for one in workshops(lab).values())
    assert serving(lab) == {}
    assert decision(lab, "ada").strategy is Strategy.WAIT


def test_a_shard_that_loses_too_much_is_not_served_and_says_by_how_much() -> None:
    lab = SplitLab()
    for name in NAMES:
        sharing_box(lab, name, split=Split.NEVER, loses=lambda _: 0.8125)
    lab.run(60)
    assert serving(lab) == {}
    assert lab.hosts("big") == []
    made = decision(lab, "ada")
    assert made.strategy is Strategy.WAIT
    (why,) = [one for one in made.blockers if one.code is Code.BELOW_QUALITY]
    assert "top-1 agreement on prose is 0.812, not 0.9" in why.text
    record = lab.boxes["ada"].record
    assert record is not None
    (said,) = record.shards
    assert (said.stage, said.measured[0].top1) == (ShardStage.REFUSED, 0.8125)


def test_one_bad_shard_keeps_only_its_own_node_away(lab: SplitLab) -> None:
    workshops(lab)["bob"].loses = lambda _: 0.5
    lab.until(lambda: all_serve(lab, "ada", "cleo"), 60)
    lab.run(20)
    assert all_serve(lab, "ada", "cleo")


def test_alone_there_is_nobody_to_share_with() -> None:
    lab = SplitLab()
    sharing_box(lab, "ada", split=Split.NEVER)
    lab.run(30)
    why = [one for one in decision(lab, "ada").blockers if one.code is Code.NO_HOME]
    assert [one.text for one in why] == ["no other node has room for a shard of it"]


def test_nodes_that_are_too_small_together_say_so() -> None:
    lab = SplitLab()
    for name in ("ada", "bob"):
        sharing_box(lab, name, split=Split.NEVER, ram_gib=4.0)
    lab.run(30)
    (why,) = [one for one in decision(lab, "ada").blockers if one.code is Code.NO_HOME]
    assert "2 nodes together hold" in why.text
    assert "of its 16 experts a layer" in why.text


def test_a_model_that_fits_one_node_is_served_whole_there() -> None:
    lab = SplitLab()
    sharing_box(lab, "ada", split=Split.NEVER, ram_gib=24.0)
    for name in ("bob", "cleo"):
        sharing_box(lab, name, split=Split.NEVER)
    lab.run(60)
    assert lab.hosts("big") == ["ada"]
    assert serving(lab) == {}
    assert not any(one.made for one in workshops(lab).values()), "nobody cuts what nobody needs"
    assert any(one.code is Code.SOLO_FASTER for one in decision(lab, "bob").blockers)


def test_a_whole_model_takes_over_from_shards(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    sharing_box(lab, "dora", split=Split.NEVER, ram_gib=24.0)
    box = lab.boxes["dora"]
    # A much faster machine.
    box.observation = replace(box.observation, speeds=fast())

    def alone() -> bool:
        assert lab.hosts("big"), "somebody always answers"
        for name in serving(lab):
            assert serving(lab)[name] in workshops(lab)[name].in_use, "nor is its file removed"
        return lab.hosts("big") == ["dora"]

    lab.until(alone, 60)
    lab.run(5)
    assert serving(lab) == {}


def test_the_others_go_on_when_a_node_dies_and_are_cut_anew_in_time(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    before = serving(lab)
    lab.die("cleo")
    began_s = lab.now_s
    lab.until(lambda: all_serve(lab, "ada", "bob"), 5)
    lab.step_s = 4.0
    lab.run(CALM_S)
    assert {name: before[name] for name in ("ada", "bob")} == serving(lab), "nothing in a hurry"
    lab.run(PAUSE_S - CALM_S - 100)
    lab.step_s = 0.5
    seen: list[int] = []

    def moved() -> bool:
        seen.append(len(serving(lab)))
        now = serving(lab)
        return all_serve(lab, "ada", "bob") and all(now[one] != before[one] for one in now)

    lab.until(moved, 240)
    assert lab.now_s - began_s >= PAUSE_S - 60, "and not twice in ten minutes"
    assert min(seen) >= 1, "somebody always answers"
    selections = [workshops(lab)[name].made[key].selection for name, key in serving(lab).items()]
    assert all(set(one[0]) | set(other[0]) == set(range(16)) for one, other in [selections])


def test_a_node_that_restarts_keeps_its_shard(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    before = serving(lab)
    box = lab.boxes["bob"]
    pids = {name: one.pid for name, one in box.processes.items()}
    old = workshops(lab)["bob"]
    box.born_again()
    box.shards = replace(old, settled=type(old.settled)(), began={}, looked=False)
    lab.step_s = 4.0
    lab.run(PAUSE_S + CALM_S)
    assert serving(lab) == before
    assert {name: one.pid for name, one in box.processes.items()} == pids, "nor is it restarted"


def switched_off(lab: SplitLab, *names: str) -> None:
    """As by a power cut: only what lies on their disks is left."""
    lab.die(*names)
    for name in names:
        box, shop = lab.boxes[name], workshops(lab)[name]
        box.running, box.record = (), None
        box.shards = replace(shop, settled=type(shop.settled)(), began={}, looked=False)


def switched_on(lab: SplitLab, name: str) -> None:
    lab.gone.discard(name)
    lab.moved_s = lab.now_s
    lab.boxes[name].born_again()


def test_after_a_power_cut_everybody_serves_from_what_lies_there(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    before = serving(lab)
    switched_off(lab, *NAMES)
    for number, name in enumerate(NAMES, 1):
        switched_on(lab, name)
        lab.until(partial(all_serve, lab, *NAMES[:number]), 10)
        # Long enough for those that are there to be taken for all.
        lab.run(20)
    assert serving(lab) == before
    assert not any(key in shop.began for shop in workshops(lab).values() for key in shop.made)


def test_a_little_less_memory_after_a_restart_is_no_reason_for_another_shard(
    lab: SplitLab,
) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    before = serving(lab)
    switched_off(lab, "bob")
    box = lab.boxes["bob"]
    less = hardware(ram_gib=7.6)
    box.observation = replace(box.observation, hardware=replace(less, hostname="bob"))
    (model,) = box.config.models
    node = node_view(box.config, box.observation, ())
    assert capacity(MIXTURE, node, box.config, model, budgets_of(node, box.config)) == 11
    switched_on(lab, "bob")
    lab.run(30)
    assert serving(lab) == before


def test_who_is_left_alone_goes_on_and_says_what_it_has(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    lab.die("ada", "cleo")
    lab.run(30)
    assert all_serve(lab, "bob")
    record = lab.boxes["bob"].record
    assert record is not None
    (said,) = record.shards
    assert (said.stage, said.key) == (ShardStage.READY, serving(lab)["bob"])
    assert said.measured
    assert workshops(lab)["bob"].in_use == {said.key}


def want_of(lab: SplitLab, name: str) -> ShardWant | None:
    last = lab.boxes[name].last
    share = last.share if last is not None else None
    return next(iter(share.shard_wants), None) if share is not None else None


def makes(lab: SplitLab, name: str) -> str:
    """The key of what it settled on."""
    want = want_of(lab, name)
    return want.target.key if want is not None and want.target is not None else ""


def test_who_is_missed_for_a_moment_costs_nobody_what_is_under_way(lab: SplitLab) -> None:
    lab.die("cleo")
    lab.until(lambda: makes(lab, "ada") and makes(lab, "bob"), 60)
    before = makes(lab, "ada")
    assert not workshops(lab)["ada"].made
    lab.die("bob")
    since_s = lab.now_s
    while lab.now_s - since_s < CALM_S - 2 * lab.step_s:
        lab.step()
        assert makes(lab, "ada") == before
    switched_on(lab, "bob")
    lab.until(lambda: all_serve(lab, "ada", "bob"), 60)
    assert serving(lab)["ada"] == before


def test_who_stays_alone_makes_nothing(lab: SplitLab) -> None:
    lab.die("cleo")
    lab.until(lambda: makes(lab, "ada"), 60)
    lab.die("bob")
    shop = workshops(lab)["ada"]
    shop.began = dict.fromkeys((*shop.began, makes(lab, "ada")), math.inf)
    lab.run(CALM_S + 2)
    assert want_of(lab, "ada") is None
    record = lab.boxes["ada"].record
    assert record is not None
    assert [one.detail for one in record.shards] == ["no other node has room for a shard of it"]


def test_a_node_that_is_drained_ends_its_answers_first(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    box = lab.boxes["bob"]
    engine = box.process(EngineKind.LLAMA, "big")
    assert engine is not None
    box.draining = True
    lab.step()
    assert box.record is not None
    assert [one.stage for one in box.record.assignments] == [Stage.DRAINING]
    now = box.process(EngineKind.LLAMA, "big")
    assert now is not None
    assert now.pid == engine.pid, "it may still be read from"
    lab.until(lambda: box.process(EngineKind.LLAMA, "big") is None, 10)
    assert all_serve(lab, "ada", "cleo")


def test_who_comes_later_gets_logits_though_nobody_has_them_any_more(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    for shop in workshops(lab).values():
        shop.logits = False
    sharing_box(lab, "dora", split=Split.NEVER)
    lab.moved_s = lab.now_s
    lab.until(lambda: all_serve(lab, *NAMES, "dora"), 120)


@pytest.mark.parametrize("capacity", [1, 16, 10**9])
def test_a_room_that_no_shard_could_fill_keeps_nobody_from_theirs(
    lab: SplitLab, capacity: int
) -> None:
    said = ShardRecord("big", FINGERPRINT, ShardStage.WANTED, capacity)
    lab.strangers = (NodeRecord("eve", shards=(said,)),)
    lab.until(lambda: all_serve(lab, *NAMES), 60)


@pytest.mark.parametrize("seed", [1, 5], ids=["the same counts", "other counts"])
def test_other_texts_are_counted_once_more_while_the_shards_serve(lab: SplitLab, seed: int) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    before = serving(lab)
    shops = workshops(lab)
    old = shops["ada"].found[FINGERPRINT]
    for shop in shops.values():
        shop.calibration, shop.seed = "d" * 64, seed
    lab.step_s = 4.0
    ends_s = lab.now_s + 2 * PAUSE_S
    while lab.now_s < ends_s:
        lab.step()
        # One after the other may begin anew.
        assert len(serving(lab)) >= 2
        if any(shop.found[FINGERPRINT] == old for shop in shops.values()):
            assert serving(lab) == before, "nothing changes before it is counted"
            assert {name: makes(lab, name) for name in NAMES} == before
    assert sum(shop.counted for shop in shops.values()) == 2
    assert {shop.found[FINGERPRINT].calibration for shop in shops.values()} == {"d" * 64}
    new = shops["ada"].found[FINGERPRINT]
    gains = {
        name: mean(new.masses(shops[name].made[key].selection))
        - mean(new.masses(shops[name].made[before[name]].selection))
        for name, key in serving(lab).items()
    }
    assert gains.keys() == set(NAMES)
    for name, gain in gains.items():
        changed = serving(lab)[name] != before[name]
        assert changed == (seed == 5), (name, gain)
        assert not changed or gain >= GAIN


def test_nothing_is_planned_by_a_ranking_that_is_outdated(lab: SplitLab) -> None:
    for shop in workshops(lab).values():
        # As after an update of all configurations while the nodes were off.
        shop.found[FINGERPRINT] = falling(len(MIXTURE.layers), 16, 1)
        shop.calibration = "d" * 64
    since_s = lab.now_s
    while not any(shop.counted for shop in workshops(lab).values()):
        lab.step()
        assert not any(makes(lab, name) for name in NAMES)
        assert lab.now_s < since_s + 2 * CALM_S
    assert lab.now_s - since_s >= CALM_S, "who is missed for a moment may have the right one"
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    assert sum(shop.counted for shop in workshops(lab).values()) == 1


def test_other_texts_of_one_node_alone_change_nothing(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    before = serving(lab)
    for name in NAMES:
        shop = workshops(lab)[name]
        shop.calibration, shop.seed = "b" * 64, 5
        lab.step_s = 4.0
        lab.run(2 * CALM_S)
        assert sum(one.counted for one in workshops(lab).values()) == 1, name
        shop.calibration = "c" * 64
    lab.run(PAUSE_S)
    assert serving(lab) == before


@pytest.mark.parametrize("first", NAMES)
def test_who_alone_asks_for_texts_counts_for_all(lab: SplitLab, first: str) -> None:
    for name, shop in workshops(lab).items():
        shop.calibration = "d" * 64 if name == first else ""
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    counted = {name: one.counted for name, one in workshops(lab).items() if one.counted}
    assert counted == {first: 1}


def test_texts_that_only_a_node_knows_that_cannot_count_are_not_waited_for(lab: SplitLab) -> None:
    # It would be what they settle on: of equals, the lowest.
    workshops(lab)["ada"].calibration = "a" * 64
    workshops(lab)["bob"].calibration = ""
    workshops(lab)["ada"].broken = "no llama-imatrix"
    lab.until(lambda: all_serve(lab, "bob", "cleo"), 60)
    found = workshops(lab)["cleo"].found[FINGERPRINT]
    assert found.calibration == "c" * 64


def test_who_is_to_count_and_never_begins_is_passed_over(lab: SplitLab) -> None:
    for shop in workshops(lab).values():
        shop.stuck = True
    lab.step_s = 4.0
    lab.run(20)
    (first,) = {want.awaited for name in NAMES if (want := want_of(lab, name)) is not None}
    for name in NAMES:
        workshops(lab)[name].stuck = name == first
    began_s = lab.now_s
    lab.until(lambda: any(shop.counted for shop in workshops(lab).values()), PATIENCE_S + 60)
    assert lab.now_s - began_s >= PATIENCE_S - 60, "it is given its time"
    assert not workshops(lab)[first].counted
    lab.until(lambda: all_serve(lab, *(name for name in NAMES if name != first)), 120)


def test_where_all_are_waited_for_in_vain_each_gets_its_turn_again(lab: SplitLab) -> None:
    lab.step_s = 4.0
    for shop in workshops(lab).values():
        shop.stuck = True
    turns: list[str] = []
    while len(turns) < 5:
        lab.step()
        assert lab.now_s < 1000 + 6 * PATIENCE_S, turns
        want = want_of(lab, "ada")
        if want is not None and want.awaited and turns[-1:] != [want.awaited]:
            turns.append(want.awaited)
    assert set(turns[:3]) == set(NAMES)
    assert turns[3:] == turns[:2]
    workshops(lab)[turns[1]].stuck = False
    lab.until(lambda: turns[1] in serving(lab), PATIENCE_S)


def test_what_runs_beside_it_leaves_less_room_for_a_shard() -> None:
    lab = SplitLab()
    lab.moved_s = lab.now_s
    for name in NAMES:
        sharing_box(lab, name, split=Split.NEVER)
    box = lab.boxes["ada"]
    small = Candidate("small", facts(layers=2, layer_bytes=512 * MIB), "small:1")
    models = (*box.config.models, wants("small", context=2048, slots=1, nodes=("ada",)))
    seen = box.observation

    def room() -> int:
        assert box.record is not None
        return box.record.shards[0].capacity

    box.config = replace(box.config, models=models)
    lab.run(4)
    alone = room()
    box.observation = replace(seen, candidates=(*seen.candidates, small))
    assert room() == alone
    lab.until(lambda: lab.hosts("small") == ["ada"], 20)
    lab.run(2)
    assert 0 < room() < alone
    assert workshops(lab)["ada"].began == {} or not serving(lab), "nothing else takes memory yet"


def test_when_exact_is_asked_the_shards_go() -> None:
    lab = SplitLab()
    for name in NAMES:
        sharing_box(lab, name, split=Split.NEVER)
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    for box in lab.boxes.values():
        (model,) = box.config.models
        box.config = replace(box.config, models=(replace(model, quality=EXACT),))
    lab.until(lambda: not lab.hosts("big"), 30)
    lab.run(10)
    assert not lab.hosts("big")


@pytest.mark.parametrize("exact", NAMES)
def test_who_asks_for_exact_gets_it_whatever_the_others_allow(exact: str) -> None:
    lab = SplitLab()
    for name in NAMES:
        quality = EXACT if name == exact else Budget(min_top1=0.1)
        sharing_box(lab, name, quality=quality, split=Split.NEVER)
    lab.run(60)
    assert serving(lab) == {}
    assert not any(one.began for one in workshops(lab).values())
    share = lab.boxes["bob"].last.share  # type: ignore[union-attr]
    assert share is not None
    placement = share.plan.placement("big")
    assert placement is not None
    assert placement.quality == "exact"
    assert "quality: exact and min_top1=0.1 are asked for; exact keeps all of them" in (
        placement.notes
    )


def test_a_slower_exact_split_gives_way_to_shards() -> None:
    lab = SplitLab(rtt_ms=20.0)
    for name in NAMES:
        sharing_box(lab, name)
    lab.until(lambda: lab.hosts("big"), 20)
    assert serving(lab) == {}
    lab.until(lambda: all_serve(lab, *NAMES), 120)
    lab.run(30)
    assert all_serve(lab, *NAMES)
    assert all(not box.lent for box in lab.boxes.values()), "what was lent is given back"
    lost = [one.strategy for one in decision(lab, "ada").considered]
    assert Strategy.EXPERT_SHARD not in lost


def test_the_key_says_what_is_in_a_shard(lab: SplitLab) -> None:
    lab.until(lambda: all_serve(lab, *NAMES), 60)
    shop = workshops(lab)["ada"]
    key = serving(lab)["ada"]
    selection = shop.made[key].selection
    assert key == shard_key(FINGERPRINT, shop.found[FINGERPRINT].digest, selection)
    assert key in shop.in_use, "what serves is not to be removed"


def fast() -> tuple:  # type: ignore[type-arg]
    from meshd.node.speed import Speed

    return (Speed("ram", "k", 400_000_000_000, 10**13),)
