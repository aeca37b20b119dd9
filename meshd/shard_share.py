"""A node's part in serving mixtures of experts from shards, as far as one pass decides it. Pure.

Between the exact ways and the mesh's plan: which shard this node should have, what has to be made
for it, what it says of that to the others, and whether it serves from one now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from meshd.config.settings import Config, ModelSettings, Role
from meshd.experts.wish import Shard, WorkStage, WorkState
from meshd.mesh.record import NodeRecord, ShardRecord, ShardStage
from meshd.mesh.view import MeshView
from meshd.models.facts import GgufFacts
from meshd.planner.lenders import own_paces
from meshd.planner.pace import Pace
from meshd.planner.place import budgets_for
from meshd.planner.plan import Code, Decision, Reason, ShardUse
from meshd.planner.reshard import CALM_S
from meshd.planner.shard_capacity import capacity
from meshd.planner.shard_group import Exact, Group, fastest_exact, group_of
from meshd.planner.shard_offer import STAYS, WORTH, Fitted, as_shard, fitted, without_shard
from meshd.planner.view import Candidate, NodeView
from meshd.planner.wishes import Wanted
from meshd.quality import quality_of, shortfalls
from meshd.shard_stage import measured, under_way, words
from meshd.shard_target import Choosing
from meshd.shard_wants import CALIBRATION_DIGITS, Shards, ShardShare, ShardWant, Target
from meshd.split_room import room_beside

# Before work begins that only pays when everybody stays.
BEGIN_CALM_S = 10.0


def with_shards(
    decisions: Iterable[Decision],
    node: NodeView,
    config: Config,
    settings: Mapping[str, ModelSettings],
    view: MeshView,
    shards: Shards,
    *,
    calm_s: float,
    early: bool,
    draining: bool,
) -> ShardShare:
    """Each decision, or the shard that is faster or that alone is possible.

    :param decisions: the exact ways. :param settings: with the quality that the mesh asks for.
    :param view: with this node's own record as it was told last.
    """
    record = view.member(view.me)
    paces = own_paces(node, record.record if record is not None else NodeRecord(view.me))
    result: list[Decision] = []
    records: list[ShardRecord] = []
    wants: list[ShardWant] = []
    for decision in decisions:
        model, candidate = settings.get(decision.model), node.candidate(decision.model)
        if model is None or candidate is None or candidate.facts is None or model.quality.exact:
            result.append(decision)
            continue
        if not candidate.facts.moe or config.node.role is Role.CLIENT:
            result.append(decision)
            continue
        one = _Model(model, candidate, candidate.facts, decision, node, config, view, paces, shards)
        if draining:
            # What it answers from ends with the last answer, and nothing new is begun.
            result.append(one.going_on())
            continue
        made, said, want = one.share(calm_s, early=early)
        result.append(made)
        records.extend((said,) if said is not None else ())
        wants.extend((want,) if want is not None else ())
    return ShardShare(tuple(result), tuple(records), tuple(wants))


@dataclass(frozen=True, slots=True)
class _Model:
    """One model that may be served from shards, and all that its share is worked out from."""

    model: ModelSettings
    candidate: Candidate
    facts: GgufFacts
    exact: Decision
    node: NodeView
    config: Config
    view: MeshView
    paces: Mapping[str, Pace]
    shards: Shards

    @property
    def running(self) -> Decision | None:
        found = (one.decision for one in self.node.running)
        return next((one for one in found if one.model == self.model.name), None)

    @property
    def serves(self) -> Shard | None:
        """The shard that this node serves from now."""
        running = self.running
        if running is None or running.shard is None:
            return None
        if not self.shards.looked:
            # A brain that is new goes by what the engine was started with.
            return _as_started(running.shard, self.candidate.fingerprint)
        return self.shards.shards.get(running.shard.key)

    def share(
        self, calm_s: float, *, early: bool
    ) -> tuple[Decision, ShardRecord | None, ShardWant | None]:
        facts = self.facts
        if facts.undividable:
            return self._none(Code.NOT_SHARDABLE, facts.undividable)
        if self.model.nodes != "auto" and not {self.view.me, self.node.name} & {*self.model.nodes}:
            return self.exact, None, None
        if self.shards.problem:
            return self._none(Code.NO_ENGINE, self.shards.problem)
        choosing = self._choosing()
        has = choosing.serves or choosing.settled or choosing.at_hand(facts.experts)
        current = has.experts if has is not None else 0
        budgets = room_beside(self.node, self.config, self.model.name)
        room = capacity(facts, self.node, self.config, self.model, budgets, current=current)
        if room >= facts.experts:
            return self.exact, None, None
        if room == 0:
            return self._none(Code.NO_MEMORY, "no shard of its experts fits this node")
        fit = self._fitted(room)
        elsewhere = fastest_exact(self.view, self.model.name, self.candidate.fingerprint)
        if fit is None:
            return self._none(Code.NO_MEMORY, "no shard of its experts fits this node")
        if (slow := self._not_worth(fit, elsewhere)) is not None:
            if slow.code is Code.SOLO_FASTER and self.serves is not None:
                # Somebody has to answer until the other node does.
                return self._served(self.exact, None, fit, elsewhere, Group()), None, None
            return without_shard(self.exact, slow, fit.tokens_s), None, None
        said = self._said(room)
        passed = self.shards.passed.get(self.model.name, frozenset())
        group = group_of(self.view, self.model.name, said, facts, passed)
        few = self._too_few(group)
        calm = calm_s >= BEGIN_CALM_S and not early and not few
        target, problem = choosing.target(group, room, calm_s, calm=calm, few=few)
        # Who is missed for a moment costs nobody what is under way.
        goes_on = calm_s < CALM_S or target is not None or not self.shards.looked
        # Who has been counted for counts anew only with those who stay.
        works = calm and not (group.outdated and calm_s < CALM_S)
        want = None if few and not goes_on else self._want(group, target, works=works)
        said = self._stage(said, target, problem)
        if few and said.stage is ShardStage.WANTED:
            said = replace(said, detail=few)
        made = self._served(self.exact, target, fit, elsewhere, group)
        if made is self.exact:
            code, why = Code.BEING_MADE if said.ranking else Code.NO_RANKING, words(said)
            if said.stage is ShardStage.REFUSED:
                code = Code.BELOW_QUALITY
            elif few:
                code, why = Code.NO_HOME, few
            made = without_shard(made, Reason(code, why), fit.tokens_s)
        return made, said, want

    def going_on(self) -> Decision:
        """Of a node that only ends what it has begun."""
        running = self.running
        return running if running is not None and running.shard is not None else self.exact

    # -- inside ---------------------------------------------------------------------------------

    def _none(self, code: Code, text: str) -> tuple[Decision, None, None]:
        return without_shard(self.exact, Reason(code, text)), None, None

    def _choosing(self) -> Choosing:
        return Choosing(
            self.view.me,
            self.candidate.fingerprint,
            self.facts,
            self.model.quality,
            self.shards,
            self.shards.targets.get(self.model.name),
            self.serves,
        )

    def _fitted(self, experts: int) -> Fitted | None:
        room = room_beside(self.node, self.config, self.model.name)
        budgets = budgets_for(self.node, self.config, self.model, room)
        return fitted(self.facts, experts, self.model, self.node.gpus, budgets, self.paces)

    def _not_worth(self, fit: Fitted, elsewhere: Exact | None) -> Reason | None:
        """Who works for minutes, and loses quality, should gain by it."""
        factor = STAYS if self.serves is not None else WORTH
        best = self.exact.tokens_s if self.exact.served else 0.0
        if fit.tokens_s < factor * best:
            text = f"exactly it makes {best:g} tokens/s, from a shard {fit.tokens_s:g}"
            return Reason(Code.SLOWER, text)
        if elsewhere is not None and fit.tokens_s < factor * elsewhere.tokens_s:
            text = (
                f"{elsewhere.name} serves it exactly at {elsewhere.tokens_s:g} tokens/s, "
                f"a shard here makes {fit.tokens_s:g}"
            )
            return Reason(Code.SOLO_FASTER, text)
        return None

    def _want(self, group: Group, target: Target | None, *, works: bool) -> ShardWant:
        me, serves = self.view.me, self.serves
        return ShardWant(
            self.model.name,
            self.candidate.fingerprint,
            self.facts.files,
            self.model.calibration,
            group.ranking,
            works=group.worker == me and works,
            ranking_holders=tuple(one for one in group.holders if one != me),
            logits_holders=tuple(one for one in group.with_logits if one != me),
            target=target,
            serves=serves.key if serves is not None else "",
            awaited=group.awaited,
        )

    def _said(self, room: int) -> ShardRecord:
        fingerprint = self.candidate.fingerprint
        ranking = self.shards.rankings.get(fingerprint)
        own = any(one.name == self.model.name for one in self.config.models)
        return ShardRecord(
            model=self.model.name,
            fingerprint=fingerprint,
            stage=ShardStage.WANTED,
            capacity=room,
            ranking=ranking.digest if ranking is not None else "",
            logits=fingerprint in self.shards.logits,
            calibration=self.shards.calibrations.get(self.model.calibration, "") if own else "",
            ranked_on=ranking.calibration[:CALIBRATION_DIGITS] if ranking is not None else "",
        )

    def _too_few(self, group: Group) -> str:
        experts = self.facts.experts
        if len(group.capacities) < 2:
            return "no other node has room for a shard of it"
        if group.together < experts:
            nodes = len(group.capacities)
            return f"{nodes} nodes together hold {group.together} of its {experts} experts a layer"
        return ""

    def _stage(self, said: ShardRecord, target: Target | None, problem: str) -> ShardRecord:
        """How far it is, for the others and for people."""
        states = self.shards.states
        if target is None:
            state = states.get(self.candidate.fingerprint, WorkState(WorkStage.WAITING))
            return under_way(said, state, problem)
        said = replace(said, key=target.key, experts=target.experts)
        shard = self.shards.shards.get(target.key)
        if shard is None:
            state = states.get(target.key, WorkState(WorkStage.WAITING))
            return under_way(said, state, problem)
        return measured(said, shard, self.model.quality)

    def _served(
        self,
        exact: Decision,
        target: Target | None,
        fit: Fitted,
        elsewhere: Exact | None,
        group: Group,
    ) -> Decision:
        """From the newest shard that is whole and good enough, else from the one that serves."""
        serves = self.serves
        wanted = self.shards.shards.get(target.key) if target is not None else None
        if wanted is not None and serves is not None and wanted.key != serves.key:
            better = not shortfalls(self.model.quality, wanted.measured)
            if not (better and self._may_move(group, wanted.key)):
                wanted = serves
        shard = wanted or serves
        if shard is None:
            return exact
        own = fit if fit.experts == shard.experts else self._fitted(shard.experts)
        if own is None:
            return exact
        return as_shard(exact, shard, own, self.model.quality, elsewhere, self.running)

    def _may_move(self, group: Group, key: str) -> bool:
        """One after the other: while this node loads another shard, somebody has to answer."""
        me = self.view.me
        if any(node != me for node in group.loading):
            return False
        if not any(node != me for node in group.answering):
            return True
        # Who has not been heard to be ready may move at the same moment as we.
        told = self.view.member(me)
        said = told.record.shard(self.model.name) if told is not None else None
        heard = said is not None and (said.stage, said.key) == (ShardStage.READY, key)
        return heard and min((*group.moving, me)) == me


def _as_started(use: ShardUse, fingerprint: str) -> Shard:
    return Shard(
        key=use.key,
        fingerprint=fingerprint,
        path=use.path,
        size_bytes=0,
        sha256="",
        ranking="",
        experts=use.experts,
        experts_all=use.experts_all,
        selection=(),
        mass=use.mass,
        least_mass=0.0,
        measured=use.measured,
    )


def as_the_mesh_asks(
    settings: Mapping[str, ModelSettings], asked: Iterable[Wanted]
) -> dict[str, ModelSettings]:
    """The settings with the quality that the whole mesh goes by: two nodes that differ would take
    each other's shards for what nobody may have.
    """
    changed = dict(settings)
    for one in asked:
        budget = quality_of(one.quality)
        if one.model in changed and changed[one.model].quality != budget:
            changed[one.model] = replace(changed[one.model], quality=budget)
    return changed


def other_shards(decisions: Iterable[Decision], node: NodeView) -> frozenset[str]:
    """Models whose engine begins anew with this pass, since a shard comes, goes or is another."""
    keys = {one.decision.model: _key(one.decision) for one in node.running}
    return frozenset(
        one.model for one in decisions if one.model in keys and keys[one.model] != _key(one)
    )


def _key(decision: Decision) -> str:
    return decision.shard.key if decision.shard is not None else ""
