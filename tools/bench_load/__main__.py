"""`make bench-load`: one model, two rpc-servers, real engines; with a seeded cache and without.

Every load begins cold: new processes, and the files of model and cache out of the page cache, but
for the one just after seeding.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.locate import RPC_SERVER, Place, require
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_header import read_header
from meshd.seeding.quota import Disk
from meshd.seeding.seed import Tools, seed
from meshd.seeding.store import Store
from meshd.seeding.tensor_list import block_bytes
from meshd.seeding.wish import SeedWish
from tools.bench_load import random_model
from tools.bench_load.engines import Split, llama_server, rpc_server
from tools.bench_load.meter import Count, Link, Meter
from tools.bench_load.table import rows, sentences

WIDTH, FF = 4096, 11_008
LAYER_BYTES = 215_000_000
SERVERS = 2
FEW, MANY = 4, 20
GIGABIT_BYTES_S = 117e6


@dataclass(frozen=True)
class Load:
    """:ivar loading: per stage, until the engine answered. :ivar token: per stage, of
    `tokens` tokens, empty where they were not counted.
    """

    name: str
    seconds: float
    loading: tuple[Count, ...]
    token: tuple[Count, ...]
    tokens: int
    said: tuple[int, ...]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-load", description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the model (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--keep", action="store_true", help="keep the model for the next run")
    arguments = parser.parse_args()
    layers = max(SERVERS, round(arguments.gb * 1e9 / LAYER_BYTES / SERVERS) * SERVERS)
    needed = 3.3 * layers * LAYER_BYTES
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(arguments.folder).free < needed:
        print(f"{needed / 1e9:.0f} GB are needed in {arguments.folder}", file=sys.stderr)
        return 1
    place, model = require(), _model(arguments.folder, layers)
    try:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="load-") as folder:
            _run(place, model, layers, Path(folder))
    finally:
        if not arguments.keep:
            model.unlink()
    return 0


def _model(folder: Path, layers: int) -> Path:
    path = folder / f"random-{layers}.gguf"
    if not path.exists():
        _say(f"writing a model of {layers} layers with random weights")
        written = random_model.write(
            random_model.shape(f"random-{layers}.part", layers, WIDTH, FF), folder
        )
        written.rename(path)
    return path


def _run(place: Place, model: Path, layers: int, folder: Path) -> None:
    weights = block_bytes([read_header(model)], 0, layers)
    empty, seeded = folder / "empty", folder / "seeded"
    empty.mkdir()
    fast, slow = Link(None), Link(GIGABIT_BYTES_S)
    loads = [_load("no cache", place, model, layers, None, fast, folder)]
    loads.append(_load("empty cache", place, model, layers, empty, fast, folder))
    shutil.rmtree(empty)
    seeding_s = _seed(place, model, layers, seeded)
    # Read or written a moment ago, as where a split starts when its members have seeded.
    loads.append(_load("just seeded", place, model, layers, seeded, fast, folder))
    _evict_all(seeded)
    loads.append(_load("seeded", place, model, layers, seeded, fast, folder))
    loads.append(_load("no cache, 1 Gbit/s", place, model, layers, None, slow, folder))
    _evict_all(seeded)
    loads.append(_load("seeded, 1 Gbit/s", place, model, layers, seeded, slow, folder))
    if len({load.said for load in loads}) != 1:
        raise SystemExit("the loads do not say the same: a cache holds wrong content")
    print(rows(loads, weights))
    print(sentences(loads, weights, seeding_s))


def _seed(place: Place, model: Path, layers: int, folder: Path) -> float:
    binary = place.binary(RPC_SERVER)
    assert binary is not None
    # Whatever this disk holds: the benchmark looked for room itself.
    store = Store(folder, disk=lambda _: Disk(1 << 50, 1 << 50))
    store.make()
    _evict(model)
    files = (str(model),)
    wish = SeedWish("bench", "random", fingerprint([model]), files, 0, layers)
    _say("seeding")
    began_s = time.monotonic()
    seed(Tools(store, lambda: binary), wish, frozenset(), lambda *_: None)
    return time.monotonic() - began_s


def _load(
    name: str,
    place: Place,
    model: Path,
    layers: int,
    cache: Path | None,
    link: Link,
    folder: Path,
) -> Load:
    _say(f"loading: {name}")
    _evict(model)
    with ExitStack() as stack:
        meters = [
            stack.enter_context(
                Meter(
                    stack.enter_context(rpc_server(place, cache, folder / f"rpc{number}.log")), link
                )
            )
            for number in range(SERVERS)
        ]
        ports = [meter.port for meter in meters]
        server = stack.enter_context(
            llama_server(place, model, layers, ports, folder / "llama.log")
        )
        loading = [meter.count.copy() for meter in meters]
        said = server.complete("wxyz", FEW)
        # What a cache does to a load it does not do to tokens: they are counted once.
        token = _tokens(server, meters) if name == "just seeded" else ()
    return Load(name, server.load_s, tuple(loading), token, MANY - FEW, said)


def _tokens(server: Split, meters: Sequence[Meter]) -> tuple[Count, ...]:
    """What `MANY - FEW` tokens cost a stage: two requests, whose prompts cost the same."""
    counts = []
    for tokens in (0, FEW, MANY):
        if tokens:
            server.complete("wxyz", tokens)
        counts.append([meter.count.copy() for meter in meters])
    return tuple(
        (last - middle) - (middle - first) for first, middle, last in zip(*counts, strict=True)
    )


def _evict_all(cache: Path) -> None:
    for file in (cache / "rpc").iterdir():
        _evict(file)


def _evict(file: Path) -> None:
    """Out of the page cache: what is read next comes from the disk."""
    with file.open("rb") as source:
        os.fsync(source.fileno())
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
