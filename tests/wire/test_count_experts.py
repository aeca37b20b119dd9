"""Experts of a small mixture, counted by a real llama-imatrix."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import Place
from meshd.experts.imatrix import PIECE_CHUNKS, count_experts
from meshd.experts.imatrix_run import CHUNK_TOKENS, IMATRIX
from meshd.experts.ranking import Ranking, RankingError
from meshd.experts.ranking_file import decode, encode
from meshd.experts.texts import calibration_digest, texts_of
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_facts
from tests.wire.count_child import EXPERTS

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "share/models"
MOE = MODELS / "tiny-moe.gguf"
USED = 2
DEADLINE_S = 100.0
# Two pieces of each text, so that there is something between the first and the last.
CHUNKS = PIECE_CHUNKS + 2
FIRST_PIECE = PIECE_CHUNKS / (2 * CHUNKS)

pytestmark = pytest.mark.skipif(not MOE.exists(), reason="share/models/tiny-moe.gguf is not here")


@pytest.fixture(scope="module")
def build(engine: Place) -> EngineBuild:
    return describe(engine)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(Path(text.ranks) for text in texts_of((), tmp_path))


@dataclass
class Count:
    """One count of the small mixture, with what it said of its progress."""

    build: EngineBuild
    folder: Path
    progress: list[float] = field(default_factory=list)

    async def __call__(
        self,
        texts: tuple[Path, ...],
        *,
        model: Path = MOE,
        chunks: int = CHUNKS,
        silence_s: float = DEADLINE_S,
    ) -> Ranking:
        return await count_experts(
            (str(model),),
            texts,
            self.folder,
            self.build,
            fingerprint=fingerprint([model]),
            experts=EXPERTS,
            progress=self.progress.append,
            chunks=chunks,
            silence_s=silence_s,
            # What else runs on a machine of tests would starve it.
            niceness=0,
        )


@pytest.fixture
def count(build: EngineBuild, tmp_path: Path) -> Count:
    return Count(build, tmp_path / "count")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children(of: int) -> list[int]:
    """Processes of llama-imatrix that this one started, or that were started by those."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name, _, rest = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
        except (OSError, ValueError):
            continue
        if name == IMATRIX[:15] and int(rest.split()[1]) == of:
            found.append(int(entry.name))
    return found


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    counting: Count, texts: tuple[Path, ...], **how: float
) -> AsyncIterator[asyncio.Task[Ranking]]:
    """A count whose child computes."""
    task = asyncio.create_task(counting(texts, **how))  # type: ignore[arg-type]
    try:
        await until(lambda: task.done() or (children(os.getpid()) and counting.progress), "a child")
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_layer_counts_every_tokens_choices(
    count: Count, texts: tuple[Path, ...], tmp_path: Path
) -> None:
    facts = read_facts(MOE)
    assert (facts.experts, facts.experts_used, len(facts.layers)) == (16, USED, 6)
    ranking = await count(texts)
    assert ranking.tokens == 2 * CHUNKS * CHUNK_TOKENS
    assert [len(layer) for layer in ranking.counts] == list(EXPERTS)
    assert [sum(layer) for layer in ranking.counts] == [ranking.tokens * USED] * 6
    assert len(set(ranking.orders)) == 6
    assert ranking.calibration == calibration_digest(texts_of((), tmp_path))
    assert count.progress == sorted(count.progress)
    assert count.progress[-1] == 1.0
    # More than one word a piece.
    assert len(count.progress) > 20
    text = encode(ranking)
    assert decode(text, fingerprint=ranking.fingerprint, experts=EXPERTS, used=USED) == ranking
    # llama-imatrix's own file, which is much larger, is gone.
    assert [path.suffix for path in count.folder.iterdir()] == [".counting"]

    again = Count(count.build, tmp_path / "again")
    assert await again(texts) == ranking
    # And of what lies there nothing is counted anew.
    known = Count(replace(count.build), count.folder)
    assert await known(texts) == ranking
    assert len(known.progress) < 8


async def test_the_order_follows_the_text(count: Count, texts: tuple[Path, ...]) -> None:
    prose, code = texts
    rankings = [await count((text,), chunks=4) for text in (prose, code)]
    assert rankings[0].calibration != rankings[1].calibration
    assert rankings[0].orders != rankings[1].orders


