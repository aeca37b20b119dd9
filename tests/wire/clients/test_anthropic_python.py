"""Anthropic's client for Python, before the same gateway as OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.wire.clients.served import (
    BREAKS,
    CONTEXT,
    FAILED,
    FROM_ELSEWHERE,
    LOADING,
    NARROW_KEY,
    SPENT_KEY,
    TINY,
    TOOLS,
    Served,
)
from tests.wire.clients.wanted import (
    ANTHROPIC_TOOLS,
    ATTEMPTS,
    MOST_TOKENS,
    PIXEL,
    QUESTION,
    fits,
)

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with _client(served) as made:
        yield made


def _client(served: Served, key: str = "any", **more: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.base, api_key=key, max_retries=0, timeout=60, **more)


def _said(error: anthropic.APIStatusError) -> dict[str, Any]:
    """The error inside of Anthropic's shape."""
    body: Any = error.body
    assert body["type"] == "error"
    inner: dict[str, Any] = body["error"]
    return inner


def test_models_in_anthropics_shape(client: anthropic.Anthropic) -> None:
    listed = client.models.list()
    models = {model.id: model for model in listed}
    assert {TINY, TOOLS} < set(models)
    assert not listed.has_more
    tiny = client.models.retrieve("claude-sonnet-4")
    assert (tiny.id, tiny.type, tiny.display_name) == (TINY, "model", TINY)
    assert tiny.created_at.timestamp() == 1_700_000_000
    known: Any = tiny.mesh  # type: ignore[attr-defined]
    assert (known["state"], known["context"], known["quality"]) == ("ready", CONTEXT, "exact")
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.models.retrieve("claude-9")
    assert _said(unknown.value)["type"] == "not_found_error"


@pytest.mark.parametrize("model", [TINY, "claude-sonnet-4", "auto"])
def test_messages_streamed_or_not(client: anthropic.Anthropic, model: str) -> None:
    wanted: dict[str, Any] = {
        "model": model,
        "max_tokens": 8,
        "messages": ASKED,
        "system": "Be short.",
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**wanted)
    assert whole.content[0].type == "text"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert 0 < whole.usage.output_tokens <= 8
    with client.messages.stream(**wanted) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in client.messages.create(**wanted, stream=True)]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=TINY, messages=ASKED, system="Be short.")
    used = client.messages.create(model=TINY, max_tokens=1, messages=ASKED, system="Be short.")
    read = used.usage.input_tokens + (used.usage.cache_read_input_tokens or 0)
    assert counted.input_tokens == read


def _calls(message: Any) -> list[Any]:
    calls = [block for block in message.content if block.type == "tool_use"]
    assert all(fits(call.name, call.input) for call in calls)
    assert len({call.id for call in calls}) == len(calls)
    return calls


def test_tools_are_called_one_or_several_streamed_or_not(client: anthropic.Anthropic) -> None:
    wanted: dict[str, Any] = {
        "model": TOOLS,
        "max_tokens": MOST_TOKENS,
        "messages": ASKED,
        "tools": ANTHROPIC_TOOLS,
        "tool_choice": {"type": "any"},
    }

    def whole(seed: int) -> Any:
        return client.messages.create(**wanted, extra_body={"seed": seed})

    def streamed(seed: int) -> Any:
        with client.messages.stream(**wanted, extra_body={"seed": seed}) as stream:
            return stream.get_final_message()

    for ask in (whole, streamed):
        # One that the limit cut has a call that is none.
        answers = (ask(seed) for seed in range(ATTEMPTS))
        calls = (_calls(answer) for answer in answers if answer.stop_reason == "tool_use")
        called = next((made for made in calls if len(made) > 1), [])
        assert called, f"no answer of {ATTEMPTS} has two calls"
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"} for call in called
    ]
    turn: Any = {"role": "assistant", "content": [call.model_dump() for call in called]}
    told = client.messages.create(
        model=TOOLS,
        max_tokens=4,
        messages=[*ASKED, turn, {"role": "user", "content": results}],  # type: ignore[list-item]
        tools=ANTHROPIC_TOOLS,
        tool_choice={"type": "none"},
    )
    assert not [block for block in told.content if block.type == "tool_use"]


