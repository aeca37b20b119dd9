"""`meshd try FILE`: apply a configuration for a while; it goes away unless somebody keeps it.

As netplan does: on a terminal Enter keeps it; elsewhere `meshd try --keep` from another shell.
Exit code 0 when it was kept, 3 when it was reverted, 1 on errors.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from meshd.errors import UserError
from meshd.paths import Paths

if TYPE_CHECKING:
    from meshd.config.load import SourceFile
    from meshd.control import ControlClient

_REVERTED = 3
_POLL_S = 0.3


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("try", help="apply a file for a while; reverts unless it is kept")
    parser.add_argument("file", nargs="?", type=Path, help="a candidate for mesh.yaml")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="default: 120")
    parser.add_argument("--keep", action="store_true", help="keep what is on trial")
    parser.add_argument("--revert", action="store_true", help="undo what is on trial, now")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json

    paths: Paths = arguments.paths
    if arguments.keep or arguments.revert:
        asyncio.run(_end(paths, keep=arguments.keep))
        if arguments.json:
            print_json({"kept": arguments.keep})
        return 0
    if arguments.file is None:
        raise UserError("try: which file?", hint="meshd try FILE, or meshd try --keep")
    for number in (signal.SIGHUP, signal.SIGTERM):
        # Also when the connection breaks, the hand must not go on trusting the candidate.
        signal.signal(number, _leave)
    kept = asyncio.run(
        _try(paths, arguments.file, arguments.timeout, sys.stderr if arguments.json else sys.stdout)
    )
    if arguments.json:
        print_json({"kept": kept})
    else:
        print("kept" if kept else "reverted")
    return 0 if kept else _REVERTED


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


async def _try(paths: Paths, candidate: Path, timeout_s: float, progress: TextIO) -> bool:
    from meshd.control import ControlClient

    client = ControlClient(paths.control_socket)
    files = _with_candidate(paths, candidate)
    with _vouched(paths, files[0].text):
        await _begin(client, files, timeout_s, progress)
        return await _outcome(paths, client, files)


@contextlib.contextmanager
def _vouched(paths: Paths, text: str) -> Iterator[None]:
    """Tell the hand that root wants this: it takes no one else's word for what may be read."""
    from meshd.files import write_atomically
    from meshd.units.policy import TRIAL

    if not _hand_listens(paths):
        yield
        return
    write_atomically(TRIAL, text.encode())
    try:
        yield
    finally:
        TRIAL.unlink(missing_ok=True)


async def _begin(
    client: ControlClient, files: tuple[SourceFile, ...], timeout_s: float, progress: TextIO
) -> None:
    status = await client.begin_trial(files, timeout_s)
    how = "Press Enter" if sys.stdin.isatty() else "`meshd try --keep`"
    print(status.sentence, file=progress)
    print(f"{how} within {timeout_s:.0f} s keeps this; else it is undone.", file=progress)
    progress.flush()


async def _outcome(paths: Paths, client: ControlClient, files: tuple[SourceFile, ...]) -> bool:
    """Wait until the trial ends: kept here by Enter, kept elsewhere, or run out."""
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()
    interactive = sys.stdin.isatty()
    if interactive:
        loop.add_reader(sys.stdin.fileno(), entered.set)
    try:
        while (await client.status()).trial_ends_s is not None:
            if entered.is_set():
                entered.clear()
                if _pressed_enter():
                    await _end(paths, keep=True)
                    break
                loop.remove_reader(sys.stdin.fileno())
            await asyncio.sleep(_POLL_S)
    finally:
        if interactive:
            loop.remove_reader(sys.stdin.fileno())
    return paths.config.read_text("utf-8") == files[0].text


def _pressed_enter() -> bool:
    """False when the terminal ended instead: a connection that the trial broke keeps nothing."""
    try:
        return bool(sys.stdin.readline())
    except OSError:
        return False


async def _end(paths: Paths, *, keep: bool) -> None:
    from meshd.control import ControlClient
    from meshd.files import write_atomically

    client = ControlClient(paths.control_socket)
    if keep:
        # The file first: should we die between the two, a restart finds what was kept.
        text = await _on_trial(paths, client)
        try:
            write_atomically(paths.config, text.encode(), mode=None)
        except OSError as error:
            raise UserError(
                f"{paths.config}: cannot be written: {error.strerror}", hint="run as root"
            ) from error
    await client.end_trial(keep=keep)


def _hand_listens(paths: Paths) -> bool:
    """Whether this is root on a node whose engines a root hand starts."""
    from meshd.paths import SYSTEM
    from meshd.units.policy import TRIAL

    return os.geteuid() == 0 and paths.run == SYSTEM.run and TRIAL.parent.is_dir()


async def _on_trial(paths: Paths, client: ControlClient) -> str:
    """The candidate's text: as root vouched for it, since root writes it; else as the brain has it.

    :raises UserError: nothing is on trial.
    """
    from meshd.units.policy import TRIAL

    trial = await client.trial()
    if _hand_listens(paths) and TRIAL.exists():
        return TRIAL.read_text("utf-8")
    return next(file.text for file in trial.files if Path(file.path) == paths.config)


def _with_candidate(paths: Paths, candidate: Path) -> tuple[SourceFile, ...]:
    """The files as they would be with `candidate` in the place of mesh.yaml."""
    from meshd.config.load import SourceFile, read_file, read_files

    text = read_file(candidate).text
    others = tuple(file for file in read_files(paths) if Path(file.path) != paths.config)
    return (SourceFile(str(paths.config), text), *others)
