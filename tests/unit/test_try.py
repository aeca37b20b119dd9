from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from meshd.cli import try_
from meshd.config.load import SourceFile
from meshd.paths import Paths, under
from meshd.status import NodeStatus

CANDIDATE = "models: []\n"


class Node:
    """A node whose trial runs out after a few looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    async def status(self) -> NodeStatus:
        self.looks -= 1
        ends_s = 1.0 if self.looks > 0 else None
        return NodeStatus("box", "auto", "fine", (), 1, "", (), "", (), (), trial_ends_s=ends_s)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The far end of a terminal that is our standard input."""
    far, near = pty.openpty()
    stdin: TextIO = os.fdopen(near, "r")
    monkeypatch.setattr(sys, "stdin", stdin)
    yield far
    stdin.close()
    os.close(far)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    paths = under(tmp_path)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text("# before\n")

    async def end(at: Paths, *, keep: bool) -> None:
        assert keep
        at.config.write_text(CANDIDATE)

    monkeypatch.setattr(try_, "_end", end)
    monkeypatch.setattr(try_, "_POLL_S", 0.02)
    return paths


@pytest.mark.parametrize(("typed", "kept"), [(b"\n", True), (b"\x04", False)])
async def test_enter_keeps_and_the_end_of_the_terminal_does_not(
    terminal: int, paths: Paths, typed: bytes, kept: bool
) -> None:
    os.write(terminal, typed)
    files = (SourceFile(str(paths.config), CANDIDATE),)
    assert await try_._outcome(paths, Node(20), files) is kept  # type: ignore[arg-type]


LEFT = """
import argparse, asyncio, os, signal, sys
from pathlib import Path
from meshd.cli import try_
from meshd.paths import SYSTEM
from meshd.units import policy
policy.TRIAL = Path(sys.argv[1])
os.geteuid = lambda: 0

async def trial(*_):
    with try_._vouched(SYSTEM, "models: []"):
        assert policy.TRIAL.exists()
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        await asyncio.sleep(30)

try_._try = trial
try_.run(argparse.Namespace(
    paths=None, keep=False, revert=False, json=False, file=Path("x"), timeout=9
))
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_connection_that_breaks_leaves_no_word_of_roots_behind(tmp_path: Path, name: str) -> None:
    trial = tmp_path / "trial.yaml"
    done = subprocess.run(
        [sys.executable, "-c", LEFT, str(trial), name], timeout=60, capture_output=True, check=False
    )
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert not trial.exists()
