"""The control socket: how the command line talks to the running brain. JSON over HTTP over a
Unix socket that only root and meshd's own group can open.

=======  ====================  ======================================================
method   path                  answer
=======  ====================  ======================================================
GET      /v1/status            `NodeStatus`
POST     /v1/plan              {files} -> `PlanReport`, nothing is changed
POST     /v1/reload            as SIGHUP does; 422 with the findings when refused
POST     /v1/trial             {files, timeout_s} -> applied, and reverted unless kept
GET      /v1/trial             the files on trial, 404 when there are none
POST     /v1/trial/keep        ends the trial, the files stay
POST     /v1/trial/revert      ends the trial, the files before it come back
GET      /v1/mesh/members      list of `MemberLine`
POST     /v1/mesh/revoke       {node} -> the node with this id is out; list of `MemberLine`
POST     /v1/drain             {deadline_s} -> nothing new here, engines stop; `NodeStatus`
POST     /v1/drain/undo        and serve again; `NodeStatus`
POST     /traffic              `TrafficReport` of this node's gateway
=======  ====================  ======================================================
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from meshd.config.load import SourceFile
from meshd.errors import UserError
from meshd.gateway import traffic
from meshd.gateway.traffic import TrafficError
from meshd.mesh.member_line import MemberLine
from meshd.mesh_port import Mesh
from meshd.report import PlanReport
from meshd.status import NodeStatus

T = TypeVar("T")

_BODY_LIMIT_BYTES = 8 * 1024 * 1024
# A request that is still answered must not hold up the node's stop.
_SHUTDOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class Files:
    """:ivar timeout_s: of a trial; not used elsewhere."""

    files: tuple[SourceFile, ...]
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class NodeNamed:
    """:ivar node: a whole id."""

    node: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """:ivar deadline_s: how long answers get that run."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Problem:
    error: str


class Brain(Protocol):
    """What the control socket needs of the supervisor."""

    def status(self) -> NodeStatus: ...

    async def preview(self, files: tuple[SourceFile, ...]) -> PlanReport: ...

    async def reload(self) -> None: ...

    async def begin_trial(self, files: tuple[SourceFile, ...], timeout_s: float) -> None: ...

    def trial(self) -> tuple[SourceFile, ...] | None: ...

    async def end_trial(self, *, keep: bool) -> None: ...

    async def drain(self, deadline_s: float) -> None: ...

    async def undrain(self) -> None: ...

    @property
    def mesh(self) -> Mesh: ...


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except UserError as error:
        return _json(Problem(str(error)), 422)
    except (msgspec.MsgspecError, TrafficError) as error:
        return _json(Problem(f"the request is not understood: {error}"), 400)


def application(brain: Brain) -> web.Application:
    """The routes above, bound to one brain."""

    async def status(_: web.Request) -> web.Response:
        return _json(brain.status())

    async def plan(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=Files)
        return _json(await brain.preview(asked.files))

    async def reload(_: web.Request) -> web.Response:
        await brain.reload()
        return _json(brain.status())

    async def begin(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=Files)
        await brain.begin_trial(asked.files, asked.timeout_s)
        return _json(brain.status())

    async def trial(_: web.Request) -> web.Response:
        files = brain.trial()
        if files is None:
            return _json(Problem("nothing is on trial"), 404)
        return _json(Files(files))

    async def keep(_: web.Request) -> web.Response:
        await brain.end_trial(keep=True)
        return _json(brain.status())

    async def revert(_: web.Request) -> web.Response:
        await brain.end_trial(keep=False)
        return _json(brain.status())

    async def members(_: web.Request) -> web.Response:
        return _json(brain.mesh.members())

    async def revoke(request: web.Request) -> web.Response:
        named = msgspec.json.decode(await request.read(), type=NodeNamed)
        brain.mesh.revoke(named.node)
        return _json(brain.mesh.members())

    async def drain(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=DrainAsked)
        await brain.drain(asked.deadline_s)
        return _json(brain.status())

    async def undrain(_: web.Request) -> web.Response:
        await brain.undrain()
        return _json(brain.status())

    async def count(request: web.Request) -> web.Response:
        brain.mesh.count(traffic.decode(await request.read()))
        return web.Response(status=204)

    app = web.Application(middlewares=[_problems], client_max_size=_BODY_LIMIT_BYTES)
    app.add_routes(
        [
            web.get("/v1/status", status),
            web.post("/v1/plan", plan),
            web.post("/v1/reload", reload),
            web.post("/v1/trial", begin),
            web.get("/v1/mesh/members", members),
            web.post("/v1/mesh/revoke", revoke),
            web.post("/v1/drain", drain),
            web.post("/v1/drain/undo", undrain),
            web.post(traffic.PATH, count),
            web.get("/v1/trial", trial),
            web.post("/v1/trial/keep", keep),
            web.post("/v1/trial/revert", revert),
        ]
    )
    return app


