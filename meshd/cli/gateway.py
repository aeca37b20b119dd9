"""`meshd gateway`: the OpenAI API of this node, as a process of its own."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from meshd import logging
from meshd.config.settings import GatewaySettings
from meshd.gateway.listen import Sockets, inherited_sockets, open_sockets, parse_address
from meshd.gateway.serve import DRAIN_S, GatewayOptions, serve
from meshd.keys.key_folder import places
from meshd.paths import Paths

_DESCRIPTORS = 65_536


def register(subparsers: Any) -> None:
    """Add the verb. :param subparsers: of `argparse`, which does not name their type."""
    parser = subparsers.add_parser(
        "gateway",
        help="serve the OpenAI API from a routing table",
        description="Serves the OpenAI API from a routing table and follows its changes. "
        "Sockets that systemd passes on take precedence over --listen.",
    )
    parser.add_argument(
        "--routes", type=Path, help="the routing table (default: that of this node's meshd)"
    )
    parser.add_argument(
        "--listen",
        nargs="+",
        action="extend",
        metavar="HOST:PORT",
        help=f"addresses to serve on (default: {' '.join(GatewaySettings().listen)})",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        action="extend",
        metavar="HOST:PORT",
        help="addresses for the other nodes of the mesh (default: none)",
    )
    parser.add_argument(
        "--keys", type=Path, help="the folder with API keys (default: that of this node's meshd)"
    )
    parser.add_argument(
        "--drain",
        type=_seconds,
        default=DRAIN_S,
        metavar="SECONDS",
        help="time for running answers when stopped (default: %(default)g)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    # A reload of the node must not end a gateway that has only begun to start.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.configure()
    routes = args.routes or args.paths.routes
    sockets = inherited_sockets(os.environ, os.getpid())
    if not sockets.clients:
        listen = args.listen or GatewaySettings().listen
        peers = [] if sockets.peers else args.peers or []
        sockets = Sockets(
            open_sockets([parse_address(text) for text in listen]),
            sockets.peers or open_sockets([parse_address(text) for text in peers], dual=True),
        )
    # The brain's control socket lies beside the tables that it writes.
    options = GatewayOptions(
        routes=routes.absolute(),
        drain_s=args.drain,
        control=routes.absolute().with_name("meshd.sock"),
        keys=places(args.keys or args.paths.keys),
        models=routes.absolute().with_name("models.json"),
        accounts=_state_folder(args.paths) / "token-budgets.json",
    )
    _take_descriptors()
    _calm_collector()
    uvloop.run(serve(options, sockets.clients, sockets.peers))
    return 0


def _state_folder(paths: Paths) -> Path:
    """Where systemd says (StateDirectory=), else with all else."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else paths.state / "gateway"


def _take_descriptors() -> None:
    """As many as the system lets us have: each request takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _calm_collector() -> None:
    """What is loaded by now stays, and needs no looking through; requests leave few circles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
    return seconds
