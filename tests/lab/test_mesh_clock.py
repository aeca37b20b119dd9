"""A node whose clock is wrong, or is set back while it runs. The containers share the machine's
clock, so meshd and the gateway of one node run with libfaketime, whose file says how far off they
are; monotonic time is left alone, as the kernel leaves it alone when somebody sets a clock.
"""

from __future__ import annotations

import email.utils
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import inside
from tests.lab.cluster import Cluster, statuses
from tests.lab.conftest import tracked_cluster
from tests.lab.node import Node, wait

Measured = Callable[[str, float], None]

FILE = "/etc/mesh/clock"
DROP_IN = f"""[Service]
Environment=LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1
Environment=FAKETIME_TIMESTAMP_FILE={FILE} FAKETIME_CACHE_DURATION=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1
"""
HOUR_S = 3600


@pytest.fixture(scope="module")
def nodes(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    """Three nodes; bob's clock is as FILE says."""
    with tracked_cluster(["ada", "bob", "cleo"], lowerdir, scratch) as nodes:
        bob = nodes["bob"]
        bob.write(FILE, "+0\n")
        for unit in ("meshd", "mesh-gateway"):
            bob.write(f"/etc/systemd/system/{unit}.service.d/clock.conf", DROP_IN)
        bob.systemctl("daemon-reload")
        nodes.start(nodes.alike())
        nodes.wait_served("tiny", "small", by=nodes.nodes)
        yield nodes


def clock_of(node: Node) -> float:
    """What the brain of a node takes for the time, in seconds since 1970."""
    connection = inside.unix(node, inside.CONTROL)
    try:
        connection.request("GET", "/v1/status")
        reply = connection.getresponse()
        reply.read()
        date = email.utils.parsedate_to_datetime(reply.headers["Date"])
        return date.timestamp()
    except (OSError, http.client.HTTPException):
        return 0.0
    finally:
        connection.close()


def off_s(node: Node) -> float:
    return clock_of(node) - time.time()


def test_setting_a_clock_back_an_hour_changes_nothing(nodes: Cluster) -> None:
    bob = nodes["bob"]
    assert abs(off_s(bob)) < 10
    engines = nodes.engines()
    with (
        inside.watch(nodes.nodes, statuses) as seen,
        inside.load(bob, "tiny", "small") as by_bob,
        inside.load(nodes["ada"], "tiny", "small") as by_ada,
    ):
        bob.write(FILE, f"-{HOUR_S}\n")
        wait(lambda: abs(off_s(bob) + HOUR_S) < 10, 20, "bob's clock to go an hour late")
        changed_at = time.monotonic()
        # Longer than any lease, grace or pass.
        wait(lambda: time.monotonic() - changed_at > 15, 20, "fifteen seconds", every_s=0.5)
        assert abs(off_s(bob) + HOUR_S) < 10
    nodes.settled()
    for load in (*by_bob, *by_ada):
        assert len(load.answers) > 10
        assert not load.failed, [str(one) for one in load.failed]
    for name, views in seen.seen.items():
        assert all(set(view.values()) == {"alive"} for _, view in views), f"{name}: {views}"
    assert nodes.engines() == engines


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_a_node_that_starts_with_a_wrong_clock_is_a_member_like_others(
    nodes: Cluster, measured: Measured, by_s: int
) -> None:
    bob = nodes["bob"]
    bob.write(FILE, f"{by_s:+d}\n")
    bob.systemctl("stop", "mesh.target", timeout_s=60)
    # A certificate of its own, made by that clock.
    bob.run(["rm", "-rf", "/run/mesh/tls"], check=True)
    began_at = time.monotonic()
    bob.systemctl("start", "mesh.target", timeout_s=60)
    nodes.settled()
    measured(
        f"a node whose clock is {by_s:+d} s off, to a mesh that agrees", time.monotonic() - began_at
    )
    assert abs(off_s(bob) - by_s) < 10
    nodes.wait_served("tiny", "small", by=nodes.nodes)
    engines = nodes.engines()
    bob.write(FILE, "+0\n")
    wait(lambda: abs(off_s(bob)) < 10, 20, "bob's clock to be right again")
    nodes.wait_served("tiny", "small", by=nodes.nodes)
    nodes.settled()
    assert nodes.engines() == engines
