"""One API key: by what it is known, and what its holder may.

A key is 256 random bits. Only its SHA-256 is kept: slow hashes (argon2, bcrypt) are there to make
the guessing of passwords dear, and nobody guesses one of 2**256 keys however fast the hash is. It
is computed for every request, so a slow one would only serve those who want to keep us busy.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache

from meshd.keys.quota import Quota

PREFIX = "sk-mesh-"
LEAST_PRIORITY, MOST_PRIORITY = -10, 10

_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """:ivar name: of its holder, unique on this node.

    :ivar digest: SHA-256 of the key, 32 bytes.
    :ivar models: patterns of the only models that it may use; none for all.
    :ivar rate: requests, None without a limit. :ivar tokens: of prompts and answers, likewise.
    :ivar concurrency: requests at once, 0 without a limit.
    :ivar priority: who waits for a model is served by it, the highest first.
    :ivar expires_s: Unix time from which on it is worth nothing, None for never.
    :ivar place: ``FILE:LINE`` where it is written.
    """

    name: str
    digest: bytes = field(repr=False)
    models: tuple[str, ...] = ()
    rate: Quota | None = None
    concurrency: int = 0
    tokens: Quota | None = None
    priority: int = 0
    expires_s: float | None = None
    place: str = ""

    def allows(self, model: str) -> bool:
        return not self.models or any(_pattern(one).match(model) for one in self.models)


def new_key() -> str:
    """The prefix, so that scanners for leaked secrets know it, and 256 random bits as base64url."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def named_well(name: str) -> bool:
    """Whether it can be a key's name, and that of a file; what looks like a key itself cannot."""
    return _NAME.fullmatch(name) is not None and not name.startswith("sk-")


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))
