"""The status API of a node, on loopback unless the configuration says otherwise: read only."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from meshd.console.page import PAGE
from meshd.errors import UserError
from meshd.status import NodeStatus


class ConsoleServer:
    """Serves `/`, `/api/status` and `/healthz` where `listen` last said."""

    def __init__(self, status: Callable[[], NodeStatus]) -> None:
        self._status = status
        self._listen = ""
        self._runner: web.AppRunner | None = None

    async def listen(self, address: str) -> None:
        """Move to `address` (``host:port``), or stop for "".

        :raises UserError: when the address cannot be bound; the server is then off.
        """
        if address == self._listen:
            return
        await self.close()
        if not address:
            return
        host, _, port = address.rpartition(":")
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port), reuse_address=True).start()
        except OSError as error:
            await runner.cleanup()
            raise UserError(
                f"console.listen: cannot listen on {address}: {error.strerror}",
                hint=f"ss -ltnp 'sport = :{port}' shows who does",
            ) from error
        self._runner, self._listen = runner, address

    async def close(self) -> None:
        runner, self._runner, self._listen = self._runner, None, ""
        if runner:
            await runner.cleanup()

    def _application(self) -> web.Application:
        async def status(_: web.Request) -> web.Response:
            try:
                body = msgspec.json.encode(self._status())
            except UserError as error:
                return web.json_response({"error": str(error)}, status=503)
            return web.Response(body=body, content_type="application/json")

        async def page(_: web.Request) -> web.Response:
            return web.Response(text=PAGE, content_type="text/html")

        async def alive(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        app = web.Application()
        app.add_routes(
            [web.get("/", page), web.get("/api/status", status), web.get("/healthz", alive)]
        )
        return app
