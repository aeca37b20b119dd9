"""`meshd demo --nodes 3`: a mesh on one machine. Two models on different nodes behind one endpoint;
then one node is killed, and the others take over what it served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from meshd import paths as places
from meshd.cli.demo import node_process, stream_answer, tail, until_interrupted
from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.mesh.member_line import MemberLine
    from meshd.paths import Paths
    from meshd.status import NodeStatus

T = TypeVar("T")

NAMES = ("red", "green", "blue", "gold", "grey")
MODELS = (("tiny", "tiny.gguf"), ("tiny-moe", "tiny-moe.gguf"))

_UP_DEADLINE_S = 120.0
_HEAL_DEADLINE_S = 60.0
_FIRST_PORT = 9337
# Of one node: the API, the door for other nodes, the console.
_PORTS_EACH = 3


@dataclass(slots=True)
class _Box:
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

    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None


async def mesh_demo(root: Path, count: int, question: str, *, once: bool) -> int:
    """:raises UserError: anything went otherwise than shown."""
    from meshd.engine.install import install

    if not 2 <= count <= len(NAMES):
        raise UserError(f"--nodes {count}: a demo has from 2 to {len(NAMES)} nodes")
    await asyncio.to_thread(install)
    boxes = _boxes(root, count)
    async with contextlib.AsyncExitStack() as stack:
        started_s = time.monotonic()
        print(f"starting {', '.join(box.name for box in boxes)} on this machine", flush=True)
        for box in boxes:
            context = node_process(box.root, box.paths.config, box.log)
            box.process = await stack.enter_async_context(context)
        members = await _until(lambda: _all_served(boxes[0], count), boxes, _UP_DEADLINE_S)
        print(f"one mesh after {time.monotonic() - started_s:.1f} s\n")
        _print_members(members)
        asked = boxes[0]
        for model, _ in MODELS:
            await _ask(asked, members, model, question)
        await _kill_and_heal(boxes, members, question)
        if not once:
            print(f"\nOpenAI API  {asked.api}/v1\nRunning until Ctrl-C.")
            assert asked.process is not None
            await until_interrupted(asked.process)
    return 0


async def _kill_and_heal(boxes: list[_Box], members: tuple[MemberLine, ...], question: str) -> None:
    """Kill a node that serves and is not the one we ask; wait until its model is served again."""
    asked = boxes[0]
    victim, model = _victim(boxes, members)
    assert victim.process is not None
    print(f"\nkill -9 {victim.name}, which serves {model}")
    killed_s = time.monotonic()
    # The brain and its gateway; its engine ends with it.
    os.killpg(victim.process.pid, signal.SIGKILL)
    await victim.process.wait()

    def say(what: str) -> None:
        print(f"  {time.monotonic() - killed_s:4.1f} s  {what}", flush=True)

    await _until(lambda: _missed(asked, victim), boxes, _HEAL_DEADLINE_S)
    say(f"{victim.name} is missed: nobody asks it any more")
    members = await _until(lambda: _gone(asked, victim), boxes, _HEAL_DEADLINE_S)
    say(f"{victim.name} is dead: {model} is placed anew")
    members = await _until(lambda: _served_by(asked, model), boxes, _HEAL_DEADLINE_S)
    say(f"{_at(members, model)} serves {model}")
    await _ask(asked, members, model, question)
    print()
    _print_members(await _members(asked))


async def _ask(asked: _Box, members: tuple[MemberLine, ...], model: str, question: str) -> None:
    print(f"\n> {question}   ({model}, asked at {asked.name}, answered by {_at(members, model)})\n")
    await stream_answer(asked.api, model, question)


def _boxes(root: Path, count: int) -> list[_Box]:
    from meshd.mesh.secret import new_secret, write_secret

    ports = _free_ports(count * _PORTS_EACH)
    secret = root / "secret"
    write_secret(secret, new_secret(), group=None)
    boxes = []
    for index, name in enumerate(NAMES[:count]):
        mine = tuple(ports[index * _PORTS_EACH : (index + 1) * _PORTS_EACH])
        box = _Box(name, root / name, mine)
        box.paths.config.parent.mkdir(parents=True)
        box.paths.config.write_text(_config(name, mine, ports[1], secret), "utf-8")
        boxes.append(box)
    return boxes


def _config(name: str, ports: tuple[int, ...], first: int, secret: Path) -> str:
    models = "".join(f"  - {{name: {model}, source: {file}}}\n" for model, file in MODELS)
    api, door, console = (f"127.0.0.1:{port}" for port in ports)
    return (
        f"models:\n{models}"
        f"node: {{name: {name}}}\n"
        f'mesh: {{secret: "{secret}", listen: "{door}", peers: ["127.0.0.1:{first}"]}}\n'
        f'gateway: {{listen: ["{api}"]}}\n'
        f'console: {{listen: "{console}"}}\n'
    )


def _free_ports(count: int) -> list[int]:
    """That many ports in a row, free for TCP and UDP. :raises UserError: there are none."""
    for first in range(_FIRST_PORT, _FIRST_PORT + 100 * count, count):
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


async def _until(
    look: Callable[[], Awaitable[T | None]], boxes: Iterable[_Box], deadline_s: float
) -> T:
    """The first answer. :raises UserError: with the logs' ends, when none came."""
    from meshd.control import NotRunningError

    last = time.monotonic() + deadline_s
    while time.monotonic() < last:
        with contextlib.suppress(NotRunningError, UserError):
            found = await look()
            if found:
                return found
        await asyncio.sleep(0.1)
    logs = "\n".join(f"{box.name}:\n{tail(box.log, 8)}" for box in boxes)
    raise UserError(f"the mesh did not come about within {deadline_s:.0f} s\n{logs}")


