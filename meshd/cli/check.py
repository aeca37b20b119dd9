"""`meshd check`: would a reload take this configuration?"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.config.findings import Finding
    from meshd.config.load import Loaded
    from meshd.paths import Paths


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "check",
        help="check the configuration, changing nothing",
        description="Check the configuration exactly as a reload does, and list all that is wrong."
        " Exit status: 0 usable, with or without warnings; 1 not usable; 2 wrong usage.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="check FILE, with the mesh.d beside it, as if it were the main file",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from meshd.config.findings import ConfigError
    from meshd.config.load import load

    paths = _paths(args.paths, args.file)
    loaded = None
    try:
        loaded = load(paths)
        findings = loaded.findings
    except ConfigError as error:
        findings = error.findings
    if args.json:
        _print_json(findings, loaded)
    else:
        _print_text(findings, loaded)
    return 0 if loaded else 1


def _paths(paths: Paths, file: Path | None) -> Paths:
    """A drop-in of this node is checked in its place, any other file as the main one."""
    if file is None:
        return paths
    folder = file.parent.absolute()
    if folder in (paths.config_dropins.absolute(), paths.transient_config.absolute()):
        return paths
    return replace(paths, config=file)


def _print_json(findings: tuple[Finding, ...], loaded: Loaded | None) -> None:
    document = {
        "ok": loaded is not None,
        "files": [file.path for file in loaded.files] if loaded else [],
        "findings": [asdict(one) for one in findings],
    }
    print(json.dumps(document, indent=2))


def _print_text(findings: tuple[Finding, ...], loaded: Loaded | None) -> None:
    from meshd.config.findings import Severity, printable, report

    if findings:
        print(report(findings), file=sys.stderr)
    if loaded is None:
        count = sum(one.severity is Severity.ERROR for one in findings)
        print(f"not usable: {_count(count, 'error')}", file=sys.stderr)
        return
    names = ", ".join(printable(file.path) for file in loaded.files)
    count = sum(one.severity is Severity.WARNING for one in findings)
    print(f"ok: {names}" + (f" ({_count(count, 'warning')})" if count else ""))


def _count(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
