"""The gateway as a child process, for a node without systemd."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence

import structlog

from meshd.paths import Paths

_log = structlog.get_logger(__name__)

_RESTART_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_STOP_DEADLINE_S = 25.0


class GatewayChild:
    """Keeps one `meshd gateway` running with the addresses last asked for."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._listen: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None

    async def listen(self, addresses: Sequence[str]) -> None:
        if tuple(addresses) == self._listen and self._task and not self._task.done():
            return
        await self.close()
        self._listen = tuple(addresses)
        if self._listen:
            self._task = asyncio.create_task(self._keep(), name="gateway child")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep(self) -> None:
        starts = 0
        while True:
            process = await self._start()
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _stop(process)
                raise
            delay_s = _RESTART_DELAYS_S[min(starts, len(_RESTART_DELAYS_S) - 1)]
            _log.error("the gateway ended, starting it again", exit_code=code, delay_s=delay_s)
            starts += 1
            await asyncio.sleep(delay_s)

    async def _start(self) -> asyncio.subprocess.Process:
        arguments = [sys.executable, "-m", "meshd.cli.main", "gateway"]
        arguments += ["--routes", str(self._paths.routes)]
        for address in self._listen:
            arguments += ["--listen", address]
        # Should we be killed, it must not stay behind and hold the port.
        return await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "TERM", "--", *arguments, stdin=asyncio.subprocess.DEVNULL
        )


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_DEADLINE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
