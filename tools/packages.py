"""Other people's packages, each set in a folder of its own, so that nothing of theirs is ours."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALL_S = 900.0
# Only wheels: nothing is built from source here.
_PIP = ("install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:")
_NPM = ("install", "--loglevel=error", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts")
_LINES = 1


class MissingError(Exception):
    """It cannot be had here; the message says why, in one line."""


def venv_with(folder: Path, *requirements: str, deadline_s: float = INSTALL_S) -> Path:
    """The ``bin`` folder of a virtual environment of its own with these packages.

    :param requirements: as for pip. The environment is made anew when they are others.
    :param deadline_s: for each step.
    :raises MissingError: it cannot be installed.
    """
    with _unless_there(folder, " ".join(requirements)) as wanted:
        if wanted:
            ran([sys.executable, "-m", "venv", str(folder)], deadline_s=deadline_s)
            pip = [str(folder / "bin" / "python"), "-m", "pip", *_PIP]
            ran([*pip, *requirements], deadline_s=deadline_s)
    return folder / "bin"


def node_with(folder: Path, *packages: str, deadline_s: float = INSTALL_S) -> Path:
    """The ``node`` program, once these packages are in ``node_modules`` of a folder.

    :param packages: as for npm, ``name@version``. The folder is made anew when they are others.
    :param deadline_s: for two attempts together.
    :raises MissingError: there is no node or npm, or it cannot be installed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingError(f"{'npm' if node else 'node'} is not installed")
    with _unless_there(folder, " ".join(packages)) as wanted:
        if wanted:
            command = [npm, *_NPM, "--prefix", str(folder), *packages]
            # npm 11 has been seen to hang with everything fetched; it takes seconds else.
            try:
                ran(command, deadline_s=deadline_s / 2)
            except MissingError:
                ran(command, deadline_s=deadline_s / 2)
    return Path(node)


@contextmanager
def _unless_there(folder: Path, wanted: str) -> Iterator[str]:
    """What is wanted, "" when it is there. One process at a time; a broken attempt leaves no stamp.

    An environment knows its own path, so it cannot be made elsewhere and then be renamed.
    """
    stamp = folder / ".installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            yield ""
            return
        print(f"Installing {wanted} into {folder} ...", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield wanted
        stamp.write_text(wanted)


def ran(command: list[str], folder: Path | None = None, *, deadline_s: float = INSTALL_S) -> None:
    """Run a command to its end. :raises MissingError: it failed, or took too long."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=deadline_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{Path(command[0]).name}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-_LINES:]
        raise MissingError(f"{Path(command[0]).name} failed: {' '.join(said)[:200]}")
