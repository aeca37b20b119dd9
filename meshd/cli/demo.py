"""`meshd demo`: a whole node in one terminal: engine, model, gateway, and one answer, streamed.

Nothing of it outlives the command. Exit code 0 only when a real completion came back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meshd import paths as places
from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.paths import Paths
    from meshd.status import NodeStatus

QUESTION = "What does the ls command do?"

_READY_DEADLINE_S = 120.0
_ANSWER_DEADLINE_S = 120.0


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("demo", help="a whole node in this terminal, with a chat answer")
    parser.add_argument("question", nargs="?", default=QUESTION, help="what to ask the model")
    parser.add_argument("--once", action="store_true", help="end after the answer")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="a mesh of 2 to 5 nodes; one is killed"
    )
    parser.add_argument(
        "--split", action="store_true", help="of 3 nodes or more: a model that is too big for each"
    )
    parser.add_argument(
        "--experts",
        action="store_true",
        help="of 2 nodes or more: a mixture of experts that is too big for each",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    once = arguments.once or not sys.stdin.isatty()
    # Sockets' paths are short, so the demo's folders lie in the temporary folder.
    root = Path(tempfile.mkdtemp(prefix="meshd-demo-"))
    config = arguments.paths.config
    if arguments.nodes != 1 or arguments.split or arguments.experts:
        from meshd.cli.demo_experts import experts_demo
        from meshd.cli.demo_mesh import mesh_demo
        from meshd.cli.demo_split import split_demo

        demo = mesh_demo
        if arguments.split or arguments.experts:
            demo = split_demo if arguments.split else experts_demo
        nodes = arguments.nodes if arguments.nodes != 1 else 3
        try:
            return asyncio.run(demo(root, nodes, arguments.question, once=once))
        finally:
            shutil.rmtree(root, ignore_errors=True)
    if config == places.SYSTEM.config:
        config = places.shipped_config()
    try:
        return asyncio.run(
            _demo(places.under(root, config=config), root, arguments.question, once=once)
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


async def _demo(paths: Paths, root: Path, question: str, *, once: bool) -> int:
    from meshd.engine.install import install

    await asyncio.to_thread(install)
    log_path = root / "meshd.log"
    async with node_process(root, paths.config, log_path) as process:
        status = await _ready(paths, process, log_path)
        base = f"http://{status.gateway[0]}"
        model = status.models[0].name
        print(f"\n> {question}\n")
        await stream_answer(base, model, question)
        _where(status, base, model, question)
        if not once:
            print("\nRunning until Ctrl-C.")
            await until_interrupted(process)
    return 0


@contextlib.asynccontextmanager
async def node_process(
    root: Path, config: Path, log_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A node that runs as long as the context, its log in `log_path`."""
    environment = dict(os.environ)
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "meshd.cli.main"),
            *("--root", str(root), "--config", str(config), "run"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(paths: Paths, process: asyncio.subprocess.Process, log_path: Path) -> NodeStatus:
    """Wait until the node serves. :raises UserError: with the log's end, when it does not."""
    from meshd.cli.wait import until_settled
    from meshd.control import ControlClient, NotRunningError

    client = ControlClient(paths.control_socket)
    deadline = asyncio.get_running_loop().time() + _READY_DEADLINE_S
    status = None
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            raise UserError(f"the node ended with {process.returncode}:\n{tail(log_path)}")
        with contextlib.suppress(NotRunningError):
            status = await until_settled(client, _READY_DEADLINE_S, progress=sys.stderr)
            if status.healthy and await _gateway_ready(status.gateway[0]):
                print(status.sentence)
                return status
            if status.degraded:
                break
        await asyncio.sleep(0.1)
    sentence = status.sentence if status else "it did not come up"
    raise UserError(f"the node does not serve: {sentence}\n{tail(log_path)}")


async def _gateway_ready(address: str) -> bool:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{address}/readyz") as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def stream_answer(
    base: str, model: str, question: str, *, session: str = ""
) -> Mapping[str, str]:
    """Print the answer as it comes; returns its head.

    :param session: id of the conversation, "" for none.
    :raises UserError: unless a real completion came back.
    """
    import aiohttp

    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": 96,
        "temperature": 0.2,
    }
    timeout = aiohttp.ClientTimeout(total=_ANSWER_DEADLINE_S)
    headers = {"X-Session-Id": session} if session else {}
    pieces = []
    done = False
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as client,
            client.post(f"{base}/v1/chat/completions", json=body) as response,
        ):
            head = response.headers.copy()
            if response.status != 200:
                raise UserError(f"the gateway answered {response.status}: {await response.text()}")
            async for line in response.content:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    done = True
                elif line.startswith(b"data: "):
                    piece = _piece(data)
                    pieces.append(piece)
                    print(piece, end="", flush=True)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UserError(f"the answer broke off: {error or 'it took too long'}") from error
    print()
    if not done or not "".join(pieces).strip():
        raise UserError("no real completion came back")
    return head


def _piece(data: bytes) -> str:
    event = json.loads(data)
    if "error" in event:
        raise UserError(f"the engine failed: {event['error']}")
    choices = event.get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def _where(status: NodeStatus, base: str, model: str, question: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]})
    print(f"\nOpenAI API  {base}/v1")
    if status.console:
        print(f"Console     http://{status.console}/")
    print(f"\ncurl {base}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")


async def until_interrupted(process: asyncio.subprocess.Process) -> None:
    """Wait for Ctrl-C. :raises UserError: the node ended before."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    ended = asyncio.create_task(process.wait())
    asked = asyncio.create_task(interrupted.wait())
    await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if ended.done():
        raise UserError(f"the node ended by itself with {process.returncode}")
    ended.cancel()


def tail(log_path: Path, lines: int = 15) -> str:
    """The end of a node's log, for a person who wonders."""
    return "\n".join(log_path.read_text("utf-8", "replace").splitlines()[-lines:])
