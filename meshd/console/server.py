"""The status API of a node, on loopback unless the configuration says otherwise: read only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from aiohttp import web

from meshd.console.page import PAGE
from meshd.errors import UserError
from meshd.host_check import HostCheck, machine_names
from meshd.status import NodeStatus

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ConsoleServer:
    """Serves `/`, `/api/status`, `/metrics` and `/healthz` where `listen` last said.

    :param metrics: the page for a scraper that accepts so, and its content type.
    """

    def __init__(
        self,
        status: Callable[[], NodeStatus],
        metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
    ) -> None:
        self._status = status
        self._metrics = metrics
        self._listen = ""
        self._hosts: frozenset[str] | None = None
        self._check = HostCheck(())
        self._runner: web.AppRunner | None = None

    async def listen(self, address: str, hosts: Iterable[str] = ()) -> None:
        """Move to `address` (``host:port``), or stop for "".

        :param hosts: names of this machine beside its own, see `meshd.host_check`.

        :raises UserError: when the address cannot be bound; the server is then off.
        """
        names = frozenset(hosts)
        if names != self._hosts:
            self._hosts = names
            own = await asyncio.to_thread(machine_names)
            self._check = HostCheck(own | names)
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

        async def metrics(request: web.Request) -> web.Response:
            try:
                body, kind = await self._metrics(request.headers.get("Accept", ""))
            except UserError as error:
                return web.json_response({"error": str(error)}, status=503)
            return web.Response(body=body, headers={"Content-Type": kind})

        async def page(_: web.Request) -> web.Response:
            return web.Response(text=PAGE, content_type="text/html")

        async def alive(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        @web.middleware
        async def known_host(request: web.Request, handler: Handler) -> web.StreamResponse:
            # Read only as it is, it tells of a house; a page elsewhere must not read it.
            host = request.headers.get("Host", "")
            if self._check.fits(host):
                return await handler(request)
            words = f"{host[:200]!r} is none of this machine's names (gateway.hosts in mesh.yaml)"
            return web.json_response({"error": words}, status=421)

        app = web.Application(middlewares=[known_host])
        app.add_routes(
            [
                web.get("/", page),
                web.get("/api/status", status),
                web.get("/metrics", metrics),
                web.get("/healthz", alive),
            ]
        )
        return app
