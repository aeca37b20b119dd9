"""500 hostile headers: each one clear error, quickly and in little memory, or harmless facts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

COUNT = 500
CPU_S_MAX = 1.0
PEAK_BYTES_MAX = 200_000_000


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("mutants")
    child = Path(__file__).with_name("gguf_fuzz_child.py")
    run = subprocess.run(
        [sys.executable, str(child), str(folder), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_mutant_ends_in_one_clear_error_or_in_facts(
    records: list[dict[str, object]],
) -> None:
    assert len(records) == COUNT
    assert [record for record in records if record["outcome"] == "escaped"] == []
    for record in records:
        if record["outcome"] == "error":
            message = str(record["message"])
            assert ".gguf" in message, record
            assert message.isprintable(), record
            assert len(message) < 400, record


def test_no_mutant_takes_long(records: list[dict[str, object]]) -> None:
    """Processor time, because other work on the machine is not the reader's fault."""
    slowest = max(records, key=lambda record: record["cpu_s"])  # type: ignore[arg-type,return-value]
    assert float(str(slowest["cpu_s"])) < CPU_S_MAX, slowest
    print(f"slowest mutant: {slowest}")


def test_no_mutant_takes_much_memory(records: list[dict[str, object]]) -> None:
    peak = max(int(str(record["peak_bytes"])) for record in records)
    assert peak < PEAK_BYTES_MAX
    print(f"peak of the process over all mutants: {peak / 1e6:.0f} MB")


def test_the_mutants_reach_both_ends(records: list[dict[str, object]]) -> None:
    """A fuzzer whose every file is refused at the first byte, or none, tests nothing."""
    outcomes = Counter(record["outcome"] for record in records)
    assert outcomes["error"] > COUNT // 2
    assert outcomes["facts"] > COUNT // 20
    causes = {str(record["message"]).split(": ", 1)[-1][:24] for record in records}
    assert len(causes) > 40
