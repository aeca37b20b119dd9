"""One run of a tool of the engine, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.errors import UserError

_DEADLINE_S = 300.0


async def said(build: EngineBuild, tool: str, *words: str | Path) -> str:
    """Its standard output. :raises UserError: it failed, or took too long."""
    binary = build.binary(tool)
    if binary is None:
        raise UserError(f"this engine has no {tool}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_")}
    child = await asyncio.create_subprocess_exec(
        # The kernel ends it when we die.
        *("setpriv", "--pdeathsig", "KILL", "--", binary.path, *map(str, words)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            out, errors = await child.communicate()
    except TimeoutError as error:
        raise UserError(f"{tool} took more than {_DEADLINE_S:.0f} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{tool}: exit {child.returncode}: {' '.join(last)[:200]}")
    return out.decode(errors="replace")
