from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.mesh.addresses import HostPort
from meshd.mesh.candidates import MOST, Candidate, ordered


def at(host: str, port: int = 9338) -> HostPort:
    return HostPort(host, port)


def order(
    members: list[Candidate],
    peers: list[Candidate] | None = None,
    remembered: list[Candidate] | None = None,
    *,
    own: frozenset[HostPort] = frozenset(),
    revoked: frozenset[str] = frozenset(),
) -> list[Candidate]:
    found = ordered(members, peers or [], remembered or [], me="me", own=own, revoked=revoked)
    return list(found)


def test_cores_come_before_peers_before_other_members_before_memories() -> None:
    core = Candidate("c", (at("1"),), core=True)
    leaf = Candidate("l", (at("2"),))
    peer = Candidate("", (at("3"),))
    memory = Candidate("m", (at("4"),))
    assert order([leaf, core], [peer], [memory]) == [core, peer, leaf, memory]


def test_nobody_dials_itself_twice_or_who_was_thrown_out() -> None:
    me = Candidate("me", (at("1"),), core=True)
    thrown_out = Candidate("r", (at("2"),), core=True)
    ourselves_by_address = Candidate("", (at("9"),))
    core = Candidate("c", (at("3"),), core=True)
    same_place = Candidate("", (at("3"),))
    found = order(
        [me, thrown_out, core],
        [ourselves_by_address, same_place],
        [core],
        own=frozenset({at("9")}),
        revoked=frozenset({"r"}),
    )
    assert found == [core]


def test_an_address_belongs_to_the_first_that_has_it() -> None:
    one = Candidate("a", (at("1"), at("2")), core=True)
    other = Candidate("b", (at("2"), at("3")), core=False)
    assert order([one, other]) == [one, Candidate("b", (at("3"),))]


candidates = st.builds(
    Candidate,
    st.sampled_from(["", "a", "b", "c", "me", "r"]),
    st.lists(st.builds(HostPort, st.sampled_from("12345"), st.just(1)), max_size=6).map(tuple),
    st.booleans(),
)


@settings(deadline=None)
@given(st.lists(candidates), st.lists(candidates), st.lists(candidates))
def test_no_address_twice_and_never_too_many(
    members: list[Candidate], peers: list[Candidate], remembered: list[Candidate]
) -> None:
    members = [one for one in members if one.node]
    own = frozenset({at("5", 1)})
    found = order(members, peers, remembered, own=own, revoked=frozenset({"r"}))
    places = [address for one in found for address in dict.fromkeys(one.addresses)]
    assert len(places) == len(set(places))
    assert not own.intersection(places)
    assert len(found) <= MOST
    assert not {"me", "r"} & {one.node for one in found}
