"""Fixtures of the lab tier: the root's layers, and nodes booted from them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab import cluster, mesh
from tests.lab import node as lab
from tests.lab.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache/lab"
FAILURE_JOURNAL_LINES = 60

# Every node that is up, so that a failure's report can show what it said.
live: list[lab.Node] = []
measurements: list[tuple[str, str, float, str]] = []


@pytest.fixture(scope="session")
def lowerdir() -> str:
    """The layers of the lab root, built from the working copy as it is now."""
    build = subprocess.run(
        [sys.executable, str(REPOSITORY / "images/lab/root.py"), "--cache", str(CACHE)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    if build.returncode == 77:
        pytest.skip(f"lab tier: {build.stderr.strip()}")
    if build.returncode != 0:
        pytest.fail(f"the lab root cannot be built:\n{build.stderr}", pytrace=False)
    lab.remove_stale(CACHE)
    layers: str = json.loads(build.stdout)["lowerdir"]
    return layers


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for the nodes' disks beside the cache: an overlay cannot lie on an overlay."""
    with tempfile.TemporaryDirectory(prefix=f"nodes.{os.getpid()}.", dir=CACHE) as folder:
        yield Path(folder)


@contextlib.contextmanager
def tracked(name: str, lowerdir: str, scratch: Path) -> Iterator[lab.Node]:
    with lab.booted(name, lowerdir, scratch) as node:
        live.append(node)
        try:
            yield node
        finally:
            live.remove(node)


@pytest.fixture(scope="session")
def bare_node(lowerdir: str, scratch: Path) -> Iterator[lab.Node]:
    """A booted node on which nothing of meshd's has been started; leave it so."""
    with tracked("bare", lowerdir, scratch) as node:
        yield node


@pytest.fixture
def make_node(lowerdir: str, scratch: Path) -> Iterator[Callable[[str], lab.Node]]:
    """Boots fresh nodes for one test."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(tracked(name, lowerdir, scratch))


@pytest.fixture
def node(make_node: Callable[[str], lab.Node]) -> lab.Node:
    """A fresh node for one test."""
    return make_node("fresh")


@pytest.fixture(scope="module")
def mesh_node(lowerdir: str, scratch: Path) -> Iterator[lab.Node]:
    """A node that serves two models, shared by a file's tests; see `served`."""
    with tracked("mesh", lowerdir, scratch) as node:
        mesh.start(node)
        yield node


@pytest.fixture
def served(mesh_node: lab.Node) -> lab.Node:
    """The shared node, serving `mesh.config()` whatever the test before has done to it."""
    if mesh_node.read(mesh.CONFIG) != mesh.config():
        mesh_node.write(mesh.CONFIG, mesh.config())
        mesh_node.systemctl("reload-or-restart", "meshd")
    mesh_node.systemctl("start", "mesh.target")
    mesh.settled(mesh_node)
    return mesh_node


@contextlib.contextmanager
def tracked_cluster(names: Sequence[str], lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    with cluster.booted(names, lowerdir, scratch) as nodes:
        live.extend(nodes.nodes)
        try:
            yield nodes
        finally:
            for node in nodes.nodes:
                live.remove(node)


@pytest.fixture
def make_cluster(lowerdir: str, scratch: Path) -> Iterator[Callable[..., Cluster]]:
    """Boots fresh nodes on one bridge for one test; their names are the arguments."""
    with contextlib.ExitStack() as stack:
        yield lambda *names: stack.enter_context(tracked_cluster(names, lowerdir, scratch))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes note of a time in seconds, or of so many of something (`unit`), for the table at the
    end of the run.
    """

    def note(what: str, value: float, unit: str = "s") -> None:
        measurements.append((request.node.name, what, value, unit))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if measurements:
        terminalreporter.section("measured in the lab")
        for test, what, value, unit in measurements:
            shown = f"{value:7.2f} s" if unit == "s" else f"{value:7g} {unit}"
            terminalreporter.write_line(f"{shown}  {what}  ({test})")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for booted in live:
            report.sections.append((f"lab node {booted.name}", evidence(booted)))
    return report


def evidence(node: lab.Node) -> str:
    """What a node has to say after a failure."""
    if not node.alive():
        return f"it is down; its console:\n{node.console_tail()}"
    # An engine says so much of each request that little else would be left.
    journal = ["journalctl", "--no-pager", "-o", "short-monotonic"]
    commands = (
        ["systemctl", "--no-pager", "--plain", "list-units", "--failed"],
        ["systemctl", "--no-pager", "--plain", "list-units", "mesh*", "--all"],
        [*journal, "-n", str(FAILURE_JOURNAL_LINES), "-T", "llama-server"],
        [*journal, "-n", "10", "-t", "llama-server"],
    )
    parts = []
    for command in commands:
        try:
            parts.append(f"$ {' '.join(command)}\n{node.run(command, timeout_s=10).stdout}")
        except lab.LabError as error:
            parts.append(str(error))
    return "\n".join(parts)
