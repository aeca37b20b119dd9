"""One node of a mesh in a process of its own, for tests: says what it sees, does what it is told.

Reads one JSON object from its command line. Writes a JSON line whenever its view changes, and for
every command that it reads: ``{"publish": name}``, ``{"revoke": id}``, ``{"hang": seconds}``,
``{"doubt": id}``, ``{"close": seconds or null}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog

from meshd.config.settings import Core, MeshSettings, Preset
from meshd.mesh import identity
from meshd.mesh.credentials import from_secret, write_tls
from meshd.mesh.record import NodeRecord
from meshd.mesh.session import MeshSession


async def main() -> None:
    options = json.loads(sys.argv[1])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.contextvars.bind_contextvars(me=options["name"])
    folder = Path(options["folder"])
    settings = MeshSettings(
        listen=options["listen"],
        advertise=tuple(options["advertise"]) if options.get("advertise") else "auto",
        peers=tuple(options.get("peers", ())),
        core=Core(options.get("core", "auto")),
        preset=Preset(options.get("preset", "lan")),
    )
    held = from_secret(identity.identity(folder), options["secret"].encode(), settings.name)
    tls = folder / "tls"
    write_tls(held, tls, datetime.now(UTC))
    session = MeshSession(
        held, settings, folder, tls, on_change=lambda: say(), lan=options.get("lan", False)
    )

    def say() -> None:
        view = session.view()
        line = {
            "at": time.monotonic(),
            "id": held.node_id,
            "core": session.core,
            "problem": session.problem,
            "revoked": sorted(session.revoked),
            "incarnation": {m.id: m.incarnation for m in view.members},
            "members": {m.id: [m.record.name, str(m.status), m.record.core] for m in view.members},
        }
        print(json.dumps(line), flush=True)

    await session.start()
    record = NodeRecord(id=held.node_id, name=options.get("name", ""))
    session.publish(record)
    say()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb")
    )
    back_in_s: float | None = None
    while line := await reader.readline():
        command = json.loads(line)
        if "publish" in command:
            session.publish(NodeRecord(id=held.node_id, name=command["publish"]))
        if "revoke" in command:
            session.revoke(command["revoke"])
        if "doubt" in command:
            session.doubt(command["doubt"])
        if "hang" in command:
            time.sleep(command["hang"])  # noqa: ASYNC251 -- a hung event loop is what is wanted
        if "close" in command:
            back_in_s = command["close"]
            break
        say()
    await session.close(back_in_s)


if __name__ == "__main__":
    asyncio.run(main())
