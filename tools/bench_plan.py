"""How long a node takes to plan its share: `make bench-plan`.

A thousand nodes know a hundred models; this node has the files of 64 and offers each, alone or
split with others, and works out the whole mesh's plan: `meshd.mesh_share.share`, as every pass of
the brain does it. First with nothing remembered, then with nothing changed, then after one other
node's record changed.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from dataclasses import replace
from statistics import median

from meshd.config.settings import Config, ModelSettings, NodeSettings, Reserve
from meshd.engine.build import EngineBuild
from meshd.mesh.record import (
    Assignment,
    DeviceRecord,
    EngineRecord,
    MemoryUse,
    NodeRecord,
    Offer,
    RttRecord,
    Stage,
    Wish,
)
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_share import Around, Share, share
from meshd.models.facts import GgufFacts, LayerFacts
from meshd.node.inventory import Cpu, Gpu, Hardware, Ram, Vendor
from meshd.own_record import Self
from meshd.planner.plan import Strategy
from meshd.planner.view import Candidate, NodeView
from meshd.split_share import Splits, addresses_of

GIB = 1024**3
MIB = 1024**2
ME = "node-0000"
Times = tuple[float, float]
"""Seconds by the clock, and of this process."""
BUILD = EngineBuild("debian", "/", 11669, "0.7.0", "1", "0.27.0", (8, 0, 0), (), ("CUDA",), "")
ENGINE = EngineRecord("0.7.0", "1", "0.27.0", 11669, (8, 0, 0), ("CUDA",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=9)
    arguments = parser.parse_args()
    rng = random.Random(1)
    models = [a_model(rng) for _ in range(arguments.models)]
    names = [f"m{number:03}" for number in range(arguments.models)]
    members = [a_member(number, names, models, rng) for number in range(arguments.nodes)]
    view = MeshView(ME, tuple(members), digest=1)
    node = this_node(names, models, members)
    config = Config(
        node=NodeSettings(reserve=Reserve(0, 0)),
        models=tuple(ModelSettings(name, f"{name}.gguf") for name in names[:10]),
    )
    addresses = addresses_of(view, {})
    gc.collect()

    def once(seen: MeshView) -> tuple[Times, Share]:
        around = Around(Self(ME), seen, splits=Splits(addresses=addresses))
        start, start_cpu = time.perf_counter(), time.process_time()
        found = share(config, node, BUILD, (), around)
        return (time.perf_counter() - start, time.process_time() - start_cpu), found

    cold, found = once(view)
    warm = [once(view)[0] for _ in range(arguments.repeat)]
    changed = []
    for number in range(arguments.repeat):
        index = 1 + rng.randrange(len(members) - 1)
        members[index] = with_less_memory(members[index], number + 1)
        view = MeshView(ME, tuple(members), digest=2 + number)
        changed.append(once(view)[0])
    offers = found.record.offers
    splits = sum(offer.strategy == Strategy.PIPELINE for offer in offers)
    print(f"{len(members)} nodes, {len(names)} models; of {len(offers)} offers {splits} are splits")
    print(f"{'':32}{'ms':>8}{'of CPU':>8}")
    for name, times in (
        ("nothing remembered", [cold]),
        ("nothing changed, median", middle(warm)),
        ("one record changed, median", middle(changed)),
        ("one record changed, worst", [max(changed)]),
    ):
        print(f"{name:32}{times[0][0] * 1000:8.0f}{times[0][1] * 1000:8.0f}")


def middle(times: list[Times]) -> list[Times]:
    """The median of each."""
    return [(median(one for one, _ in times), median(one for _, one in times))]


def a_model(rng: random.Random) -> GgufFacts:
    layers = rng.choice((32, 48, 64, 80))
    size = rng.randint(60, 900) * MIB
    block = LayerFacts(
        size, 0, 8, heads=64, key_elements=1024, value_elements=1024, feed_forward=14336
    )
    return GgufFacts(
        ("/m.gguf",), layers * size, "llama", "m", "Q8_0", layers * size, (block,) * layers,
        8192, 64, 128, 128, 32768, 128000, "v", 500 * MIB, 500 * MIB, False, MIB,
        chat_template=True,
    )  # fmt: skip


def a_member(
    number: int, names: list[str], models: list[GgufFacts], rng: random.Random
) -> MemberView:
    """A box with one card; it measured its way to this node."""
    card, ram = rng.choice((8, 16, 24, 48)) * GIB, rng.choice((32, 64, 128)) * GIB
    offers = []
    for index in rng.sample(range(len(names)), min(len(names), 20)):
        size = models[index].file_bytes
        strategy = Strategy.SOLO_GPU if size < card * 0.9 else Strategy.SOLO_CPU
        if size > ram * 0.9:
            continue
        device = "GPU-1" if strategy is Strategy.SOLO_GPU else "ram"
        speed = (400e9 if strategy is Strategy.SOLO_GPU else 30e9) / size
        uses = (MemoryUse(device, int(size * 1.1)),)
        offers.append(
            Offer(names[index], f"content-{names[index]}", strategy, 8192, 4, uses, speed)
        )
    running = tuple(
        Assignment(one.model, one.fingerprint, Stage.READY, 1, 8192, 4, one.memory)
        for one in offers[:1]
        if rng.random() < 0.2
    )
    rtt = rng.choice((0.2, 0.5, 2.0, 15.0, 40.0, 120.0))
    record = NodeRecord(
        f"node-{number:04}",
        name=f"box-{number}",
        addresses=(f"10.0.{number // 256}.{number % 256}:9338",),
        engine=ENGINE,
        devices=(
            DeviceRecord("GPU-1", "card", card, card, card, rng.randint(200, 900) * 10**9, 10**13),
            DeviceRecord("ram", "cpu", ram, ram, ram, rng.randint(20, 60) * 10**9, 10**11),
        ),
        wishes=tuple(Wish(name, f"{name}.gguf") for name in names),
        offers=tuple(offers),
        assignments=running,
        rtt=(RttRecord(ME, rtt, rtt, rtt),),
        network_bytes_s=10**9,
    )
    return MemberView(record.id, 1, Status.ALIVE, record)


def with_less_memory(member: MemberView, steps: int) -> MemberView:
    devices = tuple(
        replace(device, plannable_bytes=device.plannable_bytes - steps * 512 * MIB)
        for device in member.record.devices
    )
    return replace(member, record=replace(member.record, devices=devices))


def this_node(names: list[str], models: list[GgufFacts], members: list[MemberView]) -> NodeView:
    gpu = Gpu("GPU-1", Vendor.NVIDIA, "card", "0000:01:00.0", 24 * GIB, 23 * GIB)
    hardware = Hardware("box-0", Cpu("cpu", "x86_64", 8, 16), Ram(64 * GIB, 60 * GIB), (gpu,))
    return NodeView(
        ME,
        hardware,
        (gpu,),
        candidates=tuple(
            Candidate(name, facts, f"{name}:1", fingerprint=f"content-{name}")
            for name, facts in zip(names[:64], models, strict=False)
        ),
        name="box-0",
    )


if __name__ == "__main__":
    main()