async def _members(box: _Box) -> tuple[MemberLine, ...]:
    from meshd.control import ControlClient

    return await ControlClient(box.paths.control_socket).members()


async def _status(box: _Box) -> NodeStatus:
    from meshd.control import ControlClient

    return await ControlClient(box.paths.control_socket).status()


async def _all_served(box: _Box, count: int) -> tuple[MemberLine, ...] | None:
    members = await _members(box)
    served = {model for member in members for model in member.models}
    there = len(members) == count and served >= {model for model, _ in MODELS}
    for model, _ in MODELS:
        there = there and await _offered(box, model)
    return members if there and (await _status(box)).healthy else None


async def _missed(box: _Box, victim: _Box) -> bool:
    return not any(one.name == victim.name and one.status == "alive" for one in await _members(box))


async def _gone(box: _Box, victim: _Box) -> tuple[MemberLine, ...] | None:
    members = await _members(box)
    return members if all(member.name != victim.name for member in members) else None


async def _served_by(box: _Box, model: str) -> tuple[MemberLine, ...] | None:
    """Whether somebody serves it and this node's gateway knows."""
    members = await _members(box)
    there = any(model in member.models for member in members)
    return members if there and await _offered(box, model) else None


async def _offered(box: _Box, model: str) -> bool:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{box.api}/v1/models/{model}") as response,
        ):
            return bool((await response.json())["mesh"]["state"] == "ready")
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
        return False


def _victim(boxes: list[_Box], members: tuple[MemberLine, ...]) -> tuple[_Box, str]:
    for member in members:
        box = next((box for box in boxes[1:] if box.name == member.name), None)
        if box is not None and member.models:
            return box, member.models[0]
    raise UserError("only the node that is asked serves anything: nothing to show")


def _at(members: tuple[MemberLine, ...], model: str) -> str:
    return " and ".join(member.name for member in members if model in member.models)


def _print_members(members: tuple[MemberLine, ...]) -> None:
    from meshd.cli.mesh import table

    for line in table(members):
        print(f"  {line}", file=sys.stdout)
