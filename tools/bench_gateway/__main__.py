"""Measure our gateway beside others before one stub upstream, in one run, and print a table.

``python -m tools.bench_gateway [--quick] [--only meshd,smg] [--at REVISION] [--write]``. What is
not here is fetched into .cache/bench; what cannot be is left out, with the reason.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from tools.bench_gateway import proxies, table
from tools.bench_gateway.figures import Effort, measure
from tools.bench_gateway.proxies import Place, Proxy
from tools.bench_gateway.report import write_section
from tools.bench_gateway.started import started

_FULL = Effort(rounds=5, rate_s=2.0, stream_s=4.0, held=1000)
_QUICK = Effort(rounds=2, rate_s=0.5, stream_s=0.7, held=1000)
_QUICK_NAMES = tuple(name for name in proxies.ALL if name != "litellm")
_OPEN_FILES = 8192


def main(arguments: list[str]) -> int:
    """Return the exit status: 2 when it was asked for what it cannot do."""
    parser = argparse.ArgumentParser(prog="bench_gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, without LiteLLM")
    parser.add_argument(
        "--only", type=_names, help=f"of {','.join(proxies.ALL)}; direct is always there"
    )
    parser.add_argument(
        "--at", action="append", default=[], metavar="REVISION", help="ours as of then, as well"
    )
    parser.add_argument("--rounds", type=_positive)
    parser.add_argument("--rate-s", type=float, help="seconds for each measuring of requests/s")
    parser.add_argument("--stream-s", type=float, help="seconds for each measuring of streams")
    parser.add_argument("--held", type=int, help="streams to hold for memory; 0 for none")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    chosen = parser.parse_args(arguments)
    if not _allow_open_files():
        print(f"bench_gateway: needs {_OPEN_FILES} open files (ulimit -n)", file=sys.stderr)
        return 2
    usual = _QUICK if chosen.quick else _FULL
    effort = Effort(
        chosen.rounds or usual.rounds,
        chosen.rate_s or usual.rate_s,
        chosen.stream_s or usual.stream_s,
        usual.held if chosen.held is None else chosen.held,
    )
    names = chosen.only or (_QUICK_NAMES if chosen.quick else tuple(proxies.ALL))
    wanted = _wanted(names, chosen.at)
    text = uvloop.run(_run(wanted, effort))
    print(text, flush=True)
    if chosen.write:
        write_section(proxies.ROOT / "docs" / "benchmarks.md", text)
    return 0


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(proxies.ALL):
        raise argparse.ArgumentTypeError(f"they are {', '.join(proxies.ALL)}")
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _wanted(names: tuple[str, ...], at: list[str]) -> dict[str, Callable[[Place], Proxy]]:
    wanted = {name: build for name, build in proxies.ALL.items() if name in ("direct", *names)}
    for number, revision in enumerate(at):
        wanted[f"at{number}"] = proxies.meshd_at(revision)
    return wanted


def _allow_open_files() -> bool:
    """The children get it as well."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _OPEN_FILES:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, most))
    return True


def _say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _run(wanted: dict[str, Callable[[Place], Proxy]], effort: Effort) -> str:
    before, load = time.strftime("%Y-%m-%d %H:%M"), os.getloadavg()[0]
    async with started(wanted, _say) as bench:
        found = await measure(bench.standing, effort, _say)
    lines = [
        f"{before} to {time.strftime('%H:%M')}, {os.cpu_count()} cores of {_processor()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}; load average before "
        f"{load:.1f}, after {os.getloadavg()[0]:.1f}. {effort.rounds} rounds, their medians.",
        "",
        table.render(found),
    ]
    if bench.missing:
        lines += ["", *(f"* {name} is not there: {why}" for name, why in bench.missing.items())]
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
