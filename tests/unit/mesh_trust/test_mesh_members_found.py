from __future__ import annotations

import pytest

from meshd.cli.mesh import table
from meshd.errors import UserError
from meshd.mesh.member_line import MemberLine, find

A = MemberLine("aaaabbbbccccdddd", "box1", "alive", me=True, models=("qwen", "phi"))
B = MemberLine("aaaaeeeeffffgggg", "box2", "alive", core=True, rtt_ms=0.25)
C = MemberLine("hhhhiiiijjjjkkkk", "twin", "suspect", addresses=("192.0.2.1:9338",))
D = MemberLine("llllmmmmnnnnoooo", "twin", "alive", role="standby")
ALL = (A, B, C, D)


@pytest.mark.parametrize(
    ("text", "member"),
    [("box1", A), (A.id, A), ("aaaab", A), ("aaaae", B), ("hhhh", C), (D.id, D)],
)
def test_a_node_is_found_by_name_or_id(text: str, member: MemberLine) -> None:
    assert find(ALL, text) == member


@pytest.mark.parametrize("text", ["twin", "aaaa"])
def test_what_means_two_nodes_is_refused_with_their_ids(text: str) -> None:
    with pytest.raises(UserError, match=rf"'{text}' means 2 nodes: \w{{16}}, \w{{16}} \(give the"):
        find(ALL, text)


@pytest.mark.parametrize("text", ["", "box", "hhh", "zzzz", "BOX1", "a b"])
def test_what_fits_nobody_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no node of the mesh has the name or id"):
        find(ALL, text)


def test_a_node_that_is_away_can_be_named_by_its_whole_id() -> None:
    assert find(ALL, "zzzzzzzzzzzzzzzz").id == "zzzzzzzzzzzzzzzz"


def test_nobody_gets_in_the_way_of_an_id_by_taking_it_for_a_name() -> None:
    hostile = MemberLine("ppppqqqqrrrrssss", A.id, "alive")
    assert find((hostile, *ALL), A.id) == A


def test_the_table_lines_up_and_this_node_is_first() -> None:
    lines = list(table((D, C, B, A)))
    assert lines[0].split() == ["NAME", "ID", "STATUS", "ROLE", "RTT", "ADDRESS", "MODELS"]
    assert [line.split()[0] for line in lines[1:]] == ["box1", "box2", "twin", "twin"]
    assert "this node" in lines[1]
    assert lines[1].endswith("qwen phi")
    assert "auto, core" in lines[2]
    assert "0.2 ms" in lines[2]
    starts = {line.index(member.id) for line, member in zip(lines[1:], ALL, strict=True)}
    assert starts == {lines[0].index("ID")}


def test_what_others_call_themselves_cannot_steer_the_terminal() -> None:
    hostile = MemberLine("ppppqqqqrrrrssss", "\x1b[2Jbox\r\n", "alive", models=("a\x07",))
    text = "".join(table((hostile,)))
    assert text.isprintable()
