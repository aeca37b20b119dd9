"""The plan's vocabulary: what was decided for each model, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.mesh.record import Part
from meshd.quality import Fidelity


class Strategy(StrEnum):
    """How a model is served. WAIT: it is not, and the decision says what stands in the way."""

    SOLO_GPU = "solo-gpu"
    SOLO_OFFLOAD = "solo-offload"
    SOLO_CPU = "solo-cpu"
    PIPELINE = "pipeline"
    EXPERT_SHARD = "expert-shard"
    WAIT = "wait"


class Code(StrEnum):
    """Machine-readable causes; the sentence beside one may change, the code does not."""

    CHOSEN = "chosen"
    KEPT = "kept"
    ROLE = "role-does-not-serve"
    NO_ENGINE = "no-engine"
    NO_MODEL = "no-model-file"
    NOT_A_LANGUAGE_MODEL = "not-a-language-model"
    CONTEXT_TOO_LONG = "context-beyond-training"
    GPU_PINNED_MISSING = "pinned-gpu-missing"
    NO_GPU = "no-gpu"
    NO_GPU_BACKEND = "no-gpu-backend"
    NO_MEMORY = "not-enough-memory"
    TRIMMED = "trimmed-to-fit"
    RAN_OUT = "ran-out-of-memory"
    # Of the whole mesh's plan: who runs a model, who does not, who gives it back.
    MINIMUM = "asked-for-by-name"
    IN_DEMAND = "in-demand"
    NOT_OFFERED = "not-offered"
    CANNOT_SERVE = "cannot-serve-it"
    NOT_PINNED = "pinned-to-other-nodes"
    OTHER_CONTENT = "other-content"
    SUSPECT = "node-suspect"
    FAILED_HERE = "failed-here"
    DRAINING_HERE = "being-given-back"
    DRAINED_NODE = "node-is-drained"
    NOT_ASKED_FOR = "nobody-asks-for-it"
    NO_DEMAND = "no-demand"
    SURPLUS = "more-than-wanted"
    GAVE_WAY = "gave-way-to-a-named-model"
    MISPLACED = "runs-where-it-should-not"
    # Of splits: why a node takes no part in one, or another group was better.
    NEVER_SPLIT = "never-to-be-split"
    NO_PEER = "nobody-near-enough"
    FAR = "too-far-away"
    RTT_UNKNOWN = "round-trip-unknown"
    OTHER_BUILD = "other-engine-build"
    UNMEASURED = "speed-not-measured"
    FAILED_AS_MEMBER = "failed-as-a-member"
    SLOWER = "slower"
    SOLO_FASTER = "solo-is-faster"
    LEASE_REFUSED = "member-refused"
    UNREACHED = "member-not-reached"
    # Of expert shards: why there is none, or an exact way was better.
    NOT_SHARDABLE = "experts-cannot-be-divided"
    NO_RANKING = "no-expert-ranking"
    NO_HOME = "experts-without-a-home"
    BEING_MADE = "shard-is-being-made"
    BELOW_QUALITY = "below-the-quality-asked-for"
    EXACT_ASKED = "exact-quality-asked-for"


@dataclass(frozen=True, slots=True)
class Reason:
    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Predicted memory on one device. :ivar device: a GPU's stable id, or ``ram``."""

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model's layers lie on one node.

    :ivar gpus: stable ids, in the order of `gpu_layers`.
    :ivar gpu_layers: layers on each GPU; the output layer counts as one more on the last.
    :ivar cpu_moe_layers: of the first layers, how many leave their routed experts in RAM.
    """

    gpus: tuple[str, ...] = ()
    gpu_layers: tuple[int, ...] = ()
    cpu_moe_layers: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """How a pipeline's host reaches one member; it stays the same for a whole term.

    :ivar address: of the member, without a port. :ivar local_port: of the host's end, on loopback.
    """

    node: str
    address: str
    local_port: int


@dataclass(frozen=True, slots=True)
class ShardUse:
    """The expert shard that serves a model.

    :ivar path: of its file. :ivar experts: kept in each layer, of `experts_all`.
    :ivar mass: of the choices on the calibration text, mean over the layers.
    """

    key: str
    path: str
    experts: int
    experts_all: int
    mass: float
    measured: tuple[Fidelity, ...]


@dataclass(frozen=True, slots=True)
class Considered:
    """Another way to serve a model, and why it was not taken.

    :ivar nodes: ids of those that would have taken part, the host first; one for a node that may
        not.
    :ivar tokens_s: predicted, 0 where none could be.
    :ivar strategy: what it would have been, None where that is not said.
    :ivar measured: of an expert shard: what it would lose.
    """

    nodes: tuple[str, ...]
    tokens_s: float
    reason: Reason
    strategy: Strategy | None = None
    measured: tuple[Fidelity, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one model of the config.

    :ivar context: tokens that one request can use; the engine is given context x slots.
    :ivar reasons: why this way; ``blockers`` why not at all; ``next_step`` what a person can do.
    :ivar asked: the config's own wishes, kept so that a changed wish is seen as a change.
    :ivar parts: of a pipeline, in the order of its layers: this node's RAM, the members' devices,
        this node's GPUs. The output layer is with the last of this node's own: the last of its GPUs
        in `layout`, else its RAM. `layout` and `memory` tell of this node alone.
    :ivar term: of a pipeline: counts up with every new arrangement of the model on this host.
    :ivar links: of a pipeline: one a member in the order of `members`.
    :ivar tokens_s: predicted decode speed of one request, 0 when unknown.
    :ivar ubatch_s: of a pipeline: how long a full micro-batch of a prompt takes on its slowest
        member, as predicted.
    :ivar considered: what else there was, best first; bounded.
    :ivar shard: of an expert shard.
    """

    model: str
    strategy: Strategy
    node: str = ""
    context: int = 0
    slots: int = 0
    layout: Layout = Layout()
    memory: tuple[DeviceUse, ...] = ()
    reasons: tuple[Reason, ...] = ()
    blockers: tuple[Reason, ...] = ()
    next_step: str = ""
    asked: tuple[str, str, str] = ("", "auto", "auto")
    parts: tuple[Part, ...] = ()
    term: int = 0
    links: tuple[Link, ...] = ()
    tokens_s: float = 0.0
    ubatch_s: float = 0.0
    considered: tuple[Considered, ...] = ()
    shard: ShardUse | None = None

    @property
    def served(self) -> bool:
        return self.strategy is not Strategy.WAIT

    @property
    def members(self) -> tuple[str, ...]:
        """Of a pipeline: the other nodes, in the order of their layers."""
        return tuple(dict.fromkeys(part.node for part in self.parts if part.node != self.node))

    @property
    def local_ports(self) -> tuple[int, ...]:
        """Of a pipeline: where its engine connects to, one a member in the order of `members`."""
        return tuple(link.local_port for link in self.links)

    @property
    def memory_bytes(self) -> int:
        return sum(use.total_bytes for use in self.memory)


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision for each model of the config, in its order."""

    decisions: tuple[Decision, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(decision.model for decision in self.decisions)

    def decision(self, model: str) -> Decision | None:
        return next((d for d in self.decisions if d.model == model), None)
