"""Several booted nodes on one bridge that make up a mesh."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

from meshd.mesh.secret import new_secret
from tests.lab import inside, mesh, network
from tests.lab.network import Network
from tests.lab.node import LabError, Node, wait

T = TypeVar("T")

SECRET = "/etc/mesh/secret"
# A handful of engines, each with as many busy threads as the machine has processors, would have
# tests wait for the scheduler. A brain that may run on one processor only gives its engine one
# thread; the engine itself may run anywhere.
# Nor do they measure how fast it is, all at once and in the middle of a test.
LEAN = "[Service]\nCPUAffinity={processor}\nEnvironment=MESHD_MEASURE_SPEED=never\n"
LEAN_FILE = "/etc/systemd/system/meshd.service.d/lean.conf"
MODELS = ("tiny", "small")


def config(
    peers: Sequence[str] = (),
    *,
    models: str | None = None,
    role: str = "auto",
    lan: bool = False,
    limit: str = "auto",
    more: str = "",
) -> str:
    """A configuration with two small models, each wanted once.

    :param models: other entries of the list. :param limit: of RAM. :param more: further lines.
    """
    return (
        "models:\n"
        + (model() + model("small") if models is None else models)
        + f"node:\n  role: {role}\n  reserve: {{ram: 64MiB}}\n  limit: {{ram: {limit}}}\n"
        + f"mesh:\n  peers: [{', '.join(peers)}]\n"
        + f"discovery:\n  lan: {str(lan).lower()}\n"
        # So that a replica too many is given back while a test can see it.
        + "demand:\n  dwell: 5s\n"
        + more
    )


SOURCES = {"tiny": "tiny.gguf", "small": "tiny-draft.gguf", "moe": "tiny-moe.gguf"}
CONTEXTS = {"tiny": 1024, "small": 512, "moe": 512}


def model(
    name: str = "tiny",
    *,
    replicas: int = 1,
    nodes: str = "auto",
    slots: int = 2,
    split: str = "auto",
) -> str:
    """One entry of `models`."""
    return (
        f"  - {{name: {name}, source: {SOURCES[name]}, context: {CONTEXTS[name]}, slots: {slots}, "
        f"replicas: {{min: {replicas}, max: {replicas}}}, nodes: {nodes}, split: {split}}}\n"
    )


class Cluster:
    """Booted nodes on one bridge.

    :ivar nodes: those of the mesh. :ivar strangers: those on the bridge that are none of it.
    """

    def __init__(self, ethernet: Network, nodes: Sequence[Node]) -> None:
        self.network = ethernet
        self.nodes = list(nodes)
        self.secret = new_secret()
        self.strangers: list[Node] = []
        self._ids: dict[str, str] = {}

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    # -- starting -------------------------------------------------------------------------------

    def configure(self, node: Node, text: str, *, secret: str | None = None) -> None:
        node.write(mesh.CONFIG, text)
        node.write(SECRET, (secret or self.secret) + "\n", mode=0o640, owner="root:_meshd")

    def start(self, texts: Mapping[str, str], *, settle: bool = True) -> None:
        """Configure all nodes (by name), start them at once, and wait until they agree."""

        def one(node: Node) -> None:
            self.configure(node, texts[node.name])
            node.systemctl("start", "mesh.target", timeout_s=120)

        at_once(one, self.nodes)
        if settle:
            self.settled()

    def alike(self, text: str | None = None) -> dict[str, str]:
        """One configuration for all; by default with the first two nodes as peers."""
        return dict.fromkeys((node.name for node in self.nodes), text or config(self.addresses[:2]))

    def wait_served(self, *models: str, by: Iterable[Node], timeout_s: float = 20) -> None:
        """Wait until each of these gateways answers for each of these models."""
        for node in by:
            for model in models:
                what = f"{model} through {node.name}"
                wait(partial(_answers, node, model), timeout_s, what)

    def put_right(self, texts: Mapping[str, str], *, models: Sequence[str] = MODELS) -> None:
        """Whatever the test before has done: every node is up, connected, configured so (by its
        name), and they agree.
        """
        for node in self.nodes:
            if not node.alive():
                node.power_lost()
                node.boot()
                self.network.plug_in(node)
            node.freeze(frozen=False)
            self.network.mend(node)
            network.drop_nothing(node)

        def one(node: Node) -> None:
            node.systemctl("start", "mesh.target", timeout_s=120)
            self.reconfigure(node, texts[node.name])

        at_once(one, self.nodes)
        self.settled(models=models)

    def reconfigure(self, node: Node, text: str) -> None:
        """Another configuration for one node, by a reload."""
        if node.read(mesh.CONFIG) != text:
            node.write(mesh.CONFIG, text)
            node.systemctl("reload-or-restart", "meshd", timeout_s=120)

    # -- looking --------------------------------------------------------------------------------

    def id(self, node: Node) -> str:
        """The id of a node, which never changes."""
        if node.name not in self._ids:

            def look() -> str:
                status = inside.control(node, "/v1/status") or {}
                return str((status.get("mesh") or {}).get("node", ""))

            found = wait(look, 30, f"the id of {node.name}")
            self._ids[node.name] = found
        return self._ids[node.name]

    def views(self, nodes: Iterable[Node] | None = None) -> dict[str, dict[str, str]]:
        """Of each node, the status of everybody that it knows, by name."""
        return {node.name: statuses(node) for node in nodes or self.nodes}

    def agreed(self, nodes: Iterable[Node] | None = None) -> bool:
        """Whether each of these sees exactly these, all alive, serving the same models."""
        nodes = list(nodes or self.nodes)
        wanted = {node.name: "alive" for node in nodes}
        pictures = [serving(node) for node in nodes]
        return all(statuses(node) == wanted for node in nodes) and all(
            picture == pictures[0] for picture in pictures
        )

    def settled(
        self,
        nodes: Iterable[Node] | None = None,
        *,
        models: Sequence[str] = MODELS,
        timeout_s: float = 60,
    ) -> None:
        """Wait until these nodes see exactly each other and each model is served."""
        nodes = list(nodes or self.nodes)

        def all_well() -> bool:
            if not self.agreed(nodes):
                return False
            served = set().union(*serving(nodes[0]).values())
            return served >= set(models)

        try:
            wait(all_well, timeout_s, "a mesh that agrees", every_s=0.1)
        except LabError as error:
            raise LabError(f"{error}\n{self.picture(nodes)}") from None

    def picture(self, nodes: Iterable[Node] | None = None) -> str:
        """What each node thinks, for a failure's report."""
        lines = []
        for node in nodes or self.nodes:
            status = inside.control(node, "/v1/status") or {}
            said = {key: status.get(key) for key in ("sentence", "degraded", "mesh")}
            lines.append(f"{node.name}: {statuses(node)} {serving(node)} {json.dumps(said)}")
        return "\n".join(lines)

    def where(self, name: str, seen_by: Node | None = None) -> list[Node]:
        """The nodes that serve a model, as one of them says."""
        told = serving(seen_by or self.nodes[0])
        return [self[node] for node, models in told.items() if name in models]

    def engines(self, nodes: Iterable[Node] | None = None) -> dict[tuple[str, str], int]:
        """The process of every engine that runs, by node and model, whatever the mesh says."""
        found = {}
        for node in nodes or self.nodes:
            listed = node.systemctl("list-units", "--plain", "--no-legend", "mesh-llama@*").stdout
            for line in listed.splitlines():
                unit = line.split()[0]
                if pid := node.main_pid(unit):
                    found[node.name, unit.removeprefix("mesh-llama@").removesuffix(".service")] = (
                        pid
                    )
        return found


