"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.wire.clients.served import (
    BREAKS,
    CONTEXT,
    EMBED,
    FAILED,
    FROM_ELSEWHERE,
    SPENT_KEY,
    TINY,
    TOOLS,
    Served,
    wait_for,
)
from tests.wire.clients.wanted import ATTEMPTS, MOST_TOKENS, PIXEL, QUESTION, SILENCE


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


@tool
def get_time(zone: str) -> str:
    """The time in a zone."""
    return f"12:00 in {zone}"


class Person(pydantic.BaseModel):
    """A person."""

    name: str = pydantic.Field(max_length=12)
    age: int


def _chat(served: Served, model: str = TINY, **more: Any) -> ChatOpenAI:
    wanted: dict[str, Any] = {"api_key": "any", "max_tokens": 8, "temperature": 0, **more}
    return ChatOpenAI(base_url=served.v1, model=model, max_retries=0, timeout=60, **wanted)


def test_invoke_and_stream_say_the_same(served: Served) -> None:
    chat = _chat(served, "gpt-4o")
    whole = chat.invoke(QUESTION)
    assert whole.content
    assert whole.response_metadata["model_name"] == TINY
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] <= 8
    text, used = "", 0
    for piece in chat.stream(QUESTION, stream_usage=True):
        text += str(piece.content)
        used += (piece.usage_metadata or {}).get("output_tokens", 0)
    assert text == whole.content
    assert used == whole.usage_metadata["output_tokens"]


async def test_ainvoke_and_batches(served: Served) -> None:
    answers = await _chat(served).abatch([QUESTION] * 3)
    assert answers[0].content
    assert {answer.content for answer in answers} == {answers[0].content}


def test_tools_are_called_and_told_streamed_or_not(served: Served) -> None:
    chat = _chat(served, TOOLS, max_tokens=MOST_TOKENS, temperature=0.8)
    bound = chat.bind_tools([get_weather, get_time], tool_choice="required")

    def whole(seed: int) -> AIMessage:
        return bound.invoke(QUESTION, seed=seed)

    def streamed(seed: int) -> AIMessage:
        pieces = [*bound.stream(QUESTION, seed=seed)]
        together = pieces[0]
        for piece in pieces[1:]:
            together += piece
        return together

    for ask in (whole, streamed):
        answers = (ask(seed) for seed in range(ATTEMPTS))
        # One that the limit cut has a call that is none.
        several = (
            answer
            for answer in answers
            if answer.response_metadata["finish_reason"] == "tool_calls"
            and len(answer.tool_calls) > 1
        )
        answer = next(several, None)
        assert answer, f"no answer of {ATTEMPTS} has two calls"
        assert not answer.invalid_tool_calls
        results: list[Any] = []
        for call in answer.tool_calls:
            called = {"get_weather": get_weather, "get_time": get_time}[call["name"]]
            results.append(called.invoke(call))
        assert all(isinstance(result, ToolMessage) for result in results)
        told = chat.invoke([HumanMessage(QUESTION), answer, *results], max_tokens=4)
        assert isinstance(told, AIMessage)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(served: Served, method: Any) -> None:
    # "function_calling" names its tool, which llama-server itself does not heed.
    chat = _chat(served, TOOLS, max_tokens=MOST_TOKENS)
    if method == "json_schema":
        chat = _chat(served, max_tokens=MOST_TOKENS)
    person = chat.with_structured_output(Person, method=method).invoke(QUESTION)
    assert isinstance(person, Person)


def test_logprobs(served: Served) -> None:
    chat = _chat(served, logprobs=True, top_logprobs=2)
    tokens = chat.invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


def test_the_responses_api(served: Served) -> None:
    chat = _chat(served, use_responses_api=True)
    assert chat.invoke(QUESTION).text
    bound = _chat(served, TOOLS, use_responses_api=True, max_tokens=MOST_TOKENS).bind_tools(
        [get_weather], tool_choice="get_weather"
    )
    assert {call["name"] for call in bound.invoke(QUESTION).tool_calls} == {"get_weather"}


def test_embeddings(served: Served) -> None:
    # Without this it sends token numbers, cut by OpenAI's own tokenizer, which it would fetch.
    embeddings = OpenAIEmbeddings(
        base_url=served.v1, api_key="any", model=EMBED, check_embedding_ctx_length=False
    )
    one, two = embeddings.embed_documents(["one", "two"])
    assert len(one) == len(two) > 0
    assert one == pytest.approx(embeddings.embed_query("one"), abs=1e-4)
    assert one != pytest.approx(two, abs=1e-4)


def test_refusals_are_openais_exceptions(served: Served) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    sound = {"type": "input_audio", "input_audio": {"data": SILENCE, "format": "wav"}}
    for part, what in ((picture, "vision"), (sound, "audio")):
        with pytest.raises(openai.BadRequestError, match=f"`tiny` does not do {what}"):
            _chat(served).invoke([HumanMessage([{"type": "text", "text": "What?"}, part])])
    with pytest.raises(openai.NotFoundError, match="Known models"):
        _chat(served, "gpt-9").invoke(QUESTION)
    # Its own exception for this, which is OpenAI's as well.
    with pytest.raises(openai.BadRequestError) as long:
        _chat(served).invoke("word " * CONTEXT)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError) as later:
        _chat(served, FAILED).invoke(QUESTION)
    assert later.value.status_code == 503
    with pytest.raises(openai.AuthenticationError):
        _chat(served, api_key="wrong", default_headers=FROM_ELSEWHERE).invoke(QUESTION)
    spent = _chat(served, api_key=SPENT_KEY, default_headers=FROM_ELSEWHERE)
    spent.invoke(QUESTION)
    with pytest.raises(openai.RateLimitError):
        spent.invoke(QUESTION)


def test_a_stream_breaks_off_and_is_left(served: Served) -> None:
    endless: dict[str, Any] = {"max_tokens": CONTEXT, "extra_body": {"ignore_eos": True}}
    pieces: list[Any] = []
    with pytest.raises(openai.APIError, match="died while it answered"):
        pieces.extend(_chat(served, BREAKS, **endless).stream(QUESTION))
    engine = served.engines[TINY]
    stream = _chat(served, **endless).stream(QUESTION)
    next(stream)
    wait_for(lambda: engine.busy() == 1)
    stream.close()  # type: ignore[attr-defined]
    assert wait_for(lambda: engine.busy() == 0) < 1.0
