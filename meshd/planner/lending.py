"""What a node answers to those that would split a model over it. Pure.

Each host's record carries its intents; each member's record carries its leases. A lease is given
where the memory is there and the engines are the same, stands as long as the intent does, and ends
with it, or with its host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from meshd.config.settings import Limit
from meshd.config.split_ports import doors, servers
from meshd.engine.build import EngineBuild
from meshd.guard.status import GuardStatus
from meshd.instance import lent_name
from meshd.mesh.record import Intent, Lease, LeaseStage, Part
from meshd.mesh.view import MeshView
from meshd.planner.layout import RAM, Budgets
from meshd.planner.lent import Lent
from meshd.planner.same_engine import engines_differ
from meshd.seeding.wish import SeedStage, SeedState

_SEEDED = (SeedStage.READY, SeedStage.UNSEEDED)


@dataclass(frozen=True, slots=True)
class Lending:
    """:ivar lent: what this node lends. :ivar refused: answers to the others."""

    lent: tuple[Lent, ...] = ()
    refused: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a node lends. :ivar unwilling: why it does not at all, "" when it does.

    :ivar first_port: of the node's ports for splits.
    :ivar limit: of the node: what is lent ends only when it is beyond that, for what is free moves
        all the time.
    :ivar early: others may be there that this node has not heard of yet: what is lent stays lent.
    """

    build: EngineBuild | None
    budgets: Budgets
    first_port: int
    unwilling: str = ""
    early: bool = False
    limit: Limit = field(default_factory=Limit)


def lend(view: MeshView, before: Sequence[Lent], terms: Terms) -> Lending:
    """Answer every intent that names this node.

    :param before: what it lent until now.
    """
    known = {member.id: member for member in view.members}
    asked = dict(_asked(view))
    lent: list[Lent] = []
    refused: list[Lease] = []
    budgets = terms.budgets
    standing = {(one.host, one.model): one for one in before}
    for key, one in standing.items():
        found = asked.get(key)
        # A host that nobody heard of yet, since we or it just came, has not changed its mind.
        unheard = found is None and terms.early and one.host not in known
        stands = unheard or (found is not None and _same(one, found, view.me))
        # What a new configuration has no room or no ports for is asked about anew.
        if stands and one.door_port in doors(terms.first_port) and _within(terms, one, lent):
            lent.append(one)
            budgets = _less(budgets, one.parts)
    # What runs already comes first, then the oldest wish of the smallest id: the same everywhere.
    kept = {(one.host, one.model) for one in lent}
    for key, intent in sorted(asked.items()):
        if key in kept:
            continue
        host = key[0]
        old = standing.get(key)
        parts = tuple(part for part in intent.parts if part.node == view.me)
        why = _obstacle(view, host, parts, budgets, terms)
        slot = _slot(terms.first_port, old, (*standing.values(), *lent))
        if not why and slot is None:
            why = "it lends to as many splits as it has ports for"
        if why or slot is None:
            refused.append(
                Lease(intent.model, host, intent.term, LeaseStage.REFUSED, detail=why[:200])
            )
            continue
        budgets = _less(budgets, parts)
        lent.append(
            Lent(
                name=lent_name(intent.model, host),
                model=intent.model,
                fingerprint=intent.fingerprint,
                host=host,
                term=intent.term,
                parts=parts,
                first_layer=_first_layer(intent, view.me),
                door_port=doors(terms.first_port)[slot],
                rpc_port=servers(terms.first_port)[slot],
            )
        )
    return Lending(tuple(sorted(lent, key=lambda one: one.name)), tuple(refused))


def leases(
    lending: Lending,
    seeds: Mapping[str, SeedState],
    guards: Mapping[str, GuardStatus],
) -> tuple[Lease, ...]:
    """What the node's record says of what it lends.

    :param seeds: by instance. :param guards: likewise, of those that answer.
    """
    given = (_lease(one, seeds.get(one.name), guards.get(one.name)) for one in lending.lent)
    return (*given, *lending.refused)


def _lease(lent: Lent, seed: SeedState | None, guard: GuardStatus | None) -> Lease:
    stage, detail, progress = LeaseStage.SEEDING, "", 0.0
    if seed is not None:
        detail, progress = seed.detail, int(seed.progress * 10) / 10
        if seed.stage in _SEEDED:
            stage = LeaseStage.STARTING
    if stage is LeaseStage.STARTING and guard is not None and guard.term == lent.term:
        peer = next(iter(guard.peers), None)
        if peer is not None and peer.reached:
            stage = LeaseStage.READY
        elif peer is not None:
            detail = peer.problem or detail
    return Lease(lent.model, lent.host, lent.term, stage, lent.door_port, progress, detail[:200])


def _within(terms: Terms, one: Lent, others: Iterable[Lent]) -> bool:
    """Whether a limit that was lowered still has room for it beside others that stay."""
    ram, gpus = 0, dict.fromkeys((part.device for part in one.parts), 0)
    for lent in (one, *others):
        for part in lent.parts:
            if part.device in (RAM, *terms.budgets.unified):
                ram += part.size_bytes
            elif part.device in gpus:
                gpus[part.device] += part.size_bytes
    limit = terms.limit
    return (limit.ram_bytes is None or ram <= limit.ram_bytes) and (
        limit.vram_bytes is None or max(gpus.values()) <= limit.vram_bytes
    )


def _same(lent: Lent, intent: Intent, me: str) -> bool:
    """Whether it is what was lent. Not by its term alone: a host that lost its memory with its
    power counts anew, and may be back before its death was noticed.
    """
    parts = tuple(part for part in intent.parts if part.node == me)
    wished = (intent.term, intent.fingerprint, parts, _first_layer(intent, me))
    return wished == (lent.term, lent.fingerprint, lent.parts, lent.first_layer)


def _asked(view: MeshView) -> Iterator[tuple[tuple[str, str], Intent]]:
    for member in view.members:
        if member.id == view.me:
            continue
        for intent in member.record.intents:
            if any(part.node == view.me and part.layers > 0 for part in intent.parts):
                yield (member.id, intent.model), intent


def _obstacle(
    view: MeshView, host: str, parts: tuple[Part, ...], budgets: Budgets, terms: Terms
) -> str:
    if terms.unwilling:
        return terms.unwilling
    if terms.build is None or terms.build.rpc_server is None:
        return "its engine has no rpc-server"
    member = view.member(host)
    own = view.member(view.me)
    if member is None or own is None:
        return "the host is not known here"
    if why := engines_differ(own.record, member.record):
        return why
    for part in parts:
        free = budgets.free(part.device)
        if part.size_bytes > free:
            mib = 1024**2
            text = f"{part.size_bytes // mib} MiB wanted of {part.device}"
            return f"{text}, {max(0, free) // mib} MiB are free"
        budgets = budgets.less(part.device, part.size_bytes)
    return ""


def _less(budgets: Budgets, parts: tuple[Part, ...]) -> Budgets:
    for part in parts:
        budgets = budgets.less(part.device, part.size_bytes)
    return budgets


def _slot(first: int, old: Lent | None, others: Iterable[Lent]) -> int | None:
    """Which of the ports: those of the term before, else the first that are free."""
    ports = doors(first)
    if old is not None and old.door_port in ports:
        return ports.index(old.door_port)
    taken = {one.door_port for one in others}
    return next((slot for slot, port in enumerate(ports) if port not in taken), None)


def _first_layer(intent: Intent, me: str) -> int:
    first = 0
    for part in intent.parts:
        if part.node == me:
            return first
        first += part.layers
    raise ValueError(f"{me} has no part")
