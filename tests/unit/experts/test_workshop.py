"""What a node's workshop does for its wishes, whatever its tools do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from meshd.errors import UserError
from meshd.experts import certificate as certificates
from meshd.experts.certificate import Certificate
from meshd.experts.logits_origin import LogitsOrigin
from meshd.experts.ranking import RankingError
from meshd.experts.wish import Holder, ShardWish, WorkStage
from meshd.experts.work_job import RETRY_FIRST_S, retry_s
from meshd.quality import Fidelity
from tests.unit.experts.workshop_world import (
    LOGITS,
    MODEL,
    SELECTION,
    Gate,
    World,
    rounds,
    stage,
    until,
)

NOBODY = Holder("n-nobody", "127.0.0.1:9")
ALL = ["write", "logits prose", "logits code", "measure prose", "measure code"]


def entered(gate: Gate, times: int) -> bool:
    return gate.entered == times


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def certified(world: World) -> Certificate:
    path = world.paths.experts / f"certificates/{world.key}.json"
    return certificates.read(path, key=world.key)


def rot(path: Path, note: Path) -> None:
    """A bit flips, unseen, and the file was last read long ago."""
    about, right = path.stat(), path.read_bytes()
    path.write_bytes(b"x" + right[1:])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    text, words = note.read_text(), '"verified_s":'
    verified = text.partition(words)[2].partition(",")[0]
    note.write_text(text.replace(f"{words}{verified}", f"{words}1"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_from_two_wishes_to_a_certified_shard(world: World) -> None:
    async with world.open() as workshop:
        assert workshop.states() == {}
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        assert workshop.states()[MODEL].stage is WorkStage.READY
        assert workshop.rankings() == {MODEL: world.ranking()}
        (shard,) = workshop.shards().values()
        assert workshop.logits() == {MODEL}
    assert world.log == ["count", *ALL]
    assert (shard.key, shard.fingerprint) == (world.key, MODEL)
    assert shard.path == str(world.paths.shards / f"{world.key}.gguf")
    assert shard.size_bytes == len(content(shard.path))
    assert (shard.experts, shard.experts_all, shard.selection) == (2, 4, SELECTION)
    assert shard.ranking == world.ranking().digest
    assert shard.mass == pytest.approx(0.3)
    assert shard.least_mass == pytest.approx(0.3)
    assert shard.measured == (
        Fidelity("prose", 0.95, 1.02, 0.03),
        Fidelity("code", 0.95, 1.02, 0.03),
    )
    (shared,) = world.shared.values()
    assert content(shared.ranking)
    assert sorted(map(content, shared.logits.values())) == [
        LOGITS + b"code to measure",
        LOGITS + b"prose to measure",
    ]
    assert world.changes > 2


async def test_what_is_there_after_a_restart_is_not_done_again(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        shards = dict(workshop.shards())
    world.log.clear()
    world.quiet = False
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, MODEL, WorkStage.READY)
        await stage(workshop, world.key, WorkStage.READY)
        assert workshop.shards() == shards
        assert workshop.rankings() == {MODEL: world.ranking()}
        await until(lambda: world.shared)
    assert world.log == []


async def test_a_shard_is_known_before_anybody_wishes_it_again(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(computes=False),), ())
        await until(lambda: world.key in workshop.shards())


@pytest.mark.parametrize("ends_at", range(6))
async def test_a_life_that_ended_anywhere_is_gone_on_with(world: World, ends_at: int) -> None:
    gates = [world.count, world.write, world.logits, world.logits, world.measure, world.measure]
    gate = gates[ends_at]
    done = ["count", *ALL][:ends_at]
    async with world.open() as workshop:
        gate.holds = ends_at not in (3, 5)
        if ends_at in (3, 5):
            # The second of two: it is held when the first has passed.
            world.log = _Watched(["count", *ALL][ends_at], gate)
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await until(lambda: gate.holds and len(world.log) == ends_at + 1)
    assert list(world.log) == [*done, ["count", *ALL][ends_at]]
    assert gate.left == 1
    gate.holds = False
    world.log = []
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ["count", *ALL][ends_at:]


class _Watched(list[str]):
    """A log that closes a gate when this is written into it."""

    def __init__(self, last: str, gate: Gate) -> None:
        super().__init__()
        self._last, self._gate = last, gate

    def append(self, what: str) -> None:
        super().append(what)
        if what == self._last:
            self._gate.holds = True


@pytest.mark.parametrize(
    ("gate", "error", "key", "words"),
    [
        ("count", RankingError("nothing was counted"), MODEL, "nothing was counted"),
        ("write", OSError(28, "No space left on device", "/x"), "", "/x: No space left"),
        ("write", UserError("no", hint="do"), "", "no (do)"),
        ("logits", UserError("no logits"), "", "no logits"),
        ("measure", UserError("no figures"), "", "no figures"),
        ("measure", ZeroDivisionError("a bug"), "", "an error of meshd's own"),
    ],
)
async def test_what_failed_says_why_and_is_tried_again_later_and_later(
    world: World, gate: str, error: Exception, key: str, words: str
) -> None:
    door = getattr(world, gate)
    door.error = error
    key = key or world.key
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        for tries in (1, 2, 3):
            assert words in await stage(workshop, key, WorkStage.FAILED)
            assert door.entered == tries
            world.now_s += retry_s(tries) - 1
            await rounds()
            assert door.entered == tries
            world.now_s += 1
            if tries < 3:
                await until(partial(entered, door, tries + 1))
                await stage(workshop, key, WorkStage.FAILED)
        door.error = None
        await stage(workshop, key, WorkStage.READY)


async def test_a_wish_that_fails_keeps_no_other_one_waiting(world: World) -> None:
    world.count.error = RankingError("no")
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, MODEL, WorkStage.FAILED)
        await stage(workshop, world.key, WorkStage.READY)


async def test_nothing_begins_while_requests_run_unless_they_always_do(world: World) -> None:
    world.quiet = False
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: "without requests" in workshop.states()[MODEL].detail)
        await rounds()
        assert world.log == []
        world.now_s += 300
        await stage(workshop, MODEL, WorkStage.READY)


async def test_what_nobody_wishes_any_more_ends(world: World) -> None:
    world.write.holds = True
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await until(lambda: world.write.entered)
        workshop.want((), ())
        await until(lambda: world.write.left)
        assert workshop.states() == {}
        world.write.holds = False
        await rounds()
    assert world.log == ["write"]
    assert [path.name for path in world.paths.shards.iterdir()] == [f".{world.key}.gguf.part"]


async def test_another_wish_in_the_middle_is_done_instead(world: World) -> None:
    world.count.holds = True
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: world.count.entered)
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    assert world.count.left == 1


async def test_a_wish_said_again_disturbs_nothing(world: World) -> None:
    world.count.holds = True
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: world.count.entered)
        for holders in ((), (NOBODY,), ()):
            workshop.want((world.ranking_wish(*holders),), (world.shard_wish(),))
            await rounds(5)
        world.count.holds = False
        await stage(workshop, MODEL, WorkStage.READY)
    assert (world.count.entered, world.count.left) == (1, 0)


async def test_who_is_to_fetch_stops_counting(world: World) -> None:
    world.count.holds = True
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: world.count.entered)
        workshop.want((world.ranking_wish(NOBODY, computes=False),), ())
        await until(lambda: world.count.left)
        await stage(workshop, MODEL, WorkStage.FAILED)


async def test_who_is_not_to_count_waits_for_the_one_who_is(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(computes=False),), (world.shard_wish(computes=False),))
        await until(lambda: "another node" in workshop.states()[MODEL].detail)
        await until(lambda: "another node" in workshop.states()[world.key].detail)
        assert {one.stage for one in workshop.states().values()} == {WorkStage.WAITING}
        assert world.log == ["write"]
        # It is to count after all: the other one is gone.
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)


async def test_who_should_have_it_and_does_not_is_waited_for_only_so_long(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(NOBODY),), ())
        for tries in (1, 2, 3):
            assert "no other node" in await stage(workshop, MODEL, WorkStage.FAILED)
            assert world.log == []
            world.now_s += retry_s(tries)
            await rounds(20)
        await stage(workshop, MODEL, WorkStage.READY)
    assert world.log == ["count"]


async def test_a_ranking_that_nobody_gives_is_not_counted_for_ever(world: World) -> None:
    nobody = Holder("a", "127.0.0.1:1")
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(nobody, wanted="0" * 16),), ())
        for _ in range(8):
            await stage(workshop, MODEL, WorkStage.FAILED)
            await rounds()
            world.now_s += 4000
            await rounds()
        assert "no node gives" in await stage(workshop, MODEL, WorkStage.FAILED)
        assert workshop.rankings() == {MODEL: world.ranking()}, "what there is, others may want"
    assert world.log == ["count"]


async def test_a_turn_that_comes_back_does_not_hurry_what_failed(world: World) -> None:
    world.count.error = UserError("no llama-imatrix")
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await stage(workshop, MODEL, WorkStage.FAILED)
        for _ in range(3):
            workshop.want((world.ranking_wish(computes=False),), ())
            await rounds()
            workshop.want((world.ranking_wish(),), ())
            await rounds()
        assert world.count.entered == 1
        world.now_s += RETRY_FIRST_S
        await until(lambda: world.count.entered == 2)


async def test_another_calibration_is_counted_and_the_old_one_serves_until_then(
    world: World,
) -> None:
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await stage(workshop, MODEL, WorkStage.READY)
        old = workshop.rankings()[MODEL]
    world.calibration, world.counts = "d" * 64, (40, 10, 20, 30)
    world.count.holds = True
    async with world.open() as workshop:
        # For whoever does not count.
        workshop.want((world.ranking_wish(computes=False),), ())
        await until(lambda: workshop.states()[MODEL].detail.startswith("another node is to count"))
        assert workshop.rankings() == {MODEL: old}
        assert world.log == ["count"]
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: world.count.entered == 2)
        assert workshop.rankings() == {MODEL: old}
        world.count.holds = False
        await until(lambda: workshop.rankings()[MODEL] != old)
        # The mesh settled on the other one, which is still here.
        workshop.want((world.ranking_wish(wanted=old.digest),), ())
        await until(lambda: workshop.rankings()[MODEL] == old)
        await stage(workshop, MODEL, WorkStage.READY)
    assert world.log == ["count", "count"]


async def test_a_shard_that_is_kept_is_measured_on_other_texts_under_a_new_ranking(
    world: World,
) -> None:
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        before = workshop.shards()[world.key]
        done = len(world.log)
        other = world.folder / "other.measures"
        other.write_text("other prose to measure")
        prose, code = world.texts
        kept = replace(
            world.shard_wish(),
            ranking=world.ranking(40, 10, 20, 30),
            texts=(replace(prose, measures=str(other)), code),
        )
        workshop.want((), (kept,))
        await until(lambda: "measure prose" in world.log[done:])
        await stage(workshop, kept.key, WorkStage.READY)
        after = workshop.shards()[kept.key]
    assert "write" not in world.log[done:]
    assert (after.ranking, after.mass, after.sha256) == (before.ranking, before.mass, before.sha256)


async def test_a_model_that_was_replaced_is_refused(world: World) -> None:
    world.model.write_bytes(b"another one")
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), (world.shard_wish(),))
        assert "content changed" in await stage(workshop, MODEL, WorkStage.FAILED)
        assert "content changed" in await stage(workshop, world.key, WorkStage.FAILED)
    assert world.log == []


async def test_a_model_that_is_replaced_while_it_is_counted_gives_no_ranking(
    world: World,
) -> None:
    world.count.holds = True
    async with world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: world.count.entered)
        world.model.write_bytes(b"another one")
        world.count.holds = False
        assert "content changed" in await stage(workshop, MODEL, WorkStage.FAILED)
        assert workshop.rankings() == {}


async def test_a_full_disk_is_said_before_anything_is_written(world: World) -> None:
    world.free_bytes = 1 << 20
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        assert "make room" in await stage(workshop, world.key, WorkStage.FAILED)
        assert world.log == []
        world.free_bytes = 1 << 39
        world.now_s += RETRY_FIRST_S
        await stage(workshop, world.key, WorkStage.READY)


async def test_a_shard_that_somebody_wrote_to_is_made_anew(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        path = Path(workshop.shards()[world.key].path)
        world.log.clear()
        harmed = path.with_name("harmed")
        await asyncio.to_thread(harmed.write_bytes, b"harm")
        harmed.rename(path)
        world.now_s += 60
        await until(lambda: "measure code" in world.log)
        await stage(workshop, world.key, WorkStage.READY)
    # The whole model's logits are still there.
    assert world.log == ["write", "measure prose", "measure code"]


async def test_a_shard_that_rots_is_found_and_made_anew(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        path = Path(workshop.shards()[world.key].path)
    world.log.clear()
    right = content(str(path))
    rot(path, world.paths.experts / f"shards/{world.key}.json")
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await until(lambda: "write" in world.log)
        await until(lambda: path.exists() and path.read_bytes() == right)
        await stage(workshop, world.key, WorkStage.READY)


async def test_a_text_that_is_new_is_measured_and_the_others_are_not(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        world.log.clear()
        mine = world.folder / "mine.measures"
        mine.write_text("mine to measure")
        text = replace(world.texts[0], domain="mine", measures=str(mine))
        wish = replace(world.shard_wish(), texts=(*world.texts, text))
        world.measure.holds = True
        workshop.want((), (wish,))
        await until(lambda: world.measure.entered == 3)
        # The shard is what it was, and goes on serving; what is not known of it is said.
        assert len(workshop.shards()[world.key].measured) == 2
        detail = await stage(workshop, world.key, WorkStage.CERTIFYING)
        assert detail == "it is measured on mine"
        assert list(certified(world).texts) == ["prose", "code"]
        world.measure.holds = False
        await until(lambda: len(workshop.shards()[world.key].measured) == 3)
        assert await stage(workshop, world.key, WorkStage.READY) == ""
    assert world.log == ["logits mine", "measure mine"]
    found = certified(world)
    assert list(found.texts) == [one.domain for one in found.measured] == ["prose", "code", "mine"]


async def test_a_certificate_says_whose_logits_a_shard_was_measured_beside(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    assert certified(world).logits == {
        name: LogitsOrigin(hashlib.sha256(LOGITS + f"{name} to measure".encode()).hexdigest())
        for name in ("prose", "code")
    }


async def test_logits_that_came_from_nobody_knows_where_are_computed_anew(world: World) -> None:
    world.measure.holds = True
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await until(lambda: world.measure.entered)
    for file in (world.paths.experts / "logits").glob("*.node"):
        file.unlink()
    world.log.clear()
    world.measure.holds = False
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ALL[1:]


async def test_what_was_measured_beside_nobody_knows_whose_logits_is_measured_anew(
    world: World,
) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    world.log.clear()
    # As earlier versions left it.
    note = world.paths.experts / f"shards/{world.key}.json"
    told = json.loads(note.read_text())
    for figure in told["figures"]:
        del figure["logits"]
    note.write_text(json.dumps(told))
    certificate = world.paths.experts / f"certificates/{world.key}.json"
    certificate.write_text(certificate.read_text().replace('"version":2', '"version":1'))
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ["measure prose", "measure code"]


async def test_damaged_logits_are_computed_anew(world: World) -> None:
    world.measure.holds = True
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await until(lambda: world.measure.entered)
    for file in (world.paths.experts / "logits").rglob("*"):
        if file.is_file():
            file.write_bytes(b"garbage")
    world.log.clear()
    world.measure.holds = False
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ALL[1:]


async def test_a_shard_in_use_stays_when_room_is_needed(world: World) -> None:
    async with world.open() as workshop:
        workshop.want((), (world.shard_wish(),))
        await stage(workshop, world.key, WorkStage.READY)
        first = workshop.shards()[world.key].path
        other = world.shard_wish(selection=((), (0, 3), (1, 2)))
        world.free_bytes = 1 << 20
        workshop.want((), (other,), frozenset({world.key}))
        await stage(workshop, other.key, WorkStage.FAILED)
        assert content(first)


@pytest.mark.parametrize("files", [("/nowhere.gguf",), ()])
async def test_wishes_that_make_no_sense(world: World, files: tuple[str, ...]) -> None:
    wish = replace(world.shard_wish(), files=files)
    odd: ShardWish = replace(world.shard_wish(), key="../../x")
    async with world.open() as workshop:
        workshop.want((), (wish, odd, world.shard_wish(selection=((), (0, 3), (1, 2)))))
        await stage(workshop, wish.key, WorkStage.FAILED)
        assert "no key" in await stage(workshop, "../../x", WorkStage.FAILED)


def test_pauses_grow() -> None:
    assert [retry_s(count) for count in (1, 2, 6, 7, 99)] == [60, 120, 1920, 3600, 3600]
