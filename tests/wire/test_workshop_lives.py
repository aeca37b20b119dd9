"""A node's workshop with the real engine: from a wish to a measured shard, through any kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from meshd.engine.describe import describe
from meshd.engine.locate import Place
from meshd.experts.hold import Hold
from meshd.experts.node_workshop import about
from meshd.experts.perplexity import measure, save_logits
from meshd.experts.wish import Shard

ROOT = Path(__file__).resolve().parents[2]
MOE = ROOT / "share/models/tiny-moe.gguf"
KEPT = 12
# Some chunks of 512 tokens.
TEXT_BYTES = 6_000
DEADLINE_S = 300.0

pytestmark = pytest.mark.skipif(not MOE.exists(), reason="share/models/tiny-moe.gguf is not here")


async def life(root: Path, engine: Place, until: tuple[str, float] | None) -> list[str]:
    """What a workshop says until it is that far, and is then killed; or until it is done."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.wire.workshop_child"),
        *(str(root), str(MOE), str(KEPT), str(TEXT_BYTES)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "MESHD_ENGINE_ROOT": str(engine.root)},
        cwd=ROOT,
    )
    said = []
    assert child.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while line := (await child.stdout.readline()).decode().strip():
                said.append(line)
                if until is not None and is_at(line, *until):
                    break
            if until is not None:
                engines = list(children_of(child.pid))
                child.send_signal(signal.SIGKILL)
                while any(alive(pid) for pid in engines):
                    await asyncio.sleep(0.01)
            await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return said


def is_at(line: str, stage: str, progress: float) -> bool:
    words = line.split()
    return len(words) >= 3 and words[1] == stage and float(words[2]) >= progress


def children_of(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stages(said: list[str]) -> set[str]:
    return {words[1] for line in said if len(words := line.split()) >= 3 and "[" not in line}


@pytest.mark.timeout(DEADLINE_S)
async def test_through_a_kill_in_every_stage_to_the_same_shard(
    engine: Place, tmp_path: Path
) -> None:
    root, other = tmp_path / "broken", tmp_path / "whole"
    root.mkdir()
    other.mkdir()
    lives = [
        await life(root, engine, until)
        for until in (("ranking", 0.5), ("writing", 0.0), ("logits", 0.6), ("certifying", 0.6))
    ]
    last = await life(root, engine, None)
    found = msgspec.convert(json.loads(last[-1]), Shard)
    assert "ranking" in stages(lives[0])
    assert "ranking" in stages(lives[1])
    # What was done once is done, the first of two texts as well.
    assert "ranking" not in stages(lives[2]) | stages(lives[3]) | stages(last)
    assert "writing" not in stages(lives[3]) | stages(last)
    assert "logits" not in stages(last)
    assert all(is_at(line, "certifying", 0.5) for line in last if " certifying " in line)
    assert any(is_at(line, "certifying", 0.5) for line in last)
    whole = msgspec.convert(json.loads((await life(other, engine, None))[-1]), Shard)
    assert replace(found, path="") == replace(whole, path="")
    assert {one.domain for one in found.measured} == {"prose", "code"}
    assert all(0.3 < one.top1 < 1 and one.perplexity_ratio > 1 for one in found.measured)
    assert 0.75 < found.least_mass <= found.mass < 1
    state = root / "state"
    left = [str(path.relative_to(state)) for path in sorted(state.rglob("*")) if path.is_file()]
    assert [path.partition("/")[2].partition("/")[0] for path in left] == [
        "certificates", *["logits"] * 4, "rankings", "shards", f"{found.key}.gguf",
    ], left  # fmt: skip


async def test_what_stands_still_while_requests_run_measures_the_same(
    engine: Place, tmp_path: Path
) -> None:
    build = describe(engine)
    text = tmp_path / "text"
    heldout = await asyncio.to_thread((ROOT / "share/models/heldout.txt").read_bytes)
    await asyncio.to_thread(text.write_bytes, heldout[:TEXT_BYTES])
    moment = [0.0, True]
    hold = Hold(lambda: bool(moment[1]), lambda: float(moment[0]))
    stopped: list[str] = []
    logits = tmp_path / "logits"

    def progress(_: float) -> None:
        """In the middle of it requests come, and after a while they went."""
        if stopped or not children():
            return
        moment[:] = [moment[0] + 100, False]
        hold.look()
        stopped.append(state_of(children()[0]))
        moment[1] = True
        hold.look()

    def children() -> list[int]:
        return [one for one in children_of(os.getpid()) if alive(one)]

    await save_logits(MOE, text, logits, build, progress=progress, started=hold.started)
    found = await measure(
        *(MOE, text, logits, "prose", build), progress=progress, started=hold.started
    )
    assert stopped
    assert found.top1 == 1.0
    assert about((str(MOE),)).experts == (16,) * 6


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
