"""systemd over D-Bus: org.freedesktop.systemd1(5), with dbus-fast."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import OrderedDict
from itertools import chain, repeat
from typing import Any

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, DBusError

from meshd.units import gateway_socket
from meshd.units.port import (
    AccessDenied,
    DeadlinePassed,
    JobFailed,
    NoSuchUnit,
    SystemdError,
    Unavailable,
    UnitState,
)
from meshd.units.spec import EngineKind

UNIT_PATTERNS = tuple(f"mesh-{kind}@*.service" for kind in EngineKind)

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_PATH = "/org/freedesktop/systemd1"
_OURS = re.compile(rf"mesh-({'|'.join(EngineKind)})@[a-z0-9][a-z0-9._-]{{0,62}}\.service")
# Jobs may be asked for these too; nobody watches them.
_DOORS = frozenset({gateway_socket.UNIT, gateway_socket.PEERS, gateway_socket.SERVICE})
# Object paths escape all but letters and digits: "mesh-llama@" is mesh_2dllama_40.
_OUR_OBJECTS = tuple(f"{_PATH}/unit/mesh_2d{kind}_40" for kind in EngineKind)

_CALL_S = 10.0
_RELOAD_S = 60.0
_JOB_S = 45.0
_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_REMEMBERED_JOBS = 256
_COALESCE_S = 0.05

_ERRORS: dict[str, type[SystemdError]] = {
    "org.freedesktop.systemd1.NoSuchUnit": NoSuchUnit,
    "org.freedesktop.DBus.Error.AccessDenied": AccessDenied,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": AccessDenied,
    "org.freedesktop.DBus.Error.ServiceUnknown": Unavailable,
    "org.freedesktop.DBus.Error.NameHasNoOwner": Unavailable,
    "org.freedesktop.DBus.Error.Disconnected": Unavailable,
    "org.freedesktop.DBus.Error.NoReply": DeadlinePassed,
    "org.freedesktop.DBus.Error.TimedOut": DeadlinePassed,
}

_SIGNALS = (
    f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',path='{_PATH}'",
    f"type='signal',sender='{_SYSTEMD}',interface='{_PROPERTIES}',member='PropertiesChanged',"
    f"path_namespace='{_PATH}/unit'",
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',"
    f"member='NameOwnerChanged',arg0='{_SYSTEMD}'",
)


class DbusSystemd:
    """The real `Systemd`. Connects when first needed, and again when the bus comes back.

    :param address: of the bus; None for the system's.
    :param job_s: how long one start or stop may take.
    """

    def __init__(
        self, address: str | None = None, *, call_s: float = _CALL_S, job_s: float = _JOB_S
    ) -> None:
        self._address = address
        self._call_s = call_s
        self._job_s = job_s
        self._bus: MessageBus | None = None
        self._connecting = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        # Jobs that ended before the reply that names them was read, and those waited for.
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._waiting: dict[str, asyncio.Future[str]] = {}

    async def units(self) -> tuple[UnitState, ...]:
        body = await self._manager("ListUnitsByPatterns", "asas", [[], list(UNIT_PATTERNS)])
        listed = [(row[0], row[3], row[4], row[6]) for row in body[0] if _OURS.fullmatch(row[0])]
        states = []
        for unit, active, sub, path in listed:
            # A unit may be gone before its turn: then it is not loaded, and not listed.
            with contextlib.suppress(NoSuchUnit):
                states.append(_unit_state(unit, active, sub, await self._service(path)))
        return tuple(states)

    async def reload(self) -> None:
        await self._manager("Reload", "", [], deadline_s=_RELOAD_S)

    async def start(self, unit: str) -> None:
        await self._job("StartUnit", unit)

    async def stop(self, unit: str) -> None:
        await self._job("StopUnit", unit)
        # Else a unit that had failed would be listed as failed for ever.
        with contextlib.suppress(NoSuchUnit):
            await self._manager("ResetFailedUnit", "s", [unit])

    async def listens(self, socket: str) -> tuple[str, ...]:
        """Where a socket unit listens for streams, as its ``ListenStream=`` lines have it.

        :raises NoSuchUnit: it is not installed.
        """
        (path,) = await self._manager("LoadUnit", "s", [socket])
        (listed,) = await self._property(path, "org.freedesktop.systemd1.Socket", "Listen")
        return tuple(address for kind, address in listed if kind == "Stream")

    async def job(self, unit: str) -> str:
        """What systemd is about to do with a unit: ``start``, ``stop``, ``restart``..., or "".

        :raises NoSuchUnit: it is not installed.
        """
        (path,) = await self._manager("LoadUnit", "s", [unit])
        ((number, job),) = await self._property(path, "org.freedesktop.systemd1.Unit", "Job")
        if not number:
            return ""
        (kind,) = await self._property(job, "org.freedesktop.systemd1.Job", "JobType")
        return str(kind)

    async def changed(self) -> None:
        for delay_s in chain(_RETRY_S, repeat(_RETRY_S[-1])):
            try:
                await self._connected()
                break
            except SystemdError:
                # Who wants to act meanwhile gets the error; this one only waits for news.
                await asyncio.sleep(delay_s)
        await self._changed.wait()
        # One start is a handful of signals.
        await asyncio.sleep(_COALESCE_S)
        self._changed.clear()

    async def close(self) -> None:
        if self._bus:
            self._bus.disconnect()
        if self._watcher:
            # Not cancelled: it would take the connection's own future with it.
            await self._watcher
        self._bus = self._watcher = None

    async def _job(self, method: str, unit: str) -> None:
        if not _OURS.fullmatch(unit) and unit not in _DOORS:
            raise AccessDenied(f"{unit} is not a unit that meshd's hand may touch")
        try:
            async with asyncio.timeout(self._job_s):
                # Connecting subscribes, so the end of a job cannot be missed.
                (path,) = await self._manager(method, "ss", [unit, "replace"])
                result = await self._end_of(path)
        except TimeoutError:
            raise DeadlinePassed(f"{unit}: {method} took more than {self._job_s:g} s") from None
        if result not in ("done", "skipped"):
            raise JobFailed(unit, result)

    async def _end_of(self, job: str) -> str:
        if job in self._ended:
            return self._ended.pop(job)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[job] = future
        try:
            return await future
        finally:
            del self._waiting[job]

    async def _manager(
        self, method: str, signature: str, body: list[Any], *, deadline_s: float | None = None
    ) -> list[Any]:
        message = Message(_SYSTEMD, _PATH, _MANAGER, method, signature=signature, body=body)
        return await self._call(message, deadline_s or self._call_s)

    async def _service(self, path: str) -> dict[str, Any]:
        message = Message(_SYSTEMD, path, _PROPERTIES, "GetAll", signature="s", body=[_SERVICE])
        (values,) = await self._call(message, self._call_s)
        return {name: variant.value for name, variant in values.items()}

    async def _property(self, path: str, interface: str, name: str) -> list[Any]:
        ask = Message(_SYSTEMD, path, _PROPERTIES, "Get", signature="ss", body=[interface, name])
        return [variant.value for variant in await self._call(ask, self._call_s)]

    async def _call(self, message: Message, deadline_s: float) -> list[Any]:
        return await _ask(await self._connected(), message, deadline_s)

    async def _connected(self) -> MessageBus:
        async with self._connecting:
            if self._bus and self._bus.connected:
                return self._bus
            bus = MessageBus(self._address, bus_type=BusType.SYSTEM)
            try:
                async with asyncio.timeout(self._call_s):
                    await bus.connect()
                bus.add_message_handler(self._on_message)
                for rule in _SIGNALS:
                    await _ask(bus, _to_bus("AddMatch", rule), self._call_s)
                subscribe = Message(_SYSTEMD, _PATH, _MANAGER, "Subscribe")
                await _ask(bus, subscribe, self._call_s)
            except (OSError, EOFError, TimeoutError, AuthError, DBusError) as error:
                bus.disconnect()
                raise Unavailable(f"no connection to systemd over D-Bus: {error}") from error
            except BaseException:
                bus.disconnect()
                raise
            self._bus = bus
            self._watcher = asyncio.create_task(self._watch(bus), name="watch D-Bus")
            # Whatever happened meanwhile was not seen.
            self._changed.set()
            return bus

    async def _watch(self, bus: MessageBus) -> None:
        with contextlib.suppress(Exception):
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self._fail_jobs("the connection to D-Bus was lost")
        self._changed.set()

    def _fail_jobs(self, why: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(why))

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        match message.member:
            case "JobRemoved":
                _, job, unit, result = message.body
                if _OURS.fullmatch(unit) or unit in _DOORS:
                    self._job_ended(job, result)
                    self._changed.set()
            case "UnitNew" | "UnitRemoved":
                if _OURS.fullmatch(message.body[0]):
                    self._changed.set()
            case "PropertiesChanged":
                if message.path and message.path.startswith(_OUR_OBJECTS):
                    self._changed.set()
            case "NameOwnerChanged":
                # systemd itself came back on the bus: it no longer knows that we listen.
                self._fail_jobs("systemd left the bus")
                if self._bus and message.body[2]:
                    self._bus.disconnect()

    def _job_ended(self, job: str, result: str) -> None:
        waiting = self._waiting.get(job)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(result)
            return
        self._ended[job] = result
        while len(self._ended) > _REMEMBERED_JOBS:
            self._ended.popitem(last=False)


def _to_bus(method: str, rule: str) -> Message:
    return Message(
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        method,
        signature="s",
        body=[rule],
    )


async def _ask(bus: MessageBus, message: Message, deadline_s: float) -> list[Any]:
    try:
        async with asyncio.timeout(deadline_s):
            reply = await bus.call(message)
    except TimeoutError:
        raise DeadlinePassed(f"{message.member}: no answer within {deadline_s:g} s") from None
    except (OSError, EOFError, DBusError) as error:
        raise Unavailable(f"{message.member}: {error or 'the connection was lost'}") from error
    if reply.message_type is MessageType.ERROR:
        text = str(reply.body[0]) if reply.body else str(reply.error_name)
        kind = _ERRORS.get(str(reply.error_name), SystemdError)
        raise kind(f"{message.member}: {text}")
    return list(reply.body)


def _unit_state(unit: str, active: str, sub: str, service: dict[str, Any]) -> UnitState:
    return UnitState(
        unit=unit,
        active_state=active,
        sub_state=sub,
        main_pid=int(service.get("MainPID", 0)),
        restarts=int(service.get("NRestarts", 0)),
        result=str(service.get("Result", "success")),
        exit_code=int(service.get("ExecMainCode", 0)),
        exit_status=int(service.get("ExecMainStatus", 0)),
    )
