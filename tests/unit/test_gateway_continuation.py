"""What another engine is asked when a stream broke, and when nobody is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.continuation import (
    REPLAY_S,
    CannotResume,
    Continuation,
    Finished,
    Plan,
    continuation,
    hopeless,
)
from meshd.gateway.stream_end import closing
from meshd.gateway.transcript import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    Block,
    Told,
    Transcript,
)
from tests.unit.streams import heard

ASKS = [{"role": "user", "content": "hi"}]
HALF: dict[str, Any] = {"text": "one two", "tokens": 2, "choices": 1, "role": True}


def _plan(request: dict[str, Any], told: Told | None = None, **more: Any) -> Plan:
    body = json.dumps({"model": "m", "stream": True, **request}).encode()
    return continuation(body, told or Told(CHAT, **HALF), **more)


def _asked(plan: Plan) -> dict[str, Any]:
    assert isinstance(plan, Continuation)
    found: dict[str, Any] = json.loads(plan.body)
    return found


# -- when nobody is asked -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "told", "why"),
    [
        ({"messages": ASKS}, {"tools": True}, "half of a tool call"),
        ({"messages": ASKS, "temperature": 0}, {"tools": True}, "half of a tool call"),
        ({"messages": ASKS}, {"choices": 2}, "several answers"),
        ({"messages": ASKS, "n": 2, "seed": 1}, {}, "several answers"),
        ({"messages": ASKS, "n_cmpl": 2}, {}, "several answers"),
        ({"messages": ASKS, "grammar": "root ::= x"}, {}, "constraints"),
        ({"messages": ASKS, "json_schema": {}}, {}, "constraints"),
        ({"messages": ASKS, "response_format": {"type": "json_object"}}, {}, "constraints"),
        ({"messages": ASKS, "response_format": {"type": "json_schema"}}, {}, "constraints"),
        ({"messages": ASKS, "text": {"format": {"type": "json_schema"}}}, {}, "constraints"),
        ({"messages": ASKS, "tool_choice": "required"}, {}, "constraints"),
        ({"messages": ASKS, "tool_choice": {"type": "function"}}, {}, "constraints"),
        ({"messages": ASKS, "tool_choice": {"type": "any"}}, {}, "constraints"),
        ({"messages": ASKS, "grammar": "x", "seed": -1}, {}, "constraints"),
        ({"messages": ASKS, "grammar": "x", "seed": 0xFFFFFFFF}, {}, "constraints"),
        ({"messages": ASKS}, {"unknown": "it was too long to be kept"}, "too long to be kept"),
        ({}, {}, "no messages"),
        ({"messages": "hi"}, {}, "not known"),
        ({"messages": [*ASKS, {"role": "assistant", "tool_calls": [{}]}]}, {}, "last message"),
        ({"messages": [*ASKS, {"role": "assistant", "content": 7}]}, {}, "last message"),
        ({"messages": ASKS, "continue_final_message": True}, {}, "laid out"),
        ({"messages": ASKS, "add_generation_prompt": False}, {}, "laid out"),
        ({"messages": ASKS, "reasoning_format": "none"}, {}, "thoughts were sent as text"),
    ],
)
def test_it_says_why_nobody_can_go_on(
    request_: dict[str, Any], told: dict[str, Any], why: str
) -> None:
    plan = _plan(request_, Told(CHAT, **{**HALF, **told}))
    assert isinstance(plan, CannotResume)
    assert why in plan.reason


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [["a"], "b"]])
def test_several_prompts_are_several_answers(prompt: object) -> None:
    plan = _plan({"prompt": prompt, "temperature": 0}, Told(COMPLETIONS, **HALF))
    assert plan == CannotResume("several answers were asked for at once")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    assert isinstance(continuation(body, Told(CHAT, **HALF)), CannotResume)


@given(
    st.sampled_from([CHAT, COMPLETIONS, MESSAGES, RESPONSES]),
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "prompt",
                "input",
                "max_tokens",
                "n",
                "temperature",
                "seed",
                "text",
                "tool_choice",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner, max_size=3)
            ),
            max_leaves=8,
        ),
    ),
)
def test_no_request_is_too_odd(path: str, request_: dict[str, Any]) -> None:
    assert isinstance(_plan(request_, Told(path, **HALF)), Plan)


# -- replays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [{"temperature": 0}, {"top_k": 1}, {"seed": 7}, {"seed": 0}])
def test_what_the_engine_repeats_is_asked_anew(same: dict[str, Any]) -> None:
    request = {"messages": ASKS, **same}
    assert _plan(request) == Continuation(
        json.dumps({"model": "m", "stream": True, **request}).encode(), replays=True
    )


def test_a_long_answer_is_not_waited_for_again() -> None:
    request = {"messages": ASKS, "temperature": 0}
    plan = _plan(request, spent_s=REPLAY_S + 1)
    assert isinstance(plan, Continuation)
    assert not plan.replays
    # Unless there is no other way.
    plan = _plan({**request, "grammar": "x"}, spent_s=REPLAY_S + 1)
    assert isinstance(plan, Continuation)
    assert plan.replays


def test_what_differed_once_is_not_replayed_again() -> None:
    plan = _plan({"messages": ASKS, "seed": 1}, replay=False)
    assert isinstance(plan, Continuation)
    assert not plan.replays
    assert isinstance(_plan({"messages": ASKS, "seed": 1, "grammar": "x"}, replay=False),
                      CannotResume)  # fmt: skip


@pytest.mark.parametrize(
    "other", [{}, {"temperature": 1}, {"seed": -1}, {"seed": 0xFFFFFFFF}, {"seed": True}]
)
def test_what_the_engine_does_not_repeat_goes_on_from_its_text(other: dict[str, Any]) -> None:
    plan = _plan({"messages": ASKS, **other})
    assert isinstance(plan, Continuation)
    assert not plan.replays


def test_where_the_client_has_no_text_it_is_simply_asked_anew() -> None:
    plan = _plan({"messages": ASKS}, Told(CHAT, choices=1, role=True))
    assert isinstance(plan, Continuation)
    assert _asked(plan)["messages"] == ASKS


# -- prefills -----------------------------------------------------------------------------------


def test_a_prefill_is_the_assistants_last_message() -> None:
    request = {"messages": ASKS, "temperature": 1.5, "big": 123456789012345678901234567890}
    asked = _asked(_plan(request))
    assert asked.pop("messages") == [*ASKS, {"role": "assistant", "content": "one two"}]
    del request["messages"]
    assert asked == {"model": "m", "stream": True, **request}, (
        "what is not ours to change stays, digit by digit"
    )


def test_it_follows_the_beginning_that_the_client_gave() -> None:
    given_ = {"role": "assistant", "content": "zero ", "name": "x"}
    asked = _asked(_plan({"messages": [*ASKS, given_]}))
    assert asked["messages"] == [*ASKS, {**given_, "content": "zero one two"}]
    parts = [{"type": "text", "text": "zero "}]
    asked = _asked(_plan({"messages": [*ASKS, {"role": "assistant", "content": parts}]}))
    assert asked["messages"][-1]["content"] == [{"type": "text", "text": "zero one two"}]


def test_echoed_beginnings_are_not_said_twice() -> None:
    plan = _plan({"messages": [*ASKS, {"role": "assistant", "content": "a"}], "echo": True})
    assert isinstance(plan, CannotResume)


def test_thoughts_are_given_back_as_such() -> None:
    thinks = Told(CHAT, reasoning="hm\n", tokens=2, choices=1)
    asked = _asked(_plan({"messages": ASKS}, thinks))
    assert asked["messages"][-1] == {
        "role": "assistant", "content": "", "reasoning_content": "hm\n",
    }  # fmt: skip
    spoke = Told(CHAT, reasoning="hm\n", text="so", tokens=3, choices=1)
    asked = _asked(_plan({"messages": ASKS}, spoke))
    assert asked["messages"][-1]["reasoning_content"] == "hm"
    asked = _asked(_plan({"messages": ASKS}, Told(MESSAGES, reasoning="hm", text="so", tokens=3)))
    assert asked["messages"][-1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so"},
    ]
    asked = _asked(_plan({"input": "hi"}, Told(RESPONSES, reasoning="hm", text="so", tokens=3)))
    assert [item.get("type") for item in asked["input"]] == [None, "reasoning", "message"]


@pytest.mark.parametrize(
    ("prompt", "then"),
    [
        ("a ", "a one two"),
        (["a "], "a one two"),
        ([1, 2], [1, 2, "one two"]),
        ([1, "a"], [1, "a", "one two"]),
        ({"prompt_string": "a "}, {"prompt_string": "a one two"}),
    ],
)
def test_a_prompt_grows_by_what_was_said(prompt: object, then: object) -> None:
    assert _asked(_plan({"prompt": prompt}, Told(COMPLETIONS, **HALF)))["prompt"] == then


@pytest.mark.parametrize("prompt", [None, 7, [[1, 2]], {"other": 1}, []])
def test_a_prompt_of_another_kind_is_refused(prompt: object) -> None:
    plan = _plan({"prompt": prompt}, Told(COMPLETIONS, **HALF))
    assert plan == CannotResume("its prompt is of a kind that is not known")


@pytest.mark.parametrize("last", [{"type": "function_call"}, {"type": "reasoning"}])
def test_items_that_the_engine_would_merge_are_not_followed(last: dict[str, Any]) -> None:
    plan = _plan({"input": [{"role": "user", "content": "hi"}, last]}, Told(RESPONSES, **HALF))
    assert plan == CannotResume("its last item cannot be gone on with")


@pytest.mark.parametrize(
    "limit", ["max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens"]
)
def test_limits_shrink_by_what_was_said(limit: str) -> None:
    assert _asked(_plan({"messages": ASKS, limit: 10}))[limit] == 8
    assert _asked(_plan({"messages": ASKS, limit: -1}))[limit] == -1
    for most in (1, 2):
        plan = _plan({"messages": ASKS, limit: most})
        assert isinstance(plan, Finished)
        assert heard(plan.events).finish == ["length"]


def test_budgets_of_thoughts_stay_as_they_are() -> None:
    """The engine counts the thoughts that it is given (measured; see also the recordings)."""
    thinks = Told(MESSAGES, reasoning="hm", tokens=2)
    thinking = {"type": "enabled", "budget_tokens": 9}
    asked = _asked(_plan({"messages": ASKS, "thinking": thinking, "max_tokens": 20}, thinks))
    assert (asked["thinking"], asked["max_tokens"]) == (thinking, 18)


# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, RESPONSES])
def test_a_stream_that_said_its_end_needs_nothing(path: str) -> None:
    assert _plan({}, Told(path, done=True, finish="stop")) == Finished(b"")


def test_between_the_reason_and_the_end_only_the_end_is_missing() -> None:
    """Even where nobody could go on."""
    for more in ({}, {"tools": True}, {"choices": 3}):
        plan = _plan({"n": 3}, Told(CHAT, **{**HALF, "finish": "tool_calls", **more}))
        assert plan == Finished(b"data: [DONE]\n\n")


def test_a_limit_that_was_reached_ends_each_protocol_in_its_own_words() -> None:
    facts: dict[str, Any] = {**HALF, "id": "x", "created": 5, "model": "m"}
    chat = heard(closing(Told(CHAT, **facts, fingerprint="b1"), by_limit=True))
    assert (chat.finish, chat.last, chat.ids) == (["length"], "[DONE]", {"x"})
    text = heard(closing(Told(COMPLETIONS, **facts), by_limit=True))
    assert (text.finish, text.last) == (["length"], "[DONE]")
    blocks = (
        Block(0, "thinking"),
        Block(1, "text"),
        Block(2, "text", closed=True),
        Block(3, "thinking", signed=True),
    )
    messages = heard(closing(Told(MESSAGES, **facts, blocks=blocks), by_limit=True))
    assert messages.finish == ["max_tokens"]
    assert messages.frames == [
        "content_block_delta 0", "content_block_stop 0",
        "content_block_stop 1", "content_block_stop 3",
        "message_delta", "message_stop",
    ]  # fmt: skip
    items = (("reasoning", "rs"), ("message", "msg"))
    told = Told(RESPONSES, **facts, reasoning="hm", items=items, sequence=4)
    events = closing(told, by_limit=True)
    responses = heard(events)
    assert responses.ids == {"x", "rs", "msg"}
    assert responses.said == ["hm", "one two", "one two", "one two", "hm", "one two"]
    numbers = [json.loads(line[5:])["sequence_number"] for line in events.splitlines()
               if line.startswith(b"data:")]  # fmt: skip
    assert numbers == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("status", "for_all"),
    [(400, True), (413, True), (501, True), (404, False), (408, False), (429, False),
     (500, False), (503, False), (200, False)],
)  # fmt: skip
def test_which_refusals_hold_for_every_engine(status: int, for_all: bool) -> None:
    assert hopeless(status) is for_all


# -- what was sent ------------------------------------------------------------------------------


def test_tool_calls_are_seen() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
    delta = {"role": "assistant", "content": None, "tool_calls": [call]}
    chunk = {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    assert _told(CHAT, b"data: " + json.dumps(chunk).encode() + b"\n\n").tools
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}
    assert _told(MESSAGES, b"data: " + json.dumps(start).encode() + b"\n\n").tools
    item = {"type": "response.output_item.added", "item": {"type": "function_call", "id": "f"}}
    assert _told(RESPONSES, b"data: " + json.dumps(item).encode() + b"\n\n").tools


def test_each_answer_of_several_is_counted() -> None:
    events = b"".join(
        b'data: {"choices":[{"index":%d,"text":"a"}]}\n\n' % index for index in (0, 1, 0, 2)
    )
    assert _told(COMPLETIONS, events).choices == 3


def test_a_long_text_is_let_go() -> None:
    transcript = Transcript(CHAT, max_text_bytes=100)
    transcript.feed(b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 99))
    assert len(transcript.told.text) == 99
    transcript.feed(b'data: {"choices":[{"delta":{"content":"xx"}}]}\n\n')
    assert transcript.told.unknown == "it was too long to be kept"
    assert not transcript.told.text
    transcript.feed(b'data: {"choices":[{"delta":{"content":"xx"}}]}\n\n')
    assert not transcript.told.text


def test_other_endpoints_cannot_be_resumed() -> None:
    told = _told("/v1/embeddings", b"data: {}\n\n")
    assert told.unknown == "this endpoint's streams cannot be resumed"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, RESPONSES])
@pytest.mark.parametrize("odd", [b"data: x\n\n", b"data: [7]\n\n", b"data: \xff\n\n"])
def test_events_of_another_kind_make_it_unknown(path: str, odd: bytes) -> None:
    assert _told(path, odd).unknown == "its events are of a kind that is not known"
    assert isinstance(_plan({"messages": ASKS}, _told(path, odd)), CannotResume)


@given(st.sampled_from([CHAT, COMPLETIONS, MESSAGES, RESPONSES]), st.binary(max_size=200))
def test_no_bytes_are_too_odd(path: str, noise: bytes) -> None:
    _told(path, b"data: " + noise + b"\n\n")


def _told(path: str, events: bytes) -> Told:
    transcript = Transcript(path)
    transcript.feed(events)
    return transcript.told
