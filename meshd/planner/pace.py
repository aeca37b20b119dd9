"""How fast a model decodes where it lies: what each device reads for a token, and the ways between.

    t_token = sum over devices (bytes read / effective bandwidth + overhead of a graph)
            + layers * overhead of one + sum over the others' devices (RTT + activations)
            + what experts cost a GPU, and a processor that takes turns with one

Weights are read once a token (of experts, only those that are used), and the KV cache as far as it
is filled. The output layer is the host's, so logits never cross the network. docs/splits.md holds
this against what engines do. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from meshd.mesh.record import DeviceRecord, NodeRecord, Part
from meshd.models.facts import GgufFacts, LayerFacts
from meshd.node.speed import LAYER_S, Speed
from meshd.planner.kv import ContextSettings, layer_bytes
from meshd.planner.layout import RAM
from meshd.planner.needs import placement_of_layout
from meshd.planner.placement import HOST
from meshd.planner.plan import Layout

_ACTIVATION_BYTES = 4  # of one element of the hidden state, F32 between devices


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of the engine.

    :ivar graph_s: what one device's part of a token costs beside what it reads.
    :ivar layer_s: likewise one layer, on whatever device; `node.speed` measures bandwidths less
        this.
    :ivar fill_tokens: of the context, how many a typical request has filled.
    :ivar network_bytes_s: assumed where a node does not know its own: 1 Gbit/s.
    :ivar expert_layer_s: what the experts of one layer cost a GPU beside reading them: to choose
        them, and to gather what they say.
    :ivar visit_s: a layer on a GPU whose experts are in RAM: both wait for each other.
    :ivar turns_s: a processor that computes a part of each token has to be woken for it.

    The last three are from one machine: an H200 and 16 processors of a virtual machine, over Vulkan
    (docs/benchmarks.md, "On a GPU").
    """

    graph_s: float = 0.0002
    layer_s: float = LAYER_S
    fill_tokens: int = 1024
    network_bytes_s: int = 100_000_000
    expert_layer_s: float = 0.00004
    visit_s: float = 0.0002
    turns_s: float = 0.0065


CALIBRATION = Calibration()


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one device, effective.

    :ivar measured: else they are conservative guesses by its kind.
    :ivar plain_bytes_s: of a processor, with weights as they lie in the file, 0 where not known:
        beside a GPU an engine does not rearrange them for it.
    """

    bytes_s: float
    flops_s: float
    measured: bool = True
    plain_bytes_s: float = 0.0

    @property
    def beside_gpu(self) -> Pace:
        return self if self.plain_bytes_s <= 0 else replace(self, bytes_s=self.plain_bytes_s)


# Slower than nearly every device of its kind, so that measuring only ever brings good news.
_PROCESSOR = Pace(10e9, 50e9, measured=False)
_UNIFIED = Pace(40e9, 1e12, measured=False)
_GPU = Pace(150e9, 5e12, measured=False)


def pace_of(
    device: DeviceRecord | None, *, gpu: bool, unified: bool = False, lent: bool = False
) -> Pace:
    """What a record says of its device, guesses in place of what was not measured.

    :param lent: an rpc-server computes there.
    """
    guess = _PROCESSOR if not gpu else _UNIFIED if unified else _GPU
    if device is None:
        return guess
    bytes_s, flops_s = device.bandwidth_bytes_s, device.flops_s
    if lent:
        bytes_s = device.lent_bandwidth_bytes_s or bytes_s
        flops_s = device.lent_flops_s or flops_s
    return Pace(
        float(bytes_s) if bytes_s > 0 else guess.bytes_s,
        float(flops_s) if flops_s > 0 else guess.flops_s,
        measured=bytes_s > 0,
        plain_bytes_s=float(device.lent_bandwidth_bytes_s),
    )


def device_paces(record: NodeRecord | None, *, lent: bool = False) -> dict[str, Pace]:
    """By device id."""
    return {
        one.id: pace_of(one, gpu=one.id != RAM, unified=one.unified, lent=lent)
        for one in (record.devices if record is not None else ())
    }


def measured_paces(speeds: Iterable[Speed]) -> dict[str, Pace]:
    """By device id, of what a node measured of its own devices."""
    return {
        one.device: Pace(
            float(one.bandwidth_bytes_s),
            float(one.flops_s),
            plain_bytes_s=float(one.lent_bandwidth_bytes_s),
        )
        for one in speeds
        if one.bandwidth_bytes_s > 0
    }


def layer_reads(
    facts: GgufFacts, context: int, calibration: Calibration = CALIBRATION
) -> tuple[tuple[int, int], ...]:
    """Bytes that each block reads for a token: its experts', and all others with its KV cache."""
    kept = _reads.get((id(facts), context))
    if kept is not None and kept[0] is facts and kept[1] == calibration:
        return kept[2]
    reads = _layer_reads(facts, context, calibration)
    if len(_reads) >= _READS_MOST:
        _reads.clear()
    _reads[id(facts), context] = (facts, calibration, reads)
    return reads


_READS_MOST = 4096
_reads: dict[tuple[int, int], tuple[GgufFacts, Calibration, tuple[tuple[int, int], ...]]] = {}


