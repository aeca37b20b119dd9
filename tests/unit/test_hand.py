"""The hand against a service manager in memory and real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from meshd.errors import UserError
from meshd.paths import Paths, under
from meshd.units.desired_file import MAX_BYTES, read_desired, read_outcome, write_desired
from meshd.units.hand import Allowance, Files, run_hand
from meshd.units.observe import observe
from meshd.units.port import JobFailed, NoSuchUnit, Unavailable, UnitState
from meshd.units.render import dropin_path, render_dropin
from meshd.units.spec import Desired, EngineKind, EngineSpec, EngineState, Outcome
from meshd.units.systemd import SystemdApplier


class MemorySystemd:
    """Units as a service manager holds them; a unit starts from what was on disk at reload."""

    def __init__(self, units: Path) -> None:
        self.folder = units
        self.loaded: dict[str, str] = {}
        self.running: dict[str, str] = {}
        self.failed: set[str] = set()
        self.calls: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.during: Callable[[str], None] = lambda call: None

    def _did(self, call: str) -> None:
        self.calls.append(call)
        self.during(call)
        if error := self.broken.get(call):
            raise error

    async def units(self) -> tuple[UnitState, ...]:
        self._did("units")
        return tuple(
            [UnitState(unit, "active", "running", main_pid=1) for unit in self.running]
            + [UnitState(unit, "failed", "failed") for unit in self.failed]
        )

    async def reload(self) -> None:
        self._did("reload")
        found = self.folder.glob("*.d/50-meshd.conf")
        self.loaded = {p.parent.name.removesuffix(".d"): p.read_text() for p in found}

    async def start(self, unit: str) -> None:
        self._did(f"start {unit}")
        if unit not in self.loaded:
            raise NoSuchUnit(f"{unit} not found")
        self.failed.discard(unit)
        self.running[unit] = self.loaded[unit]

    async def stop(self, unit: str) -> None:
        self._did(f"stop {unit}")
        self.running.pop(unit, None)
        self.failed.discard(unit)

    async def changed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def spec(name: str, slots: int = 1) -> EngineSpec:
    argv = ("/usr/bin/llama-server", "--parallel", str(slots))
    return EngineSpec(EngineKind.LLAMA, name, f"model {name}", argv)


def unit(name: str) -> str:
    return f"mesh-llama@{name}.service"


class Node:
    def __init__(self, root: Path, uid: int) -> None:
        self.paths: Paths = under(root)
        self.paths.run.mkdir()
        self.units = root / "units"
        self.units.mkdir()
        self.files = Files(self.paths, (uid,), self.units, root / "result.json")
        self.systemd = MemorySystemd(self.units)
        self.refused: dict[str, Sequence[str]] = {}

    def want(self, *specs: EngineSpec, generation: int = 1) -> None:
        write_desired(self.paths.desired, Desired(generation, specs))

    def allowance(self) -> Allowance:
        return Allowance(lambda wanted: self.refused.get(wanted.name, ()))

    async def hand(self) -> Outcome:
        return await run_hand(self.files, self.systemd, self.allowance)

    def text(self, wanted: EngineSpec) -> str:
        return render_dropin(wanted, self.paths)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, tmp_path.stat().st_uid)


async def test_only_what_changed_is_touched(node: Node) -> None:
    node.want(spec("a"), spec("b"), spec("c"))
    first = await node.hand()
    assert first == Outcome(1, started=(unit("a"), unit("b"), unit("c")))
    node.systemd.calls.clear()
    node.want(spec("a"), spec("b", slots=2), spec("d"), generation=2)
    second = await node.hand()
    assert second == Outcome(2, started=(unit("d"),), stopped=(unit("c"),), restarted=(unit("b"),))
    assert node.systemd.calls == [
        "units",
        f"stop {unit('c')}",
        f"stop {unit('b')}",
        "reload",
        f"start {unit('b')}",
        f"start {unit('d')}",
    ]
    wanted = (spec("a"), spec("b", slots=2), spec("d"))
    assert node.systemd.running == {one.unit: node.text(one) for one in wanted}
    assert not dropin_path(unit("c"), node.units).parent.exists()
    node.systemd.calls.clear()
    assert await node.hand() == Outcome(2)
    assert node.systemd.calls == ["units"], "nothing to do is nothing done, not even a reload"


async def test_the_answer_can_be_read_by_the_brain(node: Node) -> None:
    node.want(spec("a"), generation=7)
    outcome = await node.hand()
    assert read_outcome(node.files.result) == outcome
    assert node.files.result.stat().st_mode & 0o444 == 0o444


async def test_what_is_refused_stays_as_it_is_and_the_rest_goes_on(node: Node) -> None:
    node.want(spec("a"), spec("b"))
    await node.hand()
    node.refused["a"] = ["mesh-llama@a.service: no"]
    node.want(spec("a", slots=9), spec("b", slots=9), generation=2)
    outcome = await node.hand()
    assert outcome.errors == ("mesh-llama@a.service: no",)
    assert outcome.restarted == (unit("b"),)
    assert node.systemd.running[unit("a")] == node.text(spec("a"))
    assert dropin_path(unit("a"), node.units).read_text() == node.text(spec("a"))


async def test_what_is_left_as_it_is_is_not_stopped_though_nobody_wants_it(node: Node) -> None:
    node.want(spec("a"), spec("b"))
    await node.hand()
    desired = Desired(2, (spec("b", slots=9),), leave=(unit("a"), unit("b")))
    write_desired(node.paths.desired, desired)
    outcome = await node.hand()
    assert (outcome.stopped, outcome.restarted) == ((), (unit("b"),))
    assert node.systemd.running[unit("a")] == node.text(spec("a"))
    assert dropin_path(unit("a"), node.units).exists()


async def test_a_spec_that_cannot_be_written_is_refused(node: Node) -> None:
    node.want(replace(spec("a"), reads=("/a\nb",)), spec("b"), spec("b"))
    outcome = await node.hand()
    assert outcome.started == (unit("b"),)
    assert len(outcome.errors) == 2
    assert "not a path" in outcome.errors[0]
    assert outcome.errors[1] == f"{unit('b')}: wanted twice"


async def test_a_unit_that_does_not_start_does_not_stop_the_others(node: Node) -> None:
    node.systemd.broken[f"start {unit('a')}"] = JobFailed(unit("a"), "failed")
    node.want(spec("a"), spec("b"))
    outcome = await node.hand()
    assert outcome.started == (unit("b"),)
    assert outcome.errors == (f"{unit('a')}: job failed (systemctl status {unit('a')})",)


async def test_a_unit_that_does_not_stop_keeps_its_text(node: Node) -> None:
    node.want(spec("a"), spec("b"))
    await node.hand()
    node.systemd.broken[f"stop {unit('a')}"] = JobFailed(unit("a"), "timeout")
    node.want(spec("a", slots=2), spec("b", slots=2), generation=2)
    outcome = await node.hand()
    assert outcome.restarted == (unit("b"),)
    assert dropin_path(unit("a"), node.units).read_text() == node.text(spec("a"))
    assert f"start {unit('a')}" not in node.systemd.calls[-2:]


async def test_nothing_starts_from_old_text_when_the_reload_fails(node: Node) -> None:
    node.systemd.broken["reload"] = Unavailable("gone")
    node.want(spec("a"))
    outcome = await node.hand()
    assert outcome.started == ()
    assert outcome.errors == ("gone",)
    node.systemd.broken.clear()
    assert (await node.hand()).started == (unit("a"),), "and the next run converges"


async def test_a_failed_engine_that_nobody_wants_is_cleared_away(node: Node) -> None:
    node.systemd.failed.add(unit("old"))
    node.want()
    assert (await node.hand()).stopped == (unit("old"),)
    assert node.systemd.failed == set()


async def test_the_hand_goes_on_until_nothing_newer_is_wanted(node: Node) -> None:
    node.want(spec("a"))

    def newer(call: str) -> None:
        if call == f"start {unit('a')}":
            node.want(spec("b"), generation=2)
        if call == f"start {unit('b')}":
            node.want(spec("c"), generation=3)

    node.systemd.during = newer
    outcome = await node.hand()
    assert outcome.generation == 3
    assert list(node.systemd.running) == [unit("c")]


async def test_an_administrators_dropin_beside_ours_stays(node: Node) -> None:
    node.want(spec("a"))
    await node.hand()
    own = dropin_path(unit("a"), node.units).with_name("90-own.conf")
    own.write_text("[Service]\nNice=5\n")
    node.want(generation=2)
    await node.hand()
    assert [path.name for path in own.parent.iterdir()] == ["90-own.conf"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"{}", "generation"),
        (b'{"generation":"1","engines":[]}', "int"),
        (b'{"generation":1,"engines":[{"kind":"shell","name":"a","model":"","argv":[]}]}', "shell"),
        (b'{"generation":1,"engines":[{"kind":"llama","name":7,"model":"","argv":[]}]}', "str"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, ""),
        (b" " * (MAX_BYTES + 1), "larger"),
    ],
)
async def test_bad_wishes_are_one_clear_error(node: Node, content: bytes, message: str) -> None:
    node.paths.desired.write_bytes(content)
    with pytest.raises(UserError, match=r"desired\.json") as caught:
        await node.hand()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert node.systemd.calls == []


def test_only_the_right_owners_file_counts(node: Node) -> None:
    node.want()
    uid = node.paths.desired.stat().st_uid
    assert read_desired(node.paths.desired, (uid,)) == Desired(1)
    with pytest.raises(UserError, match="others"):
        read_desired(node.paths.desired, (uid + 1,))
    node.paths.desired.chmod(0o666)
    with pytest.raises(UserError, match="others"):
        read_desired(node.paths.desired, (uid,))


def test_neither_links_nor_pipes_nor_folders_are_read(node: Node) -> None:
    node.want()
    uid = node.paths.desired.stat().st_uid
    link = node.paths.run / "link.json"
    link.symlink_to(node.paths.desired)
    pipe = node.paths.run / "pipe.json"
    os.mkfifo(pipe)
    for path in (link, pipe, node.paths.run, node.paths.run / "missing.json"):
        with pytest.raises(UserError, match=str(path)):
            read_desired(path, (uid,))


def test_more_than_can_be_read_back_is_not_written(node: Node) -> None:
    engines = tuple(replace(spec("a"), argv=("x" * 8000,)) for _ in range(200))
    with pytest.raises(UserError, match="more than"):
        write_desired(node.paths.desired, Desired(1, engines))
    assert not node.paths.desired.exists()


async def test_observing_names_units_that_are_not_loaded(node: Node) -> None:
    node.want(spec("a"), spec("b"))
    await node.hand()
    del node.systemd.running[unit("b")]
    found = await observe(node.systemd, node.units)
    assert [(one.name, one.state) for one in found] == [
        ("a", EngineState.RUNNING),
        ("b", EngineState.STOPPED),
    ]
    assert found[0].text == node.text(spec("a"))


def applier(node: Node, answer_s: float = 10.0) -> SystemdApplier:
    return SystemdApplier(
        node.paths,
        node.systemd,
        units=node.units,
        result=node.files.result,
        answer_s=answer_s,
        remind_s=0.2,
    )


async def test_the_brain_waits_for_the_answer_to_its_own_question(node: Node) -> None:
    """An answer of the same number from before (a brain that lost its state) does not count."""
    stale = Outcome(1, errors=("from before",))
    node.files.result.write_bytes(msgspec.json.encode(stale))
    asked = asyncio.create_task(applier(node).apply(Desired(1, (spec("a"),))))
    async with asyncio.timeout(10):
        while not node.paths.desired.exists():
            await asyncio.sleep(0.01)
        await node.hand()
        assert await asked == Outcome(1, started=(unit("a"),))


async def test_a_hand_that_did_not_notice_is_asked_again(node: Node) -> None:
    asked = asyncio.create_task(applier(node).apply(Desired(4)))
    async with asyncio.timeout(10):
        for _ in range(2):
            while not node.paths.desired.exists():
                await asyncio.sleep(0.01)
            node.paths.desired.unlink()
        while not node.paths.desired.exists():
            await asyncio.sleep(0.01)
        await node.hand()
        assert await asked == Outcome(4)


async def test_a_hand_that_never_answers_is_an_error_with_a_way_out(node: Node) -> None:
    outcome = await applier(node, answer_s=0.5).apply(Desired(1))
    assert outcome.generation == 1
    assert "systemctl status mesh-apply" in outcome.errors[0]


async def test_a_missing_folder_is_an_error_not_a_crash(node: Node) -> None:
    node.paths.run.rmdir()
    outcome = await applier(node).apply(Desired(1))
    assert "cannot ask the hand" in outcome.errors[0]


async def test_a_split_is_down_before_what_it_stands_on_goes(node: Node) -> None:
    """Not only begun before: a llama-server that loses its rpc-server aborts."""
    engine = spec("a")
    below = [replace(engine, kind=kind) for kind in (EngineKind.GUARD, EngineKind.RPC)]
    order: list[str] = []
    start, stop = node.systemd.start, node.systemd.stop

    async def slowly(unit: str, what: Callable[[str], Awaitable[None]]) -> None:
        order.append(f"begin {unit}")
        await asyncio.sleep(0)
        await what(unit)
        order.append(f"end {unit}")

    node.systemd.start = lambda unit: slowly(unit, start)  # type: ignore[method-assign]
    node.systemd.stop = lambda unit: slowly(unit, stop)  # type: ignore[method-assign]
    node.want(engine, *below)
    await node.hand()
    assert order.index("begin mesh-llama@a.service") == 4
    order.clear()
    node.want(generation=2)
    await node.hand()
    assert order[:2] == ["begin mesh-llama@a.service", "end mesh-llama@a.service"]
    assert {*order[2:4]} == {"begin mesh-guard@a.service", "begin mesh-rpc@a.service"}
