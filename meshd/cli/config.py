"""`meshd config show`: what the configuration is once all files are merged, and why."""

from __future__ import annotations

import argparse
import json
import sys


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("config", help="show the configuration as it is in force")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    show = verbs.add_parser(
        "show",
        help="print the merged configuration",
        description="Print the configuration that all files and the built-in defaults amount to.",
    )
    show.add_argument("--origin", action="store_true", help="say where each value comes from")
    show.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from meshd.config.build import to_data
    from meshd.config.findings import report
    from meshd.config.load import load
    from meshd.config.show import as_yaml, origins_by_path

    loaded = load(args.paths)
    if loaded.findings:
        print(report(loaded.findings), file=sys.stderr)
    if args.json:
        document: dict[str, object] = {"config": to_data(loaded.config)}
        if args.origin:
            document["origins"] = origins_by_path(loaded)
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print(as_yaml(loaded, origins=args.origin), end="")
    return 0
