"""Measure meshd's membership and Serf's, in one run, and print a table.

``python -m tools.bench_mesh [--sizes 5,20,50] [--fleets meshd,serf] [--stress]``: some five minutes
for each size of each fleet. Needs Linux's network namespaces (root, or unprivileged user
namespaces), iproute2, and nft for --stress. Serf is Debian's package; without it, only meshd is
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tools.bench_mesh import serf_fleet, stress
from tools.bench_mesh.fleet import Fleet
from tools.bench_mesh.meshd_fleet import MeshdFleet
from tools.bench_mesh.network import Network, enter
from tools.bench_mesh.stress import Stress
from tools.bench_mesh.table import render, render_stress
from tools.bench_mesh.trials import Effort, Figures, measure, note, start_all

_MOST = 200
_FLEETS = ("meshd", "serf-encrypted", "serf")
_STRESS_NODES = 20
_LOSS_NODES = 12


def main(arguments: list[str]) -> int:
    """Return the exit status: 2 when this machine cannot do it."""
    parser = argparse.ArgumentParser(prog="bench_mesh", description=__doc__)
    parser.add_argument("--sizes", type=_sizes, default=(5, 20, 50), help="nodes; default 5,20,50")
    parser.add_argument("--idle-s", type=float, default=25.0, help="quiet seconds to measure")
    parser.add_argument("--settle-s", type=float, default=25.0, help="before them; default 25")
    parser.add_argument("--trials", type=int, default=2, help="of each kind of death; default 2")
    parser.add_argument("--changes", type=int, default=6)
    parser.add_argument(
        "--fleets", type=_fleets, default=_FLEETS[:2], help=f"of {','.join(_FLEETS)}"
    )
    parser.add_argument("--stress", action="store_true", help="busy cores, loss, cuts as well")
    parser.add_argument("--stress-only", action="store_true")
    parser.add_argument("--stress-s", type=float, default=60.0, help="how long each stress lasts")
    chosen = parser.parse_args(arguments)
    needed = ["unshare", "ip", "mount"]
    needed += ["nft"] if chosen.stress or chosen.stress_only else []
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        print(f"bench_mesh: {', '.join(missing)} not found", file=sys.stderr)
        return 2
    enter("tools.bench_mesh", arguments)
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as folder:
        asyncio.run(_run(chosen, Path(folder)))
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(one) for one in text.split(","))
    if not all(3 <= size <= _MOST for size in sizes):
        raise argparse.ArgumentTypeError(f"sizes are from 3 to {_MOST}")
    return sizes


def _fleets(text: str) -> tuple[str, ...]:
    fleets = tuple(text.split(","))
    if not set(fleets) <= set(_FLEETS):
        raise argparse.ArgumentTypeError(f"fleets are {', '.join(_FLEETS)}")
    return fleets


async def _run(chosen: argparse.Namespace, folder: Path) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {platform.release()}")
    if not chosen.stress_only:
        await _compare(chosen, folder)
    if chosen.stress or chosen.stress_only:
        print(render_stress(await _stress(folder, chosen.stress_s)), flush=True)


async def _compare(chosen: argparse.Namespace, folder: Path) -> None:
    effort = Effort(chosen.settle_s, chosen.idle_s, chosen.changes, *[chosen.trials] * 3)
    fleets = chosen.fleets
    if fleets != ("meshd",) and not serf_fleet.available():
        print("Serf is not installed (apt install serf): meshd alone", flush=True)
        fleets = ("meshd",)
    found: list[Figures] = []
    try:
        for name in fleets:
            for size in chosen.sizes:
                found.append(await _one(_fleet(name, folder), size, effort))  # noqa: PERF401
    finally:
        # Who interrupts it after half an hour wants what there is.
        print("Times: median / worst. Bytes, CPU, memory: mean / most of any node.\n")
        print(render(found), flush=True)


def _fleet(name: str, folder: Path) -> Fleet:
    if name == "meshd":
        return MeshdFleet(folder)
    return serf_fleet.SerfFleet(folder, encrypted=name == "serf-encrypted")


async def _one(fleet: Fleet, size: int, effort: Effort) -> Figures:
    network = Network(size + 1)
    try:
        return await measure(fleet, network, size, effort)
    finally:
        await fleet.close()
        network.close()


async def _stress(folder: Path, for_s: float) -> list[Stress]:
    found = []
    network = Network(_STRESS_NODES)
    fleet = MeshdFleet(folder)
    try:
        found.append(await stress.start_at_once(fleet, _STRESS_NODES))
        found.append(await stress.busy(fleet, _STRESS_NODES, for_s))
    finally:
        await fleet.close()
    fleet = MeshdFleet(folder)
    try:
        await start_all(fleet, range(1, _LOSS_NODES + 1))
        note("loss, cut")
        found.append(await stress.loss(fleet, network, _LOSS_NODES, 5, for_s))
        found.append(await stress.loss(fleet, network, _LOSS_NODES, 20, for_s))
        found.append(await stress.cut(fleet, network, _LOSS_NODES))
    finally:
        await fleet.close()
        network.close()
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
