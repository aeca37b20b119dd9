"""Which model a request means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.ask import Ask
from meshd.gateway.choice import Refusal, Refused, place
from meshd.gateway.openai_error import refused
from meshd.gateway.resolve import everything, lacking, resolve
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.tool_choice import ToolChoice

HERE = Target("me", "/run/x.sock", True, 2, context=8192)
FAR = Target("far", "", True, 2, address="10.0.0.2:9338", context=8192)
CHAT = ("chat", "completion")


def model(
    name: str,
    *targets: Target,
    can: tuple[str, ...] = CHAT,
    state: ModelState = ModelState.READY,
    aliases: tuple[str, ...] = (),
) -> Route:
    return Route(name, state, targets or (FAR,), aliases=aliases, capabilities=can)


def found(
    routes: list[Route],
    ask: Ask | str,
    *,
    allowed: Callable[[str], bool] = everything,
    load: dict[str, int] | None = None,
    suspects: frozenset[str] = frozenset(),
    exact_tokens: int = 0,
) -> str:
    """The model's name, or the refusal's words."""
    ask = Ask(ask, needs=frozenset({"chat"})) if isinstance(ask, str) else ask
    route = resolve(
        RoutingTable(routes=tuple(routes)), ask, allowed=allowed, in_flight=load,
        suspects=suspects, exact_tokens=exact_tokens,
    )  # fmt: skip
    return str(route.reason) if isinstance(route, Refused) else route.model


def wants(*needs: str, tokens: int = 10, affinity: int = 0) -> Ask:
    return Ask("auto", needs=frozenset({"chat", *needs}), prompt_tokens=tokens, affinity=affinity)


# -- by name ------------------------------------------------------------------------------------

NAMED = [
    model("qwen3", aliases=("small", "qwen-next")),
    model("qwen3-coder", aliases=("coder", "auto-complete")),
    model("llama", aliases=("qwen3-coder-alias", "coder")),
]


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("qwen3", "qwen3"),  # exact, though another begins so
        ("coder", "qwen3-coder"),  # the first that has the alias
        ("qwen3-c", "ambiguous"),  # a name, and another's alias
        ("qwen3-coder", "qwen3-coder"),
        ("ll", "llama"),
        ("sma", "qwen3"),  # the beginning of an alias
        ("qwen-", "qwen3"),
        ("qwen", "ambiguous"),
        ("wen3", "unknown"),
        ("Qwen3", "unknown"),
        ("", "unknown"),
    ],
)
def test_exact_then_alias_then_a_unique_beginning(name: str, means: str) -> None:
    assert found(NAMED, name) == means


def test_an_ambiguous_name_is_refused_with_those_it_may_mean() -> None:
    table = RoutingTable(routes=tuple(NAMED))
    choice = resolve(table, Ask("qwen"))
    assert choice == Refused(Refusal.AMBIGUOUS, candidates=("llama", "qwen3", "qwen3-coder"))
    error = refused(choice, "qwen", table)
    assert (error.status, error.code) == (400, "model_ambiguous")
    assert "qwen3-coder" in error.message


def test_two_names_of_one_model_are_not_ambiguous() -> None:
    assert found([model("abc", aliases=("abd",))], "ab") == "abc"


def test_auto_is_a_models_own_name_where_one_is_called_so() -> None:
    assert found([model("auto", FAR), model("b", HERE)], "auto") == "auto"
    assert found([model("a", FAR, aliases=("auto",)), model("b", HERE)], "auto") == "a"
    assert found([model("autobahn", FAR), model("b", HERE)], "auto") == "b"
    assert found([model("autobahn", FAR), model("b", HERE)], "autob") == "autobahn"


# -- a key's allow-list -------------------------------------------------------------------------


def test_a_key_learns_nothing_of_models_that_it_may_not_use() -> None:
    def only(name: str) -> bool:
        return name == "qwen3"

    assert found(NAMED, "qwen", allowed=only) == "qwen3"
    assert found(NAMED, "ll", allowed=only) == "unknown"
    assert found(NAMED, "auto", allowed=only) == "qwen3"
    assert found(NAMED, "llama", allowed=only) == "not_allowed"
    assert found(NAMED, "coder", allowed=only) == "not_allowed"
    assert found(NAMED, "auto", allowed=lambda _: False) == "unknown"
    table = RoutingTable(routes=tuple(NAMED))
    for name in ("ll", "nothing", "small-", "coder"):
        choice = resolve(table, Ask(name), allowed=only)
        assert isinstance(choice, Refused)
        words = refused(choice, name, table, only).message
        assert "llama" not in words
        assert "qwen3-coder" not in words


@given(st.frozensets(st.sampled_from(["qwen3", "qwen3-coder", "llama"])), st.text("qwen3-colam"))
def test_no_candidate_is_one_that_the_key_may_not_use(allowed: frozenset[str], name: str) -> None:
    choice = resolve(RoutingTable(routes=tuple(NAMED)), Ask(name), allowed=allowed.__contains__)
    if isinstance(choice, Route):
        assert choice.model in allowed
    else:
        assert set(choice.candidates) <= allowed


# -- what it is good for ------------------------------------------------------------------------


def test_a_model_is_not_asked_for_what_it_does_not_do() -> None:
    routes = [
        model("talks", can=("chat", "completion", "tools")),
        model("completes", can=("completion",)),
        model("sees", can=("chat", "vision")),
        model("embeds", can=("embeddings",)),
        model("ranks", can=("rerank",)),
        model("unknown", can=()),
    ]
    good = {
        "chat": {"talks", "completes", "sees", "unknown"},
        "completion": {"talks", "completes", "sees", "unknown"},
        "embeddings": {"embeds", "unknown"},
        "rerank": {"ranks", "unknown"},
        "vision": {"sees", "unknown"},
        "audio": {"unknown"},
    }
    for need, expected in good.items():
        able = {one.model for one in routes if not lacking(one, {need})}
        assert able == expected
        for route in routes:
            choice = resolve(
                RoutingTable(routes=tuple(routes)), Ask(route.model, needs=frozenset({need}))
            )
            assert isinstance(choice, Route) is (route.model in expected)
            if isinstance(choice, Refused):
                assert choice == Refused(Refusal.INCAPABLE, route, lacks=frozenset({need}))
                error = refused(choice, route.model, RoutingTable())
                assert (error.status, error.code) == (400, "model_not_capable")
                assert need in error.message


def test_tools_are_no_reason_to_refuse_a_model_that_was_named() -> None:
    plain = model("plain")
    assert found([plain], replace(wants("tools"), model="plain")) == "plain"
    assert found([plain], wants("tools")) == "incapable"
    assert found([plain, model("z", can=(*CHAT, "tools"))], wants("tools")) == "z"
    # Its engine would leave the tools out, and answer what is not allowed.
    must = replace(wants("tools"), model="plain", tools=ToolChoice(must_call=True))
    assert found([plain], must) == "incapable"
    assert found([model("plain", can=())], must) == "plain"


# -- auto ---------------------------------------------------------------------------------------


def test_auto_takes_what_can_do_it() -> None:
    routes = [
        model("embeds", HERE, can=("embeddings",)),
        model("sees", FAR, can=(*CHAT, "vision")),
        model("calls", FAR, can=(*CHAT, "tools")),
        model("both", replace(FAR, ready=False), can=(*CHAT, "tools", "vision"),
              state=ModelState.LOADING),
    ]  # fmt: skip
    assert found(routes, wants("vision")) == "sees"
    assert found(routes, wants("tools")) == "calls"
    assert found(routes, wants("tools", "vision")) == "both"
    assert found(routes, wants("audio")) == "incapable"
    assert found(routes, Ask("auto", needs=frozenset({"embeddings"}))) == "embeds"
    unknown = model("unknown", HERE, can=())
    assert found([unknown, *routes], wants("vision")) == "sees"
    assert found([unknown, *routes], wants("audio")) == "unknown"


def test_auto_prefers_the_warmest_then_here_then_free_then_context_then_quality() -> None:
    cold = replace(HERE, ready=False)
    rising = [
        model("failed", cold, state=ModelState.FAILED),
        model("waiting", cold, state=ModelState.WAITING),
        model("loading", cold, state=ModelState.LOADING),
        model("busy", replace(FAR, busy=2)),
        replace(model("rough", replace(FAR, context=4096)), quality="lossy"),
        model("small", replace(FAR, context=4096)),
        model("large", FAR),
        model("here", replace(HERE, context=512)),
    ]
    for number in range(1, len(rising) + 1):
        routes = sorted(rising[:number], key=lambda route: route.model)
        assert found(routes, wants()) == rising[number - 1].model
    # A slot here that is taken is none.
    assert found(rising, wants(), load={HERE.socket: 2}) == "large"
    assert found(rising, wants(), suspects=frozenset({HERE.key})) == "large"
    both = {place("large", FAR), HERE.key}
    assert found(rising, wants(), suspects=frozenset(both)) == "small"


def test_auto_goes_by_the_context_that_a_prompt_needs() -> None:
    small, large = model("small", replace(HERE, context=1000)), model("large", FAR)
    assert found([small, large], wants(tokens=900)) == "small"
    assert found([small, large], wants(tokens=1100)) == "large"
    assert found([small], wants(tokens=1100)) == "small"  # an estimate refuses nothing
    assert found([small, large], wants(tokens=900), exact_tokens=1000) == "large"
    choice = resolve(RoutingTable(routes=(small, large)), wants(), exact_tokens=9000)
    assert choice == Refused(Refusal.TOO_LONG, prompt_tokens=9000, context=8192)
    unknown = model("unknown", replace(HERE, context=0))
    assert found([unknown, large], wants(tokens=5000), exact_tokens=9000) == "unknown"


@given(st.integers(1, 2**64 - 1), st.permutations(["a", "b", "c", "d"]))
def test_auto_keeps_a_conversation_with_its_model(affinity: int, order: list[str]) -> None:
    ask = wants(affinity=affinity)
    first = found([model(name) for name in "abcd"], ask)
    assert found([model(name) for name in order], ask) == first
    others = [model(name) for name in order if name != first]
    left_out = others[0].model
    assert found([one for one in map(model, order) if one.model != left_out], ask) == first


def test_auto_spreads_conversations_over_equal_models() -> None:
    routes = [model(name) for name in "abcd"]
    assert {found(routes, wants(affinity=n)) for n in range(1, 100)} == set("abcd")
