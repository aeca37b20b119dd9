"""Which nodes may run a model, and why the others may not. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from meshd.mesh.record import Assignment, MemoryUse, NodeRecord, Offer, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.plan import Code, Strategy
from meshd.planner.wishes import Wanted
from meshd.quality import Fidelity, quality_of, shortfalls

_SERVED = (
    Strategy.SOLO_GPU,
    Strategy.PIPELINE,
    Strategy.EXPERT_SHARD,
    Strategy.SOLO_OFFLOAD,
    Strategy.SOLO_CPU,
)
_RTT_UNKNOWN = 99
_DRAINED = "it is being drained"
_CLIENT = "its role is client"
_SILENT = "it does not say that it could serve this model"


@dataclass(frozen=True, slots=True)
class Known:
    """A member, with what is looked up for every model made ready once.

    :ivar ranks: by model, without what the asking configurations add; likewise ``obstacles``.
    """

    member: MemberView
    offers: Mapping[str, Offer]
    near: int
    standby: bool
    alive: bool
    ranks: dict[str, int] = field(default_factory=dict, compare=False)
    obstacles: dict[str, tuple[Code, str] | None] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The alive and the suspect members by id, in its order, and who has which model assigned.

    :ivar dead: for a name still means what it meant to them.
    :ivar offering: nodes' offers by model. :ivar clients: who serves nothing, with the sentence;
        ``silent`` all others, with the sentence for a model that one does not offer.
    """

    known: Mapping[str, Known]
    assigned: Mapping[str, Mapping[str, Assignment]]
    dead: tuple[NodeRecord, ...] = ()
    records: Mapping[str, NodeRecord] = field(default_factory=dict)
    offering: Mapping[str, Mapping[str, Offer]] = field(default_factory=dict)
    clients: tuple[tuple[str, str], ...] = ()
    silent: tuple[tuple[str, str], ...] = ()

    def assignment(self, model: str, node: str) -> Assignment | None:
        return self.assigned.get(model, {}).get(node)

    def offer(self, model: str, node: str) -> Offer | None:
        return self.known[node].offers.get(model)


@dataclass(frozen=True, slots=True)
class Eligible:
    """Who may take a model.

    :ivar fingerprint: the content that the mesh serves under the model's name.
    :ivar nodes: those that may take it.
    :ivar excluded: those that may not: node and sentence, by cause.
    :ivar notes: what is peculiar about them.
    """

    fingerprint: str
    nodes: tuple[str, ...]
    excluded: Mapping[Code, list[tuple[str, str]]]
    notes: tuple[str, ...] = ()


def mesh_of(view: MeshView) -> Mesh:
    """What the view says, made ready for look-ups."""
    known: dict[str, Known] = {}
    assigned: dict[str, dict[str, Assignment]] = {}
    offering: dict[str, dict[str, Offer]] = {}
    for member in sorted(view.members, key=lambda member: member.id):
        if member.status not in (Status.ALIVE, Status.SUSPECT):
            continue
        one = known[member.id] = _known_as(member)
        for model, offer in one.offers.items():
            offering.setdefault(model, {})[member.id] = offer
        for running in reversed(member.record.assignments):
            assigned.setdefault(running.model, {})[member.id] = running
    records = {node: one.member.record for node, one in known.items()}
    clients = tuple((node, _CLIENT) for node, one in records.items() if one.role == "client")
    silent = tuple((node, _SILENT) for node, one in records.items() if one.role != "client")
    kept = _others.get(view.me)
    if kept is not None and kept == (clients, silent):
        # The same objects as the last time, so that they are compared once and not for each model.
        clients, silent = kept
    elif len(_others) >= _OTHERS_MOST:
        _others.clear()
    _others[view.me] = (clients, silent)
    return Mesh(known, assigned, view.dead, records, offering, clients, silent)


_Sentences = tuple[tuple[str, str], ...]
_OTHERS_MOST = 8
_others: dict[str, tuple[_Sentences, _Sentences]] = {}
_MEMBERS_MOST = 8192
_members: dict[str, Known] = {}


def _known_as(member: MemberView) -> Known:
    """Remembered while the record is the same object: most of a mesh does not change in a pass."""
    kept = _members.get(member.id)
    if kept is not None and (kept.member is member or kept.member == member):
        return kept
    record = member.record
    offers = {offer.model: offer for offer in reversed(record.offers)}
    alive = member.status is Status.ALIVE
    made = Known(member, offers, _nearness(record), record.role == "standby", alive)
    if len(_members) >= _MEMBERS_MOST:
        _members.clear()
    _members[member.id] = made
    return made


