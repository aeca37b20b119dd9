"""`meshd plan`: what the configuration on disk would change, and why. Changes nothing.

Exit code 0 when nothing would change, 2 when something would, 1 on errors.
"""

from __future__ import annotations

import argparse
import asyncio

from meshd.paths import Paths


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("plan", help="show what would change; exit 2 when something would")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="for each model of the mesh: who could serve it, how fast, and why others lost",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.report import lines

    report = asyncio.run(_report(arguments.paths))
    if arguments.json:
        print_json(report)
    else:
        print("\n".join(lines(report, explain=arguments.explain)))
    return 2 if report.changes_anything else 0


async def _report(paths: Paths):  # type: ignore[no-untyped-def]
    """Asked of the running brain, which knows what runs; else worked out as at a first start."""
    from meshd import pipeline, said
    from meshd.config.load import load
    from meshd.control import ControlClient, NotRunningError
    from meshd.observe import NodeObserver

    loaded = load(paths)
    try:
        return await ControlClient(paths.control_socket).plan(loaded.files)
    except NotRunningError:
        observation = await NodeObserver(paths)(loaded)
        return said.report(pipeline.propose(loaded.config, observation, (), (), paths), loaded)
