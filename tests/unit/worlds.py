"""Small worlds for tests of the pure core: nodes, models and configs, built by the real types."""

from __future__ import annotations

from meshd.config.settings import Config, ModelSettings
from meshd.models.facts import GgufFacts, LayerFacts
from meshd.node.inventory import Cpu, Gpu, Hardware, Ram, Vendor
from meshd.planner.view import Candidate, ClusterView, NodeView, Running

GIB = 1024**3
MIB = 1024**2


def facts(
    *, layers: int = 32, layer_bytes: int = 128 * MIB, expert_share: float = 0.0, train: int = 32768
) -> GgufFacts:
    """A model of `layers` equal blocks, of which `expert_share` of the bytes are experts."""
    experts = int(layer_bytes * expert_share)
    block = LayerFacts(
        weight_bytes=layer_bytes,
        expert_bytes=experts,
        kv_heads=8,
        heads=32,
        key_elements=1024,
        value_elements=1024,
        feed_forward=0 if experts else 14336,
    )
    return GgufFacts(
        files=("/models/m.gguf",),
        file_bytes=layers * layer_bytes,
        architecture="llama",
        name="m",
        quantisation="Q8_0",
        parameters=layers * layer_bytes,
        layers=(block,) * layers,
        embedding_length=4096,
        heads=32,
        key_length=128,
        value_length=128,
        context_train=train,
        vocabulary_size=32000,
        vocabulary_sha256="v",
        embedding_bytes=128 * MIB,
        output_bytes=128 * MIB,
        tied_embeddings=False,
        other_bytes=MIB,
        experts=16 if experts else 0,
        experts_used=2 if experts else 0,
        chat_template=True,
    )


def gpu(name: str = "GPU-1", free_gib: float = 23.0, *, unified: bool = False) -> Gpu:
    return Gpu(name, Vendor.NVIDIA, "RTX", "0000:01:00.0", 24 * GIB, int(free_gib * GIB), unified)


def hardware(*gpus: Gpu, ram_gib: float = 32.0) -> Hardware:
    ram = int(ram_gib * GIB)
    return Hardware("box", Cpu("cpu", "x86_64", 8, 16), Ram(ram, ram), gpus)


def node(
    *gpus: Gpu,
    models: dict[str, GgufFacts] | None = None,
    ram_gib: float = 32.0,
    running: tuple[Running, ...] = (),
    drivable: bool = True,
    engine: bool = True,
    gpu_problem: str = "",
) -> NodeView:
    return NodeView(
        id="box",
        hardware=hardware(*gpus, ram_gib=ram_gib),
        gpus=gpus if drivable else (),
        gpu_problem=gpu_problem,
        engine=engine,
        candidates=tuple(
            Candidate(name, found, identity=f"{name}:1") for name, found in (models or {}).items()
        ),
        running=running,
    )


def view(one: NodeView) -> ClusterView:
    return ClusterView(one.id, (one,))


def config(*models: ModelSettings, **sections: object) -> Config:
    return Config(models=models, **sections)  # type: ignore[arg-type]


def wants(name: str, **settings: object) -> ModelSettings:
    return ModelSettings(name, f"{name}.gguf", **settings)  # type: ignore[arg-type]
