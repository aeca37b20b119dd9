"""Rankings on disk and from peers: what was written comes back, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.experts.ranking import Ranking, RankingError
from meshd.experts.ranking_file import BYTES_MAX, decode, encode, read, write

MODEL = "0123456789abcdef"
TEXT = "ab" * 32
EXPERTS = (0, 4, 4)
GOOD = Ranking(MODEL, TEXT, 100, ((), (90, 50, 40, 20), (100, 60, 40, 0)))


def loaded() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(encode(GOOD))
    return content


def signed(ranking: Ranking) -> bytes:
    """Whole in itself, whatever it says."""
    return encode(ranking)


def counted(*layers: tuple[int, ...], tokens: int = 100, model: str = MODEL) -> bytes:
    return signed(Ranking(model, TEXT, tokens, ((), *layers)))


def refusal(text: bytes, experts: tuple[int, ...] = EXPERTS, used: int = 0) -> str:
    with pytest.raises(RankingError) as caught:
        decode(text, fingerprint=MODEL, experts=experts, used=used)
    said = str(caught.value)
    assert said
    assert "\n" not in said
    return said


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    assert decode(encode(GOOD), fingerprint=MODEL, experts=EXPERTS, used=2) == GOOD
    path = tmp_path / "ranking.json"
    write(path, GOOD)
    found = read(path, fingerprint=MODEL, experts=EXPERTS)
    assert found == GOOD
    assert found.digest == GOOD.digest
    assert [one.name for one in tmp_path.iterdir()] == ["ranking.json"]


def test_a_large_model_takes_little() -> None:
    # 94 layers of 128 experts, 8 of them for each of 65 536 tokens.
    layer = tuple(4096 + (-1) ** one * one for one in range(128))
    layer = (*layer[:-1], layer[-1] + 65536 * 8 - sum(layer))
    large = Ranking(MODEL, TEXT, 65536, (layer,) * 94)
    assert len(encode(large)) < 200_000
    assert decode(encode(large), fingerprint=MODEL, experts=(128,) * 94, used=8) == large


def test_the_digest_tells_models_texts_and_counts_apart() -> None:
    others = (
        Ranking("f" * 16, TEXT, 100, GOOD.counts),
        Ranking(MODEL, "cd" * 32, 100, GOOD.counts),
        Ranking(MODEL, TEXT, 100, ((), GOOD.counts[2], GOOD.counts[1])),
        Ranking(MODEL, TEXT, 100, (*GOOD.counts[1:], ())),
    )
    digests = {one.digest for one in (GOOD, *others)}
    assert len(digests) == 5
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in digests)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no ranking"),
        (b"\0" * 100, "no ranking"),
        (b"\xff\xfe", "no ranking"),
        (b"[" * 100_000, "no ranking"),
        (b'{"version":' + b"[" * 100_000, "no ranking"),
        (b"[]", "no ranking"),
        (b"{}", "no ranking"),
        (b'{"version":2}', "version 2"),
        (b'{"version":1}', "no ranking"),
        (b" " * (BYTES_MAX + 1), "more than"),
        (encode(GOOD)[:-1], "no ranking"),
        (encode(GOOD) + b" ", "damaged"),
        (encode(GOOD).replace(b"90,", b"90.0,"), "no ranking"),
        (encode(GOOD).replace(b"90,", b"90.5,"), "no ranking"),
        (encode(GOOD).replace(b"90,", b"NaN,"), "no ranking"),
        (encode(GOOD).replace(b"90,", b"1e2,"), "no ranking"),
        (encode(GOOD).replace(b"90,", b"-90,"), "no ranking"),
        (encode(GOOD).replace(b"90,", b"null,"), "no ranking"),
        (encode(GOOD).replace(b"90,", b"9" * 40 + b","), "no ranking"),
        (encode(GOOD).replace(b"90,", b"91,"), "damaged"),
        (encode(GOOD).replace(b'"tokens":100', b'"tokens":100,"tokens":100'), "damaged"),
        (encode(GOOD).replace(b'"tokens":100', b'"tokens":0'), "no ranking"),
        (encode(GOOD).replace(b'"tokens":100', b'"tokens":50'), "damaged"),
        (encode(GOOD).replace(b'"tokens"', b'"more":1,"tokens"'), "no ranking"),
    ],
)
def test_what_is_no_ranking_is_refused(text: bytes, why: str) -> None:
    assert why in refusal(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (counted(*GOOD.counts[1:], model="f" * 16), "another model"),
        (counted(GOOD.counts[1]), "has 2 layers, the model 3"),
        (counted(*GOOD.counts[1:], (1, 1, 1, 1)), "has 4 layers, the model 3"),
        (counted((100, 100), GOOD.counts[2]), "2 experts in layer 1"),
        (counted((), GOOD.counts[2]), "0 experts in layer 1"),
        (counted((0, 0, 0, 0), GOOD.counts[2]), "nothing in layer 1"),
        (counted((90, 50, 40, 21), GOOD.counts[2]), "layer 1 are not those of 100 tokens"),
        (counted((90, 50, 40, 120), GOOD.counts[2]), "layer 1 are not those of"),
        (counted(GOOD.counts[1], (100, 100, 100, 0)), "layer 2 are not those of"),
        (counted((50, 20, 20, 9), GOOD.counts[2]), "layer 1 are not those of"),
        (counted((150, 30, 20, 0), GOOD.counts[2]), "layer 1 are not those of"),
    ],
)
def test_what_this_models_router_cannot_have_chosen_is_refused(text: bytes, why: str) -> None:
    assert why in refusal(text)


def test_another_number_of_chosen_experts_is_refused_where_it_is_known() -> None:
    assert "are not those of 100 tokens" in refusal(encode(GOOD), used=3)


def test_a_model_without_experts_has_no_ranking() -> None:
    assert "no routed experts" in refusal(
        signed(Ranking(MODEL, TEXT, 100, ((), ()))), experts=(0, 0)
    )


def test_a_file_that_cannot_be_read_says_which(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(RankingError, match=str(path)):
            read(path, fingerprint=MODEL, experts=EXPERTS)
    (tmp_path / "half").write_bytes(encode(GOOD)[:50])
    with pytest.raises(RankingError, match="half: this is no ranking"):
        read(tmp_path / "half", fingerprint=MODEL, experts=EXPERTS)


@given(st.data())
def test_no_mutation_is_believed(data: st.DataObject) -> None:
    text = bytearray(encode(GOOD))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        kind = data.draw(st.sampled_from(("change", "drop", "insert", "repeat", "cut")))
        if kind == "change":
            text[at] = data.draw(st.integers(0, 255))
        elif kind == "drop":
            del text[at]
        elif kind == "insert":
            text[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "repeat":
            text[at:at] = text[at : data.draw(st.integers(at, len(text)))]
        else:
            del text[at + 1 :]
    if bytes(text) != encode(GOOD):
        refusal(bytes(text))


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(loaded())), _JSON)
def test_no_other_value_is_believed(key: str, value: object) -> None:
    changed = {**loaded(), key: value}
    text = json.dumps(changed, separators=(",", ":")).encode()
    if text != encode(GOOD):
        refusal(text)


@given(st.lists(st.lists(st.integers(0, 300), max_size=5), max_size=4), st.integers(1, 300))
def test_whatever_is_believed_is_possible(layers: list[list[int]], tokens: int) -> None:
    """Also of files that are whole in themselves, as a peer might make them."""
    ranking = Ranking(MODEL, TEXT, tokens, tuple(map(tuple, layers)))
    try:
        found = decode(encode(ranking), fingerprint=MODEL, experts=EXPERTS)
    except RankingError:
        return
    assert [len(layer) for layer in found.counts] == list(EXPERTS)
    sums = {sum(layer) for layer in found.counts if layer}
    assert len(sums) == 1
    assert sums.pop() % tokens == 0
    assert all(sorted(order) == list(range(len(order))) for order in found.orders)
