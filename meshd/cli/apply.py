"""`meshd apply`: take up the configuration on disk now and wait until it is served."""

from __future__ import annotations

import argparse
import asyncio
import sys

from meshd.cli.wait import until_settled
from meshd.paths import Paths


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("apply", help="take up the configuration on disk, now")
    parser.add_argument("--dry-run", action="store_true", help="the same as `meshd plan`")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="wait this long for the models"
    )
    parser.add_argument("--json", action="store_true", help="print the final status as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        from meshd.cli import plan

        return plan.run(arguments)
    return asyncio.run(_apply(arguments.paths, arguments.timeout, as_json=arguments.json))


async def _apply(paths: Paths, timeout_s: float, *, as_json: bool) -> int:
    from meshd.cli.answer import print_json
    from meshd.config.load import load
    from meshd.control import ControlClient
    from meshd.report import lines

    client = ControlClient(paths.control_socket)
    loaded = load(paths)
    report = await client.plan(loaded.files)
    if not as_json:
        print("\n".join(lines(report)))
    await client.reload()
    status = await until_settled(client, timeout_s, progress=sys.stderr)
    if as_json:
        print_json(status)
    else:
        print(status.sentence)
    return 0 if status.healthy else 1
