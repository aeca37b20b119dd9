"""A shard's name: the same for the same content, wherever it is made. Pure."""

from __future__ import annotations

import hashlib

from meshd.experts.ranking import Selection
from meshd.experts.shard_mark import written

# To be raised when the writer makes another file of the same experts.
VERSION = 1
_DIGITS = 24


def shard_key(fingerprint: str, ranking: str, selection: Selection) -> str:
    """24 hex digits over the model's content, the hash of the ranking that the experts were chosen
    by, the experts, and the writer's version.
    """
    text = f"{VERSION}\n{fingerprint}\n{ranking}\n{written(selection)}\n"
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
