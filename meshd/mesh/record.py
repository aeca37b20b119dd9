"""What a node says of itself to all others: one record, one writer, a few kilobytes.

Only facts and the node's own deeds stand here; what the mesh decides is computed from all records
by everyone. Fields may be added with a default; a reader passes over those it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.quality import Fidelity

SCHEMA = 1
RECORD_MAX_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The engine's build. :ivar rpc_protocol: the triple that rpc-server announces."""

    version: str
    package: str = ""
    ggml: str = ""
    build: int | None = None
    rpc_protocol: tuple[int, int, int] | None = None
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A GPU, or the host's memory under the id ``ram``.

    :ivar plannable_bytes: what engines of the mesh may use in all: free now, plus what they
        already hold, less the reserve. Rounded, so that noise is no change.
    :ivar bandwidth_bytes_s: effective: bytes of weights that a decoding engine reads in a second,
        measured by a benchmark of the engine; 0 when not measured.
    :ivar flops_s: effective: operations that an engine does in a second with a prompt, 2 for a
        weight and token; 0 when not measured.
    :ivar unified: a GPU whose memory is the RAM: what lies there is planned as ``ram``.
    :ivar lent_bandwidth_bytes_s: likewise where an rpc-server computes, 0 when that is no other:
        llama-server rearranges weights for the processor, an rpc-server takes them as they come,
        which is a third slower. Likewise ``lent_flops_s``.
    """

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    plannable_bytes: int
    bandwidth_bytes_s: int = 0
    flops_s: int = 0
    unified: bool = False
    lent_bandwidth_bytes_s: int = 0
    lent_flops_s: int = 0


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model on this node's disk. :ivar fingerprint: of its content, `models.fingerprint`."""

    fingerprint: str
    file: str
    size_bytes: int
    architecture: str = ""
    quantisation: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that this node's configuration names, as the whole mesh should serve it.

    :ivar context: tokens a request, 0 for auto; ``slots`` likewise.
    :ivar most: replicas at most, None for as many as demand asks for.
    :ivar nodes: names or ids of the only nodes that may run it; empty for any.
    :ivar split: ``never`` when one node has to serve it whole; ``auto`` when several may.
    """

    model: str
    source: str
    context: int = 0
    slots: int = 0
    least: int = 1
    most: int | None = None
    quality: str = "exact"
    aliases: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    split: str = "auto"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes on one device. :ivar device: a `DeviceRecord.id`."""

    device: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a split model's layers on one device of one node.

    :ivar layers: how many blocks. A model's parts stand in the order of its layers; the output
        layer is the host's and is not counted.
    :ivar size_bytes: memory there: weights, KV cache and compute buffer.
    """

    node: str
    device: str
    layers: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """How this node would serve a model if it had nothing else to do; its own planner says so.

    :ivar strategy: `planner.plan.Strategy`; ``wait`` when it cannot, and `problem` says why.
    :ivar tokens_s: measured or predicted decode speed of one request, 0 when unknown.
    :ivar problem: one sentence, with `code` (`planner.plan.Code`); of a split without problem the
        code may say that some node is faster alone.
    :ivar parts: of a pipeline that this node would be the host of, all of them; `memory` is what
        it takes of the host itself.
    :ivar measured: of an expert shard: what it loses; `fingerprint` is the whole model's.
    """

    model: str
    fingerprint: str
    strategy: str
    context: int = 0
    slots: int = 0
    memory: tuple[MemoryUse, ...] = ()
    tokens_s: float = 0.0
    capabilities: tuple[str, ...] = ()
    created_s: int = 0
    code: str = ""
    problem: str = ""
    parts: tuple[Part, ...] = ()
    measured: tuple[Fidelity, ...] = ()


class Stage(StrEnum):
    """How far an assignment has come. CLAIMED: about to start, unless another claim is better."""

    CLAIMED = "claimed"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A model that this node runs or is about to.

    :ivar term: the node's own counter of claims to this model.
    :ivar progress: of loading, 0 to 1, in steps of a tenth.
    :ivar settled: it has run for the minimum dwell and may be given up.
    :ivar load_s: while it loads: how long that takes by what the node measured, 0 when unknown.
    :ivar parts: of a split whose host this node is.
    :ivar shard: key of the expert shard that serves it, "" for the whole model; `measured` is what
        that one loses, `experts` a layer what it keeps of `experts_all`.
    """

    model: str
    fingerprint: str
    stage: Stage
    term: int = 0
    context: int = 0
    slots: int = 0
    memory: tuple[MemoryUse, ...] = ()
    progress: float = 0.0
    settled: bool = False
    detail: str = ""
    load_s: float = 0.0
    parts: tuple[Part, ...] = ()
    shard: str = ""
    measured: tuple[Fidelity, ...] = ()
    experts: int = 0
    experts_all: int = 0


