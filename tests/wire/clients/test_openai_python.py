"""OpenAI's client for Python. What `test_gateway_engine` has of it already is not here again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.wire.clients.served import (
    BREAKS,
    CONTEXT,
    EMBED,
    FAILED,
    FROM_ELSEWHERE,
    KEY,
    LOADING,
    NARROW_KEY,
    RANK,
    SPENT_KEY,
    TINY,
    TOOLS,
    WAIT_S,
    Served,
    wait_for,
)
from tests.wire.clients.wanted import (
    ATTEMPTS,
    CHAT_TOOLS,
    MOST_TOKENS,
    PERSON,
    PIXEL,
    QUESTION,
    RESPONSES_TOOLS,
    SILENCE,
    fits,
)

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with _client(served) as made:
        yield made


def _client(served: Served, key: str = "any", **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.v1, api_key=key, max_retries=0, timeout=60, **more)


# Models


def test_models_say_what_they_are_good_for(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == [TINY, TOOLS, EMBED, RANK, BREAKS, FAILED, LOADING]
    tools = client.models.retrieve(TOOLS)
    assert tools == models[TOOLS]
    assert (tools.object, tools.created, tools.owned_by) == ("model", 1_700_000_000, "meshd")
    assert tools.mesh == {  # type: ignore[attr-defined]
        "state": "ready",
        "detail": "",
        "context": CONTEXT,
        "quality": "exact",
        "capabilities": ["chat", "completion", "tools"],
        "aliases": [],
        "replicas": [{"node": "local", "context": CONTEXT, "quality": "exact"}],
    }
    states = {name: model.mesh["state"] for name, model in models.items()}  # type: ignore[attr-defined]
    assert (states[FAILED], states[LOADING]) == ("failed", "loading")
    assert client.models.retrieve("gpt-4o").id == TINY
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-9")
    assert unknown.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("name", "answers"),
    [("gpt-4o", TINY), ("tools-of", TOOLS), ("claude-s", TINY), (TINY, TINY), ("auto", TINY)],
)
def test_a_model_goes_by_its_names(client: openai.OpenAI, name: str, answers: str) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model=name, messages=ASKED, max_tokens=2
    )
    assert answer.headers["x-mesh-model"] in ((TINY, TOOLS) if name == "auto" else (answers,))
    assert answer.parse().model == answer.headers["x-mesh-model"]


def test_auto_is_a_model_that_can(client: openai.OpenAI) -> None:
    with_tools = client.chat.completions.create(
        model="auto", messages=ASKED, tools=CHAT_TOOLS, max_tokens=2
    )
    assert with_tools.model == TOOLS
    vectors = client.embeddings.with_raw_response.create(model="auto", input="one")
    assert vectors.headers["x-mesh-model"] == EMBED
    with pytest.raises(openai.BadRequestError, match="No model here does vision") as blind:
        client.chat.completions.create(model="auto", messages=_with_picture())
    assert blind.value.code == "model_not_capable"


def test_a_beginning_that_two_models_have_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny, tools-of-tiny") as two:
        client.chat.completions.create(model="t", messages=ASKED)
    assert two.value.code == "model_ambiguous"


# Tools


def _calls(message: Any) -> list[tuple[str, dict[str, Any]]]:
    made = [
        (call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls
    ]
    assert all(fits(name, arguments) for name, arguments in made)
    assert len({call.id for call in message.tool_calls}) == len(made)
    return made


def test_a_tool_that_is_required_is_called_and_its_result_goes_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model=TOOLS,
        messages=ASKED,
        tools=CHAT_TOOLS,
        tool_choice="required",
        max_tokens=MOST_TOKENS,
        seed=1,
    ).choices[0]
    assert first.finish_reason == "tool_calls"
    assert _calls(first.message)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        for call in first.message.tool_calls or ()
    ]
    told = client.chat.completions.create(
        model=TOOLS,
        messages=[*ASKED, first.message, *results],  # type: ignore[list-item]
        tools=CHAT_TOOLS,
        tool_choice="none",
        max_tokens=4,
    )
    assert not told.choices[0].message.tool_calls


def test_the_tool_that_is_named_is_called(client: openai.OpenAI) -> None:
    for seed, name in enumerate(("get_weather", "get_time") * 3):
        choice = client.chat.completions.create(
            model=TOOLS,
            messages=ASKED,
            tools=CHAT_TOOLS,
            tool_choice={"type": "function", "function": {"name": name}},
            max_tokens=MOST_TOKENS,
            seed=seed,
        ).choices[0]
        assert {called for called, _ in _calls(choice.message)} == {name}


def test_a_call_is_not_required_of_a_model_that_knows_no_tools(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"messages": ASKED, "tools": CHAT_TOOLS, "max_tokens": 2}
    with pytest.raises(openai.BadRequestError, match="`tiny` does not do tools") as refused:
        client.chat.completions.create(model=TINY, tool_choice="required", **wanted)
    assert refused.value.code == "model_not_capable"
    assert client.chat.completions.create(model=TINY, **wanted).choices[0].message.content
    named: Any = {"type": "function", "function": {"name": "fly"}}
    with pytest.raises(openai.BadRequestError, match="none of the tools") as missing:
        client.chat.completions.create(model=TOOLS, tool_choice=named, **wanted)
    assert missing.value.param == "tool_choice"


def _first_with_two(ask: Callable[[int], list[Any]]) -> list[Any]:
    for seed in range(ATTEMPTS):
        if len(calls := ask(seed)) > 1:
            return calls
    pytest.fail(f"no answer of {ATTEMPTS} has two calls")


def test_tools_are_called_in_parallel(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": TOOLS,
        "messages": ASKED,
        "tools": CHAT_TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": True,
        "max_tokens": MOST_TOKENS,
    }

    def whole(seed: int) -> list[Any]:
        choice = client.chat.completions.create(**wanted, seed=seed).choices[0]
        # One that the limit cut has a call that is none.
        return _calls(choice.message) if choice.finish_reason == "tool_calls" else []

    def streamed(seed: int) -> list[Any]:
        # The SDK itself puts the pieces together, by their index.
        with client.chat.completions.stream(**wanted, seed=seed) as stream:
            kinds = {event.type for event in stream}
            choice = stream.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds
        return _calls(choice.message)

    assert len(_first_with_two(whole)) > 1
    assert len(_first_with_two(_cut_is_none(streamed))) > 1


def _cut_is_none(ask: Callable[[int], list[Any]]) -> Callable[[int], list[Any]]:
    def asked(seed: int) -> list[Any]:
        try:
            return ask(seed)
        except openai.LengthFinishReasonError:
            return []

    return asked


# What an answer holds


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int


def test_answers_have_the_form_that_is_asked_for(client: openai.OpenAI) -> None:
    schema: Any = {"name": "person", "strict": True, "schema": PERSON}
    formed = client.chat.completions.create(
        model=TINY,
        messages=ASKED,
        max_tokens=MOST_TOKENS,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    person = Person.model_validate_json(formed.choices[0].message.content or "")
    assert 0 <= person.age <= 120
    parsed = client.chat.completions.parse(
        model=TINY, messages=ASKED, max_tokens=MOST_TOKENS, response_format=Person
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_json_is_json_streamed_or_not(client: openai.OpenAI) -> None:
    # Greedy, and whatever it is, it may end at the limit: its beginning is an object all the same.
    wanted: dict[str, Any] = {
        "model": TINY,
        "messages": ASKED,
        "max_tokens": 64,
        "temperature": 0,
        "response_format": {"type": "json_object"},
    }
    whole = client.chat.completions.create(**wanted).choices[0]
    text = "".join(
        piece.choices[0].delta.content or ""
        for piece in client.chat.completions.create(**wanted, stream=True)
        if piece.choices
    )
    assert text == whole.message.content
    assert text.lstrip().startswith("{")
    if whole.finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_logprobs_streamed_or_not(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": TINY,
        "messages": ASKED,
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.chat.completions.create(**wanted).choices[0].logprobs
    assert whole
    assert whole.content
    for token in whole.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert bytes(token.bytes or []).decode() == token.token
    streamed: list[str] = []
    for piece in client.chat.completions.create(**wanted, stream=True):
        for choice in piece.choices:
            if choice.logprobs and choice.logprobs.content:
                streamed += [token.token for token in choice.logprobs.content]
    assert streamed == [token.token for token in whole.content]
    plain = client.completions.create(model=TINY, prompt="import", max_tokens=3, logprobs=2)
    assert plain.choices[0].logprobs


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_tells_its_usage_if_asked(client: openai.OpenAI, wanted: bool) -> None:
    pieces = [
        *client.chat.completions.create(
            model=TINY,
            messages=ASKED,
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": wanted},
        )
    ]
    told = [piece.usage for piece in pieces if piece.usage]
    assert bool(told) is wanted
    if wanted:
        assert pieces[-1].choices == []
        assert told[0].total_tokens == told[0].prompt_tokens + told[0].completion_tokens


def test_answers_are_ranked_or_refused_in_openais_shape(client: openai.OpenAI) -> None:
    documents = ["a command", "a file", "a weather report"]
    ranked: Any = client.post(
        "/rerank",
        cast_to=object,
        body={"model": RANK, "query": "weather", "documents": documents},
    )
    assert sorted(result["index"] for result in ranked["results"]) == [0, 1, 2]
    assert all(isinstance(result["relevance_score"], float) for result in ranked["results"])
    body = {"model": TINY, "query": "a", "documents": documents}
    with pytest.raises(openai.BadRequestError, match="`tiny` does not do rerank") as refused:
        client.post("/rerank", cast_to=object, body=body)
    assert refused.value.code == "model_not_capable"
    with pytest.raises(openai.BadRequestError) as no_vectors:
        client.embeddings.create(model=TINY, input="one")
    assert no_vectors.value.code == "model_not_capable"


# /v1/responses


def test_responses_streamed_or_not(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": TINY, "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**wanted, input=QUESTION, instructions="Be short.")
    assert whole.output_text
    assert whole.usage
    assert whole.usage.output_tokens <= 8
    parts: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    events = [
        *client.responses.create(**wanted, input=parts, instructions="Be short.", stream=True)
    ]
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text


def test_responses_call_tools(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": TOOLS,
        "input": QUESTION,
        "tools": RESPONSES_TOOLS,
        "tool_choice": "required",
        "max_output_tokens": MOST_TOKENS,
        "temperature": 0,
    }
    whole = client.responses.create(**wanted)
    calls = [item for item in whole.output if item.type == "function_call"]
    assert calls
    assert all(fits(call.name, json.loads(call.arguments)) for call in calls)
    streamed = [
        event.item
        for event in client.responses.create(**wanted, stream=True)
        if event.type == "response.output_item.done" and event.item.type == "function_call"
    ]
    assert [(call.name, call.arguments) for call in streamed] == [
        (call.name, call.arguments) for call in calls
    ]


def test_responses_have_the_form_that_is_asked_for(client: openai.OpenAI) -> None:
    # Which llama-server does not heed by itself.
    answer = client.responses.parse(
        model=TINY, input=QUESTION, max_output_tokens=MOST_TOKENS, text_format=Person
    )
    assert isinstance(answer.output_parsed, Person)


# Refusals


def _with_picture() -> list[Any]:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]


def test_pictures_and_sound_are_refused_by_a_model_that_takes_none(client: openai.OpenAI) -> None:
    sound: list[Any] = [{"type": "input_audio", "input_audio": {"data": SILENCE, "format": "wav"}}]
    shown: list[Any] = [
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}],
        }
    ]
    asks: list[tuple[str, Callable[[], Any]]] = [
        ("vision", lambda: client.chat.completions.create(model=TINY, messages=_with_picture())),
        (
            "audio",
            lambda: client.chat.completions.create(
                model=TINY, messages=[{"role": "user", "content": sound}]
            ),
        ),
        ("vision", lambda: client.responses.create(model=TINY, input=shown)),
    ]
    for what, ask in asks:
        with pytest.raises(openai.BadRequestError, match=f"`tiny` does not do {what}") as refused:
            ask()
        assert refused.value.code == "model_not_capable"
        assert refused.value.param == "model"


def test_what_only_the_engine_knows_is_refused_in_openais_shape(
    served: Served, client: openai.OpenAI
) -> None:
    with served.loading("unknown") as is_there:
        is_there()  # and the table does not say what it is good for
        with pytest.raises(openai.BadRequestError, match="image input is not supported"):
            client.chat.completions.create(model="unknown", messages=_with_picture())
        with pytest.raises(openai.BadRequestError, match="does not support embeddings") as refused:
            client.embeddings.create(model="unknown", input="one")
        assert refused.value.code == "model_not_capable"
        body = {"model": "unknown", "query": "a", "documents": ["b"]}
        with pytest.raises(openai.BadRequestError, match="does not support reranking") as unranked:
            client.post("/rerank", cast_to=object, body=body)
        assert unranked.value.code == "model_not_capable"
        assert unranked.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=TINY, messages=[{"role": "user", "content": "word " * CONTEXT}], stream=True
        )
    assert refused.value.code == "context_length_exceeded"
    said: Any = refused.value.body
    assert said["n_ctx"] == CONTEXT
    assert said["n_prompt_tokens"] > CONTEXT


def test_keys_are_checked_where_they_count(served: Served) -> None:
    with _client(served, "wrong") as here:
        assert here.models.list().data  # this machine needs none, and may send any
    with _client(served, "wrong", default_headers=FROM_ELSEWHERE) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.chat.completions.create(model=TINY, messages=ASKED)
        assert refused.value.code == "invalid_api_key"
    with _client(served, NARROW_KEY, default_headers=FROM_ELSEWHERE) as narrow:
        assert [model.id for model in narrow.models.list()] == [EMBED]
        with pytest.raises(openai.PermissionDeniedError):
            narrow.chat.completions.create(model=TINY, messages=ASKED)
    with _client(served, SPENT_KEY, default_headers=FROM_ELSEWHERE) as spent:
        spent.completions.create(model=TINY, prompt="a", max_tokens=1)
        with pytest.raises(openai.RateLimitError) as limited:
            spent.completions.create(model=TINY, prompt="a", max_tokens=1)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) > 0
    with _client(served, KEY, default_headers=FROM_ELSEWHERE) as known:
        assert known.completions.create(model=TINY, prompt="a", max_tokens=1).choices


def test_a_model_that_is_not_there_now_is_a_503_with_a_time(client: openai.OpenAI) -> None:
    for model, asked in (
        (FAILED, client),
        (LOADING, client),
        (LOADING, client.with_options(timeout=1)),
    ):
        began_s = time.monotonic()
        with pytest.raises(openai.InternalServerError, match=model) as refused:
            asked.chat.completions.create(model=model, messages=ASKED)
        assert refused.value.status_code == 503
        assert refused.value.code == f"model_{model}"
        assert int(refused.value.response.headers["retry-after"]) > 0
        if asked is not client:
            # The SDK says how long it waits, and hears before it gives up.
            assert time.monotonic() - began_s < WAIT_S


def test_a_stream_that_waits_is_served_when_its_model_is_there(
    served: Served, client: openai.OpenAI
) -> None:
    with served.loading("late") as is_there:
        # Comes with the first comment, after two seconds.
        stream = client.chat.completions.create(
            model="late", messages=ASKED, max_tokens=4, stream=True
        )
        is_there()
        text = "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices)
        assert text
    with pytest.raises(openai.APIError, match="is loading") as refused:
        list(client.chat.completions.create(model=LOADING, messages=ASKED, stream=True))
    assert refused.value.code == "model_loading"


@pytest.mark.parametrize("kind", ["chat", "completions", "responses"])
def test_a_stream_that_breaks_off_is_an_exception(client: openai.OpenAI, kind: str) -> None:
    asks: dict[str, Callable[[], Any]] = {
        "chat": lambda: client.chat.completions.create(
            model=BREAKS, messages=ASKED, stream=True, extra_body={"ignore_eos": True}
        ),
        "completions": lambda: client.completions.create(
            model=BREAKS, prompt="import", stream=True, extra_body={"ignore_eos": True}
        ),
        "responses": lambda: client.responses.create(
            model=BREAKS, input=QUESTION, stream=True, extra_body={"ignore_eos": True}
        ),
    }
    pieces = []
    with pytest.raises(openai.APIError, match="died while it answered") as broken:  # noqa: PT012
        for piece in asks[kind]():
            pieces.append(piece)  # noqa: PERF402 -- what came before it
    assert pieces
    assert broken.value.code == "engine_lost"


def test_a_client_that_leaves_a_response_frees_its_slot(
    served: Served, client: openai.OpenAI
) -> None:
    engine = served.engines[TINY]
    stream = client.responses.create(
        model=TINY, input=QUESTION, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    wait_for(lambda: engine.busy() == 1)
    stream.close()
    assert wait_for(lambda: engine.busy() == 0) < 1.0
