"""Whether the service may read the calibration texts that the configuration names."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from meshd.config.settings import Config

_USER = "_meshd"


def read_texts(config: Config, user: str = _USER) -> tuple[tuple[str, str], ...]:
    """Path and reason of each that cannot be read.

    :param user: that meshd runs as, for a doctor who is root and may read everything.
    """
    paths = dict.fromkeys(path for model in config.models for _, path in model.calibration)
    return tuple((path, why) for path in paths if (why := _problem(Path(path), user)))


def _problem(path: Path, user: str) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "this is no file"
        for one, wanted in _needed(path.resolve()):
            if not _allowed(one, wanted, user):
                return f"{user if os.geteuid() == 0 else 'this user'} may not read {one}"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _needed(path: Path) -> Iterator[tuple[Path, int]]:
    """The file, and the folders on the way to it."""
    yield from ((folder, os.X_OK) for folder in reversed(path.parents))
    yield path, os.R_OK


def _allowed(path: Path, wanted: int, user: str) -> bool:
    if os.geteuid() != 0:
        return os.access(path, wanted)
    try:
        known = pwd.getpwnam(user)
    except KeyError:
        return True  # meshd is not installed as a service: it is root as well
    groups = os.getgrouplist(user, known.pw_gid)
    about = path.stat()
    mode = about.st_mode
    if about.st_uid == known.pw_uid:
        return bool(mode >> 6 & wanted)
    return bool((mode >> 3 if about.st_gid in groups else mode) & wanted)
