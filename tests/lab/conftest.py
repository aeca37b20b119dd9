"""Fixtures of the lab tier: the root's layers, and nodes booted from them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.lab import mesh
from tests.lab import node as lab

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache/lab"
FAILURE_JOURNAL_LINES = 60

# Every node that is up, so that a failure's report can show what it said.
live: list[lab.Node] = []


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
    commands = (
        ["systemctl", "--no-pager", "--plain", "list-units", "--failed"],
        ["systemctl", "--no-pager", "--plain", "list-units", "mesh*", "--all"],
        ["journalctl", "--no-pager", "-o", "short-monotonic", "-n", str(FAILURE_JOURNAL_LINES)],
    )
    parts = []
    for command in commands:
        try:
            parts.append(f"$ {' '.join(command)}\n{node.run(command, timeout_s=10).stdout}")
        except lab.LabError as error:
            parts.append(str(error))
    return "\n".join(parts)
