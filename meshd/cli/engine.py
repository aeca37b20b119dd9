"""`meshd engine install|show`: the llama.cpp engine of this node."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshd.engine.build import EngineBuild


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    verb = subparsers.add_parser("engine", help="find, install or describe the llama.cpp engine")
    actions = verb.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="say which engine this node uses")
    show.add_argument("--json", action="store_true", help="everything, for programs")
    show.set_defaults(run=_show)
    install = actions.add_parser("install", help="find the engine, or install it")
    # Not `--root`'s own name: the top level uses that for the whole node.
    install.add_argument(
        "--root",
        dest="engine_root",
        type=Path,
        metavar="DIR",
        help="unpack it into DIR, whatever else this machine has",
    )
    install.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep package lists and .debs in DIR"
    )
    install.add_argument("--json", action="store_true", help="everything, for programs")
    install.set_defaults(run=_install)


def _show(arguments: argparse.Namespace) -> int:
    from meshd.engine import describe, locate

    build = describe.describe(locate.require(getattr(arguments, "paths", None)))
    _print(build, as_json=arguments.json)
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from meshd.engine.install import install
    from meshd.engine.locate import engine_root

    build = install(
        getattr(arguments, "paths", None),
        root=arguments.engine_root,
        cache=arguments.cache,
        progress=_progress,
    )
    _print(build, as_json=arguments.json)
    if arguments.engine_root and engine_root() != arguments.engine_root.absolute():
        print(f"use it with MESHD_ENGINE_ROOT={build.root}", file=sys.stderr)
    return 0


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"  {line}", file=sys.stderr, flush=True)


def _print(build: EngineBuild, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(build)).decode())
        return
    number = f" (build {build.build})" if build.build is not None else ""
    package = f", package {build.package}" if build.package else ""
    protocol = ".".join(map(str, build.rpc_protocol)) if build.rpc_protocol else "unknown"
    print(f"llama.cpp {build.version or 'of unknown version'}{number}{package}")
    print(f"  from      {build.origin} {build.root}")
    print(f"  ggml      {build.ggml or 'unknown'}, RPC protocol {protocol}")
    print(f"  backends  {', '.join(build.backends) or 'none'}")
    for binary in build.binaries:
        print(f"  {binary.sha256[:12]}  {binary.path}")
