"""Puts a node together: the only place that knows which implementation stands behind each port."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from meshd.brain_metrics import BrainMetrics
from meshd.config.load import Loaded
from meshd.console.server import ConsoleServer
from meshd.control import ControlServer
from meshd.doctor.run import summary
from meshd.drain_order import DrainOrder
from meshd.errors import UserError
from meshd.experts.node_workshop import node_workshop
from meshd.exposure import Exposure
from meshd.gateway.child import GatewayChild
from meshd.load_watch import LoadWatch
from meshd.mesh_by_role import MeshByRole
from meshd.node_shards import NodeShards
from meshd.node_splits import NodeSplits
from meshd.notify import Notifier
from meshd.observe import NodeObserver
from meshd.paths import Paths
from meshd.persistence import Disk
from meshd.seeding.background import Seeding
from meshd.seeding.node_tools import node_tools
from meshd.seeding.store import Store
from meshd.shared_models import SharedModels
from meshd.speed_watch import Pauses, SpeedWatch
from meshd.supervisor import Supervisor
from meshd.units.process import ProcessApplier
from meshd.units.render import render_dropin
from meshd.units.spec import Applier, EngineKind, EngineSpec

if TYPE_CHECKING:
    from meshd.units.dbus import DbusSystemd


MEASURE_SPEED = "MESHD_MEASURE_SPEED"
"""``never`` keeps a node from measuring its devices: it then plans with cautious figures.
``at-once`` lets it wait for no quiet moment.
"""


class _Gateway(Protocol):
    """The gateway as a child of ours, or as systemd's."""

    async def listen(self, addresses: tuple[str, ...], peers: tuple[str, ...], /) -> None:
        """:param peers: where other nodes reach it. :raises UserError: it does not listen there."""

    async def close(self) -> None: ...


class _Doors:
    """Where people look in: the console, the control socket and the gateway."""

    def __init__(self, paths: Paths, exposure: Exposure, *, gateway: _Gateway) -> None:
        self._paths = paths
        self._exposure = exposure
        self._gateway = gateway
        self._console: ConsoleServer | None = None
        self._control: ControlServer | None = None

    def bind(self, supervisor: Supervisor) -> None:
        metrics = BrainMetrics(self._paths, supervisor.status)
        self._console = ConsoleServer(supervisor.status, metrics.text)
        self._control = ControlServer(self._paths.control_socket, supervisor)

    async def open(self) -> None:
        assert self._control is not None
        await self._control.start()

    async def follow(self, loaded: Loaded, peers: tuple[str, ...]) -> None:
        """Listen where the configuration says; nothing else restarts for it.

        :raises UserError: one of them cannot, or may not.
        """
        config = loaded.config
        assert self._console is not None
        try:
            await self._console.listen(
                config.console.listen if config.console.enabled else "", config.gateway.hosts
            )
        finally:
            # A console that cannot listen must not keep the gateway from it.
            await self._gateway.listen(await self._exposure.listen(config), peers)
        if why := await self._exposure.closed(config):
            raise UserError(why)

    async def close(self) -> None:
        if self._control:
            await self._control.close()
        if self._console:
            await self._console.close()
        await self._gateway.close()


@asynccontextmanager
async def node(paths: Paths, *, systemd: bool) -> AsyncIterator[Supervisor]:
    """A node that is ready to `run`.

    :raises UserError: another meshd runs on these folders, or they cannot be made.
    """
    lock = _prepare(paths)
    applier, gateway, restarting = _hands(paths, systemd=systemd)
    woken: list[Callable[[], None]] = []
    mesh = MeshByRole(paths, lambda: _each(woken), restarting, lambda: summary(paths))
    exposure = Exposure(paths)
    doors = _Doors(paths, exposure, gateway=gateway)
    loads = LoadWatch(paths.load_times)
    speeds = _speed_watch(paths, os.environ.get(MEASURE_SPEED, ""))
    shared = SharedModels(paths)

    def wake() -> None:
        _each(woken)

    def quiet() -> bool:
        return not loads.now() and not mesh.busy()

    async def ready() -> None:
        await doors.open()
        speeds.start(quiet, supervisor.wake)

    supervisor = Supervisor(
        paths,
        applier=applier,
        observer=NodeObserver(paths, systemd=systemd, speeds=speeds, share=shared.held),
        memory=Disk(paths),
        notifier=Notifier(),
        serve=doors.follow,
        ready=ready,
        listen=exposure.listen,
        mesh=mesh,
        loads=loads,
        drain=DrainOrder(paths.drain),
        splits=NodeSplits(paths, wake, Seeding(node_tools(paths), wake)),
        shards=NodeShards(
            paths.experts / "texts",
            node_workshop(paths, quiet=quiet, changed=wake, share=shared.experts),
            wake,
        ),
    )
    woken.append(supervisor.wake)
    doors.bind(supervisor)
    try:
        yield supervisor
    finally:
        await speeds.close()
        # The gateway first: what runs ends before its engines do.
        await doors.close()
        await applier.close()
        os.close(lock)


def _speed_watch(paths: Paths, when: str) -> SpeedWatch:
    pauses = Pauses(settle=0.0, patience=0.0, again=5.0) if when == "at-once" else Pauses()
    return SpeedWatch(paths.speeds, measures=when != "never", pauses=pauses)


def _each(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _hands(
    paths: Paths, *, systemd: bool
) -> tuple[Applier, _Gateway, Callable[[], Awaitable[bool]]]:
    """Who runs the engines and who the gateway: systemd both, or we both; and whether they go on
    when we end.
    """
    if systemd:
        from meshd.units.dbus import DbusSystemd
        from meshd.units.gateway_socket import GatewaySocket
        from meshd.units.systemd import SystemdApplier

        connection = DbusSystemd()
        applier = SystemdApplier(paths, connection)
        return applier, GatewaySocket(connection), lambda: _restarts(connection)
    children = ProcessApplier(paths, text=render_dropin, prepare=partial(sweep, paths))
    return children, GatewayChild(paths), _ends


def sweep(paths: Paths, spec: EngineSpec) -> None:
    """Before an rpc-server starts: as a child it can write into the tensor cache, and one that was
    killed in the middle of that left a file which it would believe now.

    :raises UserError: the cache cannot be kept. :raises OSError: it cannot be read.
    """
    if spec.kind is EngineKind.RPC:
        store = Store(paths.rpc_cache)
        store.make()
        store.check()


async def _ends() -> bool:
    """Our engines are our children."""
    return False


async def _restarts(connection: DbusSystemd) -> bool:
    """Whether only this service goes, to come back: the whole of meshd stops by its target, and a
    machine that shuts down stops everything.
    """
    try:
        return await connection.job("meshd.service") != "stop"
    except UserError:
        return False


def _prepare(paths: Paths) -> int:
    """Make the folders and take the lock that keeps a second brain out."""
    for folder in (paths.state, paths.run, paths.engines, paths.guards):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made: {error.strerror}",
                hint="run as root, or choose another place with --root DIR",
            ) from error
    return _lock(paths.run / "meshd.lock")


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", hint="run as root, or use --root") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UserError(
            f"another meshd runs with {path.parent}", hint="meshd status, or --root for a second"
        ) from error
    return descriptor
