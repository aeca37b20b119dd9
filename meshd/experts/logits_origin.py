"""Whose logits something was measured beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec


@dataclass(frozen=True, slots=True)
class LogitsOrigin:
    """:ivar sha256: of the file of the whole model's logits.

    :ivar node: id of the one that it came from, "" where this one computed it.
    """

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    node: Annotated[str, msgspec.Meta(max_length=128)] = ""
