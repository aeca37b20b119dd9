"""OpenAI's client for Node: one run asks everything, each test looks at a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.wire.clients.scripts import Answers, answers, freed_after_s
from tests.wire.clients.served import TINY, TOOLS, Served
from tests.wire.clients.wanted import fits

SCRIPT = Path(__file__).with_name("openai_asks.mjs")

# The first one may have to install it.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def said(served: Served, node_home: tuple[Path, Path]) -> Answers:
    node, folder = node_home
    return answers([node, SCRIPT, folder], served)


def _answer(said: Answers, question: str) -> Any:
    assert "answer" in said[question], said[question]
    return said[question]["answer"]


def test_models(said: Answers) -> None:
    models = _answer(said, "models")
    assert {TINY, TOOLS} < set(models["list"])
    assert models["one"]["id"] == TINY
    assert models["one"]["mesh"]["capabilities"] == ["chat", "completion"]


def test_chat_streamed_or_not(said: Answers) -> None:
    plain, streamed = _answer(said, "plain"), _answer(said, "streamed")
    assert plain["text"]
    assert plain["model"] == TINY
    assert streamed == {"text": plain["text"], "tokens": plain["tokens"]}


@pytest.mark.parametrize("question", ["tools", "tools_streamed"])
def test_tools_are_called_in_parallel(said: Answers, question: str) -> None:
    calls = _answer(said, question)
    assert len(calls) > 1
    assert all(fits(name, json.loads(arguments)) for name, arguments in calls)


@pytest.mark.parametrize("question", ["tool_named", "responses_tools"])
def test_the_tool_that_is_named_is_called(said: Answers, question: str) -> None:
    assert {name for name, _ in _answer(said, question)} == {"get_time"}
    assert _answer(said, "auto") == TOOLS


def test_form_and_logprobs(said: Answers) -> None:
    assert set(_answer(said, "formed")) == {"name", "age"}
    assert _answer(said, "json").lstrip().startswith("{")
    assert set(_answer(said, "logprobs")) == {2}


def test_the_other_endpoints(said: Answers) -> None:
    whole, streamed = _answer(said, "completions")
    assert whole == streamed != ""
    vectors = _answer(said, "embeddings")
    assert vectors["sizes"][0] == vectors["sizes"][1] > 0
    assert vectors["apart"] < 1e-4
    assert sorted(one["index"] for one in _answer(said, "rerank")["results"]) == [0, 1]


def test_responses_streamed_or_not(said: Answers) -> None:
    got = _answer(said, "responses")
    assert got["whole"] == got["text"] != ""
    assert got["last"] == "response.completed"


@pytest.mark.parametrize(
    ("question", "kind", "status", "code"),
    [
        ("picture", "BadRequestError", 400, "model_not_capable"),
        ("sound", "BadRequestError", 400, "model_not_capable"),
        ("rerank_refused", "BadRequestError", 400, "model_not_capable"),
        ("ambiguous", "BadRequestError", 400, "model_ambiguous"),
        ("unknown_model", "NotFoundError", 404, "model_not_found"),
        ("too_long", "BadRequestError", 400, "context_length_exceeded"),
        ("failed", "InternalServerError", 503, "model_failed"),
        ("stranger", "AuthenticationError", 401, "invalid_api_key"),
        ("spent", "RateLimitError", 429, "rate_limit_exceeded"),
        ("breaks", "APIError", None, "engine_lost"),
        ("breaks_responses", "APIError", None, "engine_lost"),
    ],
)
def test_refusals_are_its_own_exceptions(
    said: Answers, question: str, kind: str, status: int | None, code: str
) -> None:
    raised = said[question]
    assert kind in raised.get("raised", ()), raised
    assert (raised["status"], raised["code"]) == (status, code)


def test_a_client_that_leaves_frees_its_slot(served: Served, node_home: tuple[Path, Path]) -> None:
    node, folder = node_home
    assert freed_after_s([node, SCRIPT, folder], served) < 1.0
