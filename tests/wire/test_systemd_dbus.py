"""`DbusSystemd` on a real bus of its own, with a stand-in that owns systemd's name."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from meshd.units.dbus import DbusSystemd
from meshd.units.port import (
    AccessDenied,
    DeadlinePassed,
    JobFailed,
    NoSuchUnit,
    SystemdError,
    Unavailable,
    UnitState,
)

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed"
)

NAME = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
PATH = "/org/freedesktop/systemd1"
JOB = "/org/freedesktop/systemd1/job/7"
TINY = "mesh-llama@tiny.service"
TINY_PATH = "/org/freedesktop/systemd1/unit/mesh_2dllama_40tiny_2eservice"
_CONFIG = """<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
  </policy>
</busconfig>"""


class Bus:
    """A dbus-daemon that can be stopped and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "bus"
        self.address = f"unix:path={self.socket}"
        self.config = folder / "bus.conf"
        self.config.write_text(_CONFIG.format(socket=self.socket))
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            "dbus-daemon",
            f"--config-file={self.config}",
            "--nofork",
            "--nopidfile",
            "--print-address",
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout
        # The address is printed once the socket listens.
        assert await asyncio.wait_for(self.process.stdout.readline(), 10)

    async def stop(self) -> None:
        if self.process:
            self.process.kill()
            await self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)


class StandIn:
    """Answers as systemd does, also in sending signals to those only who subscribed."""

    def __init__(self) -> None:
        self.bus: MessageBus
        self.calls: list[str] = []
        self.subscribers: set[str] = set()
        # What StartUnit and StopUnit do: emit signals before the reply, and say what is replied.
        self.on_job: Callable[[Message], Message | None] = self.done
        self.states: list[tuple[str, str, str]] = [(TINY, "active", "running")]

    async def connect(self, address: str) -> None:
        self.bus = await MessageBus(address).connect()
        self.bus.add_message_handler(self._answer)
        await self.bus.request_name(NAME)

    def close(self) -> None:
        self.bus.disconnect()

    def emit(self, member: str, signature: str, body: list[Any], path: str = PATH) -> None:
        interface = "org.freedesktop.DBus.Properties" if path != PATH else MANAGER
        for subscriber in self.subscribers:
            message = Message.new_signal(path, interface, member, signature, body)
            message.destination = subscriber
            self.bus.send(message)

    def removed(self, job: str = JOB, unit: str = TINY, result: str = "done") -> None:
        self.emit("JobRemoved", "uoss", [7, job, unit, result])

    def done(self, message: Message) -> Message:
        self.removed(unit=message.body[0])
        return Message.new_method_return(message, "o", [JOB])

    def _answer(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        self.calls.append(" ".join([str(message.member), *map(str, message.body[:1])]))
        match message.member:
            case "Subscribe":
                assert message.sender
                self.subscribers.add(message.sender)
                return Message.new_method_return(message)
            case "StartUnit" | "StopUnit":
                # True: taken care of, and never answered.
                return self.on_job(message) or True
            case "ListUnitsByPatterns":
                rows = [
                    [unit, "", "loaded", active, sub, "", TINY_PATH, 0, "", "/"]
                    for unit, active, sub in self.states
                ]
                return Message.new_method_return(message, "a(ssssssouso)", [rows])
            case "GetAll":
                values = {
                    "MainPID": Variant("u", 42),
                    "NRestarts": Variant("u", 3),
                    "Result": Variant("s", "signal"),
                    "ExecMainCode": Variant("i", 2),
                    "ExecMainStatus": Variant("i", 9),
                    "SomethingNew": Variant("(sb)", ["x", True]),
                }
                return Message.new_method_return(message, "a{sv}", [values])
            case "Reload" | "ResetFailedUnit":
                return Message.new_method_return(message)
        return None


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Bus]:
    bus = Bus(tmp_path)
    await bus.start()
    yield bus
    await bus.stop()


@pytest.fixture
async def manager(daemon: Bus) -> AsyncIterator[StandIn]:
    manager = StandIn()
    await manager.connect(daemon.address)
    yield manager
    manager.close()


