"""The nodes of a demo: several on one machine, each with folders and ports of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from meshd import paths as places
from meshd.cli.demo import node_process, tail
from meshd.config.split_ports import COUNT
from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.mesh.member_line import MemberLine
    from meshd.paths import Paths
    from meshd.status import NodeStatus

T = TypeVar("T")

NAMES = ("red", "green", "blue", "gold", "grey")
HEAL_DEADLINE_S = 60.0

_FIRST_PORT = 9337
# Of one node: the API, the door for other nodes, the console, and those of splits.
_PORTS_EACH = 3 + COUNT


@dataclass(slots=True)
class Box:
    name: str
    root: Path
    ports: tuple[int, ...]
    process: asyncio.subprocess.Process | None = None

    @property
    def paths(self) -> Paths:
        return places.under(self.root)

    @property
    def log(self) -> Path:
        return self.root / "meshd.log"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    async def members(self) -> tuple[MemberLine, ...]:
        from meshd.control import ControlClient

        return await ControlClient(self.paths.control_socket).members()

    async def status(self) -> NodeStatus:
        from meshd.control import ControlClient

        return await ControlClient(self.paths.control_socket).status()

    async def offers(self, model: str) -> bool:
        """Whether this node's gateway has the model ready."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.api}/v1/models/{model}") as response,
            ):
                return bool((await response.json())["mesh"]["state"] == "ready")
        except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
            return False

    @property
    def fell(self) -> bool:
        """It ended, and nobody killed it."""
        return self.process is not None and self.process.returncode is not None

    async def kill(self) -> None:
        """The brain and its gateway; its engines and guards end with them."""
        process, self.process = self.process, None
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def started(root: Path, count: int, models: str, node: str = "") -> AsyncIterator[list[Box]]:
    """So many nodes of one mesh, as long as the context.

    :param models: entries of the list in YAML. :param node: more of that section.
    :raises UserError: too many or too few, or no ports.
    """
    from meshd.engine.install import install

    if not 2 <= count <= len(NAMES):
        raise UserError(f"--nodes {count}: a demo has from 2 to {len(NAMES)} nodes")
    await asyncio.to_thread(install)
    boxes = _boxes(root, count, models, node)
    async with contextlib.AsyncExitStack() as stack:
        print(f"starting {', '.join(box.name for box in boxes)} on this machine", flush=True)
        for box in boxes:
            context = node_process(box.root, box.paths.config, box.log)
            box.process = await stack.enter_async_context(context)
        yield boxes


async def until(
    look: Callable[[], Awaitable[T | None]], boxes: Iterable[Box], deadline_s: float
) -> T:
    """The first answer. :raises UserError: with the logs' ends, when none came."""
    from meshd.control import NotRunningError

    boxes = tuple(boxes)
    last = time.monotonic() + deadline_s
    while time.monotonic() < last and not any(box.fell for box in boxes):
        with contextlib.suppress(NotRunningError, UserError):
            found = await look()
            if found:
                return found
        await asyncio.sleep(0.1)
    logs = "\n".join(f"{box.name}:\n{tail(box.log, 8)}" for box in boxes)
    raise UserError(f"the mesh did not come about within {deadline_s:.0f} s\n{logs}")


async def missed(box: Box, victim: Box) -> bool:
    members = await box.members()
    return not any(one.name == victim.name and one.status == "alive" for one in members)


async def gone(box: Box, victim: Box) -> tuple[MemberLine, ...] | None:
    members = await box.members()
    return members if all(member.name != victim.name for member in members) else None


async def print_members(box: Box) -> None:
    from meshd.cli.mesh import table

    for line in table(await box.members()):
        print(f"  {line}")


def _boxes(root: Path, count: int, models: str, node: str) -> list[Box]:
    from meshd.mesh.secret import new_secret, write_secret

    ports = _free_ports(count * _PORTS_EACH)
    secret = root / "secret"
    write_secret(secret, new_secret(), group=None)
    boxes = []
    for index, name in enumerate(NAMES[:count]):
        mine = tuple(ports[index * _PORTS_EACH : (index + 1) * _PORTS_EACH])
        box = Box(name, root / name, mine)
        box.paths.config.parent.mkdir(parents=True)
        api, door, console = (f"127.0.0.1:{port}" for port in mine[:3])
        more = f", {node}" if node else ""
        box.paths.config.write_text(
            f"models:\n{models}"
            f"node: {{name: {name}{more}}}\n"
            f'mesh: {{secret: "{secret}", listen: "{door}", peers: ["127.0.0.1:{ports[1]}"], '
            f"split_ports: {mine[3]}}}\n"
            f'gateway: {{listen: ["{api}"]}}\n'
            f'console: {{listen: "{console}"}}\n',
            "utf-8",
        )
        boxes.append(box)
    return boxes


def _free_ports(count: int) -> list[int]:
    """That many ports in a row, free for TCP and UDP. :raises UserError: there are none."""
    for first in range(_FIRST_PORT, 65536 - count, count):
        ports = list(range(first, first + count))
        if all(map(_free, ports)):
            return ports
    raise UserError(f"no {count} ports in a row are free from {_FIRST_PORT} on")


def _free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
