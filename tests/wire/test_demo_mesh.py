"""The demos of a mesh, as the README names them: real nodes, a real kill, a real answer after."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.engine.build import EngineBuild

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_a_mesh_of_three_heals_after_a_kill(engine: EngineBuild) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshd.cli.main", "demo", "--nodes", "3", "--once"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"kill -9 (\w+), which serves ([\w-]+)", done.stdout)
    assert killed is not None, done.stdout
    victim, model = killed.groups()
    healed = re.search(rf"([\d.]+) s  (\w+) serves {model}$", done.stdout, re.MULTILINE)
    assert healed is not None, done.stdout
    assert healed[2] != victim
    after = done.stdout[healed.end() :]
    assert f"answered by {healed[2]}" in after
    assert victim not in after


@pytest.mark.timeout(300)
def test_a_split_model_is_served_again_after_a_member_is_killed(engine: EngineBuild) -> None:
    done = subprocess.run(
        [*(sys.executable, "-m", "meshd.cli.main", "demo"), "--nodes", "3", "--split", "--once"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, _, after = done.stdout.partition("kill -9 ")
    victim = after.split(",")[0]
    splits = []
    for part in (before, after):
        host = re.search(r"^  (\w+) hosts tiny: \d+ MiB", part, re.MULTILINE)
        lender = re.search(r"^  (\w+) lends \d+ MiB for (\d+) layers", part, re.MULTILINE)
        assert host is not None, done.stdout
        assert lender is not None, done.stdout
        assert f"answered by {host[1]}, {lender[1]} together" in part
        splits.append((host[1], lender[1]))
    assert splits[0][1] == victim
    assert victim not in splits[1]
    assert len(set(splits[1])) == 2


def test_a_demo_has_a_bounded_number_of_nodes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshd.cli.main", "demo", "--nodes", "9"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "from 2 to 5 nodes" in done.stderr
