"""`meshd drain`: let this node finish what it has and take nothing new, before it is switched off.

Exit code 0 when it is drained or on its way there, 3 when `--wait` saw answers cut off.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from meshd.control import ControlClient
    from meshd.status import DrainStatus, NodeStatus

_POLL_S = 0.5
# Beyond the deadline: for the engines to stop.
_GRACE_S = 60.0


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "drain",
        help="end what runs here and take nothing new; others take over",
        description="This node takes no new requests, other nodes take over its models, running "
        "answers end, and then its engines stop. It lasts until --undo or a boot.",
    )
    parser.add_argument(
        "--deadline",
        default="5min",
        metavar="TIME",
        help="how long running answers get, as 30s or 5min (default: 5min)",
    )
    parser.add_argument("--wait", action="store_true", help="return when all engines have stopped")
    parser.add_argument("--undo", action="store_true", help="serve again")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd.config.durations import parse_duration
    from meshd.control import ControlClient
    from meshd.errors import UserError

    client = ControlClient(arguments.paths.control_socket)
    if arguments.undo:
        status = asyncio.run(client.undrain())
        print(f"{status.node} serves again: {status.sentence}")
        return 0
    try:
        deadline_s = parse_duration(arguments.deadline)
    except ValueError as error:
        raise UserError(f"--deadline: {error}", hint="30s, 5min or 2h") from None
    return asyncio.run(_drain(client, deadline_s, wait=arguments.wait, progress=sys.stderr))


async def _drain(client: ControlClient, deadline_s: float, *, wait: bool, progress: TextIO) -> int:
    started_s = time.monotonic()
    status = await client.drain(deadline_s)
    if wait:
        status = await _until_done(client, status, started_s + deadline_s + _GRACE_S, progress)
    drain = status.drain
    if drain is None:
        print(f"{status.node} is not drained any more: somebody ended that")
        return 3
    print("\n".join(_lines(status, drain, time.monotonic() - started_s)))
    return 3 if wait and (drain.cut or not drain.done) else 0


async def _until_done(
    client: ControlClient, status: NodeStatus, until_s: float, progress: TextIO
) -> NodeStatus:
    show = progress.isatty()
    while (drain := status.drain) is not None and not drain.done and time.monotonic() < until_s:
        if show:
            progress.write(f"\r\x1b[K{drain.left_s:4.0f} s left  {_progress(drain)}"[:100])
            progress.flush()
        await asyncio.sleep(_POLL_S)
        status = await client.status()
    if show:
        progress.write("\r\x1b[K")
        progress.flush()
    return status


def _progress(drain: DrainStatus) -> str:
    busy = ", ".join(f"{model} {count}" for model, count in sorted(drain.running.items()))
    return f"running: {busy}" if busy else f"engines left: {', '.join(drain.engines)}"


def _lines(status: NodeStatus, drain: DrainStatus, took_s: float) -> Iterator[str]:
    if drain.done:
        cut = "every answer ended by itself"
        if drain.cut:
            cut = f"{drain.cut} {'answer was' if drain.cut == 1 else 'answers were'} cut off"
        yield f"{status.node} is drained after {took_s:.0f} s: {cut}"
    else:
        yield f"{status.node} is {drain.words}; {drain.left_s:.0f} s left ({_progress(drain)})"
    for model in status.models:
        where = f"served by {', '.join(model.nodes)}" if model.nodes else str(model.state)
        yield f"model    {model.name}: {where}"
        if model.detail and not model.nodes:
            yield f"         {model.detail}"
    yield "end this with: meshd drain --undo"