@dataclass(frozen=True, slots=True)
class Intent:
    """A host's wish for a split: who should hold which layers, in this term.

    :ivar term: of the host's assignment; a member's yes to another term is none.
    :ivar parts: all of the split, the host's own among them.
    """

    model: str
    term: int
    fingerprint: str
    parts: tuple[Part, ...]


class LeaseStage(StrEnum):
    """How far a member is. SEEDING: its weight cache is being filled. READY: its door is open."""

    SEEDING = "seeding"
    STARTING = "starting"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Lease:
    """A member's answer to a host's intent of the same term.

    :ivar port: of its door; the address is the node's own.
    :ivar progress: of seeding, 0 to 1, in steps of a tenth.
    :ivar detail: why it is refused.
    """

    model: str
    host: str
    term: int
    stage: LeaseStage
    port: int = 0
    progress: float = 0.0
    detail: str = ""


class ShardStage(StrEnum):
    """How far a node's shard is. WANTED: it has room and waits for a ranking, or for others.

    MAKING: written or measured just now. READY: it may serve. REFUSED: it loses more than is
    allowed, or could not be made.
    """

    WANTED = "wanted"
    RANKING = "ranking"
    MAKING = "making"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A node's part in serving a mixture of experts from shards.

    :ivar capacity: experts a layer that it has room for; what the shards are planned by.
    :ivar ranking: hash of the ranking of this model that it has, "" without one.
    :ivar key: of its shard, "" before it is known; `experts` a layer it keeps, and `mass` of the
        choices on the calibration text.
    :ivar progress: of the stage, 0 to 1, in steps of a tenth.
    :ivar logits: it has the whole model's logits for others to measure with.
    :ivar calibration: first 16 hex digits of the digest of the texts that its configuration asks
        for; "" where that does not name the model, or they are not known yet.
    :ivar ranked_on: likewise of those that its ranking was counted on.
    """

    model: str
    fingerprint: str
    stage: ShardStage
    capacity: int = 0
    ranking: str = ""
    key: str = ""
    experts: int = 0
    mass: float = 0.0
    progress: float = 0.0
    detail: str = ""
    measured: tuple[Fidelity, ...] = ()
    logits: bool = False
    calibration: str = ""
    ranked_on: str = ""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy this node's engine for a model is. :ivar tokens_s: over all of its slots."""

    model: str
    busy: int = 0
    waiting: int = 0
    tokens_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RttRecord:
    """Round trip to a peer, over the last window."""

    peer: str
    min_ms: float
    median_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class DoctorSummary:
    passed: int = 0
    warnings: int = 0
    failures: int = 0
    worst: str = ""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node.

    :ivar id: hash of its public key (`mesh.identity.node_id`).
    :ivar name: for people: its hostname, not unique.
    :ivar addresses: ``host:port`` where its peer door (HTTPS, TCP) listens; a core's QUIC has the
        same port over UDP. Most likely to be reachable first.
    :ivar core: it relays for others. :ivar may_core: it is allowed to, and can be dialled.
    :ivar session: made anew at every start: two nodes with one identity are told apart by it.
    :ivar draining: it is about to be switched off: nothing new is placed there, and what runs there
        moves to others.
    :ivar network_bytes_s: what its network carries, 0 when not known.
    """

    id: str
    name: str = ""
    role: str = "auto"
    addresses: tuple[str, ...] = ()
    core: bool = False
    may_core: bool = True
    session: str = ""
    software: str = ""
    schema: int = SCHEMA
    engine: EngineRecord | None = None
    devices: tuple[DeviceRecord, ...] = ()
    held: tuple[HeldModel, ...] = ()
    wishes: tuple[Wish, ...] = ()
    offers: tuple[Offer, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    intents: tuple[Intent, ...] = ()
    leases: tuple[Lease, ...] = ()
    shards: tuple[ShardRecord, ...] = ()
    load: tuple[ModelLoad, ...] = ()
    rtt: tuple[RttRecord, ...] = ()
    doctor: DoctorSummary | None = None
    draining: bool = False
    network_bytes_s: int = 0

    def offer(self, model: str) -> Offer | None:
        return next((offer for offer in self.offers if offer.model == model), None)

    def shard(self, model: str) -> ShardRecord | None:
        return next((one for one in self.shards if one.model == model), None)

    def assignment(self, model: str) -> Assignment | None:
        return next((one for one in self.assignments if one.model == model), None)
