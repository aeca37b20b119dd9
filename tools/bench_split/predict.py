"""What the planner says of a split, from records as nodes publish them."""

from __future__ import annotations

from meshd.mesh.record import DeviceRecord, NodeRecord, Part
from meshd.models.facts import GgufFacts
from meshd.node.speed import Speed
from meshd.planner.fit import Shape
from meshd.planner.group import Host, Lending, Offered, Search
from meshd.planner.layout import RAM
from meshd.planner.pace import device_paces, predict_solo
from meshd.planner.plan import Layout

HOST = "host"
CONTEXT = 256
_ROOM_BYTES = 1 << 40


def record(node: str, speed: Speed, network_bytes_s: int) -> NodeRecord:
    device = DeviceRecord(
        RAM,
        "",
        _ROOM_BYTES,
        _ROOM_BYTES,
        _ROOM_BYTES,
        bandwidth_bytes_s=speed.bandwidth_bytes_s,
        flops_s=speed.flops_s,
        lent_bandwidth_bytes_s=speed.lent_bandwidth_bytes_s,
        lent_flops_s=speed.lent_flops_s,
    )
    return NodeRecord(node, devices=(device,), network_bytes_s=network_bytes_s)


def predicted_tokens_s(
    facts: GgufFacts,
    parts: tuple[Part, ...],
    speed: Speed,
    rtt_s: float,
    network_bytes_s: int,
) -> float:
    """:param parts: in the order of the layers, all in RAM. :param rtt_s: to every member."""
    host = record(HOST, speed, network_bytes_s)
    if {part.node for part in parts} == {HOST}:
        return predict_solo(facts, Layout(), CONTEXT, device_paces(host))
    lent = device_paces(host, lent=True)[RAM]
    lendings = [
        Lending(
            node=part.node,
            name=part.node,
            places=(Offered(part.node, RAM, _ROOM_BYTES, lent, rtt_s, network_bytes_s),),
        )
        for part in parts
        if part.node != HOST
    ]
    search = Search(
        facts,
        Host(HOST, {RAM: _ROOM_BYTES}, (), device_paces(host), network_bytes_s=network_bytes_s),
        Shape(CONTEXT, 1),
    )
    seats = search.seats(lendings)
    pieces = [(seats[part.node, part.device], part.layers) for part in parts]
    return 1 / search.token_s(pieces, RAM)