@pytest.fixture
async def systemd(daemon: Bus) -> AsyncIterator[DbusSystemd]:
    systemd = DbusSystemd(daemon.address, call_s=2.0, job_s=2.0)
    yield systemd
    await systemd.close()


def error(name: str) -> Callable[[Message], Message]:
    return lambda message: Message.new_error(message, name, "some words")


async def test_it_subscribes_before_it_dispatches(manager: StandIn, systemd: DbusSystemd) -> None:
    """The stand-in reports the end of the job before it answers the call: nothing is missed."""
    await systemd.start(TINY)
    assert manager.calls == ["Subscribe", f"StartUnit {TINY}"]
    await systemd.stop(TINY)
    assert manager.calls[2:] == [f"StopUnit {TINY}", f"ResetFailedUnit {TINY}"]


async def test_other_jobs_ends_are_not_taken_for_ours(
    manager: StandIn, systemd: DbusSystemd
) -> None:
    replied = asyncio.Event()

    def others_first(message: Message) -> Message:
        manager.removed(job="/org/freedesktop/systemd1/job/8")
        manager.removed(job="/org/freedesktop/systemd1/job/9", unit="ssh.service")
        replied.set()
        return Message.new_method_return(message, "o", [JOB])

    manager.on_job = others_first
    starting = asyncio.create_task(systemd.start(TINY))
    await asyncio.wait_for(replied.wait(), 5)
    # A whole exchange later the foreign signals have long been read.
    await systemd.units()
    assert not starting.done()
    manager.removed()
    await asyncio.wait_for(starting, 5)


async def test_two_jobs_at_once_each_get_their_own_result(
    manager: StandIn, systemd: DbusSystemd
) -> None:
    jobs: dict[str, str] = {}

    def later(message: Message) -> Message:
        unit = message.body[0]
        jobs[unit] = f"{PATH}/job/{len(jobs) + 1}"
        if len(jobs) == 2:
            for name, job in reversed(jobs.items()):
                manager.removed(job, name, "failed" if name == TINY else "done")
        return Message.new_method_return(message, "o", [jobs[unit]])

    manager.on_job = later
    results = await asyncio.gather(
        systemd.start(TINY), systemd.start("mesh-rpc@gpu0.service"), return_exceptions=True
    )
    assert isinstance(results[0], JobFailed)
    assert results[1] is None


@pytest.mark.parametrize("result", ["failed", "dependency", "timeout", "canceled", "invalid"])
async def test_a_job_that_ends_badly_says_how(
    manager: StandIn, systemd: DbusSystemd, result: str
) -> None:
    def ends(message: Message) -> Message:
        manager.removed(result=result)
        return Message.new_method_return(message, "o", [JOB])

    manager.on_job = ends
    with pytest.raises(JobFailed, match=result) as caught:
        await systemd.start(TINY)
    assert (caught.value.unit, caught.value.result) == (TINY, result)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("org.freedesktop.systemd1.NoSuchUnit", NoSuchUnit),
        ("org.freedesktop.DBus.Error.AccessDenied", AccessDenied),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", AccessDenied),
        ("org.freedesktop.DBus.Error.NoReply", DeadlinePassed),
        ("org.freedesktop.systemd1.TransactionIsDestructive", SystemdError),
    ],
)
async def test_errors_become_types(
    manager: StandIn, systemd: DbusSystemd, name: str, kind: type[SystemdError]
) -> None:
    manager.on_job = error(name)
    with pytest.raises(SystemdError, match="some words") as caught:
        await systemd.start(TINY)
    assert type(caught.value) is kind


async def test_a_call_without_an_answer_ends_at_its_deadline(
    manager: StandIn, systemd: DbusSystemd
) -> None:
    manager.on_job = lambda message: None
    systemd = DbusSystemd(systemd._address, call_s=0.2, job_s=5.0)
    with pytest.raises(DeadlinePassed, match="StartUnit"):
        await asyncio.wait_for(systemd.start(TINY), 4)
    await systemd.close()


