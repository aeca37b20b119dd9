"""Who could serve a mixture of experts from shards together, and by which ranking: read off all
nodes' records, so that everybody comes to the same. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from meshd.mesh.record import NodeRecord, ShardRecord, ShardStage, Stage
from meshd.mesh.view import MeshView, Status
from meshd.models.facts import GgufFacts
from meshd.planner.layout import RAM
from meshd.planner.plan import Strategy
from meshd.planner.ranking import chance
from meshd.planner.shard_facts import least_experts

_WHOLE = (Strategy.SOLO_GPU, Strategy.PIPELINE, Strategy.SOLO_OFFLOAD, Strategy.SOLO_CPU)


@dataclass(frozen=True, slots=True)
class Group:
    """The nodes with room for a shard of one model.

    :ivar capacities: experts a layer, by node; ``keys`` of their shards, "" before they are known.
    :ivar calibration: of the texts that they settle on (`ShardRecord.calibration`), "" while nobody
        says any.
    :ivar ranking: digest of the ranking by these that they settle on, "" while nobody has any;
        ``holders`` have it, ``with_logits`` the whole model's logits.
    :ivar outdated: nobody has such a ranking, but some have one by other texts.
    :ivar worker: the node that counts, and computes logits, where nobody has done so; "" for none.
    :ivar awaited: the worker, while there is something for it to do.
    :ivar answering: nodes that serve the model from a shard now, with the shard's key.
    :ivar loading: nodes that load the model just now; ``moving`` those that serve from one shard
        and have another one ready.
    """

    capacities: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    calibration: str = ""
    ranking: str = ""
    outdated: bool = False
    holders: tuple[str, ...] = ()
    with_logits: tuple[str, ...] = ()
    worker: str = ""
    awaited: str = ""
    answering: Mapping[str, str] = field(default_factory=dict)
    loading: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()

    @property
    def together(self) -> int:
        """Experts a layer that all of them hold together."""
        return sum(self.capacities.values())


@dataclass(frozen=True, slots=True)
class Exact:
    """The fastest way in which another node says that it would serve the whole model."""

    node: str
    name: str
    tokens_s: float


def group_of(
    view: MeshView,
    model: str,
    own: ShardRecord,
    facts: GgufFacts,
    passed: frozenset[str] = frozenset(),
) -> Group:
    """:param own: this node's part, as it is now. :param facts: of the whole model.

    :param passed: nodes that were waited for in vain.
    """
    # What no shard of it could have is no capacity: it would only keep the others from theirs.
    possible = range(least_experts(facts), facts.experts)
    found = {
        node: (record, shard)
        for node, record, shard in _members(view, model, own)
        if shard.capacity in possible
    }
    could = {
        node: shard
        for node, (_, shard) in found.items()
        if shard.stage is not ShardStage.REFUSED or shard.measured
    }
    # Where all were waited for in vain, each is as good as any.
    could = {node: shard for node, shard in could.items() if node not in passed} or could
    # What only somebody asks for who cannot count is not waited for.
    calibration = _most(shard.calibration for shard in could.values())
    rankings = [shard for _, shard in found.values() if shard.ranking]
    ranking = _most(shard.ranking for shard in rankings if calibration in ("", shard.ranked_on))
    with_logits = _those(found, lambda shard: shard.logits)
    able = [
        (
            # Nobody else has the texts.
            shard.calibration != calibration,
            # Who was measured needs no logits any more, and would compute none for the others.
            bool(shard.measured) and not with_logits,
            # Who can keep it in memory is done sooner.
            ram_bytes(found[node][0]) < facts.file_bytes,
            chance(model, node),
            node,
        )
        for node, shard in could.items()
    ]
    worker = min(able)[-1] if able else ""
    busy = worker != "" and (not ranking or not (with_logits or could[worker].measured))
    running = {
        node: one
        for node, (record, _) in found.items()
        if (one := record.assignment(model)) is not None
    }
    return Group(
        capacities={node: shard.capacity for node, (_, shard) in sorted(found.items())},
        keys={node: shard.key for node, (_, shard) in found.items()},
        calibration=calibration,
        ranking=ranking,
        outdated=bool(rankings) and not ranking,
        holders=_those(found, lambda shard: ranking != "" and shard.ranking == ranking),
        with_logits=with_logits,
        worker=worker,
        awaited=worker if busy else "",
        answering={
            node: one.shard
            for node, one in running.items()
            if one.shard and one.stage is Stage.READY
        },
        loading=tuple(node for node, one in running.items() if one.stage is Stage.LOADING),
        moving=tuple(
            node
            for node, one in running.items()
            if one.shard
            and (shard := found[node][1]).stage is ShardStage.READY
            and shard.key not in ("", one.shard)
        ),
    )


def fastest_exact(view: MeshView, model: str, fingerprint: str) -> Exact | None:
    """Of the other nodes' ways to serve the whole model."""
    best: Exact | None = None
    for record in _alive(view):
        offer = record.offer(model)
        if record.id == view.me or offer is None or offer.problem:
            continue
        if offer.strategy not in _WHOLE or offer.fingerprint != fingerprint:
            continue
        if best is None or (offer.tokens_s, best.node) > (best.tokens_s, record.id):
            best = Exact(record.id, record.name or record.id, offer.tokens_s)
    return best


def ram_bytes(record: NodeRecord) -> int:
    return next((one.plannable_bytes for one in record.devices if one.id == RAM), 0)


def _members(
    view: MeshView, model: str, own: ShardRecord
) -> Iterator[tuple[str, NodeRecord, ShardRecord]]:
    for record in _alive(view):
        shard = own if record.id == view.me else record.shard(model)
        if shard is None or shard.fingerprint != own.fingerprint:
            continue
        if not record.draining or record.id == view.me:
            yield record.id, record, shard


def _most(said: Iterable[str]) -> str:
    """What most say, of equals the lowest text; "" where nobody says anything."""
    votes = Counter(one for one in said if one)
    return min(votes, key=lambda one: (-votes[one], one), default="")


def _alive(view: MeshView) -> Iterable[NodeRecord]:
    return (member.record for member in view.members if member.status is Status.ALIVE)


def _those(
    found: Mapping[str, tuple[NodeRecord, ShardRecord]], has: Callable[[ShardRecord], bool]
) -> tuple[str, ...]:
    return tuple(sorted(node for node, (_, shard) in found.items() if has(shard)))
