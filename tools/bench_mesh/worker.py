"""One node of the benchmark: a real `MeshSession`, told what to do by JSON lines.

Reads its options from the command line and commands from standard input: ``{"start": 1}``,
``{"mark": n}``, ``{"pause": {"for_s": ..., "every_s": ...}}``, ``{"leave": 1}``. Writes
``{"ready": bytes of its record}``, ``{"started": at}``, and for what changes in its view
``{"at": ..., "seen": [[name, status, mark], ...]}``; times are CLOCK_MONOTONIC in seconds, which
all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from meshd.config.settings import MeshSettings
from meshd.mesh.credentials import from_secret, write_tls
from meshd.mesh.identity import identity
from meshd.mesh.record_codec import encode_record
from meshd.mesh.session import MeshSession
from meshd.mesh.view import MeshView
from tools.bench_mesh.sample_record import mark_of, sample_record


class Teller:
    """Writes what is new in the view, and nothing else: an idle worker writes nothing."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int]] = {}

    def tell(self, view: MeshView) -> None:
        now = {
            member.record.name: (str(member.status), mark_of(member.record))
            for member in view.members
            if member.record.name
        }
        new = [[name, *seen] for name, seen in now.items() if self._told.get(name) != seen]
        new += [[name, "gone", -1] for name in self._told if name not in now]
        self._told = now
        if new:
            say(at=time.monotonic(), seen=new)


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


async def main() -> None:
    options = json.loads(sys.argv[1])
    folder = Path(options["folder"])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.contextvars.bind_contextvars(me=options["name"])
    settings = MeshSettings(
        listen=options["listen"], advertise=(options["listen"],), peers=tuple(options["peers"])
    )
    held = from_secret(identity(folder), options["secret"].encode(), settings.name)
    tls = folder / "tls"
    write_tls(held, tls, datetime.now(UTC))
    teller = Teller()
    session = MeshSession(
        held, settings, folder, tls, on_change=lambda: teller.tell(session.view())
    )

    def record(mark: int) -> Any:
        return sample_record(held.node_id, options["name"], (options["listen"],), mark)

    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb")
    )
    say(ready=len(encode_record(record(0))))
    pausing: asyncio.Task[None] | None = None
    while line := await reader.readline():
        command = json.loads(line)
        if "start" in command:
            say(started=time.monotonic())
            await session.start()
            session.publish(record(0))
            teller.tell(session.view())
        if "mark" in command:
            session.publish(record(command["mark"]))
        if "pause" in command:
            if pausing is not None:
                pausing.cancel()
            pausing = asyncio.create_task(_pause(**command["pause"]))
        if "leave" in command:
            break
    await session.close(None)


async def _pause(*, for_s: float, every_s: float) -> None:
    """Hold the event loop up, as a long call in somebody's extension would."""
    while for_s > 0:
        await asyncio.sleep(every_s * random.uniform(0.5, 1.5))
        time.sleep(for_s)  # noqa: ASYNC251 -- a held-up event loop is what is wanted


if __name__ == "__main__":
    asyncio.run(main())
