"""`meshd seed`: put a model's tensors into the cache of this node's rpc-servers, from its file.

Exit code 0 when they are there (and, for `--verify`, all are right), 1 on errors and damage.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from meshd.models.gguf_header import Header
    from meshd.paths import Paths
    from meshd.seeding.store import Store
    from meshd.seeding.wish import SeedStage, SeedWish

_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_WIDTH = 24
# On a terminal a bar that moves; in a log a line now and then.
_TERMINAL_S, _LOG_S = 0.1, 10.0


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "seed",
        help="fill the tensor cache, so that a split loads without sending weights",
        description="Stores a model's large tensors where this node's rpc-servers look for them. "
        "meshd does it by itself before a split starts; by hand it can be done beforehand.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="its name, or a GGUF file")
    parser.add_argument(
        "--layers", metavar="A-B", help="only these, counted from 0, B included (default: all)"
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--list", action="store_true", help="show what is cached")
    other.add_argument("--verify", action="store_true", help="read all of it; damage is removed")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd import logging
    from meshd.errors import UserError

    # On stderr: what is printed may be JSON.
    logging.configure()
    if arguments.list or arguments.verify:
        if arguments.model or arguments.layers:
            raise UserError("--list and --verify concern the whole cache, no single model")
        return _verify(arguments) if arguments.verify else _list(arguments)
    if not arguments.model:
        raise UserError("which model?", hint="meshd seed MODEL, or meshd seed --list")
    try:
        return _seed(arguments)
    except OSError as error:
        where = error.filename or arguments.paths.rpc_cache
        raise UserError(f"{where}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _Seeded:
    """:ivar cached_bytes: of these layers. :ivar added_bytes: of them, now.

    :ivar sent_bytes: tensors of these layers that are too small to be cached: each load sends them.
    """

    model: str
    fingerprint: str
    first_layer: int
    layers: int
    tensors: int
    cached_bytes: int
    added_bytes: int
    sent_bytes: int
    seconds: float


def _seed(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.models.gguf_header import read_header
    from meshd.seeding.node_tools import node_tools
    from meshd.seeding.seed import needed_names, seed
    from meshd.seeding.tensor_list import block_bytes, of_layers, seedable

    wish, headers = _wish(arguments, read_header)
    tools = node_tools(arguments.paths)
    tools.store.make()
    tools.store.check()
    began_s = time.monotonic()
    bar = _Bar(wish.model, sys.stderr)
    try:
        keep = needed_names(tools.store.manifest(wish.fingerprint), wish)
        added = seed(tools, wish, keep, bar.show)
    finally:
        bar.end()
    wanted = of_layers(seedable(headers), wish.first_layer, wish.layers)
    cached = sum(tensor.size_bytes for tensor in wanted)
    outcome = _Seeded(
        wish.model,
        wish.fingerprint,
        wish.first_layer,
        wish.layers,
        len(wanted),
        cached,
        added,
        block_bytes(headers, wish.first_layer, wish.layers) - cached,
        round(time.monotonic() - began_s, 3),
    )
    if arguments.json:
        print_json(outcome)
    else:
        print(_words(outcome))
    return 0


def _wish(arguments: argparse.Namespace, read_header) -> tuple[SeedWish, list[Header]]:  # type: ignore[no-untyped-def]
    from meshd.errors import UserError
    from meshd.models.fingerprint import fingerprint
    from meshd.models.gguf_facts import read_facts, split_files
    from meshd.seeding.wish import SeedWish

    files = split_files(_file(arguments.paths, arguments.model))
    headers = [read_header(file) for file in files]
    count = len(read_facts(files[0]).layers)
    first, layers = 0, count
    if arguments.layers:
        said = _LAYERS.fullmatch(arguments.layers)
        if said is None:
            raise UserError(f"--layers: {arguments.layers!r} is no range", hint="as 0-15")
        first, last = int(said[1]), int(said[2] or said[1])
        if not first <= last < count:
            raise UserError(f"--layers: {arguments.model} has layers 0-{count - 1}")
        layers = last - first + 1
    key = f"seed {arguments.model}"
    names = tuple(str(file) for file in files)
    return SeedWish(key, arguments.model, fingerprint(files), names, first, layers), headers


def _file(paths: Paths, model: str) -> Path:
    from meshd.config.load import load
    from meshd.errors import UserError
    from meshd.models.shelf import find

    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        return path
    config = load(paths).config
    source = next((one.source for one in config.models if one.name == model), None)
    if source is None:
        known = ", ".join(one.name for one in config.models) or "none"
        raise UserError(f"no model {model} in the configuration, and no such file", hint=known)
    return find(source, [Path(folder) for folder in config.node.model_dirs])


def _words(outcome: _Seeded) -> str:
    last = outcome.first_layer + outcome.layers - 1
    said = (
        f"{outcome.model}: layers {outcome.first_layer}-{last} are cached, "
        f"{_gb(outcome.cached_bytes)} in {outcome.tensors} tensors"
    )
    said += f", {_gb(outcome.added_bytes)} of it new" if outcome.added_bytes else ", nothing new"
    share = outcome.sent_bytes / max(1, outcome.sent_bytes + outcome.cached_bytes)
    return f"{said} ({outcome.seconds:.1f} s); each load sends the rest, {share:.1%} of them"


class _Bar:
    def __init__(self, model: str, out: TextIO) -> None:
        self._model, self._out = model, out
        self._terminal = out.isatty()
        self._began_s = time.monotonic()
        self._begun_bytes: int | None = None
        # Something quick is said once, by its outcome.
        self._next_s = self._began_s + (_TERMINAL_S if self._terminal else _LOG_S)

    def show(self, stage: SeedStage, done: int, total: int) -> None:
        now_s = time.monotonic()
        if self._begun_bytes is None:
            self._begun_bytes = done
        if now_s < self._next_s or not total:
            return
        self._next_s = now_s + (_TERMINAL_S if self._terminal else _LOG_S)
        rate = (done - self._begun_bytes) / (now_s - self._began_s)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        text = f"{done / total:4.0%}  {_gb(done)} of {_gb(total)}, {rate / 1e6:.0f} MB/s{left}"
        if self._terminal:
            full = int(_WIDTH * done / total)
            self._out.write(f"\r\x1b[K{self._model} [{'#' * full:{_WIDTH}}] {text}")
        else:
            self._out.write(f"{self._model}: {stage} {text}\n")
        self._out.flush()

    def end(self) -> None:
        if self._terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()


@dataclass(frozen=True, slots=True)
class _Cached:
    """:ivar used_s: Unix time at which a split last needed some of it."""

    model: str
    fingerprint: str
    tensors: int
    bytes: int
    layers: tuple[int, ...]
    used_s: int


@dataclass(frozen=True, slots=True)
class _Listing:
    folder: str
    bytes: int
    models: tuple[_Cached, ...]


def _listing(store: Store) -> _Listing:
    models = []
    for one in store.all():
        there = [tensor for tensor in one.tensors if tensor.name in one.blobs]
        models.append(
            _Cached(
                one.model,
                one.fingerprint,
                len(there),
                sum(tensor.size_bytes for tensor in there),
                tuple(sorted({tensor.layer for tensor in there})),
                max((blob.used_s for blob in one.blobs.values()), default=0),
            )
        )
    held = sum(file.size_bytes for file in store.held())
    return _Listing(str(store.folder), held, tuple(models))


def _list(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.seeding.store import Store

    listing = _listing(Store(arguments.paths.rpc_cache))
    if arguments.json:
        print_json(listing)
        return 0
    print(f"{listing.folder}: {_gb(listing.bytes)}")
    for one in listing.models:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used_s)) if one.used_s else "-"
        print(
            f"  {one.model}  {_gb(one.bytes)} in {one.tensors} tensors, "
            f"{_ranges(one.layers)}, used {used}"
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.seeding.seed import verify_all
    from meshd.seeding.store import Store

    store = Store(arguments.paths.rpc_cache)
    bar = _Bar("verify", sys.stderr)
    began_s = time.monotonic()
    try:
        verified, damaged = verify_all(store, bar.show)
    finally:
        bar.end()
    seconds = time.monotonic() - began_s
    if arguments.json:
        print_json({"bytes": verified, "damaged": damaged, "seconds": round(seconds, 3)})
    else:
        for name, why in damaged.items():
            print(f"{store.folder / 'rpc' / name}: removed, it {why}")
        several = "file was" if len(damaged) == 1 else "files were"
        outcome = f"{len(damaged)} {several} damaged" if damaged else "all as it was stored"
        print(f"{_gb(verified)} read in {seconds:.1f} s: {outcome}")
    return 1 if damaged else 0


def _ranges(layers: tuple[int, ...]) -> str:
    """``layers 0-3, 7``."""
    if not layers:
        return "no layer"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layers {shown}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
