"""The rankings that lie here: a few of each model, since nodes of a mesh may know different ones
for a while. Blocks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import structlog

from meshd.experts import ranking_file
from meshd.experts.ranking import Ranking, RankingError

_log = structlog.get_logger(__name__)

_EACH_MAX = 4
_ALL_MAX = 256
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.json")


class RankingShelf:
    """:param folder: of ours alone. What in it is no ranking goes when it is met."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, ranking: Ranking) -> Path:
        return self.folder / f"{ranking.fingerprint}-{ranking.digest}.json"

    def of(
        self, fingerprint: str, routed: Callable[[], tuple[tuple[int, ...], int]]
    ) -> tuple[Ranking, ...]:
        """Those that are believed, last used first.

        :param routed: experts of each block, and how many of them each token chooses, 0 where that
            is not known; asked only where there is a file.
        """
        found = []
        for path in self._files():
            if not path.name.startswith(f"{fingerprint}-"):
                continue
            try:
                experts, used = routed()
                one = ranking_file.read(path, fingerprint=fingerprint, experts=experts, used=used)
                if self.path(one) != path:
                    raise RankingError(f"{path}: is named as another one")
                found.append(one)
            except RankingError as error:
                _log.warning("a ranking of experts is of no use", why=str(error))
                path.unlink(missing_ok=True)
        return tuple(found)

    def keep(self, ranking: Ranking) -> None:
        """Have it, or use it again. :raises OSError: it cannot be written."""
        path = self.path(ranking)
        try:
            os.utime(path)
        except FileNotFoundError:
            ranking_file.write(path, ranking)
        files = self._files()
        of_model = [one for one in files if one.name.startswith(f"{ranking.fingerprint}-")]
        for old in {*of_model[_EACH_MAX:], *files[_ALL_MAX:]}:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Newest first."""
        found = [
            (-path.stat().st_mtime_ns, path)
            for path in self.folder.iterdir()
            if _NAME.fullmatch(path.name)
        ]
        return [path for _, path in sorted(found)]
