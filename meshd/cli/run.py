"""`meshd run`: the node itself, until SIGTERM. systemd starts it so; by hand it works too."""

from __future__ import annotations

import argparse
import asyncio
import signal

from meshd.paths import Paths


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("run", help="run this node until it is stopped")
    parser.add_argument(
        "--systemd",
        action="store_true",
        help="engines are systemd units, started by the root hand; else they are child processes",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd import logging

    logging.configure()
    asyncio.run(_run(arguments.paths, systemd=arguments.systemd))
    return 0


async def _run(paths: Paths, *, systemd: bool) -> None:
    from meshd.node_process import node

    async with node(paths, systemd=systemd) as supervisor:
        # Before READY=1: systemd refuses a notify-reload service that cannot take SIGHUP.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, supervisor.ask_reload)
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, supervisor.ask_stop)
        await supervisor.run()
