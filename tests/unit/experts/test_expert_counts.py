"""What llama-imatrix wrote is read with care, and pieces that were counted outlive a kill."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from meshd.experts.counting import Counting, Piece
from meshd.experts.imatrix_file import read_counts
from meshd.experts.imatrix_run import Span
from meshd.experts.ranking import RankingError

EXPERTS = (0, 4)
ONE = [3.0, 0.0, 1.0, 2.0]


def imatrix(path: Path, kind: str = "imatrix", **tensors: object) -> Path:
    """A file of llama-imatrix; a name's ``__`` stands for a dot."""
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", kind)
    writer.add_tensor("blk.1.attn_q.weight.counts", np.ones((1,), np.float32))
    for name, values in tensors.items():
        array = values if isinstance(values, np.ndarray) else np.array([values], np.float32).T
        writer.add_tensor(name.replace("__", "."), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path, experts: tuple[int, ...] = EXPERTS) -> str:
    with pytest.raises(RankingError) as caught:
        read_counts(path, experts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("matrix", ["ffn_down", "ffn_gate", "ffn_up", "ffn_gate_up"])
def test_counts_are_read_from_whatever_matrix_has_them(tmp_path: Path, matrix: str) -> None:
    path = imatrix(tmp_path / "i.gguf", **{f"blk__1__{matrix}_exps__weight__counts": ONE})
    assert read_counts(path, EXPERTS) == ((), (3, 0, 1, 2))


def test_other_experts_are_not_taken_for_the_routed_ones(tmp_path: Path) -> None:
    names = ("ffn_down_shexp", "ffn_down_chexps", "ffn_down")
    others = {f"blk__1__{name}__weight__counts": ONE for name in names}
    path = imatrix(tmp_path / "i.gguf", blk__1__ffn_down_exps__weight__in_sum2=ONE, **others)
    assert "no expert of the 4 in layer 1" in refusal(path)


def test_a_layer_that_is_not_asked_for_is_left_out(tmp_path: Path) -> None:
    names = (f"blk__{block}__ffn_down_exps__weight__counts" for block in (0, 1))
    path = imatrix(tmp_path / "i.gguf", **dict.fromkeys(names, ONE))
    assert read_counts(path, EXPERTS) == ((), (3, 0, 1, 2))
    assert "layer 1, which is not there" in refusal(path, (4,))


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([1.0, 2.0, 3.0], "3 experts of the 4 in layer 1"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], "5 experts of the 4"),
        ([1.0, float("nan"), 1.0, 1.0], "what is no count"),
        ([1.0, float("inf"), 1.0, 1.0], "what is no count"),
        ([1.0, -1.0, 1.0, 1.0], "what is no count"),
        ([1.0, 0.5, 1.0, 1.0], "what is no count"),
        (np.ones((4, 1), np.float16), "holds no counts"),
        (np.ones((4, 1), np.int32), "holds no counts"),
    ],
)
def test_what_is_no_count_is_refused(tmp_path: Path, counts: object, why: str) -> None:
    path = imatrix(tmp_path / "i.gguf", blk__1__ffn_down_exps__weight__counts=counts)
    assert why in refusal(path)


def test_matrices_of_a_layer_that_disagree_are_refused(tmp_path: Path) -> None:
    path = imatrix(
        tmp_path / "i.gguf",
        blk__1__ffn_down_exps__weight__counts=ONE,
        blk__1__ffn_up_exps__weight__counts=[3.0, 0.0, 2.0, 1.0],
    )
    assert "other counts than its layer's others" in refusal(path)


def test_what_is_no_imatrix_is_refused(tmp_path: Path) -> None:
    counts = {"blk__1__ffn_down_exps__weight__counts": ONE}
    assert "no file of llama-imatrix" in refusal(imatrix(tmp_path / "m", "model", **counts))
    whole = imatrix(tmp_path / "i.gguf", **counts)
    (tmp_path / "half").write_bytes(whole.read_bytes()[:-80])
    assert str(tmp_path / "half") in refusal(tmp_path / "half")
    # The older format: the number of its entries, then names and numbers.
    (tmp_path / "old.dat").write_bytes(
        b"\x0c\0\0\0\x17\0\0\0blk.0.ffn_down_exps.weight" + b"\0" * 64
    )
    assert "not a GGUF file" in refusal(tmp_path / "old.dat")
    assert "absent" in refusal(tmp_path / "absent")


SPAN = Span(0, 0, 1)
PIECE = Piece(SPAN, 1, ((), (400, 300, 200, 124)))


def test_pieces_are_found_again(tmp_path: Path) -> None:
    counting = Counting(tmp_path / "new", "key", EXPERTS)
    short = Piece(Span(1, 0, 8), 3, ((), (1000, 1000, 1000, 72)))
    none = Piece(Span(1, 8, 8), 0, ())
    for piece in (PIECE, short, none):
        counting.put(piece)
    again = Counting(tmp_path / "new", "key", EXPERTS)
    for one in (counting, again):
        assert one.get(SPAN) == PIECE
        # What a text could not give in full is not asked for again, and known by what it gave.
        assert one.get(Span(1, 0, 8)) == short
        assert one.get(Span(1, 0, 3)) == short
        assert one.get(Span(1, 8, 8)) == none
        assert one.get(Span(1, 0, 4)) is None
        assert one.get(Span(0, 0, 2)) is None
    assert Counting(tmp_path / "new", "other", EXPERTS).get(SPAN) is None
    assert Counting(tmp_path / "new", "key", (0, 5)).get(SPAN) is None


@given(st.data())
def test_a_damaged_file_is_as_good_as_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("counting")
    counting = Counting(folder, "key", EXPERTS)
    counting.put(PIECE)
    whole = counting.path.read_bytes()
    text = bytearray(whole)
    at = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        text[at] = data.draw(st.integers(0, 255))
    else:
        del text[at:]
    counting.path.write_bytes(text)
    found = Counting(folder, "key", EXPERTS).get(SPAN)
    assert found == (PIECE if bytes(text) == whole else None)


def test_of_old_countings_the_newest_stay(tmp_path: Path) -> None:
    for number in range(6):
        counting = Counting(tmp_path, f"key{number}", EXPERTS)
        counting.put(PIECE)
        os.utime(counting.path, (number, number))
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {"key2", "key3", "key4", "key5"}
