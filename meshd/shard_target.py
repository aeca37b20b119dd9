"""Which shard of a model a node should have: what it settled on, or what the plan says. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshd.experts.ranking import Ranking, Selection
from meshd.experts.shard_key import shard_key
from meshd.experts.wish import Shard
from meshd.models.facts import GgufFacts
from meshd.planner.reshard import CALM_S, Keep, Times, next_selection
from meshd.planner.shard_group import Group
from meshd.planner.shard_plan import ShardPlan, shard_plan
from meshd.quality import Budget, shortfalls
from meshd.shard_wants import Shards, Target


@dataclass(frozen=True, slots=True)
class Choosing:
    """:ivar me: this node. :ivar fingerprint: of the whole model, as ``facts``.

    :ivar settled: what it settled on before; ``serves`` what it serves from now.
    """

    me: str
    fingerprint: str
    facts: GgufFacts
    quality: Budget
    shards: Shards
    settled: Target | None
    serves: Shard | None

    def target(
        self, group: Group, room: int, calm_s: float, *, calm: bool, few: str
    ) -> tuple[Target | None, str]:
        """The shard to have, and why there is none.

        :param few: why nobody is to make any.
        """
        if not self.shards.looked:
            return None, few or "what lies on this node's disk is looked at"
        now = self.settled
        if now is None and (found := self.serves or self.at_hand(room)) is not None:
            # Of an earlier life.
            now = Target(found.key, found.selection, found.experts)
        if few:
            # Who made one while others were there needs them no more.
            made = now is not None and now.key in self.shards.shards
            return (now if made or calm_s < CALM_S else None), few
        ranking = self.shards.rankings.get(self.fingerprint)
        if ranking is None or ranking.digest != group.ranking:
            return now, "its experts are not ranked yet"
        facts, me = self.facts, self.me
        plan = shard_plan(
            ranking,
            group.capacities,
            experts=facts.experts,
            groups=facts.expert_groups,
            used=facts.experts_used,
        )
        if plan.problem:
            return now, plan.problem
        others = self._others(group, plan, now, ranking)
        selection = plan.selections.get(me)
        if now is not None and now.key in self.shards.shards:
            after = next_selection(
                me,
                now.selection,
                plan,
                ranking,
                capacity=room,
                others=others,
                times=Times(0.0, -calm_s, -now.age_s),
            )
            if isinstance(after, Keep):
                known = {node: one for node, one in others.items() if one is not None}
                return replace(now, others=known), ""
            selection = after.selection
        elif not calm or (now is not None and calm_s < CALM_S):
            # What is not made yet is made for those who stay.
            return now, "nodes come and go"
        if selection is None:
            return None, "there is no room for a shard any more"
        key = shard_key(self.fingerprint, ranking.digest, selection)
        planned = {node: one for node, one in plan.selections.items() if node != me}
        age_s = now.age_s if now is not None and now.key == key else 0.0
        return Target(key, selection, max(map(len, selection)), planned, age_s), ""

    def at_hand(self, room: int) -> Shard | None:
        """Of those that lie here and could serve, the one that keeps most."""
        able = (
            one
            for one in self.shards.shards.values()
            if one.fingerprint == self.fingerprint
            and one.experts <= room
            and not shortfalls(self.quality, one.measured)
        )
        return max(able, key=lambda one: (one.mass, one.key), default=None)

    def _others(
        self, group: Group, plan: ShardPlan, now: Target | None, ranking: Ranking
    ) -> dict[str, Selection | None]:
        """What the others have, as far as their records' keys tell."""
        before = now.others if now is not None else {}
        found: dict[str, Selection | None] = {}
        for node, key in group.keys.items():
            if node == self.me:
                continue
            tried = (plan.selections.get(node), before.get(node))
            found[node] = next(
                (
                    one
                    for one in tried
                    if one is not None and shard_key(self.fingerprint, ranking.digest, one) == key
                ),
                None,
            )
        return found
