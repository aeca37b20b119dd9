"""The routing table as JSON: what the brain writes is what the gateway reads."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.routes import (
    ModelState,
    Route,
    RoutingTable,
    RoutingTableError,
    Target,
    decode,
    encode,
    packed,
)
from meshd.gateway.table_file import MAX_TABLE_BYTES, read_table, write_table

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
targets = st.builds(
    Target,
    node=text,
    socket=text.map(lambda name: "/" + name.replace("\0", "")),
    ready=st.booleans(),
    slots=st.integers(0, 512),
)
routes = st.builds(
    Route,
    model=text.filter(bool),
    state=st.sampled_from(ModelState),
    targets=st.lists(targets, max_size=3).map(tuple),
    aliases=st.lists(text, max_size=3).map(tuple),
    context=st.integers(0, 1 << 40),
    created_s=st.integers(0, 1 << 40),
    detail=text,
)
tables = st.builds(
    RoutingTable,
    generation=st.integers(0, 1 << 60),
    node=text,
    routes=st.lists(routes, max_size=4, unique_by=lambda route: route.model).map(tuple),
    max_body_bytes=st.integers(1, 1 << 40),
)
GOOD = RoutingTable(routes=(Route("m", ModelState.READY, (Target("n", "/s", True, 2),)),))


@given(tables)
def test_a_table_comes_back_as_it_was(table: RoutingTable) -> None:
    assert decode(encode(table)) == table
    assert decode(packed(table)) == table


@given(tables, st.data())
def test_a_cut_table_is_never_taken_for_a_whole_one(
    table: RoutingTable, data: st.DataObject
) -> None:
    whole = encode(table)
    cut = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    with pytest.raises(RoutingTableError):
        decode(whole[:cut])


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_anything_else_is_refused_in_one_line(junk: bytes) -> None:
    with pytest.raises(RoutingTableError) as caught:
        decode(junk)
    assert "\n" not in str(caught.value)


def test_fields_of_a_newer_brain_are_passed_over() -> None:
    document = msgspec.json.decode(encode(GOOD))
    document["newer"] = {"a": [1]}
    document["routes"][0]["newer"] = 1
    document["routes"][0]["targets"][0]["newer"] = None
    assert decode(msgspec.json.encode(document)) == GOOD


def _with(**changes: object) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(encode(GOOD)), **changes})


ROUTE = {"model": "m", "state": "ready"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (_with(schema=2), "schema 2"),
        (_with(schema="1"), "schema"),
        (b"{}", "schema"),
        (_with(generation="7"), "generation"),
        (_with(generation=1.5), "generation"),
        (_with(max_body_bytes=0), "max_body_bytes"),
        (_with(routes=[{"model": "m"}]), "state"),
        (_with(routes=[{"model": "m", "state": "dancing"}]), "dancing"),
        (_with(routes=[{"model": "", "state": "ready"}]), "no model name"),
        (_with(routes=[ROUTE, ROUTE]), "twice"),
        (
            _with(
                routes=[{**ROUTE, "targets": [
                    {"node": "n", "socket": "rel", "ready": True, "slots": 1}]}]
            ),
            "absolute",
        ),
        (
            _with(
                routes=[{**ROUTE, "targets": [
                    {"node": "n", "socket": "/s", "ready": 1, "slots": 1}]}]
            ),
            "ready",
        ),
        (b'{"schema":1,"x":' + b"[" * 100_000, "not a JSON document"),
    ],
)  # fmt: skip
def test_a_wrong_table_says_what_is_wrong(document: bytes, words: str) -> None:
    with pytest.raises(RoutingTableError, match=words):
        decode(document)


def test_a_written_table_is_read_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    for table in (RoutingTable(), GOOD):
        write_table(path, table)
        assert read_table(path).table == table
    assert [found.name for found in tmp_path.iterdir()] == ["routes.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_missing_folder_or_a_huge_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_table(tmp_path / "none" / "routes.json", GOOD)
    with pytest.raises(RoutingTableError, match="No such file"):
        read_table(tmp_path / "routes.json")
    huge = tmp_path / "routes.json"
    with huge.open("wb") as file:
        file.truncate(MAX_TABLE_BYTES + 1)
    with pytest.raises(RoutingTableError, match="larger than"):
        read_table(huge)
