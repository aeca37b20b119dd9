"""`meshd bench`: how fast this machine's devices are, as it is remembered or measured now."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.node.speed import Speed
    from meshd.paths import Paths


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("bench", help="show how fast this machine's devices are, measured")
    parser.add_argument("--now", action="store_true", help="measure now, and remember it")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """:raises UserError: there is no engine to measure with, or none of the devices could be."""
    from meshd.cli.answer import print_json

    found, fitting = asyncio.run(_speeds(arguments.paths, now=arguments.now))
    if arguments.json:
        print_json(found)
    else:
        for speed in found:
            # A service may run on fewer processors than a shell.
            other = "" if speed.device in fitting else "; of other processors or another engine"
            print(_line(speed) + other)
    if not found:
        print("not measured yet; meshd does it in a quiet moment, or `meshd bench --now`")
    return 0 if found else 1


async def _speeds(paths: Paths, *, now: bool) -> tuple[tuple[Speed, ...], Collection[str]]:
    from meshd.engine.describe import describe
    from meshd.engine.locate import require
    from meshd.node.observe import observe
    from meshd.node.speed import keys, valid
    from meshd.speed_watch import measure_now, read

    build = await asyncio.to_thread(lambda: describe(require(paths)))
    hardware = await observe()
    known = await asyncio.to_thread(read, paths.speeds)
    if now:
        known = await measure_now(paths.speeds, hardware, build, said=_warn)
    return known, valid(known, keys(hardware, hardware.gpus, build))


def _warn(text: str) -> None:
    print(f"meshd: {text}", file=sys.stderr)


def _line(speed: Speed) -> str:
    text = f"{speed.device}: reads {speed.bandwidth_bytes_s / 1e9:.3g} GB/s"
    if speed.lent_bandwidth_bytes_s:
        text += f" ({speed.lent_bandwidth_bytes_s / 1e9:.3g} in another node's split)"
    text += f", {speed.flops_s / 1e12:.3g} TFLOPS with prompts"
    return text if speed.calm else f"{text}; the machine was busy, it will be measured again"
