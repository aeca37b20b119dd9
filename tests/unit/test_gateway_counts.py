"""What is counted of requests, and that it stays bounded."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.exchange import Exchange
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.tokens import StreamTokens, Tokens, costs_of
from meshd.gateway.traffic import (
    MAX_MODELS,
    MAX_UNKNOWN,
    ModelTraffic,
    TrafficError,
    TrafficReport,
    decode,
    encode,
)
from meshd.gateway.traffic_count import TrafficCount

TABLE = RoutingTable(
    routes=(Route("m", ModelState.READY, (Target("n", "/m.sock", True, 2),)),),
)
counts = st.integers(0, 1 << 50)
models = st.builds(
    ModelTraffic,
    model=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    requests=counts,
    misses=counts,
    prompt_tokens=counts,
    completion_tokens=counts,
    in_flight=counts,
    waiting=counts,
    tokens_s=st.floats(0, 1e9),
    known=st.booleans(),
)
reports = st.builds(
    TrafficReport,
    boot=st.text(st.characters(exclude_categories=["Cs"]), max_size=16),
    models=st.lists(models, max_size=5, unique_by=lambda one: one.model).map(tuple),
    unreachable=st.lists(st.sampled_from("abc"), max_size=3).map(tuple),
)


@given(reports)
def test_a_report_comes_back_as_it_was(report: TrafficReport) -> None:
    assert decode(encode(report)) == report


@given(st.binary(max_size=200))
def test_anything_else_is_refused_in_one_line(junk: bytes) -> None:
    with pytest.raises(TrafficError) as caught:
        decode(junk)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "report",
    [
        TrafficReport("b", (ModelTraffic("m", requests=-1),)),
        TrafficReport("b", (ModelTraffic("m", tokens_s=-1.0),)),
        TrafficReport("b", (ModelTraffic("m"), ModelTraffic("m"))),
        TrafficReport("b", (ModelTraffic("m" * 1000),)),
        TrafficReport("b", tuple(ModelTraffic(str(n)) for n in range(MAX_MODELS + 1))),
        TrafficReport("b", unreachable=tuple(map(str, range(5000)))),
    ],
)
def test_a_report_that_cannot_be_is_not_believed(report: TrafficReport) -> None:
    with pytest.raises(TrafficError):
        decode(encode(report))


def test_a_figure_of_another_type_is_not_believed() -> None:
    document = msgspec.json.decode(encode(TrafficReport("b", (ModelTraffic("m"),))))
    document["models"][0]["requests"] = "7"
    with pytest.raises(TrafficError, match="requests"):
        decode(msgspec.json.encode(document))


def _ended(model: str, tokens: Tokens, *, hop: bool = False, here: bool = False) -> Exchange:
    return Exchange("r", model=model, hop=hop, here=here, tokens=tokens)


def test_tokens_count_where_they_entered_and_speed_where_they_were_made() -> None:
    now = [0.0]
    traffic = TrafficCount(clock=lambda: now[0])
    traffic.asked("m", known=True)
    traffic.answered(_ended("m", Tokens(10, 20), here=True))
    traffic.answered(_ended("m", Tokens(100, 200), hop=True, here=True))
    traffic.asked("far", known=True)
    traffic.answered(_ended("far", Tokens(1, 2)))
    (far, m) = traffic.report(TABLE, {"/m.sock": 3}, ["z", "a"]).models
    assert (far.prompt_tokens, far.completion_tokens, far.tokens_s) == (1, 2, 0.0)
    assert (m.prompt_tokens, m.completion_tokens) == (10, 20)
    assert (m.in_flight, m.waiting) == (3, 1)
    assert m.tokens_s > 0
    now[0] = 30.0
    later = traffic.report(TABLE, {}, []).models[1]
    assert 0 < later.tokens_s < m.tokens_s
    now[0] = 3000.0
    assert traffic.report(TABLE, {}, []).models[1].tokens_s == 0
    assert traffic.report(TABLE, {}, []) == traffic.report(TABLE, {}, [])


def test_steady_writing_settles_at_its_rate() -> None:
    now = [0.0]
    traffic = TrafficCount(clock=lambda: now[0])
    for _ in range(100):
        now[0] += 1.0
        traffic.answered(_ended("m", Tokens(0, 50), here=True))
    assert 45 <= traffic.report(TABLE, {}, []).models[0].tokens_s <= 55


@given(st.lists(st.tuples(st.text(max_size=5), st.booleans()), max_size=60))
def test_names_that_nobody_knows_are_bounded(asked: list[tuple[str, bool]]) -> None:
    traffic = TrafficCount()
    for name in map(str, range(1000)):
        traffic.asked(name, known=False)
        traffic.missed(name, known=False)
    for name, known in asked:
        traffic.asked(name, known=known)
    report = traffic.report(TABLE, {}, [])
    assert sum(not one.known for one in report.models) <= MAX_UNKNOWN
    assert decode(encode(report)) == report


def test_a_name_that_becomes_known_keeps_its_misses_and_old_ones_make_room() -> None:
    traffic = TrafficCount()
    traffic.asked("m", known=False)
    traffic.missed("m", known=False)
    traffic.table_changed(TABLE)
    (m,) = traffic.report(TABLE, {}, []).models
    assert (m.known, m.requests, m.misses) == (True, 1, 1)
    for number in range(2 * MAX_MODELS):
        name = f"model-{number}"
        table = replace(TABLE, routes=(*TABLE.routes, Route(name, ModelState.LOADING)))
        traffic.table_changed(table)
        traffic.asked(name, known=True)
        assert name in {one.model for one in traffic.report(table, {}, []).models}
    assert len(traffic.report(TABLE, {}, []).models) <= MAX_MODELS


def test_an_engine_that_takes_nothing_new_is_busy_until_its_answers_have_ended() -> None:
    traffic = TrafficCount()
    traffic.table_changed(TABLE)
    unlisted = replace(TABLE, routes=(replace(TABLE.routes[0], targets=()),))
    traffic.table_changed(unlisted)
    (m,) = traffic.report(unlisted, {"/m.sock": 3}, []).models
    assert (m.in_flight, m.waiting) == (3, 1)
    (m,) = traffic.report(unlisted, {}, []).models
    assert (m.in_flight, m.waiting) == (0, 0)
    (m,) = traffic.report(unlisted, {"/m.sock": 1}, []).models
    assert m.in_flight == 0, "what is gone is forgotten"


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', Tokens(3, 4)),
        (b'{"timings":{"prompt_n":3,"cache_n":2,"predicted_n":9}}', Tokens(5, 9)),
        (b'{"usage":{"prompt_tokens":-3,"completion_tokens":1e30}}', Tokens()),
        (b'{"usage":{"prompt_tokens":-3,"completion_tokens":99999999999}}', Tokens(0, 1 << 24)),
        (b'{"usage":null}', Tokens()),
        (b'{"usage":"x"}', Tokens()),
        (b"not json", Tokens()),
        (b"[" * 100_000, Tokens()),
    ],
)
def test_what_an_answer_says_of_its_tokens(document: bytes, tokens: Tokens) -> None:
    assert costs_of(document)[0] == tokens


def test_a_stream_is_counted_by_its_last_word_else_by_its_events() -> None:
    counted = StreamTokens()
    for _ in range(7):
        counted.feed(b'data: {"choices":[{"delta":{"content":"\\"usage\\" "}}]}\n\n')
    assert counted.tokens == Tokens(0, 7)
    counted.feed(
        b'data: {"choices":[],"timings":{"prompt_n":5,"predicted_n":8}}\n\ndata: [DONE]\n\n'
    )
    assert counted.tokens == Tokens(5, 8)