async def test_a_job_without_an_end_ends_at_its_deadline(
    manager: StandIn, systemd: DbusSystemd
) -> None:
    manager.on_job = lambda message: Message.new_method_return(message, "o", [JOB])
    systemd = DbusSystemd(systemd._address, call_s=5.0, job_s=0.2)
    with pytest.raises(DeadlinePassed, match=TINY):
        await asyncio.wait_for(systemd.start(TINY), 4)
    await systemd.close()


@pytest.mark.parametrize(
    "unit", ["ssh.service", "mesh-llama@.service", "mesh-llama@a/b.service", "xmesh-rpc@a.service"]
)
async def test_units_of_others_are_never_touched(
    manager: StandIn, systemd: DbusSystemd, unit: str
) -> None:
    for verb in (systemd.start, systemd.stop):
        with pytest.raises(AccessDenied, match="not a unit that meshd"):
            await verb(unit)
    assert manager.calls == []


async def test_states_are_read(manager: StandIn, systemd: DbusSystemd) -> None:
    manager.states += [("ssh.service", "active", "running")]
    assert await systemd.units() == (UnitState(TINY, "active", "running", 42, 3, "signal", 2, 9),)


async def test_only_our_units_changes_wake_the_brain(
    manager: StandIn, systemd: DbusSystemd
) -> None:
    # The first call reports what may have happened before anybody listened.
    await asyncio.wait_for(systemd.changed(), 5)
    waiting = asyncio.create_task(systemd.changed())
    other = TINY_PATH.replace("mesh_2dllama_40tiny", "ssh")
    properties = [f"{NAME}.Unit", {"ActiveState": Variant("s", "failed")}, []]
    manager.emit("PropertiesChanged", "sa{sv}as", properties, other)
    manager.emit("UnitNew", "so", ["ssh.service", other])
    await systemd.units()
    assert not waiting.done()
    manager.emit("PropertiesChanged", "sa{sv}as", properties, TINY_PATH)
    await asyncio.wait_for(waiting, 5)
    waiting = asyncio.create_task(systemd.changed())
    manager.emit("UnitRemoved", "so", [TINY, TINY_PATH])
    await asyncio.wait_for(waiting, 5)


async def test_without_a_bus_the_error_says_so(tmp_path: Path) -> None:
    systemd = DbusSystemd(f"unix:path={tmp_path}/nothing")
    with pytest.raises(Unavailable, match="no connection to systemd"):
        await systemd.units()
    await systemd.close()


async def test_without_systemd_on_the_bus_the_error_says_so(systemd: DbusSystemd) -> None:
    with pytest.raises(Unavailable):
        await systemd.units()


async def test_it_works_on_when_the_bus_comes_back(
    daemon: Bus, manager: StandIn, systemd: DbusSystemd
) -> None:
    await systemd.units()
    await asyncio.wait_for(systemd.changed(), 5)
    waiting = asyncio.create_task(systemd.changed())
    manager.on_job = lambda message: Message.new_method_return(message, "o", [JOB])
    starting = asyncio.create_task(systemd.start(TINY))
    async with asyncio.timeout(5):
        while f"StartUnit {TINY}" not in manager.calls:
            await asyncio.sleep(0.01)
    await daemon.stop()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(starting, 5)
    await asyncio.wait_for(waiting, 5)
    with contextlib.suppress(Exception):
        manager.close()
    await daemon.start()
    again = StandIn()
    await again.connect(daemon.address)
    assert len(await systemd.units()) == 1
    await systemd.start(TINY)
    assert again.calls[0] == "Subscribe"
    again.close()


async def test_it_subscribes_again_when_systemd_itself_comes_back(
    daemon: Bus, manager: StandIn, systemd: DbusSystemd
) -> None:
    await systemd.start(TINY)
    manager.close()
    again = StandIn()
    await again.connect(daemon.address)
    async with asyncio.timeout(5):
        while "Subscribe" not in again.calls:
            with contextlib.suppress(SystemdError):
                await systemd.units()
    await systemd.start(TINY)
    again.close()
