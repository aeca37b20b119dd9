"""The entry of the command line: finds the verb, runs it, and turns errors into one line.

Exit codes of every verb: 0 all is well, 1 something is wrong and was said, 2 wrong usage (and, for
`meshd plan`: something would change), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from meshd import __version__, paths
from meshd.errors import UserError

# Verb on the command line, and the module of meshd.cli that has it.
_VERBS = {
    "run": "run",
    "check": "check",
    "plan": "plan",
    "apply": "apply",
    "status": "status",
    "bench": "bench",
    "drain": "drain",
    "seed": "seed",
    "experts": "experts",
    "config": "config",
    "try": "try_",
    "rollback": "rollback",
    "doctor": "doctor",
    "engine": "engine",
    "mesh": "mesh",
    "keys": "keys",
    "demo": "demo",
    "gateway": "gateway",
    "guard": "guard",
    "hand": "hand",
}


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser for this command line: only the verb that it names is imported."""
    top = argparse.ArgumentParser(
        prog="meshd",
        description="One inference mesh out of your GPU boxes, from one file: /etc/mesh/mesh.yaml.",
    )
    top.add_argument("--version", action="version", version=f"meshd {__version__}")
    top.add_argument("--config", type=Path, metavar="FILE", help="instead of /etc/mesh/mesh.yaml")
    top.add_argument("--root", type=Path, metavar="DIR", help="keep state and sockets under DIR")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    named = [_VERBS[word] for word in argv if word in _VERBS][:1]
    for module in named or _VERBS.values():
        importlib.import_module(f"meshd.cli.{module}").register(verbs)
    return top


def _paths(arguments: argparse.Namespace) -> paths.Paths:
    environment = dict(os.environ)
    if arguments.config:
        environment["MESHD_CONFIG"] = str(arguments.config.absolute())
    if arguments.root:
        environment["MESHD_ROOT"] = str(arguments.root.absolute())
    return paths.from_environment(environment)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(argv).parse_args(argv)
    arguments.paths = _paths(arguments)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(_words(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _words(error: UserError) -> str:
    from meshd.config.findings import ConfigError

    # Findings begin with FILE:LINE:COL, which editors jump to; nothing may stand before it.
    return str(error) if isinstance(error, ConfigError) else f"meshd: {error}"


if __name__ == "__main__":
    sys.exit(main())
