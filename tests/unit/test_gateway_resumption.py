"""A stream that breaks at any event, and is gone on with, is the stream that did not break.

The streams are recordings of llama-server 0.7 (`tests/wire/record_streams.py`).
"""

from __future__ import annotations

import json
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.continuation import Continuation, Finished, continuation
from meshd.gateway.resumption import Resumption
from meshd.gateway.splice import BrokenSpliceError, Splice
from meshd.gateway.transcript import CHAT, Told, Transcript
from tests.unit.streams import Heard, Recording, events_of, heard, recordings

NAMES = sorted(recordings())
# `</think>` is no token of its own in the small model.
_THOUGHTS_END = 5


def _told(one: Recording, events: list[bytes]) -> Told:
    transcript = Transcript(one.path)
    transcript.feed(b"".join(events))
    return transcript.told


def _fed(splice: Splice, stream: bytes, seed: int = 0) -> bytes:
    """All that comes of it, however its events are bundled."""
    events, chance, out = events_of(stream), random.Random(seed), b""
    while events:
        count = chance.randint(1, len(events))
        out += splice.feed(b"".join(events[:count]))
        del events[:count]
    return out


def _gone_on(one: Recording, sent: int, *, replay: bool, seed: int = 0) -> bytes:
    """What a client has whose stream broke after so many events."""
    events = events_of(one.whole.encode())[:sent]
    told = _told(one, events)
    plan = continuation(one.body.encode(), told, replay=replay)
    if isinstance(plan, Finished):
        return b"".join(events) + plan.events
    assert isinstance(plan, Continuation)
    assert plan.replays is replay
    if replay:
        assert plan.body == one.body.encode()
        rest = one.again
    else:
        assert plan.body.decode() == one.rests[sent].body, "record anew: another request is made"
        rest = one.rests[sent].stream
    return b"".join(events) + _fed(Splice(told, plan), rest.encode(), seed)


def _cuts() -> list[tuple[str, int]]:
    return [
        (name, sent)
        for name in NAMES
        for sent in range(1, len(events_of(recordings()[name].whole.encode())) + 1)
    ]


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "prefill"])
@pytest.mark.parametrize(("name", "sent"), _cuts())
def test_it_is_one_stream_wherever_it_broke(name: str, sent: int, replay: bool) -> None:
    one = recordings()[name]
    whole = _gone_on(one, sent, replay=replay)
    had = b"".join(events_of(one.whole.encode())[:sent])
    assert whole.startswith(had)
    before, got, unbroken = heard(had), heard(whole), heard(one.whole.encode())
    assert got.text == unbroken.text
    assert got.reasoning == unbroken.reasoning
    assert before.ids <= got.ids
    assert len(got.ids) == len(unbroken.ids)
    assert got.frames == unbroken.frames
    assert got.finish == unbroken.finish
    assert got.said == unbroken.said
    assert {"[DONE]": "[DONE]"}.get(unbroken.last, got.frames[-1]) == unbroken.frames[-1]
    _same_usage(one, had, got, unbroken, replay=replay)


def _same_usage(one: Recording, had: bytes, got: Heard, unbroken: Heard, *, replay: bool) -> None:
    told = _told(one, events_of(had))
    if told.finish or (not replay and told.tokens == _limit(one)):
        # Nobody was asked for more, and the engine's last word is lost.
        assert got.usage in (heard(had).usage, unbroken.usage, _counted(unbroken, told))
    elif not replay and told.text and told.reasoning and one.path != CHAT:
        # These protocols do not count as they go: what ends the thoughts is not seen.
        close = _completion(unbroken) - _THOUGHTS_END <= _completion(got) <= _completion(unbroken)
        assert close, got.usage
    else:
        assert got.usage == unbroken.usage


def _limit(one: Recording) -> object:
    return msgspec.json.decode(one.body).get("max_tokens")


def _completion(one: Heard) -> int:
    return int(one.usage[-1]["completion"])


def _counted(unbroken: Heard, told: Told) -> list[dict[str, object]]:
    return [*unbroken.usage[:-1], {"completion": told.tokens}]


