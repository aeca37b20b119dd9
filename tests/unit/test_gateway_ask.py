"""What a body asks for: read without building it, and the same place for all turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.ask import BYTES_PER_TOKEN, KINDS, SESSION_HEADERS, Ask, read, session_of
from meshd.gateway.request_body import BadBodyError

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"

words = st.text(max_size=40)


def ask(path: str, body: Mapping[str, Any], session: str = "") -> Ask:
    return read(path, msgspec.json.encode({"model": "m", **body}), session)


def said(*turns: str, system: str = "be brief") -> list[dict[str, Any]]:
    """A conversation in the chat endpoint's words, its user first."""
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return first + [
        {"role": roles[number % 2], "content": text} for number, text in enumerate(turns)
    ]


def spoken(path: str, system: str, turns: list[str]) -> dict[str, Any]:
    """The same conversation as each endpoint wants it."""
    if path == CHAT:
        return {"messages": said(*turns, system=system)}
    if path == MESSAGES:
        return {"messages": said(*turns, system=""), "system": system}
    return {"input": said(*turns, system=""), "instructions": system}


TALKS = (CHAT, MESSAGES, RESPONSES)


# -- affinity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TALKS)
@given(system=words, turns=st.lists(words, min_size=1, max_size=9), more=st.data())
def test_all_turns_of_a_conversation_have_one_key(
    path: str, system: str, turns: list[str], more: st.DataObject
) -> None:
    first = ask(path, spoken(path, system, turns[:1]))
    assert first.affinity
    later = {
        "temperature": more.draw(st.floats(0, 2)),
        "max_tokens": more.draw(st.integers(1, 1000)),
        "stream": more.draw(st.booleans()),
        "user": more.draw(words),
        "metadata": {"messages": ["x"], "input": "y"},
        **spoken(path, system, turns),
    }
    assert ask(path, later).affinity == first.affinity


@pytest.mark.parametrize("path", TALKS)
@given(st.lists(st.tuples(words, words), min_size=2, max_size=2, unique=True))
def test_another_system_prompt_or_first_question_is_another_conversation(
    path: str, heads: list[tuple[str, str]]
) -> None:
    keys = {ask(path, spoken(path, system, [first])).affinity for system, first in heads}
    assert len(keys) == 2


def test_text_is_not_moved_from_one_message_to_the_next_unnoticed() -> None:
    one = ask(CHAT, {"messages": said("bc", system="a")})
    other = ask(CHAT, {"messages": said("c", system="ab")})
    assert one.affinity != other.affinity


@pytest.mark.parametrize("path", TALKS)
@given(system=words, first=words)
def test_a_string_and_a_list_of_parts_are_the_same(path: str, system: str, first: str) -> None:
    kind = "input_text" if path == RESPONSES else "text"
    body = spoken(path, system, [first])
    key = "input" if path == RESPONSES else "messages"
    in_parts = [
        {**one, "content": [{"type": kind, "text": one["content"], "cache_control": {"x": 1}}]}
        for one in body[key]
    ]
    assert ask(path, {**body, key: in_parts}).affinity == ask(path, body).affinity


def test_responses_takes_a_plain_string_as_the_users_first_words() -> None:
    plain = ask(RESPONSES, {"input": "hello", "instructions": "be brief"})
    assert plain.affinity == ask(RESPONSES, spoken(RESPONSES, "be brief", ["hello"])).affinity


def test_anthropics_system_is_a_string_or_parts_and_its_checksum_does_not_count() -> None:
    def of(*parts: str) -> int:
        system = [{"type": "text", "text": part} for part in parts]
        return ask(MESSAGES, {"messages": said("hi", system=""), "system": system}).affinity

    plain = ask(MESSAGES, {"messages": said("hi", system=""), "system": "be brief"})
    assert of("be brief") == plain.affinity
    assert of("x-anthropic-billing-header: cch=1;", "be brief") == plain.affinity
    assert of("x-anthropic-billing-header: cch=2;", "be brief") == plain.affinity
    assert of("be brief", "and kind") != plain.affinity


def test_pictures_count_as_what_was_asked_first() -> None:
    def of(url: str) -> int:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        return ask(CHAT, {"messages": [{"role": "user", "content": parts}]}).affinity

    assert of("data:image/png;base64,aaaa") != of("data:image/png;base64,bbbb")
    assert of("data:image/png;base64,aaaa") == of("data:image/png;base64,aaaa")


def test_of_a_long_piece_both_ends_and_the_length_count() -> None:
    def of(text: str) -> int:
        return ask(CHAT, {"messages": said(text)}).affinity

    middle = "x" * 100_000
    assert of("a" + middle) != of("b" + middle)
    assert of(middle + "a") != of(middle + "b")
    assert of(middle) != of(middle + "x")


def test_a_prompt_without_turns_is_known_by_its_head() -> None:
    head = "def f(x):\n" * 200
    assert ask(COMPLETIONS, {"prompt": head}).affinity
    assert (
        ask(COMPLETIONS, {"prompt": head + "a"}).affinity
        == ask(COMPLETIONS, {"prompt": head + "b" * 500}).affinity
    )
    assert ask(COMPLETIONS, {"prompt": head}).affinity != ask(COMPLETIONS, {"prompt": "x"}).affinity
    assert ask(COMPLETIONS, {}).affinity == 0