def test_the_tool_that_is_named_is_called(client: anthropic.Anthropic) -> None:
    for seed, name in enumerate(("get_weather", "get_time") * 3):
        answer = client.messages.create(
            model=TOOLS,
            max_tokens=MOST_TOKENS,
            messages=ASKED,
            tools=ANTHROPIC_TOOLS,
            tool_choice={"type": "tool", "name": name},
            extra_body={"seed": seed},
        )
        assert {call.name for call in _calls(answer)} == {name}


def test_pictures_are_refused_by_a_model_that_takes_none(client: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    picture: list[Any] = [{"type": "image", "source": source}]
    with pytest.raises(anthropic.BadRequestError, match="`tiny` does not do vision") as refused:
        client.messages.create(
            model=TINY, max_tokens=4, messages=[{"role": "user", "content": picture}]
        )
    assert _said(refused.value)["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_refused_in_words_that_agents_know(
    client: anthropic.Anthropic,
) -> None:
    long: Any = [{"role": "user", "content": "word " * CONTEXT}]
    for stream in (False, True):
        with pytest.raises(
            anthropic.BadRequestError, match=rf"prompt is too long: \d+ tokens > {CONTEXT} maximum"
        ) as refused:
            client.messages.create(model=TINY, max_tokens=4, messages=long, stream=stream)
        assert _said(refused.value)["type"] == "invalid_request_error"


def test_refusals_are_its_own_exceptions(served: Served, client: anthropic.Anthropic) -> None:
    wanted: dict[str, Any] = {"max_tokens": 1, "messages": ASKED}
    with pytest.raises(anthropic.NotFoundError, match="Known models") as unknown:
        client.messages.create(model="claude-9", **wanted)
    assert _said(unknown.value)["type"] == "not_found_error"
    assert unknown.value.request_id == unknown.value.response.headers["x-request-id"]
    for model in (FAILED, LOADING):
        with pytest.raises(anthropic.InternalServerError) as later:
            client.messages.create(model=model, **wanted)
        assert later.value.status_code == 503
        assert _said(later.value)["type"] == "overloaded_error"
        assert int(later.value.response.headers["retry-after"]) > 0
    with _client(served, "wrong", default_headers=FROM_ELSEWHERE) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as who:
            stranger.messages.create(model=TINY, **wanted)
        assert _said(who.value)["type"] == "authentication_error"
    with _client(served, NARROW_KEY, default_headers=FROM_ELSEWHERE) as narrow:
        with pytest.raises(anthropic.PermissionDeniedError) as barred:
            narrow.messages.create(model=TINY, **wanted)
        assert _said(barred.value)["type"] == "permission_error"
    with _client(served, SPENT_KEY, default_headers=FROM_ELSEWHERE) as spent:
        spent.messages.create(model=TINY, **wanted)
        with pytest.raises(anthropic.RateLimitError) as limited:
            spent.messages.create(model=TINY, **wanted)
        assert _said(limited.value)["type"] == "rate_limit_error"


def test_a_stream_waits_and_breaks_off(served: Served, client: anthropic.Anthropic) -> None:
    with served.loading("late") as is_there:
        # Comes with the first comment, after two seconds.
        events = client.messages.create(model="late", max_tokens=4, messages=ASKED, stream=True)
        is_there()
        assert [event.type for event in events][-1] == "message_stop"

    seen: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="died while it answered"),
        client.messages.stream(model=BREAKS, max_tokens=CONTEXT, messages=ASKED) as stream,
    ):
        seen.extend(event.type for event in stream)
    with pytest.raises(anthropic.APIStatusError, match="is loading"):
        list(client.messages.create(model=LOADING, stream=True, max_tokens=4, messages=ASKED))
