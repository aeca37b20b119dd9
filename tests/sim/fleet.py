"""The machines and models of a simulated mesh, made from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from meshd.mesh.ids import node_id
from meshd.mesh.record import DeviceRecord, EngineRecord, HeldModel, MemoryUse, Offer, Wish
from meshd.planner.layout import RAM
from meshd.planner.plan import Strategy

GIB = 1024**3
_GPUS_GIB = (12, 16, 24, 24, 24, 32, 48, 80)
_SIZES_GIB = (1, 2, 4, 5, 5, 8, 8, 14, 20, 40)
_CORES_MAX = 9
_NAMED_MAX = 25


@dataclass(frozen=True, slots=True)
class Model:
    """:ivar named: some node's configuration names it with a minimum of at least 1.

    :ivar load_s: from disk to the first answer.
    """

    name: str
    fingerprint: str
    memory_bytes: int
    load_s: float
    named: bool
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """:ivar near_s: its delay to the middle of the network."""

    id: str
    name: str
    key: bytes
    core: bool
    near_s: float
    standby: bool
    devices: tuple[DeviceRecord, ...]
    held: tuple[HeldModel, ...]
    offers: tuple[Offer, ...]
    wishes: tuple[Wish, ...]
    engine: EngineRecord

    def memory_bytes(self, device: str) -> int:
        return next((d.plannable_bytes for d in self.devices if d.id == device), 0)


@dataclass(frozen=True, slots=True)
class Fleet:
    machines: tuple[Machine, ...]
    models: dict[str, Model]


def make_fleet(seed: int, nodes: int, models: int, *, named: float = 0.6) -> Fleet:
    """:param named: part of the models that are served whether anybody asks or not."""
    chance = random.Random(f"fleet {seed}")
    zoo = {}
    for number in range(models):
        name = f"model-{number:03}"
        size_gib = chance.choice(_SIZES_GIB)
        is_named = number < models * named
        zoo[name] = Model(
            name=name,
            fingerprint=f"{number:032x}",
            memory_bytes=size_gib * GIB + GIB // 2,
            load_s=2.0 + size_gib * chance.uniform(0.3, 1.2),
            named=is_named,
            least=(2 if number % 10 == 0 and nodes >= 10 else 1) if is_named else 0,
            most=chance.choice((None, None, 4)),
        )
    cores = nodes if nodes <= 5 else min(_CORES_MAX, 5 + nodes // 250)
    names = list(zoo)
    holders = _spread(names, nodes, chance)
    # One configuration for all, as Ansible makes it; in a large mesh each has a part of it.
    naming = _spread(names, nodes, chance, copies=max(3, nodes * _NAMED_MAX // max(models, 1)))
    return Fleet(
        tuple(
            _machine(
                seed,
                index,
                index < cores,
                [zoo[name] for name in holders[index]],
                [zoo[name] for name in naming[index]],
                chance,
            )
            for index in range(nodes)
        ),
        zoo,
    )


def _spread(
    names: list[str], nodes: int, chance: random.Random, copies: int | None = None
) -> list[list[str]]:
    """Which models each node has: every model on at least three, or on `copies`."""
    result: list[list[str]] = [[] for _ in range(nodes)]
    for name in names:
        most = copies if copies is not None else chance.randint(3, 12)
        for index in chance.sample(range(nodes), min(most, nodes)):
            result[index].append(name)
    return result


def _machine(
    seed: int,
    index: int,
    core: bool,
    held: list[Model],
    named: list[Model],
    chance: random.Random,
) -> Machine:
    key = random.Random(f"key {seed} {index}").randbytes(32)
    gpus = tuple(
        DeviceRecord(f"GPU-{index}-{slot}", "sim", total, total - GIB, total - GIB, 900_000_000_000)
        for slot, total in enumerate(
            chance.choice(_GPUS_GIB) * GIB for _ in range(chance.choice((1, 1, 1, 2)))
        )
    )
    ram = DeviceRecord(RAM, "sim", 64 * GIB, 48 * GIB, 48 * GIB, 60_000_000_000)
    offers = []
    for model in held:
        fits = [gpu for gpu in gpus if gpu.plannable_bytes >= model.memory_bytes]
        device = min(fits, key=lambda gpu: gpu.plannable_bytes).id if fits else RAM
        can = fits or model.memory_bytes <= ram.plannable_bytes
        strategy = (Strategy.SOLO_GPU if fits else Strategy.SOLO_CPU) if can else Strategy.WAIT
        offers.append(
            Offer(
                model.name,
                model.fingerprint,
                str(strategy),
                context=8192,
                slots=4,
                memory=(MemoryUse(device, model.memory_bytes),) if can else (),
                tokens_s=(80.0 if fits else 8.0) * GIB * 4 / model.memory_bytes,
                problem="" if can else "it does not fit",
            )
        )
    return Machine(
        id=node_id(key),
        name=f"box{index}",
        key=key,
        core=core,
        near_s=chance.choice((0.0003, 0.0005, 0.001, 0.002, 0.02)),
        standby=chance.random() < 0.3,
        devices=(*gpus, ram),
        held=tuple(
            HeldModel(m.fingerprint, f"/models/{m.name}.gguf", m.memory_bytes) for m in held
        ),
        offers=tuple(offers),
        wishes=tuple(Wish(m.name, f"{m.name}.gguf", least=m.least, most=m.most) for m in named),
        engine=EngineRecord("0.7.0", rpc_protocol=(3, 6, 0), backends=("cuda",)),
    )
