"""A workshop that has another node's work: over real peer doors, believed only when it is right."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from meshd.errors import UserError
from meshd.experts import ranking_file
from meshd.experts.certificate import read
from meshd.experts.wish import Holder, WorkStage
from meshd.gateway.model_table import read_models, write_models
from meshd.shared_models import SharedExperts, share_models
from tests.unit.experts.workshop_world import LOGITS, MODEL, World, stage, until
from tests.wire.mesh_harness import Node, member, node
from tests.wire.test_expert_files import answers


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A node that has the model, and a certificate of the mesh."""
    folder = tmp_path / "me"
    me = member(tmp_path, "me")
    one = World(folder)
    one.tls = me.tls
    return one


@asynccontextmanager
async def maker(folder: Path) -> AsyncIterator[Node]:
    """A node whose workshop made everything, and whose gateway gives it to others."""
    async with node(folder, "maker") as one:
        home = folder / "made"
        home.mkdir()
        made = World(home)
        async with made.open() as workshop:
            workshop.want((made.ranking_wish(),), (made.shard_wish(),))
            await stage(workshop, made.key, WorkStage.READY)
            await until(lambda: made.shared and len(made.shared[MODEL].logits) == 2)
        made.paths.run.mkdir(parents=True)
        table = one.running.routes.with_name("models.json")

        def share() -> None:
            share_models(made.paths, {MODEL: (str(made.model),)}, dict(made.shared))
            write_models(table, read_models(made.paths.shared_models))

        await asyncio.to_thread(share)
        async with asyncio.timeout(10):
            while not await answers(folder, one):
                await asyncio.sleep(0.01)
        yield one


def holder(one: Node) -> Holder:
    return Holder(one.id, one.address)


def right(file: str) -> bool:
    return Path(file).read_bytes().startswith(LOGITS)


def change(one: Node, **changes: object) -> None:
    """What the node's gateway gives from now on."""
    table = one.running.routes.with_name("models.json")
    shared = read_models(table)[MODEL]
    write_models(table, {MODEL: replace(shared, **changes)})  # type: ignore[arg-type]


async def test_what_another_node_found_out_is_not_found_out_again(
    world: World, tmp_path: Path
) -> None:
    async with maker(tmp_path) as other, world.open() as workshop:
        workshop.want(
            (world.ranking_wish(holder(other), computes=False),),
            (world.shard_wish(holder(other), computes=False),),
        )
        await stage(workshop, MODEL, WorkStage.READY)
        await stage(workshop, world.key, WorkStage.READY)
        assert workshop.rankings() == {MODEL: world.ranking()}
        assert workshop.logits() == {MODEL}
    assert world.log == ["write", "measure prose", "measure code"]
    # It can be had of this node, too.
    assert len(world.shared[MODEL].logits) == 2
    assert isinstance(world.shared[MODEL], SharedExperts)


async def test_the_ranking_that_the_mesh_settled_on_takes_the_place_of_ones_own(
    world: World, tmp_path: Path
) -> None:
    theirs = world.ranking()
    world.counts = (40, 30, 20, 10)
    async with maker(tmp_path) as other, world.open() as workshop:
        workshop.want((world.ranking_wish(),), ())
        await until(lambda: MODEL in workshop.rankings())
        assert workshop.rankings()[MODEL] != theirs
        workshop.want((world.ranking_wish(holder(other), wanted=theirs.digest),), ())
        await until(lambda: workshop.rankings()[MODEL] == theirs)
        await stage(workshop, MODEL, WorkStage.READY)
        workshop.want((world.ranking_wish(holder(other), wanted="0" * 16),), ())
        assert f"{theirs.digest}, not {'0' * 16}" in await stage(workshop, MODEL, WorkStage.FAILED)
        # What it has is better than none.
        assert workshop.rankings()[MODEL] == theirs


@pytest.mark.parametrize(
    "what", ["garbage", "another model's", "another shape", "another router's", "endless", "gone"]
)
async def test_a_ranking_that_cannot_be_believed_is_not(
    world: World, tmp_path: Path, what: str
) -> None:
    ranking = world.ranking()
    texts = {
        "garbage": b"garbage",
        "another model's": ranking_file.encode(replace(ranking, fingerprint="e" * 16)),
        "another shape": ranking_file.encode(replace(ranking, counts=((), (50, 50), (50, 50)))),
        "another router's": ranking_file.encode(replace(ranking, tokens=2 * ranking.tokens)),
        "endless": b"[" * (2 << 20),
    }
    words = {
        "garbage": "no ranking",
        "another model's": "of another model",
        "another shape": "experts in layer 1",
        "another router's": "choices in layer 1",
        "endless": "more than",
        "gone": "404",
    }
    wrong = tmp_path / "wrong.json"
    if what in texts:
        wrong.write_bytes(texts[what])
    async with maker(tmp_path) as other, world.open() as workshop:
        await asyncio.to_thread(change, other, ranking=str(wrong))
        workshop.want((world.ranking_wish(holder(other), computes=False),), ())
        assert words[what] in await stage(workshop, MODEL, WorkStage.FAILED)
        assert workshop.rankings() == {}