def eligible(asked: Wanted, mesh: Mesh) -> Eligible:
    """Sort the members into those that may take the model and those that may not.

    Remembered while the nodes that have to do with the model say the same.
    """
    model = asked.model
    question = (
        asked,
        mesh.dead,
        mesh.clients,
        mesh.silent,
        [mesh.known[node] for node in mesh.offering.get(model, ())],
        mesh.assigned.get(model, {}),
    )
    kept = _answers.get(model)
    if kept is not None and kept[0] == question:
        return kept[1]
    answer = _eligible(asked, mesh)
    if len(_answers) >= _ANSWERS_MOST:
        _answers.clear()
    _answers[model] = (question, answer)
    return answer


_ANSWERS_MOST = 1024
_answers: dict[str, tuple[tuple[object, ...], Eligible]] = {}


def _eligible(asked: Wanted, mesh: Mesh) -> Eligible:
    model = asked.model
    excluded: dict[Code, list[tuple[str, str]]] = {}
    open_to: list[tuple[str, Offer]] = []
    meant = _meant_by(asked, mesh.dead)
    offering = mesh.offering.get(model, {})
    if asked.nodes:
        others = [one for one in (*mesh.clients, *mesh.silent) if one[0] not in offering]
        for node, _ in others:
            obstacle = _obstacle(asked, mesh.known[node], None)
            assert obstacle is not None
            excluded.setdefault(obstacle[0], []).append((node, obstacle[1]))
    else:
        # A thousand nodes that have nothing to do with the model, for each of a hundred models.
        for code, them in ((Code.ROLE, mesh.clients), (Code.NOT_OFFERED, mesh.silent)):
            without = [one for one in them if one[0] not in offering]
            if without:
                excluded[code] = without
    for node, offer in offering.items():
        if offer.fingerprint and node in asked.asked_by:
            meant[offer.fingerprint] += 1
        obstacle = _obstacle(asked, mesh.known[node], offer)
        if obstacle is not None:
            excluded.setdefault(obstacle[0], []).append((node, obstacle[1]))
        else:
            open_to.append((node, offer))
    for reasons in excluded.values():
        reasons.sort()
    assigned = mesh.assigned.get(model, {})
    fingerprint, notes = _content(open_to, assigned, meant)
    nodes: list[str] = []
    for node, offer in open_to:
        if offer.fingerprint != fingerprint:
            text = f"has other content of that name ({_short(offer.fingerprint)})"
            excluded.setdefault(Code.OTHER_CONTENT, []).append((node, text))
            continue
        part = offer.strategy == Strategy.EXPERT_SHARD
        if missed := _missed(asked, offer.measured, part=part):
            excluded.setdefault(Code.BELOW_QUALITY, []).append((node, missed))
            continue
        here, one = assigned.get(node), mesh.known[node]
        if here is None and one.alive and not one.member.record.draining:
            nodes.append(node)
        elif (passing := _passing(one, here)) is not None:
            excluded.setdefault(passing[0], []).append((node, passing[1]))
        else:
            nodes.append(node)
    return Eligible(fingerprint, tuple(nodes), excluded, notes)


def misplaced(asked: Wanted, one: Known, running: Assignment, fingerprint: str) -> str:
    """Why a replica that runs here should not; empty when it may."""
    if one.member.record.role == "client":
        return "this node's role is client"
    if not _pinned_here(asked, one):
        return f"the configuration names other nodes: {', '.join(sorted(asked.nodes))}"
    if fingerprint and running.fingerprint and running.fingerprint != fingerprint:
        return f"it has other content of that name ({_short(running.fingerprint)})"
    if missed := _missed(asked, running.measured, part=running.shard != ""):
        return missed
    if one.member.record.draining:
        return _DRAINED
    return ""


def _missed(asked: Wanted, measured: tuple[Fidelity, ...], *, part: bool) -> str:
    """By how much what a node says of its shard misses the quality; "" if not, or of no shard."""
    if part and not measured:
        return "its shard was not measured"
    return "; ".join(shortfalls(quality_of(asked.quality), measured)) if measured else ""


