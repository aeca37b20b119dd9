"""What the guards do, less TLS and the watch: the same flows between plain sockets."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from meshd.gateway.listen import Address
from meshd.guard.serve import listening
from meshd.guard.splice import Flow
from meshd.guard.wire import Wire, accept, connect


async def relay(port: int, target: int) -> None:
    listener = listening(Address("127.0.0.1", port))
    tasks = set()
    while True:
        here = Wire(await accept(listener))
        task = asyncio.create_task(_carry(here, Address("127.0.0.1", target)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _carry(here: Wire, target: Address) -> None:
    there = await connect(target)
    ended = asyncio.Event()
    flows = [
        Flow(
            source.socket,
            sink.socket,
            lambda data, now_s: 1,
            lambda: False,
            lambda whose, why: ended.set(),
            lambda now_s: None,
        )
        for source, sink in ((here, there), (there, here))
    ]
    for flow in flows:
        flow.start()
    await ended.wait()
    for flow in flows:
        flow.stop()
    here.close()
    there.close()


if __name__ == "__main__":
    uvloop.run(relay(int(sys.argv[1]), int(sys.argv[2])))
