"""Where a path of root's configuration leads, if no link on the way was laid by the brain."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath

_LINKS_MOST = 40


def roots_path(path: str, state: Path, roots: Collection[int]) -> str:
    """The path without symbolic links.

    A link in the state folder, which is the brain's, is only followed where it is root's: the brain
    could else lay one from the folder of models to anywhere. What it leads to then is not below the
    path that is returned.

    :param state: the brain's folder. :param roots: user ids whose links are followed there.
    """
    brains = os.path.realpath(state)
    todo = list(reversed(PurePosixPath(path).parts[1:]))
    here, links = PurePosixPath("/"), 0
    while todo:
        part = todo.pop()
        if part == "..":
            here = here.parent
            continue
        there = here / part
        try:
            about = os.lstat(there)
        except OSError:
            return str(there.joinpath(*reversed(todo)))
        if not stat.S_ISLNK(about.st_mode):
            here = there
            continue
        links += 1
        laid = here.is_relative_to(brains) and about.st_uid not in roots
        if laid or links > _LINKS_MOST:
            return str(there.joinpath(*reversed(todo)))
        target = Path(there).readlink()
        if target.is_absolute():
            here = PurePosixPath("/")
        todo.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    return str(here)
