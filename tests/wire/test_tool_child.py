"""Children that work for hours: given up when they hang, and never left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshd.experts.tool_child import Ended, HungError, child, complaint, run_to_end

NEVER_S = 3600.0


@asynccontextmanager
async def shell(script: str) -> AsyncIterator[asyncio.subprocess.Process]:
    async with child("/bin/sh", "-c", script, niceness=5, started=lambda _: None) as process:
        yield process
    assert process.returncode is not None


async def test_what_it_says_is_heard_line_by_line() -> None:
    heard: list[str] = []

    def hear(said: str) -> bool:
        heard.append(said)
        return False

    async with shell(
        "printf 'a\\nb'; read x < /dev/null; printf 'c\\n'; echo e >&2; nice; exit 7"
    ) as it:
        ended = await run_to_end(it, hear)
    assert ended == Ended(7, "a\nbc\n5\n", "e\n")
    assert "a\n" in heard[0]
    assert heard[-1].endswith("5\n")


async def test_it_is_ended_when_it_said_enough() -> None:
    async with shell("echo one; echo two; exec sleep 1000") as it, asyncio.timeout(30):
        ended = await run_to_end(it, lambda said: "two\n" in said)
    assert ended.enough
    assert ended.code == -9


async def test_it_is_given_up_when_it_neither_computes_nor_speaks() -> None:
    async with shell("exec sleep 1000") as it, asyncio.timeout(30):
        with pytest.raises(HungError):
            await run_to_end(it, lambda _: False, idle_s=0.4, silence_s=NEVER_S)


async def test_it_is_not_given_up_while_it_computes_but_for_too_long_a_silence() -> None:
    began = time.monotonic()
    async with shell("while :; do :; done") as it, asyncio.timeout(60):
        with pytest.raises(HungError):
            await run_to_end(it, lambda _: False, idle_s=1.0, silence_s=4.0)
    assert time.monotonic() - began >= 4.0


async def test_it_gets_none_of_an_engines_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_DEVICE", "Vulkan0")
    async with shell("echo ${LLAMA_ARG_DEVICE:-none}") as it:
        ended = await run_to_end(it, lambda _: False)
    assert ended.out == "none\n"


async def test_much_that_is_said_fills_no_memory() -> None:
    async with shell("yes | head -c 20000000; echo end") as it, asyncio.timeout(60):
        ended = await run_to_end(it, lambda _: False)
    assert len(ended.out) <= 1 << 20
    assert ended.out.endswith("end\n")


def test_complaints_name_the_cause() -> None:
    said = "0.1 I well\n0.2 E gguf: no such file\n0.3 E so nothing can be done\n0.4 I bye\n"
    assert complaint(Ended(1, "", said)) == "exit 1: gguf: no such file"
    assert complaint(Ended(-6, "", "Aborted\n")) == "exit -6: Aborted"
    assert complaint(Ended(0, "", "")) == "exit 0: no message"


async def test_it_is_the_first_to_end_where_memory_does() -> None:
    scores: list[str] = []

    def started(process: asyncio.subprocess.Process) -> None:
        scores.append(Path(f"/proc/{process.pid}/oom_score_adj").read_text())

    async with child("/bin/sleep", "1000", niceness=0, started=started):
        pass
    assert scores == ["1000\n"]


async def test_its_log_comes_in_order_where_that_is_wished() -> None:
    script = "echo 1; echo 2 >&2; echo 3"
    async with child(
        "/bin/sh", "-c", script, niceness=0, started=lambda _: None, joined=True
    ) as process:
        assert process.stdout is not None
        assert await process.stdout.read() == b"1\n2\n3\n"
