"""A running hash over all that happened: equal for equal seeds, whatever else differs."""

from __future__ import annotations

import hashlib
from collections import deque


class Trace:
    """:ivar recent: the last notes in words, printed when an invariant breaks."""

    def __init__(self, keep: int = 400) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.recent: deque[str] = deque(maxlen=keep)
        self.notes = 0

    def note(self, now_s: float, *words: object) -> None:
        line = f"{now_s:.6f} " + " ".join(map(str, words))
        self.notes += 1
        self._hash.update(line.encode())
        self.recent.append(line)

    def data(self, now_s: float, data: bytes) -> None:
        """A message: hashed but not kept."""
        self._hash.update(b"%.6f" % now_s)
        self._hash.update(data)

    def digest(self) -> str:
        return self._hash.hexdigest()
