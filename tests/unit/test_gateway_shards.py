"""Shards beside whole models: who keeps what is asked for, where conversations stay, and what is
said of it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import make_dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from meshd.gateway.answer_quality import (
    asked_quality,
    good_enough,
    quality_said,
    said_elsewhere,
    word,
)
from meshd.gateway.ask import Ask
from meshd.gateway.choice import Choice, Chosen, Refusal, Refused, Why, choose, place
from meshd.gateway.openai_error import refused
from meshd.gateway.resolve import resolve
from meshd.gateway.routes import (
    ModelState,
    Route,
    RoutingTable,
    Target,
    decode,
    encode,
    packed,
    source_of,
    weights_of,
)
from meshd.gateway.speeds import Speeds
from meshd.quality import EXACT, Budget, Fidelity, parse

LOOSE = "min_top1=0.01"
ASK = Ask("m", prompt_tokens=100, affinity=77)


def node(number: int, **more: object) -> Target:
    return Target(f"n{number}", "", True, 4, address=f"10.0.0.{number}:9338", **more)  # type: ignore[arg-type]


def shard(
    number: int, top1: float = 0.96, perplexity: float = 1.03, kl: float = 0.04, **more: object
) -> Target:
    key = f"key{number}"
    measured = (Fidelity("prose", top1, perplexity, kl), Fidelity("code", 0.999, 1.0, 0.001))
    weights = weights_of("fp", key)
    return node(
        number, weights=weights, shard=key, experts=12, experts_all=16, measured=measured, **more
    )


def whole(number: int, **more: object) -> Target:
    return node(number, weights="fp", **more)


def table(targets: Sequence[Target], quality: str = LOOSE, state: str = "ready") -> RoutingTable:
    return RoutingTable(routes=(Route("m", ModelState(state), tuple(targets), quality=quality),))


def chosen(
    targets: Sequence[Target], ask: Ask = ASK, quality: str = LOOSE, **more: object
) -> Chosen:
    choice = pick(targets, ask, quality, **more)
    assert isinstance(choice, Chosen), choice
    return choice


def pick(targets: Sequence[Target], ask: Ask = ASK, quality: str = LOOSE, **more: object) -> Choice:
    return choose(table(targets, quality), "m", {}, (), ask=ask, **more)  # type: ignore[arg-type]


def asking(quality: str | None, **more: object) -> Ask:
    return replace(ASK, quality=parse(quality) if quality else None, **more)  # type: ignore[arg-type]


# -- what keeps the quality ---------------------------------------------------------------------

figures = st.tuples(st.floats(0, 1), st.floats(1, 3), st.floats(0, 3))
bounds = st.builds(
    Budget,
    st.none() | st.floats(0, 1),
    st.none() | st.floats(1, 3),
    st.none() | st.floats(0, 3),
)


def _keeps(target: Target, budget: Budget) -> bool:
    """By hand, and not by the code under test."""
    if not target.shard:
        return True
    if budget == EXACT or not target.measured:
        return False
    if any(budget.min_top1 is not None and one.top1 < budget.min_top1 for one in target.measured):
        return False
    most = budget.max_perplexity_ratio
    if any(most is not None and one.perplexity_ratio > most for one in target.measured):
        return False
    return all(budget.max_kl is None or one.kl <= budget.max_kl for one in target.measured)


@given(
    st.lists(figures | st.none() | st.just("unmeasured"), min_size=1, max_size=6),
    bounds,
    st.none() | bounds,
    st.integers(0, 2**64 - 1),
    st.sampled_from(["", "fp", "fp+key1"]),
)
def test_no_target_below_a_bound_is_ever_taken(
    kinds: list[object], own: Budget, asked: Budget | None, affinity: int, goes_on: str
) -> None:
    targets = [
        whole(number)
        if kind is None
        else replace(shard(number), measured=())
        if kind == "unmeasured"
        else shard(number, *kind)  # type: ignore[misc]
        for number, kind in enumerate(kinds, 1)
    ]
    ask = replace(ASK, affinity=affinity, quality=asked)
    choice = pick(targets, ask, str(own), same_weights=goes_on)
    fit = [one for one in targets if all(_keeps(one, each) for each in (own, asked or own))]
    if fit:
        assert isinstance(choice, Chosen)
        assert choice.target in fit
    else:
        assert isinstance(choice, Refused)


def test_a_model_that_is_to_be_exact_gets_no_shard_and_waits_for_better() -> None:
    for quality in ("exact", "words of a newer brain"):
        choice = pick([shard(1)], ASK, quality)
        assert isinstance(choice, Refused)
        assert choice.reason is Refusal.NOT_READY
    assert chosen([shard(1), whole(2)], ASK, "exact").target == whole(2)


def test_a_request_may_ask_for_more_than_the_model_s_bounds_and_not_for_less() -> None:
    good, poor = shard(1, 0.97), shard(2, 0.9)
    for affinity in range(1, 30):
        ask = asking("min_top1=0.95", affinity=affinity)
        assert chosen([good, poor], ask).target == good
        assert chosen([good, poor], asking("min_top1=0.5", affinity=affinity), "min_top1=0.95")
        assert chosen([good, poor, whole(3)], asking("exact", affinity=affinity)).target == whole(3)
    stricter = pick([poor], asking("min_top1=0.5"), "min_top1=0.95")
    assert isinstance(stricter, Refused)
    assert stricter.reason is Refusal.NOT_READY


def test_who_asks_for_what_no_shard_keeps_is_told_by_how_much() -> None:
    targets = [shard(1, 0.93), replace(shard(2, 0.96), name="box2")]
    choice = pick(targets, asking("min_top1=0.97"))
    assert isinstance(choice, Refused)
    assert choice.reason is Refusal.QUALITY
    error = refused(choice, "m", table(targets))
    assert (error.status, error.code) == (503, "quality_unavailable")
    assert "with quality min_top1=0.97" in error.message
    assert "box2 has a shard; experts=12/16; top1=0.960" in error.message
    assert "top-1 agreement on prose is 0.960, not 0.97" in error.message
    exact = pick(targets, asking("exact"))
    assert isinstance(exact, Refused)
    assert "is not served exactly now" in refused(exact, "m", table(targets)).message


def test_a_whole_one_that_loads_is_waited_for() -> None:
    loading = replace(whole(2), ready=False)
    for targets, reason in (
        ([shard(1), loading], Refusal.NOT_READY),
        ([shard(1), replace(shard(2), ready=False)], Refusal.QUALITY),
    ):
        choice = pick(targets, asking("exact"))
        assert isinstance(choice, Refused)
        assert choice.reason is reason
    nothing = choose(table([], state="loading"), "m", {}, (), ask=asking("exact"))
    assert isinstance(nothing, Refused)
    assert nothing.reason is Refusal.NOT_READY


def test_auto_means_a_model_of_enough_quality_while_there_is_one() -> None:
    large = Route("large", ModelState.READY, (replace(shard(1), context=9000),), quality=LOOSE)
    small = Route("small", ModelState.READY, (replace(whole(2), context=4000),), quality=LOOSE)
    routes = RoutingTable(routes=(large, small))
    assert resolve(routes, Ask("auto")) == large
    assert resolve(routes, Ask("auto", quality=EXACT)) == small
    assert resolve(RoutingTable(routes=(large,)), Ask("auto", quality=EXACT)) == large
    loads = replace(small, state=ModelState.LOADING, targets=(replace(whole(2), ready=False),))
    assert resolve(RoutingTable(routes=(large, loads)), Ask("auto", quality=EXACT)) == loads
    assert resolve(RoutingTable(routes=(large, loads)), Ask("auto")) == large
    equal = replace(small, targets=(replace(whole(2), context=9000),))
    assert resolve(RoutingTable(routes=(large, equal)), Ask("auto")) == equal


# -- where conversations stay -------------------------------------------------------------------

keys = st.integers(1, 2**64 - 1)


@given(keys, st.integers(2, 8), st.data())
def test_a_shard_that_leaves_moves_its_own_sessions_and_no_others(
    affinity: int, count: int, data: st.DataObject
) -> None:
    ask = replace(ASK, affinity=affinity)
    # One of them is this node's own, with free slots.
    own = replace(shard(1), socket="/run/m.sock", address="")
    targets = [own, *map(shard, range(2, count + 1))]
    before = chosen(targets, ask).target
    gone = data.draw(st.sampled_from(targets))
    left = [one for one in targets if one != gone]
    how = data.draw(st.sampled_from(["left", "failed", "suspect", "loads"]))
    if how == "failed":
        choice = choose(table(targets), "m", {}, {place("m", gone)}, ask=ask)
    elif how == "left":
        choice = choose(table(left), "m", {}, (), ask=ask)
    else:
        worse = replace(gone, suspect=True) if how == "suspect" else replace(gone, ready=False)
        choice = choose(table([*left, worse]), "m", {}, (), ask=ask)
    assert isinstance(choice, Chosen)
    assert (choice.target == before) is (gone != before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_shard_that_comes_takes_its_share_and_nothing_moves_between_the_others(
    count: int,
) -> None:
    chance, total = random.Random(1), 6000
    old, new = [shard(number) for number in range(1, count + 1)], shard(count + 1)
    moved = 0
    for _ in range(total):
        ask = replace(ASK, affinity=chance.getrandbits(64))
        before, after = chosen(old, ask).target, chosen([*old, new], ask).target
        assert after in (before, new)
        moved += after == new
    share = 1 / (count + 1)
    # Of a fair draw five standard deviations are missed once in two million.
    assert abs(moved - total * share) < 5 * (total * share * (1 - share)) ** 0.5


def test_a_conversation_goes_to_its_shard_before_a_free_slot_here() -> None:
    here = replace(shard(1), socket="/run/m.sock", address="")
    asks = [replace(ASK, affinity=affinity) for affinity in range(1, 60)]
    places = Counter(chosen([here, shard(2)], ask).target.node for ask in asks)
    assert places.keys() == {"n1", "n2"}
    # What belongs to no conversation, and replicas of the whole model, stay here.
    assert chosen([here, shard(2)], replace(ASK, affinity=0), draw=5).why is Why.HERE
    own = replace(whole(1), socket="/run/m.sock", address="")
    assert {chosen([own, whole(2)], ask).why for ask in asks} == {Why.HERE}


def test_where_answers_differ_whose_it_is_decides_and_elsewhere_the_conversation() -> None:
    talks = [replace(ASK, affinity=affinity, person=99) for affinity in range(1, 40)]
    shards, replicas = [shard(n) for n in range(1, 5)], [whole(n) for n in range(1, 5)]
    assert len({chosen(shards, ask).target.node for ask in talks}) == 1
    assert len({chosen(replicas, ask).target.node for ask in talks}) == 4


def test_the_whole_model_goes_first_unless_it_is_much_slower() -> None:
    targets = [shard(1), whole(2), shard(3)]
    even, slow = Speeds(), Speeds()
    for one in targets:
        for speeds in (even, slow):
            late = 30.0 if speeds is slow and one.whole else 1.0
            speeds.served(place("m", one), 2 * late)
            speeds.evaluated(place("m", one), 100, 0.1)
    asks = [*(replace(ASK, affinity=n) for n in range(1, 20)), replace(ASK, affinity=0)]
    firsts = [chosen(targets, ask, speeds=even, draw=9) for ask in asks]
    assert {one.target.node for one in firsts} == {"n2"}
    assert {one.why for one in firsts[:-1]} == {Why.WHOLE, Why.PREFIX}
    # Then it has its share, like the others.
    places = {chosen(targets, ask, speeds=slow, draw=9).target.node for ask in asks}
    assert places == {"n1", "n2", "n3"}
    busy = {place("m", targets[1]): 4}
    full = choose(table(targets), "m", busy, (), ask=ASK, speeds=even)
    assert isinstance(full, Chosen)
    assert not full.target.whole


# -- what a stream goes on with -----------------------------------------------------------------


def test_a_stream_goes_on_with_its_own_shard_else_with_others_of_its_source() -> None:
    twin = replace(shard(1), node="n9", address="10.0.0.9:9338")
    other = replace(node(5), weights="fp2")
    for affinity in range(1, 30):
        ask = replace(ASK, affinity=affinity)
        begun = shard(1).weights
        assert chosen([shard(2), whole(3), twin, other], ask, same_weights=begun).target == twin
        assert chosen([shard(2), other], ask, same_weights=begun).target == shard(2)
        assert chosen([whole(3), other], ask, same_weights=begun).target == whole(3)
        assert chosen([shard(2), other], ask, same_weights="fp").target == shard(2)
        exact = replace(ask, quality=EXACT)
        assert chosen([shard(2), whole(3)], exact, same_weights=begun).target == whole(3)
    choice = pick([other], ASK, same_weights=shard(1).weights)
    assert isinstance(choice, Refused)
    assert choice.reason is Refusal.NOT_READY


def test_weights_of_shards_differ_and_know_their_source() -> None:
    names = {weights_of("fp"), weights_of("fp", "a"), weights_of("fp", "b"), weights_of("fq", "a")}
    assert len(names) == 4
    assert {source_of(one) for one in names} == {"fp", "fq"}
    assert weights_of("", "a") == ""  # what is not known is the same as nothing


# -- what is said -------------------------------------------------------------------------------


def test_what_an_answer_says_of_its_quality() -> None:
    assert quality_said(whole(1)) == "exact"
    said = "shard; experts=12/16; top1=0.962; perplexity=1.031; kl=0.040"
    assert quality_said(shard(1, 0.962, 1.031, 0.04)) == said
    # The worst of each, over all kinds of text.
    mixed = (Fidelity("prose", 0.9, 1.0, 0.2), Fidelity("code", 0.8, 1.2, 0.1))
    worst = quality_said(replace(shard(1), measured=mixed, experts=0))
    assert worst == "shard; top1=0.800; perplexity=1.200; kl=0.200"
    # Rounded to the worse side: who asks for what is said gets it.
    close = quality_said(shard(1, 0.9627, 1.0301, 0.0401))
    assert close.endswith("top1=0.962; perplexity=1.031; kl=0.041")
    assert quality_said(replace(shard(1), measured=(), experts=0)) == "shard"
    assert [word(one) for one in (said, "exact", "shardlike", "")] == ["shard", "exact", "", ""]


def _told(*lines: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(("x-mesh-quality", line) for line in lines))


def test_what_another_gateway_says_is_believed_if_it_is_such_words() -> None:
    assert said_elsewhere(_told("shard; top1=0.9")) == "shard; top1=0.9"
    assert said_elsewhere(_told("exact")) == "exact"
    for strange in ("min_top1=0.9", "", "shard; \x01"):
        assert said_elsewhere(_told(strange)) == ""
    assert len(said_elsewhere(_told("shard; " + "x" * 9000))) <= 200


def test_what_a_request_asks_for() -> None:
    assert asked_quality(_told()) is None
    assert asked_quality(_told("exact")) == EXACT
    bound = Budget(min_top1=0.97, max_kl=0.05)
    assert asked_quality(_told("min_top1=0.97,max_kl=0.05")) == bound
    assert asked_quality(_told("min_top1=0.97", "max_kl=0.05")) == bound
    for bad in (
        "",
        "good",
        "min_top1",
        "min_top1=nan",
        "min_top1=1.5",
        "exact, exact",
        "max_kl=-1",
    ):
        with pytest.raises(ValueError, match=r"^quality"):
            asked_quality(_told(bad))


@given(bounds)
def test_bounds_travel_as_they_are(asked: Budget) -> None:
    assert asked_quality(_told(str(asked))) == asked


# -- the table between versions -----------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
fidelities = st.builds(Fidelity, texts, st.floats(0, 1), st.floats(1, 9), st.floats(0, 9))
targets_with = st.builds(
    lambda number, key, kept, measured: replace(
        node(number), shard=key, experts=kept, measured=measured
    ),
    st.integers(1, 9),
    texts,
    st.integers(0, 99),
    st.lists(fidelities, max_size=3).map(tuple),
)


@given(st.lists(targets_with, max_size=3))
def test_a_table_with_shards_comes_back_as_it_was(targets: list[Target]) -> None:
    for encoded in (encode(table(targets)), packed(table(targets))):
        assert decode(encoded) == table(targets)


def test_an_older_brain_s_table_means_whole_models() -> None:
    old = (
        b'{"schema":1,"routes":[{"model":"m","state":"ready","targets":[{"node":"n1","socket":"",'
        b'"ready":true,"slots":4,"address":"10.0.0.1:9338","weights":"fp"}]}]}'
    )
    (route,) = decode(old).routes
    assert route.targets == (whole(1),)
    assert good_enough(route, EXACT) == route.targets


def test_an_older_gateway_reads_a_newer_brain_s_table() -> None:
    old_target = make_dataclass(
        "OldTarget",
        [("node", str), ("socket", str), ("ready", bool), ("slots", int), ("weights", str, "")],
    )
    old_route = make_dataclass(
        "OldRoute",
        [("model", str), ("state", str), ("targets", tuple[old_target, ...], ())],  # type: ignore[valid-type]
    )
    old_table = make_dataclass("OldTable", [("schema", int), ("routes", tuple[old_route, ...], ())])  # type: ignore[valid-type]
    got: Any = msgspec.json.decode(packed(table([shard(1), whole(2)])), type=old_table)
    first, second = got.routes[0].targets
    # It goes on with a stream only where these are equal, so never from one to the other.
    assert first.weights != second.weights == "fp"


@pytest.mark.parametrize(
    "wrong",
    [
        {"measured": [{"domain": "prose", "top1": "high", "perplexity_ratio": 1.0, "kl": 0.0}]},
        {"measured": [{"domain": "prose"}]},
        {"shard": 7},
        {"experts": -0.5},
    ],
)
def test_a_table_with_wrong_figures_is_refused(wrong: dict[str, object]) -> None:
    document = msgspec.json.decode(encode(table([shard(1)])))
    document["routes"][0]["targets"][0] |= wrong
    with pytest.raises(ValueError, match="routing table"):
        decode(msgspec.json.encode(document))
