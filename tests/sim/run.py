"""`python -m tests.sim.run`: simulate meshes from seeds and say what broke.

A seed and the same options give the same run, event for event: what is printed at the end of each
is the hash of all of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.sim.brain import Habits
from tests.sim.churn import Rates
from tests.sim.faults import LOSSLESS, LOSSY, PERFECT, Faults
from tests.sim.findings import Violation
from tests.sim.sharing import shared
from tests.sim.world import Settings, World

NETWORKS = {"perfect": PERFECT, "zenoh": Faults(), "lossy": LOSSY, "lossless": LOSSLESS}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. :ivar trace: hash of all events. ``tail``: the last of them, when something broke.

    :ivar sent_bytes_s: per node and second, over the whole run; cores' relaying is in it.
    """

    seed: int
    violations: tuple[Violation, ...]
    counts: dict[str, int]
    trace: str
    tail: tuple[str, ...]
    wall_s: float
    virtual_s: float
    nodes: int
    blows: int
    shifts: int
    starts: int
    puts: int
    put_bytes: int
    asks: int
    messages: int
    sent_bytes_s: float
    plans: int

    def line(self) -> str:
        verdict = "ok" if not self.counts else f"BROKEN {self.counts}"
        per_node = self.messages / self.nodes / self.virtual_s
        return (
            f"seed {self.seed}: {self.nodes} nodes, {self.virtual_s:.0f} s in {self.wall_s:.1f} s; "
            f"{self.blows} blows, {self.shifts} shifts, {self.starts} engine starts; "
            f"{self.puts} puts of {self.put_bytes // max(1, self.puts)} B, {self.asks} asks, "
            f"{per_node:.2f} messages/s and {self.sent_bytes_s:.0f} B/s a node; "
            f"{self.plans} plans; {self.trace}: {verdict}"
        )


def simulate(seed: int, settings: Settings) -> Outcome:
    """One run from its seed."""
    started = time.perf_counter()
    with shared() as decode:
        world = World(seed, settings, decode)
        world.run()
    traffic = world.traffic()
    watch = world.watch
    return Outcome(
        seed=seed,
        violations=tuple(watch.findings.found),
        counts=dict(watch.findings.counts),
        trace=world.trace.digest(),
        tail=tuple(world.trace.recent) if watch.findings.found else (),
        wall_s=time.perf_counter() - started,
        virtual_s=world.clock.now_s,
        nodes=settings.nodes,
        blows=world.blows,
        shifts=world.clients.shifts,
        starts=watch.deeds.tally.starts,
        puts=world.carriage.puts,
        put_bytes=world.carriage.put_bytes,
        asks=world.carriage.asks,
        messages=sum(one.sent for one in traffic),
        sent_bytes_s=sum(one.sent_bytes for one in traffic) / settings.nodes / world.clock.now_s,
        plans=world.planning.computed,
    )


def scaled(rates: Rates, by: float) -> Rates:
    """So many times more blows."""
    return Rates(**{f.name: getattr(rates, f.name) * by for f in dataclasses.fields(rates)})


def settings_from(options: argparse.Namespace) -> Settings:
    return Settings(
        nodes=options.nodes,
        models=options.models,
        start_s=max(5.0, options.nodes / 100),
        churn_s=options.hours * 3600,
        faults=NETWORKS[options.network],
        rates=scaled(Rates(), options.blows),
        habits=Habits(beat_s=options.beat),
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    found.add_argument("--seed", type=int, default=1, help="the first seed")
    found.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    found.add_argument("--nodes", type=int, default=60)
    found.add_argument("--models", type=int, default=20)
    found.add_argument("--hours", type=float, default=0.1, help="of churn, in virtual time")
    found.add_argument("--blows", type=float, default=10.0, help="times the usual rate of churn")
    found.add_argument("--network", choices=sorted(NETWORKS), default="zenoh")
    found.add_argument("--beat", type=float, default=0.0, help="seconds; 2 for a thousand nodes")
    found.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    found.add_argument("--trace", action="store_true", help="print the last events of broken runs")
    return found


def main(words: list[str] | None = None) -> int:
    options = parser().parse_args(words)
    settings = settings_from(options)
    seeds = range(options.seed, options.seed + options.seeds)
    broken: list[int] = []
    with ProcessPoolExecutor(min(options.jobs, len(seeds))) as pool:
        for outcome in pool.map(simulate, seeds, [settings] * len(seeds)):
            print(outcome.line(), flush=True)
            if outcome.violations:
                broken.append(outcome.seed)
                for violation in outcome.violations:
                    print(f"    {violation}")
                if options.trace:
                    print("\n".join(outcome.tail))
    if broken:
        print(f"{len(broken)} of {len(seeds)} broken at {_commit()}. To see one again:")
        print(
            f"  python -m tests.sim.run --seed {broken[0]} --nodes {options.nodes} "
            f"--models {options.models} --hours {options.hours} --blows {options.blows} "
            f"--network {options.network} --beat {options.beat} --trace"
        )
    return 1 if broken else 0


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    sys.exit(main())
