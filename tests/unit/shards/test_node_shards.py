"""What a node's workshop is told after a pass, and what a pass is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from meshd.config.settings import Config
from meshd.errors import UserError
from meshd.experts.ranking import Ranking
from meshd.experts.shard_key import shard_key
from meshd.experts.wish import Holder, RankingWish, Shard, ShardWish, Text, WorkStage, WorkState
from meshd.mesh.record import NodeRecord
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_routes import Ways
from meshd.mesh_share import Share
from meshd.node_shards import NodeShards
from meshd.pipeline import Proposal
from meshd.planner.plan import Decision, Plan, ShardUse, Strategy
from meshd.planner.replicas import place_replicas
from meshd.planner.view import Running
from meshd.shard_wants import ShardWant, Target
from tests.unit.planner_shards.rankings import falling
from tests.unit.worlds import facts, node

DEADLINE_S = 10.0
MODEL = "f" * 16
TEXTS = (Text("prose", "/t/ranks", "/t/measures"),)
RANKING = replace(falling(2, 4, 1), fingerprint=MODEL)
KEPT = ((0, 1), (0, 1))
TARGET = Target(shard_key(MODEL, RANKING.digest, KEPT), KEPT, 2)


@dataclass
class Told:
    """A workshop that only remembers what it was told."""

    found: dict[str, Ranking] = field(default_factory=dict)
    rankings_wished: tuple[RankingWish, ...] = ()
    shards_wished: tuple[ShardWish, ...] = ()
    in_use: frozenset[str] = frozenset()
    looked: bool = True
    closed: bool = False

    def want(
        self,
        rankings: tuple[RankingWish, ...],
        shards: tuple[ShardWish, ...],
        in_use: frozenset[str] = frozenset(),
    ) -> None:
        self.rankings_wished, self.shards_wished, self.in_use = rankings, shards, in_use

    def rankings(self) -> Mapping[str, Ranking]:
        return self.found

    def shards(self) -> Mapping[str, Shard]:
        return {}

    def states(self) -> Mapping[str, WorkState]:
        return {MODEL: WorkState(WorkStage.WAITING)}

    def logits(self) -> frozenset[str]:
        return frozenset()

    async def close(self) -> None:
        self.closed = True


@dataclass
class World:
    told: Told = field(default_factory=Told)
    now_s: float = 1000.0
    problem: Exception | None = None
    tried: int = 0
    digest: str = "d" * 64
    woken: int = 0

    def texts(self, calibration: object, folder: Path) -> tuple[Text, ...]:
        self.tried += 1
        if self.problem is not None:
            raise self.problem
        return TEXTS

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def shards(world: World) -> AsyncIterator[NodeShards]:
    made = NodeShards(
        Path("/nowhere"),
        world.told,
        world.wake,
        texts=world.texts,
        digest=lambda texts: world.digest,
        clock=lambda: world.now_s,
    )
    yield made
    await made.close()
    assert world.told.closed


def want(**more: object) -> ShardWant:
    base = ShardWant("mix", MODEL, ("/m/mix.gguf",), (), "", works=True)
    return replace(base, **more)  # type: ignore[arg-type]


def proposal(*wants: ShardWant, running: tuple[Running, ...] = ()) -> Proposal:
    records = [NodeRecord("a"), NodeRecord("b", addresses=("b.lab:9338",)), NodeRecord("c")]
    members = tuple(MemberView(one.id, 1, Status.ALIVE, one) for one in records)
    view = MeshView("a", members)
    share = Share(Config(), records[0], view, place_replicas(view, {}), shard_wants=wants)
    here = node(models={"mix": facts(layers=2, expert_share=0.9)})
    return Proposal(here, Plan(()), (), (), (), running, share=share)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not what():
            await asyncio.sleep(0.001)


async def test_nothing_is_wished_before_the_texts_are_there(
    world: World, shards: NodeShards
) -> None:
    shards.took(proposal(want()), None)
    assert list(world.told.rankings_wished) == []
    await until(lambda: world.woken)
    shards.took(proposal(want()), None)
    (wish,) = world.told.rankings_wished
    assert (wish.texts, wish.computes, wish.files) == (TEXTS, True, ("/m/mix.gguf",))
    assert world.tried == 1


async def test_texts_that_are_not_there_are_said_and_looked_for_again(
    world: World, shards: NodeShards
) -> None:
    world.problem = UserError("calibration contracts: /srv/c.txt: is not there")
    shards.took(proposal(want()), None)
    await until(lambda: world.woken)
    world.now_s += 59
    shards.took(proposal(want()), None)
    # Had it been asked again, that would be first in line.
    await asyncio.to_thread(lambda: None)
    state = shards.now().states[MODEL]
    assert (state.stage, state.detail) == (WorkStage.FAILED, str(world.problem))
    assert world.tried == 1, "not at every pass"
    world.problem, world.now_s = None, world.now_s + 1
    shards.took(proposal(want()), None)
    await until(lambda: world.woken == 2)
    shards.took(proposal(want()), None)
    assert world.told.rankings_wished
    assert shards.now().states[MODEL].stage is WorkStage.WAITING


async def test_a_text_that_was_edited_is_read_again(
    world: World, shards: NodeShards, tmp_path: Path
) -> None:
    text = tmp_path / "contracts.txt"
    text.write_text("as it was")
    asked = want(calibration=(("contracts", str(text)),))

    async def look(later_s: float) -> None:
        world.now_s += later_s
        shards.took(proposal(asked), None)
        known = shards._known[asked.calibration]
        await until(lambda: known.task is None)

    await look(0)
    assert shards.now().calibrations == {asked.calibration: "d" * 16}
    await look(60)
    assert (world.tried, world.woken) == (1, 1), "nothing changed"
    text.write_text("as it is now")
    world.digest = "e" * 64
    await look(59)
    assert world.tried == 1, "not at every pass"
    await look(1)
    assert (world.tried, world.woken) == (2, 2)
    assert shards.now().calibrations == {asked.calibration: "e" * 16}
    text.unlink()
    world.problem = UserError("contracts.txt: is not there")
    await look(60)
    shards.took(proposal(asked), None)
    assert world.told.rankings_wished, "what was read stays"
    assert shards.now().states[MODEL].stage is WorkStage.WAITING
    assert shards.now().calibrations == {asked.calibration: "e" * 16}


async def test_what_is_shipped_is_not_looked_at_again(world: World, shards: NodeShards) -> None:
    shards.took(proposal(want()), None)
    await until(lambda: world.woken)
    world.now_s += 600
    shards.took(proposal(want()), None)
    assert shards._known[()].task is None


async def test_a_shard_is_wished_once_its_ranking_is_here(world: World, shards: NodeShards) -> None:
    asked = want(target=TARGET, ranking_holders=("b", "c"), logits_holders=("c", "b"))
    shards.took(proposal(asked), None)
    await until(lambda: world.woken)
    shards.took(proposal(asked), None)
    assert list(world.told.shards_wished) == []
    (ranks,) = world.told.rankings_wished
    assert ranks.holders == (Holder("b", "b.lab:9338"),), "nobody knows where c is"
    world.told.found[MODEL] = RANKING
    shards.took(proposal(asked), Ways(addresses={"c": "c.lab:1"}))
    (wish,) = world.told.shards_wished
    assert (wish.key, wish.selection) == (TARGET.key, TARGET.selection)
    assert wish.holders == (Holder("c", "c.lab:1"), Holder("b", "b.lab:9338"))


async def test_how_long_a_node_has_settled_on_a_shard(world: World, shards: NodeShards) -> None:
    for later_s, target, age_s in (
        (0.0, TARGET, 0.0),
        (30.0, TARGET, 30.0),
        (0.0, replace(TARGET, key="k" * 24), 0.0),
    ):
        world.now_s += later_s
        shards.took(proposal(want(target=target)), None)
        assert shards.now().targets["mix"].age_s == age_s
    shards.took(proposal(want()), None)
    assert shards.now().targets == {}


async def test_what_engines_read_stays_though_nothing_is_wished(
    world: World, shards: NodeShards
) -> None:
    use = ShardUse("k" * 24, "/s/k.gguf", 2, 4, 0.7, ())
    served = Decision("mix", Strategy.EXPERT_SHARD, "a", 4096, 1, shard=use)
    exact = Decision("other", Strategy.SOLO_CPU, "a", 4096, 1)
    running = tuple(Running(one, one.model, resident=True) for one in (served, exact))
    shards.took(proposal(running=running), None)
    assert world.told.in_use == {"k" * 24}
    assert [*world.told.rankings_wished, *world.told.shards_wished] == []
