"""The watchdog: a brain that hangs is replaced, and its engines do not notice."""

from __future__ import annotations

from tests.lab import mesh
from tests.lab.node import Node
from tests.lab.test_crash import kill, replaced

SHORT = "[Service]\nWatchdogSec=3\n"


def test_a_stopped_brain_is_restarted(served: Node) -> None:
    served.write("/etc/systemd/system/meshd.service.d/watchdog.conf", SHORT)
    served.systemctl("daemon-reload")
    served.systemctl("restart", "meshd", timeout_s=60)
    mesh.settled(served)
    engines = mesh.engine_pids(served)
    old = kill(served, "meshd", "STOP")
    assert mesh.served(served), "the data plane does not need the brain"
    replaced(served, "meshd", old, timeout_s=30)
    served.wait(lambda: served.active("meshd"), 30, "meshd to be ready again")
    assert "Watchdog timeout" in served.journal("-u", "meshd")
    mesh.settled(served)
    assert mesh.engine_pids(served) == engines


def test_an_idle_brain_feeds_its_watchdog(served: Node) -> None:
    pid = served.main_pid("meshd")
    before = int(served.unit("meshd")["WatchdogTimestampMonotonic"])

    def fed_again() -> bool:
        return int(served.unit("meshd")["WatchdogTimestampMonotonic"]) > before

    served.wait(fed_again, 30, "the next sign of life")
    assert served.main_pid("meshd") == pid
