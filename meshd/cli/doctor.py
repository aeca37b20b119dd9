"""`meshd doctor`: what is wrong on this node, and what mends it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.doctor.issue import Issue


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="look for what is wrong, and say what mends it",
        description="Look at this node and list what is wrong: the evidence and the command that"
        " mends it. Nothing is changed. Exit status: 0 no error, 1 an error. Root sees most.",
    )
    parser.add_argument("--json", action="store_true", help="print the issues as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.doctor.issue import Severity
    from meshd.doctor.run import examine, gather

    issues = examine(gather(args.paths))
    if args.json:
        print_json({"issues": issues})
    else:
        print("\n".join(_lines(issues)))
    return 1 if any(issue.severity is Severity.ERROR for issue in issues) else 0


def _lines(issues: Sequence[Issue]) -> Iterator[str]:
    for issue in issues:
        yield f"{issue.severity}: {issue.summary} [{issue.id}]"
        for line in issue.evidence:
            yield f"    {line}"
        yield f"    mend: {issue.mend}"
        yield ""
    counts = [
        f"{number} {word if number == 1 else word + 's'}"
        for word in ("error", "warning", "note")
        if (number := sum(issue.severity == word for issue in issues))
    ]
    yield ", ".join(counts) if counts else "nothing is wrong"
