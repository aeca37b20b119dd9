"""The lab itself: what the other lab tests stand on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import network
from tests.lab import node as lab

SLEEPER = """[Service]
Type=exec
ExecStart=sleep infinity
"""


def test_real_systemd_boots_without_a_failed_unit(bare_node: lab.Node) -> None:
    assert bare_node.systemctl("is-system-running").stdout.strip() == "running"
    version = bare_node.systemctl("--version").stdout.split()[1]
    assert int(version) >= 262


def test_the_engine_and_meshd_are_in_the_root(bare_node: lab.Node) -> None:
    assert "usage" in bare_node.run(["meshd", "--help"], check=True).stdout
    done = bare_node.run(["llama-server", "--version"], check=True)
    assert "version" in done.stdout + done.stderr


def test_commands_run_inside_as_any_user(bare_node: lab.Node) -> None:
    assert bare_node.run(["id", "-un"]).stdout.strip() == "root"
    assert bare_node.run(["id", "-un"], user="nobody").stdout.strip() == "nobody"
    refused = bare_node.run(["cat", "/etc/shadow"], user="nobody")
    assert refused.returncode != 0
    with pytest.raises(lab.LabError, match="took more than"):
        bare_node.run(["sleep", "30"], timeout_s=0.2)


def test_a_unit_can_be_written_started_and_seen(node: lab.Node) -> None:
    node.write("/run/systemd/system/sleeper.service", SLEEPER)
    node.systemctl("daemon-reload")
    node.systemctl("start", "sleeper")
    assert node.unit("sleeper")["ActiveState"] == "active"
    pid = node.main_pid("sleeper")
    node.run(["kill", "-9", str(pid)], check=True)
    node.wait(lambda: not node.active("sleeper"), 5, "the end of sleeper")
    assert node.unit("sleeper")["Result"] == "signal"
    assert "Main process exited" in node.journal("-u", "sleeper")


def test_a_reboot_keeps_the_disk_and_loses_run(node: lab.Node) -> None:
    machine = node.read("/etc/machine-id")
    node.write("/etc/kept", "kept")
    node.write("/run/lost", "lost")
    node.reboot()
    assert node.read("/etc/kept") == "kept"
    assert node.read("/etc/machine-id") == machine
    assert node.run(["test", "-e", "/run/lost"]).returncode == 1


def test_nodes_are_machines_of_their_own(make_node: Callable[[str], lab.Node]) -> None:
    one, two = make_node("one"), make_node("two")
    assert one.read("/etc/machine-id") != two.read("/etc/machine-id")
    one.write("/etc/mine", "one")
    assert two.run(["test", "-e", "/etc/mine"]).returncode == 1


def test_nodes_on_a_bridge_see_each_other_until_the_link_is_cut(
    lowerdir: str, scratch: Path
) -> None:
    with (
        network.bridge() as ethernet,
        ethernet.node("left", lowerdir, scratch) as left,
        ethernet.node("right", lowerdir, scratch) as right,
    ):
        serve = ["python3", "-m", "http.server", "--bind", right.address, "8000"]
        right.run(["systemd-run", "--unit=web", *serve], check=True)
        url = f"http://{right.address}:8000"
        left.wait(lambda: left.http("/", url=url, timeout_s=2).status == 200, 20, "the first page")
        ethernet.cut(right)
        assert left.http("/", url=url, timeout_s=1).status == 0
        ethernet.mend(right)
        left.wait(lambda: left.http("/", url=url, timeout_s=2).status == 200, 20, "the link")
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    assert f" {ethernet.name}" not in links.stdout


def test_nothing_is_left_of_a_node(lowerdir: str, scratch: Path) -> None:
    with lab.booted("gone", lowerdir, scratch) as node:
        pid, cgroup = node.pid, node.cgroup
        mount = lab.cgroup2()
        assert mount is not None
        assert (mount / cgroup).exists()
    assert not Path("/proc", str(pid)).exists()
    assert not (mount / cgroup).exists()
    assert not (scratch / "gone").exists()
    assert "gone/root" not in Path("/proc/self/mounts").read_text()


def test_a_killed_test_run_takes_its_nodes_along(lowerdir: str, scratch: Path) -> None:
    script = (
        "import os, pathlib, sys, time; from tests.lab import node\n"
        "disks = pathlib.Path(sys.argv[2], f'nodes.{os.getpid()}.x')\n"
        "with node.booted('orphan', sys.argv[1], disks) as one:\n"
        "    print(one.pid, one.cgroup, flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, lowerdir, str(scratch)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout is not None
        pid, cgroup = run.stdout.readline().split()
        run.kill()
        run.wait(10)
    lab.wait(lambda: not Path("/proc", pid).exists(), 20, "the orphan's end")
    assert list(scratch.glob("nodes.*"))
    lab.remove_stale(scratch)
    mount = lab.cgroup2()
    assert mount is not None
    assert not (mount / cgroup).exists()
    assert not list(scratch.glob("nodes.*"))


def test_waiting_says_what_it_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(lab.LabError, match=r"in vain for the moon; it is 0"):
        lab.wait(lambda: 0, 0.2, "the moon")
    assert time.monotonic() - started < 2
