"""kill -9: engines outlive meshd and are adopted, and a dead engine returns with growing delays."""

from __future__ import annotations

import itertools
import time

from tests.lab import mesh
from tests.lab.node import Node

KILLS = 4


def kill(node: Node, unit: str, signal: str = "KILL") -> int:
    pid = node.main_pid(unit)
    assert pid, f"{unit} does not run"
    node.run(["kill", f"-{signal}", str(pid)], check=True)
    return pid


def replaced(node: Node, unit: str, pid: int, timeout_s: float = 30) -> int:
    """Wait for another main process than ``pid``; returns it."""

    def other() -> int:
        now = node.main_pid(unit)
        return now if now != pid else 0

    return node.wait(other, timeout_s, f"a new main process of {unit}")


def test_engines_outlive_meshd_and_are_adopted(served: Node) -> None:
    engines = mesh.engine_pids(served)
    gateway = served.main_pid("mesh-gateway")
    old = kill(served, "meshd")
    # With the brain gone the data plane goes on.
    assert mesh.served(served)
    replaced(served, "meshd", old)
    served.wait(lambda: served.active("meshd"), 30, "meshd to be ready again")
    mesh.settled(served)
    assert mesh.engine_pids(served) == engines
    assert served.main_pid("mesh-gateway") == gateway
    assert {one["pid"] for one in mesh.status(served)["models"]} == set(engines.values())
    assert mesh.served(served)


def test_an_ordinary_restart_of_meshd_keeps_the_engines(served: Node) -> None:
    engines = mesh.engine_pids(served)
    served.systemctl("restart", "meshd", timeout_s=60)
    mesh.settled(served)
    assert mesh.engine_pids(served) == engines


def test_the_gateway_comes_back_alone(served: Node) -> None:
    engines, meshd = mesh.engine_pids(served), served.main_pid("meshd")
    old = kill(served, "mesh-gateway")
    # The listening socket is systemd's: a request that comes now waits, it is not refused.
    reply = mesh.chat(served)
    assert reply.status == 200, reply
    assert replaced(served, "mesh-gateway", old)
    assert (mesh.engine_pids(served), served.main_pid("meshd")) == (engines, meshd)


def test_a_dead_engine_is_not_routed_to_and_comes_back(served: Node) -> None:
    small = served.main_pid(mesh.ENGINES["small"])
    # Hold the restart, so that the time without an engine can be looked at.
    dropin = "/run/systemd/system/mesh-llama@tiny.service.d/90-test.conf"
    served.write(dropin, "[Service]\nRestartSec=15\n")
    served.systemctl("daemon-reload")
    try:
        old = kill(served, mesh.ENGINES["tiny"])
        served.wait(
            lambda: mesh.model(served, "tiny").get("state") not in ("ready", None),
            3,
            "the brain to notice",
        )
        reply = mesh.chat(served, timeout_s=10)
        assert reply.status == 503, reply
        assert reply.json()["error"]["message"]
        assert "tiny" in served.unit("meshd")["StatusText"]
        assert mesh.served(served, "small")
    finally:
        served.run(["rm", dropin], check=True)
        served.systemctl("daemon-reload")
    served.wait(lambda: served.main_pid(mesh.ENGINES["tiny"]) not in (0, old), 30, "a new engine")
    mesh.settled(served)
    # The gateway learns of it a moment after the brain says so.
    served.wait(lambda: mesh.served(served), 5, "the gateway to have heard")
    assert served.main_pid(mesh.ENGINES["small"]) == small


def test_an_engine_that_hangs_is_replaced(served: Node) -> None:
    unit = mesh.ENGINES["tiny"]
    small = served.main_pid(mesh.ENGINES["small"])
    began_s = time.monotonic()
    old = kill(served, unit, "STOP")
    # A small model may be ready anew within one look at it: then its process is another.
    served.wait(
        lambda: (
            mesh.model(served, "tiny").get("state") not in ("ready", None)
            or served.main_pid(unit) not in (0, old)
        ),
        30,
        "the brain to notice",
    )
    noticed_s = time.monotonic() - began_s
    # By now it may be there again; whoever asks meanwhile is told to come back, and quickly.
    asked_s = time.monotonic()
    assert mesh.chat(served, timeout_s=10).status in (200, 503)
    assert time.monotonic() - asked_s < 8
    assert mesh.served(served, "small")
    # With SIGTERM systemd sends SIGCONT, so this one ends at once; one that hangs by itself is
    # killed five seconds later.
    replaced(served, unit, old)
    mesh.settled(served)
    served.wait(lambda: mesh.served(served), 5, "the gateway to have heard")
    print(f"noticed {noticed_s:.1f} s, served again {time.monotonic() - began_s:.1f} s after")
    assert time.monotonic() - began_s < 40
    assert served.main_pid(mesh.ENGINES["small"]) == small
    # The number of the try is no reason to start it anew once more.
    new = served.main_pid(unit)
    served.systemctl("restart", "meshd", timeout_s=60)
    mesh.settled(served)
    assert served.main_pid(unit) == new


def test_an_engine_that_keeps_dying_returns_with_growing_delays(served: Node) -> None:
    unit = mesh.ENGINES["tiny"]
    served.systemctl("reset-failed", unit)
    delays_s: list[float] = []
    for _ in range(KILLS):
        old = kill(served, unit)
        replaced(served, unit, old)
        delays_s.append(delay_s(served, unit))
    assert all(after > before * 1.1 for before, after in itertools.pairwise(delays_s))
    assert int(served.unit(unit)["NRestarts"]) >= KILLS
    mesh.settled(served)
    assert mesh.served(served)


def delay_s(node: Node, unit: str) -> float:
    """How long systemd waits before the next automatic restart."""
    text = node.systemctl("show", "--value", "--property=RestartUSecNext", unit).stdout.strip()
    return seconds(text)


def seconds(span: str) -> float:
    """systemd's time spans: ``500ms``, ``1.234s``, ``1min 3s``."""
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
    total = 0.0
    for word in span.split():
        number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        total += float(number) * units[word[len(number) :]]
    return total