@pytest.mark.parametrize("path", TALKS)
def test_a_session_goes_before_a_cache_key_and_that_before_what_is_said(path: str) -> None:
    one, other = spoken(path, "a", ["b"]), spoken(path, "c", ["d"])
    cache = {"prompt_cache_key": "k"}
    assert ask(path, one, "s").affinity == ask(path, {**other, **cache}, "s").affinity
    assert ask(path, one, "s").affinity != ask(path, one, "t").affinity
    assert ask(path, {**one, **cache}).affinity == ask(path, {**other, **cache}).affinity
    assert ask(path, {**one, **cache}).affinity != ask(path, one).affinity
    assert ask(path, {**one, "prompt_cache_key": None}).affinity == ask(path, one).affinity
    assert ask(path, one, "k").affinity != ask(path, {**one, **cache}).affinity


@pytest.mark.parametrize("path", TALKS)
def test_a_session_in_the_body_is_the_one_of_the_headers(path: str) -> None:
    one, other = spoken(path, "a", ["b"]), spoken(path, "c", ["d"])
    cache = {"prompt_cache_key": "k"}
    in_body = ask(path, {**one, "session_id": "s", **cache}).affinity
    assert in_body == ask(path, other, "s").affinity
    assert ask(path, {**one, "session_id": "t"}, "s").affinity == in_body
    assert (
        ask(path, {**one, "session_id": 7}).affinity
        == ask(path, {**other, "session_id": 7}).affinity
    )
    for nothing in ("", None):
        unnamed = {**one, "session_id": nothing, "prompt_cache_key": nothing}
        assert ask(path, unnamed).affinity == ask(path, one).affinity


@pytest.mark.parametrize("path", TALKS)
def test_whose_it_is_counts_apart_from_the_conversation_and_only_where_that_has_no_name(
    path: str,
) -> None:
    one, other = spoken(path, "a", ["b"]), spoken(path, "c", ["d"])
    mine, yours = ask(path, {**one, "user": "me"}), ask(path, {**one, "user": "you"})
    assert mine.affinity == yours.affinity == ask(path, one).affinity
    assert mine.person != yours.person
    assert mine.person == ask(path, {**other, "user": "me"}).person != 0
    assert mine.person == ask(path, {**other, "safety_identifier": "me"}).person
    for named in ({"session_id": "s"}, {"prompt_cache_key": "k"}):
        assert ask(path, {**one, "user": "me", **named}).person == 0
    assert ask(path, {**one, "user": "me"}, "s").person == 0
    for nobody in ({}, {"user": ""}, {"user": None}, {"metadata": {"user_id": ""}}):
        assert ask(path, {**one, **nobody}).person == 0


def test_anthropic_s_metadata_says_whose_it_is_and_openai_s_may_be_about_anything() -> None:
    body = {**spoken(MESSAGES, "a", ["b"]), "metadata": {"user_id": "me"}}
    assert ask(MESSAGES, body).person == ask(MESSAGES, {**body, "messages": []}).person != 0
    assert ask(MESSAGES, {**body, "metadata": "me"}).person == 0
    chat = {**spoken(CHAT, "a", ["b"]), "metadata": {"user_id": "me"}}
    assert ask(CHAT, chat).person == 0


def test_the_first_session_header_that_says_something_counts() -> None:
    assert session_of({}) == ""
    assert session_of({SESSION_HEADERS[0]: "", SESSION_HEADERS[1]: "b"}) == "b"
    assert session_of({name: name for name in SESSION_HEADERS}) == SESSION_HEADERS[0]


def test_the_models_name_is_not_part_of_the_key() -> None:
    body = spoken(CHAT, "a", ["b"])
    assert ask(CHAT, {**body, "model": "alias"}).affinity == ask(CHAT, body).affinity


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/reranking"])
def test_where_nothing_is_kept_there_is_no_key(path: str) -> None:
    got = ask(path, {"input": ["a"], "query": "q", "documents": ["d"]}, "session")
    assert got == Ask("m", needs=frozenset({str(KINDS[path])}))


def test_counting_tokens_evaluates_nothing() -> None:
    got = ask("/v1/messages/count_tokens", spoken(MESSAGES, "a", ["b"]), "session")
    assert got == Ask("m", needs=frozenset({"chat"}))


# -- what it needs ------------------------------------------------------------------------------


def test_every_path_has_its_kind() -> None:
    for path, kind in KINDS.items():
        assert str(kind) in ask(path, {}).needs
    assert {path: str(KINDS[path]) for path in TALKS} == dict.fromkeys(TALKS, "chat")


@pytest.mark.parametrize("path", TALKS)
def test_tools_are_a_need_unless_there_are_none(path: str) -> None:
    assert "tools" in ask(path, {"tools": [{"type": "function"}]}).needs
    for none in ([], None):
        assert "tools" not in ask(path, {"tools": none}).needs