def summed(memory: tuple[MemoryUse, ...]) -> tuple[MemoryUse, ...]:
    """One entry a device."""
    if len({use.device for use in memory}) == len(memory):
        return memory
    sizes: dict[str, int] = {}
    for use in memory:
        sizes[use.device] = sizes.get(use.device, 0) + use.size_bytes
    return tuple(MemoryUse(device, size_bytes) for device, size_bytes in sizes.items())


def _obstacle(asked: Wanted, one: Known, offer: Offer | None) -> tuple[Code, str] | None:
    """What lasts: it would not serve this model however much memory were free."""
    if asked.nodes or offer is None:
        return _obstacle_anew(asked, one, offer)
    if asked.model not in one.obstacles:
        one.obstacles[asked.model] = _obstacle_anew(asked, one, offer)
    return one.obstacles[asked.model]


def _obstacle_anew(asked: Wanted, one: Known, offer: Offer | None) -> tuple[Code, str] | None:
    if one.member.record.role == "client":
        return Code.ROLE, _CLIENT
    if asked.nodes and not _pinned_here(asked, one):
        return Code.NOT_PINNED, f"models[].nodes names {', '.join(sorted(asked.nodes))}"
    if offer is None:
        return Code.NOT_OFFERED, _SILENT
    if offer.problem or offer.strategy not in _SERVED:
        code = Code(offer.code) if offer.code in _CODES else Code.CANNOT_SERVE
        return code, offer.problem or f"cannot serve it: strategy {offer.strategy}"
    return None


_CODES = frozenset(Code)


def _passing(one: Known, here: Assignment | None) -> tuple[Code, str] | None:
    """What passes: for now it may not take a new replica."""
    if one.member.record.draining:
        return Code.DRAINED_NODE, _DRAINED
    if here is not None and here.stage is Stage.FAILED:
        return Code.FAILED_HERE, here.detail or "its engine failed"
    if here is not None and here.stage is Stage.DRAINING:
        return Code.DRAINING_HERE, "it is giving it back just now"
    if not one.alive and (here is None or here.stage is Stage.CLAIMED):
        return Code.SUSPECT, "it has been silent for a moment"
    return None


def _pinned_here(asked: Wanted, one: Known) -> bool:
    if not asked.nodes:
        return True
    record = one.member.record
    return one.member.id in asked.nodes or (record.name != "" and record.name in asked.nodes)


def _content(
    open_to: list[tuple[str, Offer]],
    assigned: Mapping[str, Assignment],
    meant: Counter[str],
) -> tuple[str, tuple[str, ...]]:
    """What most of those that could serve it hold; of equals what runs already, then the lowest.

    A file that only happens to have the right name somewhere has no say in what the name means.
    """
    votes = Counter(offer.fingerprint for _, offer in open_to)
    if meant:
        known = meant.keys() & votes.keys()
        votes = Counter({one: votes[one] for one in known}) if known else meant
    if len(votes) == 1:
        best = next(iter(votes))
        others = sum(offer.fingerprint != best for _, offer in open_to)
        return best, _elsewhere(others, len(open_to))
    runs = Counter(
        one.fingerprint for one in assigned.values() if one.stage in (Stage.LOADING, Stage.READY)
    )
    if not votes:
        return min(runs, key=lambda content: (-runs[content], content), default=""), ()
    best = min(votes, key=lambda content: (-votes[content], -runs[content], content))
    others = sum(offer.fingerprint != best for _, offer in open_to)
    return best, _elsewhere(others, len(open_to))


def _meant_by(asked: Wanted, records: tuple[NodeRecord, ...]) -> Counter[str]:
    """The content that the name has on those of these nodes whose configuration uses it."""
    offers = (record.offer(asked.model) for record in records if record.id in asked.asked_by)
    return Counter(offer.fingerprint for offer in offers if offer and offer.fingerprint)


def _elsewhere(others: int, of: int) -> tuple[str, ...]:
    return (f"{others} of {of} nodes hold other content under this name",) if others else ()


def _nearness(record: NodeRecord) -> int:
    """The median of its round trips, in steps of doubling; unknown is farther than all."""
    known = [rtt.median_ms for rtt in record.rtt if 0 <= rtt.median_ms < math.inf]
    return int(median(known)).bit_length() if known else _RTT_UNKNOWN


def _short(fingerprint: str) -> str:
    return fingerprint[:12] or "unknown"
