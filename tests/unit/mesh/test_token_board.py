from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.mesh.token_board import TokenBoard


def test_a_node_is_up_while_any_session_sees_it() -> None:
    board = TokenBoard()
    assert board.token("old", "a", up=True) == [("a", True)]
    assert board.token("new", "a", up=True) == []
    assert board.token("old", "a", up=False) == []
    assert board.token("new", "a", up=False) == [("a", False)]


def test_what_only_a_closed_session_saw_is_gone() -> None:
    board = TokenBoard()
    board.token("old", "a", up=True)
    board.token("old", "b", up=True)
    board.token("new", "b", up=True)
    assert board.forget("old") == [("a", False)]
    assert board.up == {"b"}
    assert board.forget("never there") == []


def test_to_know_nothing_is_not_to_say_that_anybody_went() -> None:
    board = TokenBoard()
    board.token("s", "a", up=True)
    board.clear()
    assert board.up == frozenset()
    assert board.token("s", "a", up=True) == [("a", True)]


steps = st.tuples(st.sampled_from("xyz"), st.sampled_from("abc"), st.booleans())


@settings(deadline=None)
@given(st.lists(steps))
def test_what_it_says_adds_up_to_what_is(told: list[tuple[str, str, bool]]) -> None:
    board, up = TokenBoard(), set[str]()
    seen: dict[str, set[str]] = {}
    for session, node, is_up in told:
        for name, came in board.token(session, node, up=is_up):
            assert (name in up) is not came, "only changes are told"
            (up.add if came else up.discard)(name)
        seen.setdefault(session, set())
        (seen[session].add if is_up else seen[session].discard)(node)
    assert up == set().union(*seen.values())
    assert board.up == up