def counting_process(
    folder: Path, texts: tuple[Path, ...], engine: Place
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.wire.count_child", str(MOE), str(CHUNKS), str(folder)]
    return subprocess.Popen(
        [*command, *map(str, texts)],
        cwd=ROOT,
        env={**os.environ, "MESHD_ENGINE_ROOT": str(engine.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


async def test_a_count_goes_on_after_kill_9(
    count: Count, texts: tuple[Path, ...], engine: Place, tmp_path: Path
) -> None:
    child = counting_process(count.folder, texts, engine)
    heard = bytearray()
    try:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)

        def second_piece() -> bool:
            assert child.stdout is not None
            heard.extend(child.stdout.read() or b"")
            shares = [float(one) for one in heard.decode().rpartition("\n")[0].split()]
            return bool(shares) and shares[-1] > FIRST_PIECE and bool(children(child.pid))

        await until(second_piece, f"a count under way, not {heard!r}")
        (imatrix,) = children(child.pid)
        child.kill()
        child.wait()
        await until(lambda: not alive(imatrix), "its child to end, too")
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    left = {path.name for path in count.folder.iterdir()}
    assert any(name.endswith(".counting") for name in left)

    resumed = await count(texts)
    assert count.progress[0] == FIRST_PIECE
    once = Count(count.build, tmp_path / "once")
    assert resumed == await once(texts)
    assert once.progress[0] < FIRST_PIECE
    assert [path.suffix for path in count.folder.iterdir()] == [".counting"]


async def test_a_count_that_is_given_up_leaves_no_child(
    count: Count, texts: tuple[Path, ...]
) -> None:
    async with running(count, texts) as task:
        (child,) = children(os.getpid())
        # So that it cannot be done by itself before anybody looks.
        os.kill(child, signal.SIGSTOP)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not alive(child)
    assert not children(os.getpid())
    assert [path for path in count.folder.iterdir() if path.suffix != ".counting"] == []


async def test_a_child_that_hangs_is_given_up(count: Count, texts: tuple[Path, ...]) -> None:
    async with running(count, texts, silence_s=5.0) as task:
        (child,) = children(os.getpid())
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(RankingError, match="said nothing for 5 s"):
            await task
        assert not alive(child)


async def test_texts_weigh_the_same_however_long_they_are(
    count: Count, texts: tuple[Path, ...], tmp_path: Path
) -> None:
    prose, code = texts
    short = tmp_path / "short.txt"
    short.write_bytes(code.read_bytes()[:12_000])
    both = await count((prose, short))
    chunks = both.tokens // (2 * CHUNK_TOKENS)
    assert 2 <= chunks < PIECE_CHUNKS
    assert both.tokens == 2 * chunks * CHUNK_TOKENS
    alone = [await count((text,), chunks=chunks) for text in (prose, short)]
    assert both.counts == tuple(
        tuple(one + other for one, other in zip(*layers, strict=True))
        for layers in zip(alone[0].counts, alone[1].counts, strict=True)
    )


async def test_what_cannot_be_counted_is_said(
    count: Count, texts: tuple[Path, ...], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too little")
    with pytest.raises(RankingError, match=r"short\.txt: fewer than the 1024 tokens"):
        await count((*texts, short))
    with pytest.raises(RankingError, match="absent"):
        await count((tmp_path / "absent.txt",))
    with pytest.raises(RankingError, match="no text"):
        await count(())
    with pytest.raises(RankingError, match="no expert of the 16 in layer 0"):
        await count(texts, model=MODELS / "tiny.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MOE.read_bytes()[:1_000_000])
    with pytest.raises(RankingError, match=f"{IMATRIX}: exit 1: .*"):
        await count(texts, model=broken)
    without = Count(replace(count.build, binaries=()), tmp_path)
    with pytest.raises(RankingError, match=f"no {IMATRIX}"):
        await without(texts)


async def test_a_text_that_changes_meanwhile_is_noticed(
    count: Count, texts: tuple[Path, ...], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(texts[0].read_bytes())
    async with running(count, (mine,)) as task:
        with mine.open("a") as file:
            file.write("more")
        with pytest.raises(RankingError, match="changed while"):
            await task
