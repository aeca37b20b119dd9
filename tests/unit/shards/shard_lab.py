"""A workshop under the lab's virtual clock: what the real one does in hours is done in seconds, and
what a shard loses is said by the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from meshd.config.settings import Config, ModelSettings, NodeSettings, Reserve
from meshd.experts.ranking import Ranking
from meshd.experts.wish import RankingWish, Shard, ShardWish, Text, WorkStage, WorkState
from meshd.node_shards import Settled, ranking_wish, read_by_engines, shard_wish
from meshd.pipeline import Proposal
from meshd.planner.view import Candidate
from meshd.quality import Budget, Fidelity
from meshd.shard_wants import CALIBRATION_DIGITS, Shards
from meshd.stuck_workers import StuckWorkers
from tests.unit.planner_shards.rankings import falling
from tests.unit.splits.split_lab import Box, SplitLab, observation
from tests.unit.worlds import MIB, facts, hardware, wants

RANK_S = 3.0
MAKE_S = 4.0
FETCH_S = 1.0
# 16 blocks of half a GiB, nearly all of it experts.
MIXTURE = facts(layers=16, layer_bytes=512 * MIB, expert_share=0.9)
TEXTS = (Text("prose", "/texts/ranks", "/texts/measures"),)
BUDGET = Budget(min_top1=0.9)
FINGERPRINT = "f" * 16

Loses = Callable[[ShardWish], float]
"""Top-1 agreement of a shard."""


@dataclass
class LabWorkshop:
    """:ivar began: when each piece of work was first wished for.

    :ivar calibration: of the texts that its configuration asks for, "" where they are not known.
    :ivar stuck: nothing is ever begun here.
    """

    lab: SplitLab
    me: str
    loses: Loses
    seed: int = 1
    found: dict[str, Ranking] = field(default_factory=dict)
    made: dict[str, Shard] = field(default_factory=dict)
    states: dict[str, WorkState] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    logits: bool = False
    settled: Settled = field(default_factory=Settled)
    workers: StuckWorkers = field(default_factory=StuckWorkers)
    calibration: str = "c" * 64
    stuck: bool = False
    counted: int = 0
    broken: str = ""
    in_use: frozenset[str] = frozenset()
    looked: bool = True

    def now(self) -> Shards:
        if not self.looked:
            return Shards(looked=False)
        return Shards(
            dict(self.found),
            dict(self.made),
            dict(self.states),
            frozenset({FINGERPRINT} if self.logits else ()),
            self.settled.targets(self.lab.now_s),
            self.workers.passed,
            {(): self.calibration[:CALIBRATION_DIGITS]},
        )

    def took(self, proposal: Proposal) -> None:
        share = proposal.share
        assert share is not None
        self.settled.look(share.shard_wants, self.lab.now_s)
        self.workers.look(share.shard_wants, share.view, self.lab.now_s)
        self.looked = self.looked or bool(share.shard_wants)
        self.states = {}
        self.in_use = read_by_engines(proposal)
        for want in share.shard_wants:
            self._rank(ranking_wish(want, TEXTS, share.view, {}))
            ranking = self.found.get(want.fingerprint)
            if want.target is not None and ranking is not None:
                self._make(shard_wish(want, want.target, ranking, TEXTS, share.view, {}))

    def _rank(self, wish: RankingWish) -> None:
        have = self.found.get(wish.fingerprint)
        if have is not None:
            # As `RankingWork.look` has it.
            own = have.calibration == self.calibration
            if own if not wish.wanted else have.digest == wish.wanted:
                return
        if self.stuck:
            self.states[wish.fingerprint] = WorkState(WorkStage.WAITING)
            return
        if self.broken:
            self.states[wish.fingerprint] = WorkState(WorkStage.FAILED, detail=self.broken)
            return
        other = self._theirs(wish)
        if other is not None:
            if self._done(f"fetch {other.digest}", FETCH_S):
                self.found[wish.fingerprint] = other
            self.states[wish.fingerprint] = WorkState(WorkStage.FETCHING)
        elif wish.computes:
            if self._done(f"count {self.calibration}", RANK_S):
                self.counted += 1
                counted = falling(len(MIXTURE.layers), 16, self.seed)
                self.found[wish.fingerprint] = replace(counted, calibration=self.calibration)
            self.states[wish.fingerprint] = WorkState(WorkStage.RANKING, 0.5)
        else:
            self.states[wish.fingerprint] = WorkState(WorkStage.WAITING, detail="another counts")

    def _theirs(self, wish: RankingWish) -> Ranking | None:
        for holder in wish.holders:
            other = self.lab.boxes[holder.node].shards
            assert isinstance(other, LabWorkshop)
            found = other.found.get(wish.fingerprint)
            if found is not None and wish.wanted in ("", found.digest):
                return found
        return None

    def _make(self, wish: ShardWish) -> None:
        if wish.key in self.made:
            return
        if not self.logits:
            if not (wish.computes or wish.holders):
                self.states[wish.key] = WorkState(WorkStage.WAITING, detail="no logits yet")
                return
            self.logits = True
        if not self._done(wish.key, MAKE_S):
            self.states[wish.key] = WorkState(WorkStage.WRITING, 0.5)
            return
        masses = wish.ranking.masses(wish.selection)
        top1 = self.loses(wish)
        self.made[wish.key] = Shard(
            key=wish.key,
            fingerprint=wish.fingerprint,
            path=f"/shards/{wish.key}.gguf",
            size_bytes=1,
            sha256="0" * 64,
            ranking=wish.ranking.digest,
            experts=max(map(len, wish.selection)),
            experts_all=MIXTURE.experts,
            selection=wish.selection,
            mass=sum(masses) / len(masses),
            least_mass=min(masses),
            measured=(Fidelity("prose", top1, 1.05, 0.05),),
        )

    def _done(self, what: str, takes_s: float) -> bool:
        began_s = self.began.setdefault(what, self.lab.now_s)
        return self.lab.now_s - began_s >= takes_s


def good(_: ShardWish) -> float:
    return 0.95


def sharing_box(
    lab: SplitLab,
    name: str,
    *,
    ram_gib: float = 8.0,
    quality: Budget = BUDGET,
    loses: Loses = good,
    seed: int = 1,
    **settings: object,
) -> Box:
    wanted = {"context": 2048, "slots": 1, "quality": quality, **settings}
    model: ModelSettings = wants("big", **wanted)
    config = Config(
        node=NodeSettings(name=name, reserve=Reserve(512 * MIB, 512 * MIB)), models=(model,)
    )
    candidate = Candidate("big", MIXTURE, "big:1", fingerprint=FINGERPRINT)
    box = lab.add(name, config, observation(hardware(ram_gib=ram_gib), name, candidate))
    box.shards = LabWorkshop(lab, name, loses, seed)
    return box


def workshops(lab: SplitLab) -> Mapping[str, LabWorkshop]:
    return {
        name: one.shards for name, one in lab.boxes.items() if isinstance(one.shards, LabWorkshop)
    }
