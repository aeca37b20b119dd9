"""The whole models' logits that lie here, by model and text, and how much they may take. Blocks.

=========================  =========================================================
MODEL-TEXT-TOKENS.logits   whole, as `logits_file` has them; the modification time is
                           when they were last used
MODEL-TEXT-TOKENS.node     id of the node that gave these, empty where this one computed them
NAME.part                  what was fetched of one so far; gone on with for a day
...                        what a killed process left half done: goes when it is met
=========================  =========================================================
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import structlog

from meshd.errors import UserError
from meshd.experts.logits_file import TOKENS
from meshd.files import sync_folder, write_atomically
from meshd.seeding.quota import Disk, Held, Quota, evictions

_log = structlog.get_logger(__name__)

QUOTA = Quota(share=0.1)
FILES_MAX = 256
PART_STAYS_S = 86_400
_LOGITS, _NODE = ".logits", ".node"
_NODE_ID = re.compile(r"[0-9A-Za-z._-]{0,128}")

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(rf"({_FINGERPRINT.pattern})-({_SHA256.pattern})-(\d+)\.logits")


class LogitsStore:
    """:param folder: of ours alone. :param clock: Unix seconds."""

    def __init__(
        self,
        folder: Path,
        disk: Callable[[Path], Disk],
        clock: Callable[[], float] = time.time,
        quota: Quota = QUOTA,
    ) -> None:
        self.folder = folder
        self._disk = disk
        self._clock = clock
        self._quota = quota

    def open(self) -> None:
        """Make the folder, and sweep what is of no use; before anything is begun here.

        :raises OSError: that is not possible.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in list(self.folder.iterdir()):
            young = self._clock() - path.lstat().st_mtime < PART_STAYS_S
            noted = path.suffix == _NODE and path.with_suffix(_LOGITS).exists()
            if _named(path) is None and not noted and not (path.suffix == ".part" and young):
                _log.info("what was half done of logits was removed", file=path.name)
                path.unlink()

    def path(self, fingerprint: str, text: str) -> Path:
        """Of the logits of a model on a text, there or not.

        :param text: its SHA-256.
        :raises UserError: one of them is none, and so no name of a file.
        """
        if not _FINGERPRINT.fullmatch(fingerprint) or not _SHA256.fullmatch(text):
            raise UserError(f"{fingerprint!r}, {text!r}: no logits can be of these")
        return self.folder / f"{fingerprint}-{text}-{TOKENS}{_LOGITS}"

    def comes(self, path: Path, node: str) -> None:
        """The logits that lie there next are this node's, "" for our own: said before they do.

        :raises UserError: a node cannot have such an id. :raises OSError: it cannot be written.
        """
        if not _NODE_ID.fullmatch(node):
            raise UserError(f"{node[:128]!r}: no node has such an id")
        path.unlink(missing_ok=True)
        write_atomically(path.with_suffix(_NODE), node.encode())

    def origin(self, path: Path) -> str | None:
        """The node that gave these logits, "" for our own; None where nobody knows."""
        try:
            with path.with_suffix(_NODE).open("rb") as file:
                said = file.read(129).decode(errors="replace")
        except OSError:
            return None
        return said if _NODE_ID.fullmatch(said) else None

    def used(self, path: Path) -> None:
        """They are needed now. :raises OSError: that cannot be written down."""
        now = self._clock()
        os.utime(path, (now, now))

    def all(self) -> dict[str, dict[str, str]]:
        """Files by model and text."""
        found: dict[str, dict[str, str]] = {}
        for path in sorted(self.folder.iterdir()):
            if (names := _named(path)) is not None:
                found.setdefault(names[0], {})[names[1]] = str(path)
        return found

    def make_room(self, needed_bytes: int, keep: Collection[str] = ()) -> None:
        """Remove what was least recently used until so much more may be written.

        :param keep: models whose logits are in use.
        :raises UserError: there is no room. :raises OSError: the disk fails.
        """
        held = tuple(self._held())
        kept = {one.cache_name for one in held if one.cache_name.partition("-")[0] in keep}
        allowed = self._quota.allowed_bytes(
            self._disk(self.folder), sum(one.size_bytes for one in held)
        )
        gone = evictions(held, needed_bytes, allowed, kept)
        if gone is None:
            free = allowed - sum(one.size_bytes for one in held if one.cache_name in kept)
            raise UserError(
                f"a model's logits need {needed_bytes / 1e9:.2f} GB in {self.folder}, "
                f"{max(0, free) / 1e9:.2f} GB may be taken",
                hint="make room on this disk",
            )
        left = [one for one in held if one.cache_name not in {*gone, *kept}]
        left.sort(key=lambda one: -one.used_s)
        for name in (*gone, *(one.cache_name for one in left[FILES_MAX:])):
            _log.info("logits were removed", file=name)
            (self.folder / name).unlink(missing_ok=True)
            if name.endswith(_LOGITS):
                (self.folder / name).with_suffix(_NODE).unlink(missing_ok=True)
        if gone:
            sync_folder(self.folder)

    def _held(self) -> Iterator[Held]:
        for path in self.folder.iterdir():
            if path.suffix == _NODE:
                continue
            try:
                about = path.lstat()
            except FileNotFoundError:
                continue
            yield Held(path.name, about.st_size, int(about.st_mtime))


def _named(path: Path) -> tuple[str, str] | None:
    """Model and text by a file's name; None where it is no name of logits as they are made now."""
    found = _NAME.fullmatch(path.name)
    return (found[1], found[2]) if found and int(found[3]) == TOKENS else None
