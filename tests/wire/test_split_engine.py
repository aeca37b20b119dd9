"""What a split's specs really make of llama-server and rpc-server: layers where they were meant."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest

from meshd import paths as folders
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import Place
from meshd.mesh.record import Part
from meshd.models.gguf_facts import read_facts
from meshd.node.inventory import Cpu, Hardware, Ram
from meshd.paths import Paths
from meshd.planner.kv import ContextSettings
from meshd.planner.lent import Lent
from meshd.planner.memory import estimate
from meshd.planner.placement import HOST as HOST_RAM
from meshd.planner.placement import pipeline
from meshd.planner.plan import Decision, DeviceUse, Link, Strategy
from meshd.units.llama import llama_spec
from meshd.units.process import ProcessApplier, log_path
from meshd.units.render import render_dropin
from meshd.units.rpc import rpc_spec
from meshd.units.spec import Desired, EngineKind, EngineSpec
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import write

GIB = 1 << 30
MIB = 1 << 20
ROUNDING_BYTES = MIB // 20
DEADLINE_S = 60.0
MACHINE = Hardware("box", Cpu("cpu", "x86_64", 1, 1), Ram(8 * GIB, 8 * GIB), ())
HOST, ONE, TWO = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"
PROMPTS = ("The little dog", "Once upon a time there was", "One day, Tom and")


@pytest.fixture(scope="module")
def build(engine: Place) -> EngineBuild:
    return describe(engine)


@pytest.fixture
def paths() -> Iterator[Paths]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        yield folders.under(Path(folder))


@pytest.fixture
async def applier(paths: Paths) -> AsyncIterator[ProcessApplier]:
    applier = ProcessApplier(paths, text=render_dropin)
    yield applier
    await applier.close()


@pytest.fixture(scope="module")
def tiny() -> Path:
    path = folders.shipped("models", "tiny.gguf")
    if not path.exists():
        pytest.skip("tiny.gguf is not shipped here")
    return path


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is a tensor of its own; all of it is zeros."""
    shape = next(shape for shape in MODELS if shape.name == "qwen3-8b")
    shape = replace(shape, name="untied", layers=6, vocabulary=4096, width=512, ff=1024)
    return write(shape, tmp_path_factory.mktemp("models"))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What llama-server says of a load: a device for each layer, the output layer's last, and the
    bytes of weights on each; ``here`` those in its own memory.
    """

    layers: tuple[str, ...]
    weights: dict[str, int]
    here: int


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def decision(parts: Sequence[Part], ports: Sequence[int] = ()) -> Decision:
    nodes = dict.fromkeys(part.node for part in parts if part.node != HOST)
    links = [Link(node, "127.0.0.1", port) for node, port in zip(nodes, ports, strict=True)]
    return Decision(
        model="tiny",
        strategy=Strategy.PIPELINE if parts else Strategy.SOLO_CPU,
        node=HOST,
        context=512,
        slots=1,
        memory=(DeviceUse("ram", GIB, 0, 0),),
        parts=tuple(parts),
        term=3,
        links=tuple(links),
    )


def lent_spec(
    node: str, parts: Sequence[Part], port: int, build: EngineBuild, paths: Paths
) -> EngineSpec:
    """The rpc-server of one member; a device that is no RAM is the processor once more."""
    ram = tuple(part for part in parts if part.device == "ram") or (
        replace(parts[0], device="ram"),
    )
    lent = Lent(f"tiny.{node[:8]}", "tiny", "f", HOST, 3, ram[:1], 0, 1, port)
    spec = rpc_spec(lent, build, MACHINE, paths)
    devices = ",".join("CPU" for _ in parts)
    place = spec.argv.index("--device") + 1
    return replace(spec, argv=(*spec.argv[:place], devices, *spec.argv[place + 1 :]))


async def start(
    applier: ProcessApplier, model: Path, parts: Sequence[Part], build: EngineBuild, paths: Paths
) -> None:
    """Returns when the model answers."""
    nodes = tuple(dict.fromkeys(part.node for part in parts if part.node != HOST))
    ports = free_ports(len(nodes))
    chosen = decision(parts, ports)
    engine = llama_spec(chosen, read_facts(model), build, MACHINE, paths)
    engine = replace(engine, argv=(*engine.argv, "--log-verbosity", "9"))
    lent = [
        lent_spec(node, [part for part in parts if part.node == node], port, build, paths)
        for node, port in zip(nodes, ports, strict=True)
    ]
    paths.rpc_cache.joinpath("rpc").mkdir(parents=True)
    outcome = await applier.apply(Desired(1, (engine, *lent)))
    assert outcome.errors == ()
    async with asyncio.timeout(DEADLINE_S), session(paths) as http:
        while True:
            # An engine that came before its rpc-servers listened is started again.
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get("http://engine/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


def session(paths: Paths) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(paths.engine_socket("tiny"))))


async def texts(paths: Paths) -> list[str]:
    said = []
    async with session(paths) as http:
        for prompt in PROMPTS:
            body = {"prompt": prompt, "n_predict": 40, "temperature": 0, "ignore_eos": True}
            async with http.post("http://engine/completion", json=body) as answer:
                said.append((await answer.json())["content"])
    return said


def loaded(paths: Paths) -> Loaded:
    """Of the last load: there may have been one that was too early."""
    log = log_path(paths, EngineKind.LLAMA, "tiny").read_text(errors="replace")
    log = log[log.rindex("loading model tensors") :]
    found = re.findall(r"layer +(\d+) assigned to device (\w+)", log)
    assert [int(number) for number, _ in found] == list(range(len(found)))
    weights: dict[str, int] = {}
    here = 0
    for place, size in re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", log):
        if place.startswith("RPC"):
            weights[place] = weights.get(place, 0) + int(float(size) * MIB)
        else:
            here += int(float(size) * MIB)
    return Loaded(tuple(device for _, device in found), weights, here)


SPLITS = {
    "one member": (Part(HOST, "ram", 2, 0), Part(ONE, "ram", 4, 0)),
    "all layers lent": (Part(ONE, "ram", 6, 0),),
    "two members": (Part(HOST, "ram", 1, 0), Part(ONE, "ram", 1, 0), Part(TWO, "ram", 4, 0)),
    "a member with two devices": (
        Part(HOST, "ram", 1, 0),
        Part(ONE, "gpu", 2, 0),
        Part(TWO, "ram", 1, 0),
        Part(ONE, "ram", 2, 0),
    ),
}
DEVICES = {
    "one member": ["RPC0"],
    "all layers lent": ["RPC0"],
    "two members": ["RPC0", "RPC1"],
    "a member with two devices": ["RPC0", "RPC2", "RPC1"],
}


@pytest.mark.parametrize("which", SPLITS)
@pytest.mark.parametrize("model", ["tiny", "untied"])
async def test_layers_lie_where_they_were_meant(
    which: str,
    model: str,
    applier: ProcessApplier,
    build: EngineBuild,
    paths: Paths,
    request: pytest.FixtureRequest,
) -> None:
    path: Path = request.getfixturevalue(model)
    parts = SPLITS[which]
    await start(applier, path, parts, build, paths)
    seen = loaded(paths)
    lent = [part for part in parts if part.node != HOST]
    own = 6 - sum(part.layers for part in lent)
    expected = ["CPU"] * own
    for part, name in zip(lent, DEVICES[which], strict=True):
        expected += [name] * part.layers
    # To the engine the output layer is the last device's, but for the override.
    assert seen.layers == (*expected, DEVICES[which][-1])
    facts = read_facts(path)
    placed = pipeline(
        facts,
        own,
        [(name, part.layers) for part, name in zip(lent, DEVICES[which], strict=True)],
        output=HOST_RAM,
    )
    ours = {one.device: one for one in estimate(facts, placed, ContextSettings(512))}
    assert sorted(seen.weights.values()) == pytest.approx(
        sorted(ours[name].weights_bytes for name in DEVICES[which]), abs=ROUNDING_BYTES
    )
    # Layers in RAM may be held twice: mapped, and laid out for the processor's instructions.
    assert seen.here >= ours[HOST_RAM].weights_bytes - ROUNDING_BYTES


async def test_a_split_says_what_a_whole_model_says(
    tiny: Path, applier: ProcessApplier, build: EngineBuild, paths: Paths
) -> None:
    await start(applier, tiny, SPLITS["two members"], build, paths)
    split = await texts(paths)
    await applier.close()
    paths.rpc_cache.joinpath("rpc").rmdir()
    await start(applier, tiny, (), build, paths)
    assert loaded(paths).layers == ("CPU",) * 7
    assert split == await texts(paths)
    assert len(set(split)) == len(PROMPTS)
