"""Reads mutants one after the other in a process of its own; prints what each came to as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from gguf_bytes import mutant

from meshd.models.gguf_facts import read_facts
from meshd.models.gguf_header import GgufError


def peak_bytes() -> int:
    """Our own peak: getrusage's would also count what we were before exec, a copy of pytest."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number}.gguf"
        mutation = mutant(number, path)
        started, cpu = time.perf_counter(), time.process_time()
        outcome, message = "facts", ""
        try:
            facts = read_facts(path)
            message = f"{len(facts.layers)} layers"
        except GgufError as error:
            outcome, message = "error", str(error)
        except BaseException as error:
            outcome, message = "escaped", repr(error)
        record = {
            "number": number,
            "mutation": mutation,
            "outcome": outcome,
            "message": message,
            "wall_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
            "peak_bytes": peak_bytes(),
        }
        print(json.dumps(record))
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
