from __future__ import annotations

import doctest
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.engine import apt, describe
from meshd.units import child, engine_log, waves
from meshd.units.child import Timing, command, engine_environment
from meshd.units.engine_log import EngineLog
from meshd.units.spec import MESHD, EngineKind, EngineSpec


@pytest.mark.parametrize("module", [apt, describe, child, engine_log, waves])
def test_examples_in_the_documentation(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


@given(st.integers(min_value=1, max_value=10_000))
def test_delays_grow_and_are_bounded(failures: int) -> None:
    timing = Timing()
    assert timing.delay_s(failures) <= timing.delay_s(failures + 1) <= timing.last_delay_s


def test_the_log_is_bounded_whatever_is_printed(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "log/x.log", limit_bytes=1000)
    for size in (999, 5000, 1, 400, 400, 400, 0):
        log.write(b"x" * size)
        sizes = [path.stat().st_size for path in (tmp_path / "log").iterdir()]
        assert len(sizes) <= 2
        assert all(0 < size <= 1000 for size in sizes)


def test_the_newest_output_is_kept(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "x.log", limit_bytes=10)
    for number in range(20):
        log.write(b"%05d\n" % number)
    assert log.path.read_bytes() == b"00019\n"
    assert log.path.with_name("x.log.1").read_bytes() == b"00018\n"


@given(st.lists(st.binary(max_size=300), max_size=50))
def test_last_lines_are_bounded_and_never_fail(pieces: list[bytes]) -> None:
    log = EngineLog(Path("/nonexistent/x.log"))
    for piece in pieces:
        log.remember(piece)
    assert len(log.lines) <= 41
    assert all(len(line) <= 500 for line in log.lines)
    printed = b"".join(pieces).split(b"\n")[-1].decode(errors="replace").strip()
    if printed and len(printed) < 400:
        assert log.lines[-1] == printed


def test_engines_do_not_inherit_what_would_overrule_the_plan() -> None:
    spec = EngineSpec(EngineKind.LLAMA, "a", "a", ("/x",), environment=(("LLAMA_ARG_X", "1"),))
    seen = engine_environment(
        spec,
        {"PATH": "/bin", "LLAMA_ARG_CTX_SIZE": "9", "NOTIFY_SOCKET": "/n", "HOME": "/root"},
        Path("/cache"),
    )
    assert seen == {
        "PATH": "/bin",
        "HOME": "/cache",
        "LLAMA_CACHE": "/cache",
        "GGML_NO_BACKTRACE": "1",
        "LLAMA_ARG_X": "1",
    }


def test_a_guard_is_this_meshd_and_an_engine_what_its_spec_says() -> None:
    argv = (MESHD, "guard", "big", "member")
    guard = EngineSpec(EngineKind.GUARD, "big", "big", argv)
    assert command(guard) == (sys.executable, "-m", "meshd.cli.main", *argv[1:])
    engine = EngineSpec(EngineKind.RPC, "big", "big", ("/usr/bin/rpc-server", "-c"))
    assert command(engine) == engine.argv


def test_a_spec_says_where_an_rpc_server_finds_tensors(tmp_path: Path) -> None:
    """Not in the cache of its own that other engines get."""
    cache = ("LLAMA_CACHE", "/var/lib/mesh/rpc-cache")
    spec = EngineSpec(EngineKind.RPC, "a", "a", ("/x",), environment=(cache, ("MESHD_TERM", "3")))
    seen = engine_environment(spec, {"MESHD_ROOT": "/tmp"}, tmp_path)
    assert seen["LLAMA_CACHE"] == cache[1]
    assert (seen["MESHD_TERM"], seen["HOME"], "MESHD_ROOT" in seen) == ("3", str(tmp_path), False)
