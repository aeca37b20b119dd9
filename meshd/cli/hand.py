"""`meshd hand`: does as root what the brain wants; started by mesh-apply.service, not by people."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.paths import Paths
    from meshd.units.spec import Outcome

_BRAIN = "_meshd"


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # Without a help text the verb is not listed.
    parser = verbs.add_parser("hand", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    outcome = asyncio.run(_run(arguments.paths))
    for verb, units in (
        ("stopped", outcome.stopped),
        ("restarted", outcome.restarted),
        ("started", outcome.started),
    ):
        for unit in units:
            print(f"{verb} {unit}")
    for error in outcome.errors:
        print(f"meshd hand: {error}", file=sys.stderr)
    # A refused or failing engine is the brain's to report; the hand itself did its work.
    return 0


async def _run(paths: Paths) -> Outcome:
    import pwd

    from meshd.units.allow import refusals
    from meshd.units.dbus import DbusSystemd
    from meshd.units.hand import Allowance, Files, run_hand
    from meshd.units.policy import load_policy, look

    def allowance() -> Allowance:
        policy, warnings = load_policy(paths)
        for warning in warnings:
            print(f"meshd hand: {warning}", file=sys.stderr)
        return Allowance(
            lambda spec: refusals(spec, policy, look(spec, paths)), policy.listen, policy.peers
        )

    owners = [0, *(user.pw_uid for user in pwd.getpwall() if user.pw_name == _BRAIN)]
    systemd = DbusSystemd()
    try:
        return await run_hand(Files(paths, tuple(owners)), systemd, allowance)
    finally:
        await systemd.close()
