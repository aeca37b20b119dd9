"""What shards of a mixture of experts keep and cost, on share/models/tiny-moe.gguf.

``python -m tools.bench_experts [--only quality,plans,domains,writing]``: some five minutes on two
processors. Exit status 1 when the ranking per layer does not win.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from meshd.cli.experts_model import mixture
from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.errors import UserError
from tools.bench_experts import by_domain, plans, quality, writing
from tools.bench_experts.halves import MODEL, halves
from tools.bench_experts.lab import Lab

PARTS = ("quality", "plans", "domains", "writing")


async def _quality(lab: Lab) -> bool:
    rows = await quality.rows(lab)
    print(f"\n### Experts kept, and how they are chosen\n\n{quality.shown(rows)}", flush=True)
    leads = [row.behind(way) for row in rows for way in row.ways[1:]]
    return all(lead.mean > 0 for lead in leads)


async def _plans(lab: Lab) -> bool:
    print("\n### Divided among nodes", flush=True)
    for rooms in plans.MESHES:
        print(f"\n{plans.shown(rooms, await plans.measured(lab, rooms))}", flush=True)
    return True


async def _domains(lab: Lab) -> bool:
    rows = await by_domain.rows(lab)
    print(f"\n### Routing by domain\n\n{by_domain.shown(rows)}", flush=True)
    return True


_RUN: dict[str, Callable[[Lab], Awaitable[bool]]] = {
    "quality": _quality,
    "plans": _plans,
    "domains": _domains,
}


async def _run(only: list[str]) -> bool:
    model = mixture(MODEL)
    won = True
    if set(only) - {"writing"}:
        with tempfile.TemporaryDirectory(prefix="meshd-bench-") as name:
            folder = Path(name)
            lab = Lab(describe(require()), model.anatomy, halves(folder), folder)
            await lab.prepare()
            for part, run in _RUN.items():
                if part in only:
                    won = await run(lab) and won
            print(f"\n{lab.measured} shards measured, llama.cpp {lab.build.version}.")
    if "writing" in only:
        print(f"\n### Writing\n\n{await asyncio.to_thread(writing.table)}", flush=True)
    return won


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,..", help=", ".join(PARTS))
    only = parser.parse_args().only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    began_s = time.monotonic()
    try:
        won = asyncio.run(_run(only))
    except UserError as error:
        print(f"bench-experts: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"\n{time.monotonic() - began_s:.0f} s")
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())
