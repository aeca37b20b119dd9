"""`meshd guard`: the door in front of an rpc-server, and its local end on the host's side."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import uvloop

from meshd import logging
from meshd.errors import UserError
from meshd.gateway.listen import parse_address
from meshd.guard.commands import parse_triple
from meshd.guard.host import HostEnd, HostOptions
from meshd.guard.member import MemberEnd, MemberOptions
from meshd.guard.metrics import GuardMetrics
from meshd.guard.serve import Guard, listening, serve
from meshd.guard.way import WayOptions

_MOST_WAYS = 16  # GGML_RPC_MAX_SERVERS


def register(subparsers: Any) -> None:
    """Add the verb. :param subparsers: of `argparse`, which does not name their type."""
    parser = subparsers.add_parser(
        "guard",
        help="carry one split's RPC between two nodes, authenticated and watched",
        description="Stands between a llama-server and an rpc-server on another node: mutual TLS "
        "with the mesh's certificates, and a watch over every call. Started by meshd.",
    )
    parser.add_argument("name", metavar="NAME", help="of the split, for status and log")
    ends = parser.add_subparsers(metavar="END", required=True)
    member = ends.add_parser("member", help="the door in front of an rpc-server")
    member.add_argument("--listen", required=True, metavar="HOST:PORT", help="for the host's guard")
    member.add_argument("--front", required=True, metavar="HOST:PORT", help="of rpc-server")
    member.add_argument("--admit", required=True, metavar="NODE", help="id of the only node let in")
    _common(member)
    member.set_defaults(run=_run_member)
    host = ends.add_parser("host", help="where a llama-server connects to")
    host.add_argument(
        "--local",
        required=True,
        action="append",
        metavar="HOST:PORT=NODE@HOST:PORT",
        help="a port on loopback, and the member's id and door; once for each member",
    )
    host.add_argument(
        "--ubatch-s",
        type=float,
        required=True,
        metavar="SECONDS",
        help="that a full micro-batch of a prompt is expected to take on the slowest stage",
    )
    _common(host)
    host.set_defaults(run=_run_host)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--term", type=int, required=True, help="of the host's intent")
    parser.add_argument("--protocol", required=True, metavar="8.0.0", help="of the engine here")
    parser.add_argument("--tls", type=Path, required=True, help="folder with the certificate")
    parser.add_argument(
        "--status", type=Path, required=True, metavar="SOCKET", help="for GET /status and /metrics"
    )


def _run_member(args: argparse.Namespace) -> int:
    options = MemberOptions(
        args.name,
        parse_address(args.front),
        args.admit,
        args.term,
        parse_triple(args.protocol),
        args.tls,
    )
    listeners = [listening(parse_address(args.listen))]

    async def run() -> None:
        metrics = GuardMetrics(lambda: guard.status())
        guard = MemberEnd(options, listeners, metrics.on_call(options.admit), time.time())
        await _serve(guard, metrics, args)

    return _run(run)


def _run_host(args: argparse.Namespace) -> int:
    if args.ubatch_s <= 0:
        raise UserError("--ubatch-s is not above 0")
    if len(args.local) > _MOST_WAYS:
        raise UserError(
            f"llama.cpp takes at most {_MOST_WAYS} members, {len(args.local)} are given"
        )
    options = HostOptions(
        args.name,
        tuple(_way(text) for text in args.local),
        args.term,
        parse_triple(args.protocol),
        args.ubatch_s,
        args.tls,
    )
    listeners = [listening(way.local) for way in options.ways]

    async def run() -> None:
        metrics = GuardMetrics(lambda: guard.status())
        guard = HostEnd(options, listeners, metrics.on_call, time.time())
        await _serve(guard, metrics, args)

    return _run(run)


def _run(work: Any) -> int:
    logging.configure()
    uvloop.run(work())
    return 0


async def _serve(guard: Guard, metrics: GuardMetrics, args: argparse.Namespace) -> None:
    await serve(guard, metrics, args.status)


def _way(text: str) -> WayOptions:
    """:raises UserError: it is not like ``127.0.0.1:9404=NODE@10.0.0.2:9340``."""
    local, equals, rest = text.partition("=")
    node, at, door = rest.partition("@")
    if not (equals and at and node):
        raise UserError(
            f"--local {text}: not a way", hint="it is like 127.0.0.1:9404=NODE@10.0.0.2:9340"
        )
    return WayOptions(parse_address(local), node, parse_address(door))