def _layer_reads(
    facts: GgufFacts, context: int, calibration: Calibration
) -> tuple[tuple[int, int], ...]:
    filled = max(1, min(context, calibration.fill_tokens))
    settings = ContextSettings(context=filled, ubatch=1)
    widest = max((layer.value_elements for layer in facts.layers), default=0)
    known: dict[LayerFacts, tuple[int, int]] = {}
    for layer in facts.layers:
        if layer not in known:
            cached = layer_bytes(facts, layer, settings, value_widest=widest)
            dense = layer.weight_bytes - layer.expert_bytes + cached
            known[layer] = (0, 0) if layer.prediction else (_used(facts, layer), dense)
    return tuple(known[layer] for layer in facts.layers)


def _used(facts: GgufFacts, layer: LayerFacts) -> int:
    return layer.expert_bytes * facts.experts_used // facts.experts if facts.experts else 0


def layers_s(facts: GgufFacts, calibration: Calibration = CALIBRATION) -> float:
    """What the number of layers costs, wherever they lie."""
    return calibration.layer_s * sum(not layer.prediction for layer in facts.layers)


def output_read(facts: GgufFacts) -> int:
    return facts.output_bytes + facts.other_bytes


def hop_s(
    facts: GgufFacts,
    rtt_s: float,
    ends_bytes_s: Sequence[int],
    calibration: Calibration = CALIBRATION,
    tokens: int = 1,
) -> float:
    """One visit to another node's device: the hidden state goes there and comes back."""
    bytes_s = min((one for one in ends_bytes_s if one > 0), default=calibration.network_bytes_s)
    return rtt_s + 2 * tokens * facts.embedding_length * _ACTIVATION_BYTES / bytes_s


def predict_solo(
    facts: GgufFacts,
    layout: Layout,
    context: int,
    speeds: Mapping[str, Pace],
    *,
    unified: Sequence[str] = (),
    calibration: Calibration = CALIBRATION,
) -> float:
    """Tokens/s of one request on one node alone.

    :param speeds: by device id, `RAM` among them; of what is missing, a guess.
    :param unified: GPUs that share the system's memory.
    """
    placement = placement_of_layout(facts, layout)
    read: dict[str, int] = {}
    visits = expert_layers = 0
    for number, (experts, others) in enumerate(layer_reads(facts, context, calibration)):
        place = placement.layers[number]
        home = HOST if number in placement.host_experts else place
        read[place] = read.get(place, 0) + others
        read[home] = read.get(home, 0) + experts
        if experts and place != HOST:
            visits += home == HOST
            expert_layers += home != HOST
    read[placement.output] = read.get(placement.output, 0) + output_read(facts)
    token_s = layers_s(facts, calibration)
    token_s += visits * calibration.visit_s + expert_layers * calibration.expert_layer_s
    if read.get(HOST) and placement.devices:
        token_s += calibration.turns_s
    for place, size_bytes in read.items():
        device = RAM if place == HOST else place
        pace = speeds.get(device) or pace_of(None, gpu=place != HOST, unified=device in unified)
        if place == HOST and placement.devices:
            pace = pace.beside_gpu
        token_s += size_bytes / pace.bytes_s + calibration.graph_s
    return rounded(1 / token_s) if token_s > 0 else 0.0


def ubatch_s(
    facts: GgufFacts,
    parts: Sequence[Part],
    records: Mapping[str, NodeRecord],
    host: str,
    *,
    context: int,
    first_layer: int = 0,
    tokens: int = 512,
    calibration: Calibration = CALIBRATION,
) -> float:
    """Expected seconds of one micro-batch of a prompt on the slowest stage, way and all, when the
    context is nearly full: what a guard should wait before it takes a peer for lost.

    :param parts: those of interest, in the order of the model's layers from `first_layer` on.
    :param records: of the nodes that have parts, by id.
    """
    stored = sum(layer.weight_bytes for layer in facts.layers) + facts.embedding_bytes
    stored += 0 if facts.tied_embeddings else facts.output_bytes
    weights_a_byte = facts.parameters / stored if stored else 0.0
    first, slowest_s = first_layer, 0.0
    for part in parts:
        layers = facts.layers[first : first + part.layers]
        first += part.layers
        record = records.get(part.node)
        speeds = device_paces(record, lent=part.node != host)
        speed = speeds.get(part.device) or pace_of(None, gpu=part.device != RAM)
        active = sum(
            _used(facts, one) + one.weight_bytes - one.expert_bytes
            for one in layers
            if not one.prediction
        )
        attention = sum(
            4 * min(context, facts.sliding_window if one.sliding else context) * one.heads
            for one in layers
            if one.key_elements
        )
        work = tokens * (2 * active * weights_a_byte + attention * facts.key_length)
        way_s = 0.0
        if part.node != host:
            ends = [one.network_bytes_s for one in (record, records.get(host)) if one is not None]
            rtt_s = (rtt_ms(host, part.node, records) or 0.0) / 1000
            way_s = hop_s(facts, rtt_s, ends, calibration, tokens)
        slowest_s = max(slowest_s, work / speed.flops_s + way_s)
    return slowest_s


def rtt_ms(one: str, other: str, records: Mapping[str, NodeRecord]) -> float | None:
    """Median round trip between two nodes as either of them has measured it, the shorter one: a
    busy node measures too much, none too little. None where neither knows.
    """
    known = [
        rtt.median_ms
        for node, peer in ((one, other), (other, one))
        if node in records
        for rtt in records[node].rtt
        if rtt.peer == peer and 0 <= rtt.median_ms < float("inf")
    ]
    return min(known, default=None)


def rounded(tokens_s: float) -> float:
    """Three digits: what moved by less is nothing to tell the others."""
    return float(f"{tokens_s:.3g}")
