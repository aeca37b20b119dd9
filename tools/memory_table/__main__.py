"""Compare meshd's memory estimate with the engine's, and write docs/memory.md.

``python -m tools.memory_table [--models NAME,...] [--no-loads] [--output FILE]``: some minutes and
no GPU. Needs an engine (`make engine`) and a file system that keeps holes (some 1.2 TB of them).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from meshd.engine.describe import describe
from meshd.engine.locate import Place, require
from meshd.errors import UserError
from meshd.models.facts import GgufFacts
from meshd.models.gguf_facts import read_facts
from meshd.planner.memory import estimate
from meshd.planner.placement import on_host
from tools.memory_table.cases import LOADS, cases, described
from tools.memory_table.models import MODELS
from tools.memory_table.oracle import OracleError, fit_params, loaded, rpc_servers
from tools.memory_table.report import Row, render, worst_line
from tools.memory_table.sparse import Shape, write

_DOCUMENT = Path(__file__).resolve().parents[2] / "docs/memory.md"
# A real load reads all of the file, holes too, so those models get fewer layers.
_LOAD_LAYERS = {"gemma3": 6}
_LOAD_BYTES_MAX = 8 << 30


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 when the engine refused something, 2 when there is no engine."""
    # So that the engines that were started end with this, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog="memory_table", description=__doc__)
    parser.add_argument("--models", default="", help="comma-separated, default all")
    parser.add_argument("--no-loads", action="store_true", help="without llama-server's loads")
    parser.add_argument("--output", type=Path, default=_DOCUMENT)
    chosen = parser.parse_args(arguments)
    names = set(filter(None, chosen.models.split(",")))
    shapes = [shape for shape in MODELS if not names or shape.name in names]
    try:
        engine = require()
        build = describe(engine)
    except UserError as error:
        print(f"memory_table: {error}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failures: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="meshd-memory-") as folder,
        rpc_servers(engine, 2) as endpoints,
    ):
        for shape in shapes:
            path = write(shape, Path(folder))
            try:
                rows += _compare(engine, shape, path, endpoints, failures)
                if not chosen.no_loads:
                    rows += _compare_loads(engine, shape, Path(folder))
            except OracleError as error:
                failures.append(f"{shape.name}: {error}")
            finally:
                path.unlink()
            _tell(shape, rows, failures)
            # Anew after each model: an interrupted run keeps what it has.
            chosen.output.write_text(render(rows, failures, build))
    print(worst_line(rows), f"-> {chosen.output}")
    return 1 if failures else 0


def _compare(
    engine: Place, shape: Shape, path: Path, endpoints: tuple[str, ...], failures: list[str]
) -> Iterator[Row]:
    facts = read_facts(path)
    for case in cases(facts):
        try:
            reported = fit_params(engine, path, case.settings, case.flags(facts, endpoints))
        except OracleError as error:
            failures.append(f"{shape.name}: {case.name}, {described(case.settings)}: {error}")
            continue
        estimated = estimate(facts, case.placement(facts), case.settings)
        for ours, theirs in zip(estimated, reported, strict=True):
            yield Row(shape.name, case.name, described(case.settings), ours, theirs)


def _compare_loads(engine: Place, shape: Shape, folder: Path) -> Iterator[Row]:
    fewer = replace(
        shape,
        name=f"{shape.name}-shallow",
        layers=min(shape.layers, _LOAD_LAYERS.get(shape.architecture, 4)),
        next_layers=0,
    )
    if shape.architecture == "deepseek2":
        return  # the engine takes one without 27 layers for another model
    path = write(fewer, folder)
    try:
        facts: GgufFacts = read_facts(path)
        if facts.file_bytes > _LOAD_BYTES_MAX:
            return
        for settings in LOADS:
            theirs = loaded(engine, path, settings)
            (ours,) = estimate(facts, on_host(facts), settings)
            yield Row(fewer.name, "real load, host", described(settings), ours, theirs)
    finally:
        path.unlink()


def _tell(shape: Shape, rows: list[Row], failures: list[str]) -> None:
    mine = [row for row in rows if row.model.removesuffix("-shallow") == shape.name]
    worst = max((abs(row.error) for row in mine), default=0.0)
    failed = [failure for failure in failures if failure.startswith(f"{shape.name}:")]
    print(f"{shape.name}: {len(mine)} rows, worst {worst:.2%}", *failed, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
