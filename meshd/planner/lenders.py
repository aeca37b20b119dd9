"""Whom and what a search for a split is made among: this node as host, and the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from meshd.config.settings import Config, ModelSettings
from meshd.mesh.record import NodeRecord
from meshd.mesh.view import MemberView
from meshd.planner.burdens import taken_by_others
from meshd.planner.group import LENDERS_MOST, Host, Lending, Offered
from meshd.planner.layout import RAM
from meshd.planner.near import Near, Peer
from meshd.planner.pace import Pace, device_paces, measured_paces, pace_of
from meshd.planner.place import budgets_of
from meshd.planner.plan import Code
from meshd.planner.seen import places_of
from meshd.planner.view import NodeView


def host_of(
    node: NodeView,
    config: Config,
    paces: Mapping[str, Pace],
    record: NodeRecord,
    me: str,
    less: tuple[tuple[str, int], ...],
) -> Host:
    """Our own node as host. :param less: what may not be taken of its memory, by pool."""
    # A split's engine keeps no old prompts: its members would send all of them over the network.
    budgets = budgets_of(node, config)
    for device, size_bytes in less:
        budgets = budgets.less(device, size_bytes)
    unified = tuple(gpu.id for gpu in node.gpus if gpu.unified)
    plannable = {device.id: device.plannable_bytes for device in record.devices}
    held = dict(less)
    # What shares the RAM is counted once, so one of them is enough.
    usable = [gpu for gpu in node.gpus if not gpu.unified or gpu.id == unified[0]]
    ram = paces.get(RAM) or pace_of(None, gpu=False)
    known = {
        RAM: ram.beside_gpu if usable else ram,
        **{
            gpu.id: paces.get(gpu.id) or pace_of(None, gpu=True, unified=gpu.unified)
            for gpu in usable
        },
    }
    gpus = sorted(
        known.keys() - {RAM},
        key=lambda gpu: (gpu in unified, -known[gpu].bytes_s, -budgets.free(gpu), gpu),
    )
    return Host(
        node=me,
        rooms={
            device: _steady(budgets.free(device), plannable.get(device, 0) - held.get(device, 0))
            for device in known
            if device not in unified
        },
        gpus=tuple(gpus),
        paces=known,
        unified=unified[:1],
        network_bytes_s=record.network_bytes_s,
    )


def _steady(free_bytes: int, told_bytes: int) -> int:
    """What our record tells the others, where it is about what is free and no more: figures that
    move with every look would have everything searched anew.
    """
    if 0 < told_bytes <= free_bytes <= told_bytes * 1.1:
        return told_bytes
    return max(0, free_bytes)


def own_paces(node: NodeView, record: NodeRecord) -> dict[str, Pace]:
    """As measured now, else as our record still says."""
    paces = {device: pace for device, pace in device_paces(record).items() if pace.measured}
    return {**paces, **measured_paces(node.speeds)}


def held_by_others(around: Near, model: str) -> tuple[tuple[str, int], ...]:
    """What other models hold of this node's memory, by pool."""
    pools = sorted({one.pool for one in around.own_taken})
    return tuple((pool, taken_by_others(around.own_taken, pool, model)) for pool in pools)


def allowed(
    around: Near, model: ModelSettings, me: str, excluded: Mapping[str, str]
) -> tuple[tuple[Peer, ...], tuple[tuple[str, str, Code, str], ...]]:
    """Those that may take part in this model's split, and those that may not."""
    pinned = around.pinned.get(model.name)
    if not excluded and pinned is None:
        return around.peers, around.barred
    peers, barred = [], list(around.barred)
    for peer in around.peers:
        if peer.id in excluded:
            barred.append((peer.id, peer.name, Code.FAILED_AS_MEMBER, excluded[peer.id]))
        elif pinned is not None and not {peer.id, peer.name} & pinned:
            text = f"models[].nodes names {', '.join(sorted(pinned))}"
            barred.append((peer.id, peer.name, Code.NOT_PINNED, text))
        else:
            peers.append(peer)
    return tuple(peers), tuple(barred)


def promising(
    around: Near, peers: tuple[Peer, ...], size_bytes: int, *, idle: bool
) -> tuple[Peer, ...]:
    """The few that a search is made among: the fastest for what they hold; the roomiest where all
    of those together have too little.
    """
    ranked = around.ranked(size_bytes, idle=idle)
    if peers is not around.peers:
        allowed = {peer.id for peer in peers}
        ranked = tuple(peer for peer in ranked if peer.id in allowed)
    if len(ranked) <= LENDERS_MOST:
        return ranked
    best = ranked[:LENDERS_MOST]

    def room(peer: Peer) -> int:
        return sum(peer.room(place, "", idle=idle) for place in peer.places)

    if sum(map(room, best)) >= size_bytes:
        return best
    roomy = sorted(ranked, key=lambda peer: (-room(peer), peer.id))
    return tuple(roomy[:LENDERS_MOST])


def lending_of(peer: Peer, model: str, *, idle: bool) -> Lending:
    """:param idle: only what no other model holds."""
    return Lending(
        peer.id,
        peer.name,
        tuple(
            Offered(
                peer.id,
                place.device,
                max(0, peer.room(place, model, idle=idle)),
                place.pace,
                peer.rtt_s,
                peer.network_bytes_s,
            )
            for place in peer.places
        ),
        peer.penalty(model),
    )


def as_peer(member: MemberView, rtt_ms: float) -> Peer:
    record = member.record
    return Peer(
        record.id,
        record.name or record.id,
        rtt_ms / 1000,
        record.network_bytes_s,
        places_of(record),
    )