async def test_logits_that_are_none_are_computed_here_after_some_tries(
    world: World, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(os.urandom(1 << 19))
    async with maker(tmp_path) as other, world.open() as workshop:
        table = other.running.routes.with_name("models.json")
        logits = dict.fromkeys(read_models(table)[MODEL].logits, str(wrong))
        await asyncio.to_thread(change, other, logits=logits)
        workshop.want((), (world.shard_wish(holder(other)),))
        for _ in range(3):
            assert "no logits" in await stage(workshop, world.key, WorkStage.FAILED)
            assert world.log == ["write"]
            world.now_s += 3600
            await until(lambda: workshop.states()[world.key].stage is not WorkStage.FAILED)
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ["write", "logits prose", "logits code", "measure prose", "measure code"]
    assert all(map(right, world.shared[MODEL].logits.values()))


async def test_logits_of_something_else_are_refused_and_computed_here_at_once(
    world: World, tmp_path: Path
) -> None:
    forged = tmp_path / "forged"
    forged.write_bytes(LOGITS + b"the shard itself")
    async with maker(tmp_path) as other, world.open() as workshop:
        table = other.running.routes.with_name("models.json")
        logits = read_models(table)[MODEL].logits
        prose = hashlib.sha256(b"prose to measure").hexdigest()
        await asyncio.to_thread(change, other, logits={**logits, prose: str(forged)})
        wish = world.shard_wish(holder(other), computes=False)
        with capture_logs() as said:
            workshop.want((), (wish,))
            await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ["write", "logits prose", "measure prose", "measure code"]
    (blamed,) = (one for one in said if "are not this model's" in one["event"])
    assert (blamed["node"], blamed["text"]) == (other.id, "prose")
    found = read(world.paths.experts / f"certificates/{world.key}.json", key=world.key)
    assert (found.logits["prose"].node, found.logits["code"].node) == ("", other.id)
    assert all(map(right, world.shared[MODEL].logits.values()))
    assert not list((world.paths.experts / "logits").glob("*.part"))


async def test_who_gave_something_else_is_passed_over_for_the_next(
    world: World, tmp_path: Path
) -> None:
    forged = tmp_path / "forged"
    forged.write_bytes(LOGITS + b"the shard itself")
    async with maker(tmp_path) as other, world.open() as workshop:
        table = other.running.routes.with_name("models.json")
        logits = read_models(table)[MODEL].logits
        await asyncio.to_thread(change, other, logits=dict.fromkeys(logits, str(forged)))
        gone = Holder("n-gone", "127.0.0.1:9")
        workshop.want((), (world.shard_wish(holder(other), gone, computes=False),))
        await stage(workshop, world.key, WorkStage.FAILED)
        assert world.trial.entered == 1
        for tries in (1, 2):
            # Whoever is gone may come back; the other one is not asked again.
            world.now_s += 3600
            await until(lambda: workshop.states()[world.key].stage is not WorkStage.FAILED)
            await stage(workshop, world.key, WorkStage.FAILED)
            assert world.trial.entered == 1, tries
    assert world.log == ["write"]


async def test_logits_that_cannot_be_tried_are_neither_believed_nor_fetched_again(
    world: World, tmp_path: Path
) -> None:
    world.trial.error = UserError("no llama-perplexity")
    async with maker(tmp_path) as other, world.open() as workshop:
        workshop.want((), (world.shard_wish(holder(other), computes=False),))
        assert "no llama-perplexity" in await stage(workshop, world.key, WorkStage.FAILED)
        assert workshop.logits() == frozenset()
        assert len(list((world.paths.experts / "logits").glob("*.part"))) == 1
        world.trial.error = None
        world.now_s += 3600
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == ["write", "measure prose", "measure code"]


async def test_a_text_that_nobody_else_has_is_computed_here_at_once(
    world: World, tmp_path: Path
) -> None:
    async with maker(tmp_path) as other, world.open() as workshop:
        mine = world.folder / "mine.measures"
        mine.write_text("mine to measure")
        text = replace(world.texts[0], domain="mine", measures=str(mine))
        wish = world.shard_wish(holder(other), computes=False)
        workshop.want((), (replace(wish, texts=(*world.texts, text)),))
        await stage(workshop, world.key, WorkStage.READY)
    assert world.log == [
        "write", "logits mine", "measure prose", "measure code", "measure mine",
    ]  # fmt: skip
