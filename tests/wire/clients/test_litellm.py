"""LiteLLM's SDK as a client: one run asks everything, each test looks at a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.wire.clients.scripts import Answers, answers, freed_after_s
from tests.wire.clients.served import TINY, TOOLS, Served
from tests.wire.clients.wanted import fits

SCRIPT = Path(__file__).with_name("litellm_asks.py")

# The first one may have to install it, the next one imports it, which takes long by itself.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def said(served: Served, litellm_python: Path) -> Answers:
    return answers([litellm_python, SCRIPT], served)


def _answer(said: Answers, question: str) -> Any:
    assert "answer" in said[question], said[question]
    return said[question]["answer"]


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


def test_the_tool_that_is_named_is_called(said: Answers) -> None:
    assert {name for name, _ in _answer(said, "tool_named")} == {"get_time"}
    assert _answer(said, "auto") == TOOLS


def test_form_and_logprobs(said: Answers) -> None:
    assert set(_answer(said, "formed")) == {"name", "age"}
    assert set(_answer(said, "logprobs")) == {2}


def test_the_other_endpoints(said: Answers) -> None:
    assert _answer(said, "completions")
    first, second = _answer(said, "embeddings")
    assert first == second > 0
    assert _answer(said, "rerank") == [0, 1]
    assert _answer(said, "responses")


def test_anthropics_protocol(said: Answers) -> None:
    text = _answer(said, "plain")["text"]
    assert _answer(said, "messages") == _answer(said, "messages_streamed") == text


@pytest.mark.parametrize(
    ("question", "kind", "status", "words"),
    [
        ("picture", "BadRequestError", 400, "does not do vision"),
        ("unknown_model", "NotFoundError", 404, "Known models"),
        ("too_long", "ContextWindowExceededError", 400, ""),
        ("failed", "ServiceUnavailableError", 503, "its file is cut off"),
        ("stranger", "AuthenticationError", 401, "not known here"),
        ("spent", "RateLimitError", 429, "has used up"),
        ("breaks", "APIError", None, "died while it answered"),
    ],
)
def test_refusals_are_its_own_exceptions(
    said: Answers, question: str, kind: str, status: int | None, words: str
) -> None:
    raised = said[question]
    assert kind in raised.get("raised", ()), raised
    assert status in (None, raised["status"])
    assert words in raised["said"]


def test_a_client_that_leaves_frees_its_slot(served: Served, litellm_python: Path) -> None:
    assert freed_after_s([litellm_python, SCRIPT], served) < 1.0
