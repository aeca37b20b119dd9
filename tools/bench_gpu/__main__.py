"""Exact ways to serve a model on this node, predicted against actual tokens/s.

``python -m tools.bench_gpu [--models qwen3-30b-a3b,qwen3-8b] [--folder /dev/shm]``: some three
minutes on a large GPU. Speeds are measured in the same run, as a node measures them; the prediction
is the planner's. Without a GPU only what needs none is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from meshd.engine.backends import EngineDevices, engine_devices
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.errors import UserError
from meshd.models.gguf_facts import read_facts
from meshd.node.inventory import Gpu, Hardware
from meshd.node.observe import observe_hardware
from meshd.node.speed import RAM, Speed
from meshd.planner.pace import measured_paces, predict_solo
from meshd.speed_watch import measure_now
from tools.bench_gpu.models import known, write
from tools.bench_gpu.ways import GENERATED, Actual, Way, run, ways

# llama-bench decodes from an empty context on.
_CONTEXT = GENERATED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_gpu", description=__doc__)
    parser.add_argument("--models", default="qwen3-30b-a3b,qwen3-8b")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="room for a model")
    parser.add_argument("--until", type=float, default=1e9, metavar="S", help="begin no more then")
    parser.add_argument("--json", type=Path, help="a line a result, too")
    asked = parser.parse_args()
    try:
        return asyncio.run(_compare(asked))
    except UserError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 1


async def _compare(asked: argparse.Namespace) -> int:
    began = time.monotonic()
    build = describe(require())
    hardware = observe_hardware()
    gpu = hardware.gpus[0] if hardware.gpus else None
    devices = _devices(gpu, hardware, build)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", dir=asked.folder) as place:
        found = await measure_now(
            Path(place) / "speeds.json", hardware, build, said=lambda text: print(text)
        )
        speeds = measured_paces(found)
        for one in found:
            _note(asked.json, {"speed": asdict(one)})
            print(_speed(one, gpu), flush=True)
        print("| model | way | predicted | actual | error | prompt | s |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for name in asked.models.split(","):
            path = write(known(name), Path(place))
            facts = read_facts(path)
            size_gb, at_s = facts.file_bytes / 1e9, time.monotonic() - began
            print(f"| {name} | {size_gb:.1f} GB, written | | | | | {at_s:.0f} |", flush=True)
            for way in ways(facts, gpu.id if gpu else None):
                if time.monotonic() - began > asked.until:
                    print(f"| {name} | {way.label}: no time left | | | | | |")
                    continue
                predicted = predict_solo(facts, way.layout, _CONTEXT, speeds)
                since = time.monotonic()
                try:
                    actual = run(way, facts, path, build, devices, hardware.cpu.physical_cores)
                except (ValueError, StopIteration) as error:
                    print(f"| {name} | {way.label}: {error} | | | | | |", flush=True)
                    continue
                row = {"model": name, "way": asdict(way), "predicted": predicted}
                _note(asked.json, {**row, "actual": asdict(actual)})
                print(_row(name, way, predicted, actual, time.monotonic() - since), flush=True)
            path.unlink()
    return 0


def _devices(gpu: Gpu | None, hardware: Hardware, build: EngineBuild) -> EngineDevices:
    if gpu is None:
        return EngineDevices((), ())
    try:
        return engine_devices((gpu.id,), hardware.gpus, build.backends)
    except ValueError as error:
        raise UserError(str(error), hint="meshd engine install") from error


def _note(file: Path | None, what: dict[str, object]) -> None:
    if file is not None:
        with file.open("a") as out:
            out.write(json.dumps(what) + "\n")


def _speed(speed: Speed, gpu: Gpu | None) -> str:
    name = "RAM" if speed.device == RAM or gpu is None else gpu.name
    calm = "" if speed.calm else ", not calm"
    return (
        f"{name}: {speed.bandwidth_bytes_s / 1e9:.3g} GB/s, {speed.flops_s / 1e12:.3g} TFLOPS{calm}"
    )


def _row(name: str, way: Way, predicted: float, actual: Actual, took_s: float) -> str:
    error = f"{(actual.decoding / predicted - 1) * 100:+.0f} %" if not way.cache_mib else ""
    return (
        f"| {name} | {way.label} | {predicted:.4g} | {actual.decoding:.4g} | {error} "
        f"| {actual.prompt:.4g} | {took_s:.1f} | {actual.said}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
