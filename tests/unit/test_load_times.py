"""How long loads take: measured, kept, and foretold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.load_times import FILE_MAX_BYTES, LoadTime, LoadTimes, decode, encode
from meshd.load_watch import LoadWatch
from meshd.paths import under
from meshd.pipeline import Proposal
from meshd.planner.plan import Plan
from meshd.planner.view import Candidate, NodeView
from meshd.units.spec import EngineKind, EngineSpec, EngineState, EngineStatus
from tests.unit.worlds import facts, hardware

GB = 10**9


def _times(*loads: tuple[str, float, int]) -> LoadTimes:
    times = LoadTimes()
    for content, seconds, size in loads:
        times = times.after(LoadTime(content, seconds, size))
    return times


def test_a_model_that_was_loaded_takes_as_long_as_its_loads_did() -> None:
    times = _times(("a", 90, 20 * GB), ("b", 5, 2 * GB), ("a", 30, 20 * GB), ("a", 32, 20 * GB))
    assert times.predicted_s("a", 20 * GB) == 32


def test_only_its_last_loads_count() -> None:
    times = _times(*[("a", 100, GB)] * 9, *[("a", 10, GB)] * 3)
    assert times.predicted_s("a", GB) == 10


def test_another_model_takes_as_long_as_its_bytes_do() -> None:
    times = _times(("a", 10, 20 * GB), ("b", 5, 10 * GB))
    assert times.predicted_s("c", 30 * GB) == pytest.approx(15)


def test_the_start_of_a_tiny_engine_says_nothing_of_a_large_one() -> None:
    assert _times(("tiny", 0.5, 2_000_000)).predicted_s("c", 30 * GB) == 0
    assert LoadTimes().predicted_s("c", GB) == 0


@given(
    st.lists(
        st.tuples(
            st.text("abcdefghij" * 3, min_size=1, max_size=64),
            st.floats(0.001, 1e5),
            st.integers(0, 10**13),
        ),
        max_size=300,
    )
)
def test_what_is_kept_is_bounded_and_read_back(loads: list[tuple[str, float, int]]) -> None:
    times = _times(*loads)
    assert len(times.loads) <= 200
    data = encode(times)
    assert len(data) <= FILE_MAX_BYTES
    assert decode(data) == times


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b'{"schema": 9, "loads": []}', b"\xff", b"[" * 5000,
        b'{"schema": 1, "loads": [{"content": "a", "seconds": "x", "size_bytes": 1}]}',
        b" " * (FILE_MAX_BYTES + 1),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(data)
    path = tmp_path / "load-times.json"
    path.write_bytes(data)
    assert LoadWatch(path).times == LoadTimes()


class _Node:
    """One engine, as passes see it."""

    def __init__(self, path: Path) -> None:
        self.now_s = 100.0
        self.ready = False
        self.watch = LoadWatch(path, clock=lambda: self.now_s)

    def look(self, pid: int | None) -> None:
        spec = EngineSpec(EngineKind.LLAMA, "a", "a", ("/bin/x",), load_bytes=10 * GB)
        engine = EngineStatus(EngineKind.LLAMA, "a", EngineState.RUNNING, "", pid)
        found = replace(facts(layers=4), files=("/models/a.gguf",))
        node = NodeView("n", hardware(), candidates=(Candidate("a", found, fingerprint="fp"),))
        # Its guard has the same name, loads nothing, and is no load.
        guard = replace(spec, kind=EngineKind.GUARD, load_bytes=0)
        specs = (spec, guard)
        proposal = Proposal(node, Plan(()), specs, (), (engine,) if pid is not None else (), ())
        self.watch.look(proposal, lambda *_: self.ready)


def test_a_load_is_measured_from_the_start_of_the_engine_to_its_first_answer(
    tmp_path: Path,
) -> None:
    path = under(tmp_path).load_times
    path.parent.mkdir()
    node = _Node(path)
    node.look(None)
    node.now_s = 110
    node.look(7)
    assert node.watch.now()["a"].since_s == 110
    assert node.watch.now()["a"].load_s == 0  # nothing was measured yet
    told = node.watch.now()
    node.now_s = 150
    node.look(7)
    assert node.watch.now() == told  # a table that says so need not be written again
    node.ready = True
    node.look(7)
    assert node.watch.now() == {}
    assert node.watch.times.loads == (LoadTime("fp", 40, 10 * GB),)
    # The engine is started anew, by another brain of this node.
    later = _Node(path)
    later.look(None)
    assert later.watch.progress() == {}
    later.look(8)
    assert later.watch.now()["a"].load_s == 40
    # By time, in tenths; the end is only known when it is there.
    said = []
    for later.now_s in (100, 103.9, 104, 139, 140, 500):
        said.append(later.watch.progress())
    assert said == [{"a": tenths / 10} for tenths in (0, 0, 1, 9, 9, 9)]
    later.ready = True
    later.look(8)
    assert later.watch.progress() == {}


def test_an_engine_that_outlived_a_brain_measures_nothing(tmp_path: Path) -> None:
    node = _Node(tmp_path / "x.json")
    node.look(7)
    node.now_s = 103
    node.ready = True
    node.look(7)
    assert node.watch.times == LoadTimes()
    node.ready = False
    node.look(8)  # but its next start is one of ours
    node.now_s = 108
    node.ready = True
    node.look(8)
    assert node.watch.times.loads == (LoadTime("fp", 5, 10 * GB),)