@given(st.sampled_from(NAMES), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.randoms())
def test_it_may_break_again_and_again(name: str, cuts: list[int], chance: random.Random) -> None:
    """Also while a replay has not caught up yet, and however its events are bundled."""
    one = recordings()[name]
    resumption = Resumption(one.path, one.body.encode(), "same")
    client, stream = b"", events_of(one.whole.encode())
    for number, cut in enumerate([*cuts, len(stream)]):
        source = stream if not number % 2 else events_of(one.again.encode())
        left = source[:cut]
        while left:
            count = chance.randint(1, len(left))
            ready = resumption.through(b"".join(left[:count]))
            del left[:count]
            client += ready
            if ready:
                resumption.sent(ready)
        if cut >= len(source):
            break
        plan = resumption.plan(spent_s=0)
        if isinstance(plan, Finished):
            client += plan.events
            break
        assert isinstance(plan, Continuation)
        assert plan.replays
    got, unbroken = heard(client), heard(one.whole.encode())
    assert (got.text, got.reasoning) == (unbroken.text, unbroken.reasoning)
    assert (got.frames, got.finish) == (unbroken.frames, unbroken.finish)
    assert len(got.ids) == len(unbroken.ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_that_says_something_else_is_noticed_before_the_client_gets_any(name: str) -> None:
    one = recordings()[name]
    texts = [event for event in events_of(one.whole.encode()) if _says(event)]
    sent = events_of(one.whole.encode())
    had = sent[: sent.index(texts[2])]
    told = _told(one, had)
    other = one.again.replace(_word(texts[1]), "zebra")
    assert other != one.again
    splice = Splice(told, Continuation(one.body.encode(), replays=True))
    with pytest.raises(BrokenSpliceError, match="diverged"):
        _fed(splice, other.encode())
    assert not splice.begun


def test_a_replay_that_ends_too_early_is_noticed() -> None:
    one = recordings()["chat"]
    events = events_of(one.whole.encode())
    splice = Splice(_told(one, events[:4]), Continuation(one.body.encode(), replays=True))
    again = events_of(one.again.encode())
    assert not splice.feed(again[1])
    with pytest.raises(BrokenSpliceError, match="diverged"):
        splice.feed(again[-3])


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'data: {"error":{"message":"no","code":500}}\n\n', "error"),
        (b"data: no json\n\n", "unreadable"),
        (b"data: [1]\n\n", "unreadable"),
        (b'data: {"choices":7}\n\n', "unreadable"),
        (b'data: {"choices":[{"delta":{"content":7},"index":0}]}\n\n', "unreadable"),
    ],
)
def test_what_is_no_continuation_is_not_passed_on(event: bytes, kind: str) -> None:
    told = _told(recordings()["chat"], events_of(recordings()["chat"].whole.encode())[:3])
    with pytest.raises(BrokenSpliceError, match=kind):
        Splice(told, Continuation(b"{}")).feed(event)


def test_a_client_that_waits_for_a_replay_sees_that_it_is_alive() -> None:
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"id":"x"}\n\n'
    transcript = Transcript(CHAT)
    transcript.feed(piece * 100)
    splice = Splice(transcript.told, Continuation(b"{}", replays=True))
    out = b"".join(splice.feed(piece) for _ in range(100))
    assert set(out.split(b"\n\n")) == {b": resuming", b""}
    assert splice.feed(piece) == piece.replace(b'"id":"x"', b'"id":"x","created":0,"model":""')


def _says(event: bytes) -> bool:
    got = heard(event)
    return bool(got.text or got.reasoning)


def _word(event: bytes) -> str:
    got = heard(event)
    return json.dumps(got.text or got.reasoning)[1:-1]


# -- other weights ------------------------------------------------------------------------------


def _begun(name: str, sent: int) -> tuple[Recording, Resumption]:
    one = recordings()[name]
    resumption = Resumption(one.path, one.body.encode(), "fp+a")
    resumption.sent(b"".join(events_of(one.whole.encode())[:sent]))
    plan = resumption.plan(spent_s=0.0)
    assert isinstance(plan, Continuation)
    assert plan.replays
    return one, resumption


def test_other_weights_do_not_repeat_what_was_said_but_go_on_from_the_text() -> None:
    one, resumption = _begun("chat", sent := 5)
    resumption.towards("fp+a")
    assert resumption.body == one.body.encode()
    resumption.towards("fp+b")
    assert resumption.weights == "fp+b"
    assert resumption.body == one.rests[sent].body.encode()
    got = resumption.through(one.rests[sent].stream.encode())
    whole = b"".join(events_of(one.whole.encode())[:sent]) + got
    assert heard(whole).text == heard(one.whole.encode()).text
    # Made by two of them, so neither repeats it.
    resumption.sent(b"")
    again = resumption.plan(spent_s=0.0)
    assert isinstance(again, Continuation)
    assert not again.replays


def test_a_grammar_cannot_begin_in_the_middle_so_other_weights_are_tried_with_all_of_it() -> None:
    one = recordings()["chat"]
    body = {**json.loads(one.body), "response_format": {"type": "json_object"}, "seed": 3}
    resumption = Resumption(one.path, json.dumps(body).encode(), "fp+a")
    resumption.sent(b"".join(events_of(one.whole.encode())[:5]))
    assert isinstance(resumption.plan(spent_s=0.0), Continuation)
    resumption.towards("fp+b")
    assert resumption.body == json.dumps(body).encode()