class ControlServer:
    """Serves the control socket at `path` from `start` to `close`."""

    def __init__(self, path: Path, brain: Brain) -> None:
        self._path = path
        self._runner = web.AppRunner(
            application(brain), access_log=None, shutdown_timeout=_SHUTDOWN_S
        )

    async def start(self) -> None:
        await self._runner.setup()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        before = os.umask(0o117)
        try:
            await web.UnixSite(self._runner, str(self._path)).start()
        finally:
            os.umask(before)

    async def close(self) -> None:
        await self._runner.cleanup()


class NotRunningError(UserError):
    """No brain answers at the control socket."""


class ControlClient:
    """The command line's end.

    :raises NotRunningError: from every call, when no brain listens.
    :raises UserError: when the brain refuses, with its own words.
    """

    def __init__(self, socket: Path, *, deadline_s: float = 90.0) -> None:
        self._socket = socket
        self._timeout = aiohttp.ClientTimeout(total=deadline_s)

    async def status(self) -> NodeStatus:
        return await self._call("GET", "/v1/status", NodeStatus)

    async def plan(self, files: tuple[SourceFile, ...]) -> PlanReport:
        return await self._call("POST", "/v1/plan", PlanReport, Files(files))

    async def reload(self) -> NodeStatus:
        return await self._call("POST", "/v1/reload", NodeStatus)

    async def begin_trial(self, files: tuple[SourceFile, ...], timeout_s: float) -> NodeStatus:
        return await self._call("POST", "/v1/trial", NodeStatus, Files(files, timeout_s))

    async def trial(self) -> Files:
        return await self._call("GET", "/v1/trial", Files)

    async def end_trial(self, *, keep: bool) -> NodeStatus:
        return await self._call("POST", f"/v1/trial/{'keep' if keep else 'revert'}", NodeStatus)

    async def drain(self, deadline_s: float) -> NodeStatus:
        return await self._call("POST", "/v1/drain", NodeStatus, DrainAsked(deadline_s))

    async def undrain(self) -> NodeStatus:
        return await self._call("POST", "/v1/drain/undo", NodeStatus)

    async def members(self) -> tuple[MemberLine, ...]:
        return await self._call("GET", "/v1/mesh/members", tuple[MemberLine, ...])

    async def revoke(self, node: str) -> tuple[MemberLine, ...]:
        """:param node: a whole id."""
        return await self._call("POST", "/v1/mesh/revoke", tuple[MemberLine, ...], NodeNamed(node))

    async def _call(self, method: str, path: str, answer: type[T], body: Any = None) -> T:
        connector = aiohttp.UnixConnector(path=str(self._socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session,
                session.request(
                    method, f"http://meshd{path}", data=body and msgspec.json.encode(body)
                ) as response,
            ):
                data = await response.read()
                if response.status != 200:
                    raise UserError(_words(data, response.status))
                return msgspec.json.decode(data, type=answer)
        except PermissionError as error:
            raise UserError(
                f"{self._socket}: permission denied", hint="run as root, or join group _meshd"
            ) from error
        except (aiohttp.ClientConnectorError, FileNotFoundError) as error:
            if isinstance(getattr(error, "os_error", None), PermissionError):
                raise UserError(
                    f"{self._socket}: permission denied", hint="run as root, or join group _meshd"
                ) from error
            raise NotRunningError(
                f"meshd does not run (nobody listens at {self._socket})",
                hint="systemctl start meshd",
            ) from error
        except TimeoutError as error:
            raise UserError(
                f"meshd did not answer in {self._timeout.total:.0f} s", hint="journalctl -u meshd"
            ) from error
        except msgspec.MsgspecError as error:
            raise UserError(
                f"meshd and this command are of different versions: {error}",
                hint="systemctl restart meshd",
            ) from error
        except aiohttp.ClientError as error:
            raise UserError(f"meshd hung up: {error}", hint="journalctl -u meshd") from error


def _words(data: bytes, status: int) -> str:
    try:
        return msgspec.json.decode(data, type=Problem).error
    except msgspec.MsgspecError:
        return f"meshd answered {status}"