def image(path: str, data: str) -> dict[str, Any]:
    if path == MESSAGES:
        return {"type": "image", "source": {"type": "base64", "data": data}}
    if path == RESPONSES:
        return {"type": "input_image", "image_url": data}
    return {"type": "image_url", "image_url": {"url": data}}


@pytest.mark.parametrize("path", TALKS)
def test_a_picture_needs_vision_and_its_bytes_are_no_text(path: str) -> None:
    key = "input" if path == RESPONSES else "messages"
    data = "data:image/png;base64," + "A" * 300_000
    body = {key: [{"role": "user", "content": [image(path, data)]}]}
    got = ask(path, body)
    assert got.needs == {"chat", "vision"}
    assert got.prompt_tokens < 100
    talked_of = {key: [{"role": "user", "content": f"what is {json.dumps(image(path, 'x'))}?"}]}
    assert ask(path, talked_of).needs == {"chat"}
    named = {"tools": [{"parameters": {"properties": {"image_url": {}, "image": {}}}}]}
    assert ask(path, {**named, key: []}).needs == {"chat", "tools"}


def test_a_picture_in_a_tools_result_and_one_of_a_later_turn_count() -> None:
    shot = {"type": "tool_result", "content": [image(MESSAGES, "AAAA")]}
    turns = said("look", "ok", system="")
    assert (
        "vision" in ask(MESSAGES, {"messages": [*turns, {"role": "user", "content": [shot]}]}).needs
    )
    last = {"role": "user", "content": [image(CHAT, "x")]}
    assert "vision" in ask(CHAT, {"messages": [*said(*"abcdefghijkl"), last]}).needs


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_sound_needs_audio(path: str) -> None:
    key = "input" if path == RESPONSES else "messages"
    part = {"type": "input_audio", "input_audio": {"data": "A" * 60_000, "format": "wav"}}
    got = ask(path, {key: [{"role": "user", "content": [part]}]})
    assert got.needs == {"chat", "audio"}
    assert got.prompt_tokens < 100


# -- its figures --------------------------------------------------------------------------------


@given(st.integers(0, 5000))
def test_tokens_are_guessed_from_bytes(count: int) -> None:
    body = msgspec.json.encode({"model": "m", "messages": said("a" * count)})
    assert read(CHAT, body).prompt_tokens == len(body) // BYTES_PER_TOKEN


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 0),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8, "max_tokens": 7}, 8),
        ({"max_output_tokens": 9}, 9),
        ({"n_predict": 3}, 3),
        ({"max_completion_tokens": None, "max_tokens": 7}, 7),
        ({"max_tokens": -1}, 0),
        ({"max_tokens": 1.5}, 0),
        ({"max_tokens": "7"}, 0),
        ({"max_tokens": 10**12}, 0),
    ],
)
def test_the_limit_of_the_answer(fields: dict[str, Any], limit: int) -> None:
    assert ask(CHAT, {**spoken(CHAT, "a", ["b"]), **fields}).max_tokens == limit


def test_of_two_equal_keys_the_last_counts_as_in_the_engine() -> None:
    body = b'{"model":"a","stream":true,"messages":[],"model":"b","stream":false}'
    got = read(CHAT, body)
    assert (got.model, got.stream) == ("b", False)


@pytest.mark.parametrize(
    ("value", "stream"), [(True, True), (False, False), (1, False), ("true", False)]
)
def test_only_true_is_a_stream(value: object, stream: bool) -> None:
    assert ask(CHAT, {"stream": value}).stream is stream


# -- what is wrong with it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"model":"m"', "invalid_json"),
        (b'{"model":"m"} x', "invalid_json"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b'{"model":"m","x":' + b"[" * 200_000 + b"}", "invalid_json"),
        (b"{}", "missing_required_parameter"),
        (b'{"model":null}', "missing_required_parameter"),
        (b'{"model":7}', "invalid_type"),
        (b'{"model":["m"]}', "invalid_type"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(BadBodyError) as caught:
        read(CHAT, body)
    assert caught.value.code == code
    assert "\n" not in caught.value.message


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "stream", "tools", "prompt", "input", "system", "instructions", "messages",
    "prompt_cache_key", "max_tokens",
)  # fmt: skip


@given(
    st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(FIELDS), anything, max_size=5)
)
def test_what_is_wrong_with_other_fields_is_for_the_engine_to_say(
    path: str, fields: dict[str, Any]
) -> None:
    got = ask(path, fields)
    assert got.model == "m"
    assert 0 <= got.affinity < 2**64
    assert got.prompt_tokens >= 0


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=200))
def test_no_bytes_bring_anything_but_a_refusal(path: str, tail: bytes) -> None:
    for body in (tail, b'{"model":"m","messages":[{"role":"user","content":' + tail):
        with suppress(BadBodyError):
            assert isinstance(read(path, body), Ask)


def test_counting_tokens_is_no_stream_whatever_the_body_says() -> None:
    body = {"messages": said("hello"), "stream": True}
    assert ask(MESSAGES, body).stream
    assert not ask(f"{MESSAGES}/count_tokens", body).stream
