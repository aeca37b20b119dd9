"""Meshes of boxes for splits: each with its devices as its record has them, all with one engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meshd.config.settings import Config, ModelSettings, NodeSettings, Reserve
from meshd.engine.build import EngineBuild
from meshd.mesh.record import DeviceRecord, EngineRecord, MemoryUse, NodeRecord, Offer, RttRecord
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Cpu, Gpu, Hardware, Ram, Vendor
from meshd.planner.pipeline import pipeline_offer
from meshd.planner.place import offer
from meshd.planner.plan import Decision, Strategy
from meshd.planner.view import Candidate, NodeView

GIB = 1024**3
MIB = 1024**2

BUILD = EngineBuild(
    "debian", "/", 11669, "0.7.0", "1:0.7.0+dfsg-2", "0.27.0", (8, 0, 0), (), ("CPU", "RPC"), ""
)
ENGINE = EngineRecord("0.7.0", "1:0.7.0+dfsg-2", "0.27.0", 11669, (8, 0, 0), ("CPU", "RPC"))


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU: plannable GiB and GB/s."""

    gib: float
    gb_s: float = 0.0
    unified: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A node: plannable RAM in GiB, GB/s of its processor, its cards.

    :ivar cache: what prompts may take of it, as `place.prompt_cache_bytes` has it, is beside.
    """

    name: str
    ram_gib: float = 32.0
    ram_gb_s: float = 0.0
    cards: tuple[Card, ...] = ()
    rtt_ms: Mapping[str, float] | float | None = 0.3
    role: str = "auto"
    engine: EngineRecord | None = ENGINE
    status: Status = Status.ALIVE
    draining: bool = False
    network_bytes_s: int = 0
    gflops: float = 0.0

    @property
    def id(self) -> str:
        return f"id-{self.name}"

    def record(self, others: tuple[str, ...], offers: tuple[Offer, ...] = ()) -> NodeRecord:
        ram = int(self.ram_gib * GIB)
        cards = tuple(
            DeviceRecord(
                f"GPU-{number}",
                "card",
                int(card.gib * GIB),
                int(card.gib * GIB),
                0 if card.unified else int(card.gib * GIB),
                int(card.gb_s * 1e9),
                int(self.gflops * 1e10),
                unified=card.unified,
            )
            for number, card in enumerate(self.cards, 1)
        )
        memory = DeviceRecord(
            "ram", "RAM", ram, ram, ram, int(self.ram_gb_s * 1e9), int(self.gflops * 1e9)
        )
        return NodeRecord(
            self.id,
            name=self.name,
            role=self.role,
            engine=self.engine,
            devices=(*cards, memory),
            rtt=tuple(
                RttRecord(f"id-{other}", ms, ms, ms)
                for other in others
                if (ms := self._rtt(other)) is not None
            ),
            draining=self.draining,
            network_bytes_s=self.network_bytes_s,
            offers=offers,
        )

    def _rtt(self, other: str) -> float | None:
        if isinstance(self.rtt_ms, (int, float)) or self.rtt_ms is None:
            return self.rtt_ms
        return self.rtt_ms.get(other)

    def view(self, models: Mapping[str, GgufFacts]) -> NodeView:
        ram = int(self.ram_gib * GIB)
        gpus = tuple(
            Gpu(
                f"GPU-{number}", Vendor.NVIDIA, "card", f"0000:0{number}:00.0",
                int(card.gib * GIB), int(card.gib * GIB), card.unified,
            )
            for number, card in enumerate(self.cards, 1)
        )  # fmt: skip
        return NodeView(
            id=self.id,
            hardware=Hardware(self.name, Cpu("cpu", "x86_64", 8, 16), Ram(ram, ram), gpus),
            gpus=gpus,
            candidates=tuple(
                Candidate(name, facts, f"{name}:1", fingerprint=f"content-{name}")
                for name, facts in models.items()
            ),
            name=self.name,
        )


def mesh_of(*boxes: Box, offers: Mapping[str, tuple[Offer, ...]] | None = None) -> MeshView:
    names = tuple(box.name for box in boxes)
    members = []
    for box in boxes:
        others = tuple(name for name in names if name != box.name)
        record = box.record(others, (offers or {}).get(box.name, ()))
        members.append(MemberView(box.id, 1, box.status, record))
    return MeshView(boxes[0].id, tuple(sorted(members, key=lambda one: one.id)))


CONFIG = Config(node=NodeSettings(reserve=Reserve(0, 0)))


def offered(
    box: Box,
    view: MeshView,
    facts: GgufFacts,
    settings: ModelSettings,
    *,
    excluded: Mapping[str, str] | None = None,
    build: EngineBuild | None = BUILD,
) -> Decision:
    """What this box would say of the model, with the file on its disk."""
    node = box.view({settings.name: facts})
    config = replace(CONFIG, models=(settings,))
    solo = offer(node, config, settings)
    return pipeline_offer(
        node,
        config,
        settings,
        replace(view, me=box.id),
        box.id,
        build=build,
        excluded=excluded or {},
        solo=solo,
    )


def as_offer(box: Box, decision: Decision) -> Offer:
    """As the box's record would have it."""
    unified = {f"GPU-{number}" for number, card in enumerate(box.cards, 1) if card.unified}
    memory: dict[str, int] = {}
    for use in decision.memory:
        pool = "ram" if use.device in unified else use.device
        memory[pool] = memory.get(pool, 0) + use.total_bytes
    marks = {str(reason.code) for reason in decision.reasons} & {"solo-is-faster"}
    split = decision.strategy is Strategy.PIPELINE
    return Offer(
        decision.model,
        f"content-{decision.model}",
        decision.strategy,
        decision.context,
        decision.slots,
        tuple(MemoryUse(device, size_bytes) for device, size_bytes in sorted(memory.items())),
        decision.tokens_s,
        code=min(marks, default="") if split else "",
        problem="" if decision.served else "does not fit",
        parts=decision.parts,
    )
