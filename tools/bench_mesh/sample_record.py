"""A record as a node with two GPUs publishes it, some 2 kB."""

from __future__ import annotations

import hashlib

from meshd.mesh.record import (
    Assignment,
    DeviceRecord,
    DoctorSummary,
    EngineRecord,
    HeldModel,
    MemoryUse,
    ModelLoad,
    NodeRecord,
    Offer,
    RttRecord,
    Stage,
    Wish,
)

_GIB = 1 << 30
_MODELS = ("qwen3-32b", "llama-3.3-70b", "gemma-3-27b", "mistral-small-24b", "phi-4")


def sample_record(node: str, name: str, addresses: tuple[str, ...], mark: int) -> NodeRecord:
    """:param mark: what changes: how many requests wait."""
    prints = {model: hashlib.sha256(model.encode()).hexdigest() for model in _MODELS}
    used = tuple(MemoryUse(f"GPU-{index}", 18 * _GIB) for index in range(2))
    return NodeRecord(
        id=node,
        name=name,
        addresses=addresses,
        software="0.3.0",
        engine=EngineRecord(
            "0.7.0", "llama.cpp", "0.9.4", 11669, (4, 0, 0), ("cuda", "cpu", "rpc")
        ),
        devices=tuple(
            DeviceRecord(
                f"GPU-{index}",
                "NVIDIA RTX A6000",
                48 * _GIB,
                30 * _GIB,
                46 * _GIB,
                700 * 10**9,
            )
            for index in range(2)
        ),
        held=tuple(
            HeldModel(prints[model], f"{model}-Q4_K_M.gguf", 20 * _GIB, "llama", "Q4_K_M")
            for model in _MODELS
        ),
        wishes=tuple(Wish(model, f"{model}-Q4_K_M.gguf", 32768, 4) for model in _MODELS[:2]),
        offers=tuple(
            Offer(
                model,
                prints[model],
                "local",
                32768,
                4,
                used,
                32.5,
                ("chat", "tools"),
                1_760_000_000,
            )
            for model in _MODELS[:3]
        ),
        assignments=(
            Assignment(
                _MODELS[0], prints[_MODELS[0]], Stage.READY, 3, 32768, 4, used, 1.0, settled=True
            ),
        ),
        load=(ModelLoad(_MODELS[0], 2, mark, 61.5),),
        rtt=tuple(RttRecord(prints[model][:16], 0.2, 0.3, 0.6) for model in _MODELS),
        doctor=DoctorSummary(21, 1, 0, "the firewall is not looked at"),
    )


def mark_of(record: NodeRecord) -> int:
    """The mark that `sample_record` was given; -1 for a record that is not from there."""
    return record.load[0].waiting if record.load else -1
