"""Of several targets: which hold the request, which is its own place, and when that is too busy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.affinity import BALANCE, identity, weight
from meshd.gateway.ask import Ask
from meshd.gateway.choice import Chosen, Refusal, Refused, Why, choose, place
from meshd.gateway.openai_error import refused
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.speeds import Speeds

HERE = Target("me", "/run/m.sock", True, 2)
FAR = [Target(f"n{n}", "", True, 4, address=f"10.0.0.{n}:9338") for n in range(1, 7)]
ASK = Ask("m", prompt_tokens=1000, affinity=77)


def table(targets: Sequence[Target]) -> RoutingTable:
    return RoutingTable(routes=(Route("m", ModelState.READY, tuple(targets)),))


def chosen(
    targets: Sequence[Target],
    ask: Ask = ASK,
    *,
    load: Mapping[str, int] | None = None,
    suspects: Collection[str] = (),
    speeds: Speeds | None = None,
    draw: int = 0,
    exact_tokens: int = 0,
    same_weights: str = "",
) -> Chosen:
    """What `choose` takes, which must not refuse."""
    choice = choose(
        table(targets), "m", load or {}, suspects, ask=ask, speeds=speeds, draw=draw,
        exact_tokens=exact_tokens, same_weights=same_weights,
    )  # fmt: skip
    assert isinstance(choice, Chosen)
    return choice


def busy(targets: Sequence[Target], load: int) -> dict[str, int]:
    return {place("m", one): load for one in targets}


def measured(prefill_tokens_s: float = 1000.0, service_s: float = 4.0) -> Speeds:
    speeds = Speeds()
    for one in FAR:
        speeds.evaluated(place("m", one), int(prefill_tokens_s), 1.0)
        speeds.served(place("m", one), service_s)
    return speeds


def home(targets: Sequence[Target], ask: Ask = ASK) -> Target:
    return max(targets, key=lambda one: weight(ask.affinity, identity(one.node, "m"), one.slots))


# -- what holds it ------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([0, 512, 2048, 8192]), min_size=1, max_size=6), st.integers(0, 9000)
)
def test_a_request_goes_where_it_fits_by_estimate_or_else_where_most_fits(
    contexts: list[int], tokens: int
) -> None:
    targets = [replace(one, context=c) for one, c in zip(FAR, contexts, strict=False)]
    got = chosen(targets, replace(ASK, prompt_tokens=tokens, max_tokens=1)).target.context
    if 0 in contexts or max(contexts) > tokens:
        assert got == 0 or got > tokens
    else:
        assert got == max(contexts)


def test_the_answer_must_fit_beside_the_prompt_as_far_as_it_is_meant() -> None:
    small, large = replace(FAR[0], context=2048), replace(FAR[1], context=8192)
    for limit, fits in ((40, True), (900, True), (0, False), (500_000, False)):
        # Without a limit, or one that means none, 512 tokens.
        ask = Ask("m", prompt_tokens=1100 if limit == 900 else 1600, max_tokens=limit)
        assert (chosen([small, large], ask, load=busy([large], 3)).target == small) is fits


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=6), st.integers(1, 5000))
def test_a_counted_prompt_goes_only_where_it_fits_and_is_refused_with_the_figures_else(
    contexts: list[int], tokens: int
) -> None:
    targets = [replace(one, context=c) for one, c in zip(FAR, contexts, strict=False)]
    choice = choose(table(targets), "m", {}, (), ask=ASK, exact_tokens=tokens)
    if max(contexts[: len(targets)]) > tokens:
        assert isinstance(choice, Chosen)
        assert choice.target.context > tokens
        return
    assert isinstance(choice, Refused)
    assert choice.reason is Refusal.TOO_LONG
    error = refused(choice, "m", table(targets))
    assert error.status == 400
    assert error.code == "context_length_exceeded"
    assert error.extra == {"n_prompt_tokens": tokens, "n_ctx": max(contexts[: len(targets)])}
    assert f"{tokens} tokens" in error.message


def test_one_that_holds_it_and_still_loads_is_waited_for() -> None:
    loading = replace(FAR[1], context=8192, ready=False)
    choice = choose(table([replace(FAR[0], context=512), loading]), "m", {}, (), exact_tokens=600)
    assert isinstance(choice, Refused)
    assert choice.reason is Refusal.NOT_READY


def test_a_stream_goes_on_only_with_the_same_weights() -> None:
    same, other = replace(FAR[0], weights="aa"), replace(FAR[1], weights="bb")
    for affinity in range(1, 30):
        ask = replace(ASK, affinity=affinity)
        assert chosen([same, other], ask, same_weights="bb").target == other
    choice = choose(table([same]), "m", {}, (), same_weights="bb")
    assert isinstance(choice, Refused)
    assert choice.reason is Refusal.NOT_READY


# -- here, and who is not asked -----------------------------------------------------------------


def test_a_free_slot_here_goes_before_the_conversations_place() -> None:
    targets = [HERE, *FAR]
    for affinity in range(1, 30):
        ask = replace(ASK, affinity=affinity)
        assert chosen(targets, ask) == Chosen(table(targets).routes[0], HERE, Why.HERE)
        elsewhere = chosen(targets, ask, load={HERE.key: HERE.slots})
        assert (elsewhere.why is Why.PREFIX) is (elsewhere.target == home(targets, ask))


def test_here_only_is_for_requests_that_another_node_sent() -> None:
    choice = choose(table(FAR), "m", {}, (), here_only=True)
    assert isinstance(choice, Refused)
    full = choose(table([HERE, *FAR]), "m", {HERE.key: 3}, (), here_only=True)
    assert isinstance(full, Refused)
    assert full.reason is Refusal.FULL


@given(st.frozensets(st.sampled_from(FAR)), st.frozensets(st.sampled_from(FAR)), st.booleans())
def test_what_failed_is_not_asked_and_what_is_missed_only_when_nothing_else_is_there(
    failed: frozenset[Target], missed: frozenset[Target], by_place: bool
) -> None:
    targets = [replace(one, suspect=one in missed) for one in FAR]
    out = {place("m", one) if by_place else one.key for one in failed}
    choice = choose(table(targets), "m", {}, out, ask=ASK)
    if len(failed) == len(FAR):
        assert isinstance(choice, Refused)
        assert choice.reason is Refusal.UNREACHABLE
        return
    assert isinstance(choice, Chosen)
    assert place("m", choice.target) not in out
    assert choice.target.key not in out
    assert choice.target.suspect is (not set(FAR) - failed - missed)


@pytest.mark.parametrize("state", [ModelState.DRAINED, ModelState.FAILED, ModelState.WAITING])
def test_a_model_that_is_not_ready_is_not_asked_for(state: ModelState) -> None:
    drained = RoutingTable(routes=(Route("m", state, (), detail="it is drained"),))
    choice = choose(drained, "m", {}, ())
    assert choice == Refused(Refusal.NOT_READY, drained.routes[0])
    assert isinstance(choice, Refused)
    assert refused(choice, "m", drained).status == 503


# -- its own place ------------------------------------------------------------------------------


@given(st.integers(1, 2**64 - 1), st.integers(0, 3))
def test_all_gateways_send_a_conversation_to_the_same_place_while_nobody_waits(
    affinity: int, load: int
) -> None:
    ask = replace(ASK, affinity=affinity)
    choice = chosen(FAR, ask, load=busy(FAR, load), speeds=measured())
    assert choice.target == home(FAR, ask)
    assert choice.why is Why.PREFIX


@given(st.integers(1, 2**64 - 1))
def test_a_conversation_waits_for_its_prefix_as_long_as_reading_it_elsewhere_takes(
    affinity: int,
) -> None:
    """A wave of the 4 slots takes 4 s, so each request that waits costs one."""
    own = home(FAR, replace(ASK, affinity=affinity))

    def at_home(tokens: int, waiting: int) -> bool:
        ask = replace(ASK, affinity=affinity, prompt_tokens=tokens)
        load = busy([own], 3 + waiting)
        return chosen(FAR, ask, load=load, speeds=measured()).target == own

    assert at_home(1000, 1)
    assert not at_home(1000, 2)
    assert at_home(3000, 3)
    assert not at_home(3000, 4)
    assert not at_home(100, 1)


def test_nobody_waits_beyond_the_bound_for_a_prefix_however_long() -> None:
    own = home(FAR)
    endless = replace(ASK, prompt_tokens=10**6)
    most = int(BALANCE * own.slots)
    for load, stays in ((most - 1, True), (most, False)):
        got = chosen(FAR, endless, load=busy([own], load), speeds=measured()).target
        assert (got == own) is stays


def test_a_slow_place_is_passed_over() -> None:
    own = home(FAR)
    speeds = measured()
    for _ in range(200):
        speeds.evaluated(place("m", own), 10, 1.0)
    assert chosen(FAR, ASK, speeds=speeds).target != own
    far_away = [replace(one, rtt_ms=9000.0 if one == own else 1.0) for one in FAR]
    assert chosen(far_away, ASK, speeds=measured()).target.node != own.node


def test_an_unmeasured_mesh_does_not_wait_for_what_may_be_nothing() -> None:
    own = home(FAR)
    assert chosen(FAR, ASK, load=busy([own], 3)).target == own
    assert chosen(FAR, ASK, load=busy([own], 4)).target != own


@given(st.integers(1, 2**64 - 1))
def test_without_a_prefix_the_less_loaded_of_two_is_taken(draw: int) -> None:
    ask = Ask("m", prompt_tokens=10)
    order = sorted(
        FAR, key=lambda one: weight(draw, identity(one.node, "m"), one.slots), reverse=True
    )
    assert chosen(FAR, ask, draw=draw).target in order[:2]
    assert chosen(FAR, ask, draw=draw, load=busy(order[:1], 2)).target == order[1]
    assert chosen(FAR, ask, draw=draw, load=busy(order[1:2], 2)).target == order[0]


def test_without_a_prefix_or_a_draw_the_least_loaded_then_the_nearest() -> None:
    near = [replace(one, rtt_ms=float(9 - n)) for n, one in enumerate(FAR)]
    assert chosen(near, Ask("m")).target == near[-1]
    assert chosen(near, Ask("m"), load=busy(near[1:], 1)).target == near[0]


def test_what_its_node_said_counts_where_it_is_more_than_we_sent() -> None:
    own = home(FAR)
    said = [replace(one, busy=9) if one == own else one for one in FAR]
    assert chosen(said, ASK, speeds=measured()).target.node != own.node
    assert chosen(said, ASK, load=busy(FAR, 9), speeds=measured()).target.node == own.node