def _answers(node: Node, model: str) -> bool:
    return inside.chat(node, model).good


def members(node: Node) -> list[dict[str, Any]]:
    """`meshd mesh members` of a node; nothing while its brain does not answer."""
    return inside.control(node, "/v1/mesh/members") or []


def statuses(node: Node) -> dict[str, str]:
    return {one["name"] or one["id"]: one["status"] for one in members(node)}


def serving(node: Node) -> dict[str, frozenset[str]]:
    """The models that each node serves, as this one knows it."""
    return {one["name"] or one["id"]: frozenset(one["models"]) for one in members(node)}


def at_once(work: Callable[[Node], T], nodes: Iterable[Node]) -> list[T]:
    """Do this on all nodes at the same time."""
    nodes = list(nodes)
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        return list(pool.map(work, nodes))


@contextlib.contextmanager
def booted(names: Sequence[str], lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    """Nodes on one bridge, booted side by side; nothing of meshd's runs on them."""
    with network.bridge() as ethernet, contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(ethernet.booting(name, lowerdir, scratch)) for name in names]
        for node, processor in zip(nodes, cycle(os.sched_getaffinity(0)), strict=False):
            node.await_boot()
            ethernet.plug_in(node)
            node.write(LEAN_FILE, LEAN.format(processor=processor))
            node.systemctl("daemon-reload")
        yield Cluster(ethernet, nodes)


def interface(node: Node) -> dict[str, int]:
    """Bytes and packets that a node has sent and received on the mesh's network."""
    shown = node.run(["ip", "-s", "-j", "link", "show", network.INTERFACE], check=True).stdout
    stats = json.loads(shown)[0]["stats64"]
    return {
        f"{way}_{what}": stats[way][what] for way in ("rx", "tx") for what in ("bytes", "packets")
    }


def cpu_s(node: Node, unit: str) -> float:
    """CPU time that the main process of a unit has had so far, in seconds."""
    pid = node.main_pid(unit)
    fields = Path(f"/proc/{node.pid}/root/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
