"""What the peer door serves: OpenAI's endpoints for members of the mesh, and the routing table.

========  ====================  ======================================================
method    path                  answer
========  ====================  ======================================================
POST      /v1/...               as for clients; with ``X-Mesh-Hop`` only by own engines
GET       /v1/models[/ID]       as for clients
GET       /mesh/health          200 while this gateway serves
GET       /mesh/routes          the routing table, by events or once; see `routes_feed`
GET       /mesh/v1/models/...   ranges of models' files; see `model_files`
========  ====================  ======================================================
"""

from __future__ import annotations

from aiohttp import web

from meshd.gateway import headers
from meshd.gateway.app import Handler, add_inference, bare_app
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.model_files import ModelFiles, add_model_files
from meshd.gateway.peer_door import member_of
from meshd.gateway.relay import Relay
from meshd.gateway.routes_feed import RoutesFeed
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.telemetry import Telemetry


def make_peer_app(
    watch: TableWatch,
    relay: Relay,
    metrics: GatewayMetrics,
    feed: RoutesFeed,
    telemetry: Telemetry,
    files: ModelFiles,
) -> web.Application:
    """The application, over parts that the caller starts and stops."""

    @web.middleware
    async def members_only(request: web.Request, handler: Handler) -> web.StreamResponse:
        member = member_of(request.transport)
        table = watch.table
        if not member or (table is not None and member in table.revoked):
            # The handshake let it in, before its revocation was known; it is told nothing.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=403)  # to nobody
        return await handler(request)

    async def health(_: web.Request) -> web.Response:
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    app = bare_app(metrics, members_only)
    add_inference(
        app,
        watch,
        relay,
        telemetry,
        hop=lambda request: headers.HOP in request.headers,
        member=lambda request: member_of(request.transport),
    )
    app.router.add_get("/mesh/health", health)
    app.router.add_get("/mesh/routes", feed.handle)
    add_model_files(app, files)
    app.on_shutdown.append(lambda _: feed.stop())
    return app


def asking(request: web.Request) -> str:
    """The id of the node that asks, as `RoutesFeed` wants it."""
    return member_of(request.transport)
