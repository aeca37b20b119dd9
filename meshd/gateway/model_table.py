"""Which models' files other nodes may read here: a JSON file of the brain's, replaced whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from meshd.files import write_atomically

MAX_BYTES = 1 << 20
MODELS_MAX = 256


@dataclass(frozen=True, slots=True)
class SharedModel:
    """:ivar files: its parts in order, absolute. :ivar manifest: of its cached tensors, or "".

    :ivar ranking: file with how often its experts are chosen, or "". :ivar logits: files of its
        logits, by the SHA-256 of the text.
    """

    files: tuple[str, ...]
    manifest: str = ""
    ranking: str = ""
    logits: Mapping[str, str] = field(default_factory=dict)


ModelTable = Mapping[str, SharedModel]
"""By fingerprint."""


def write_models(path: Path, models: ModelTable) -> None:
    """:raises OSError: the folder is missing, full or not writable; the old table is untouched."""
    some = dict(sorted(models.items())[:MODELS_MAX])
    write_atomically(path, msgspec.json.encode(some))


def read_models(path: Path) -> ModelTable:
    """Nothing where there is no table. :raises ValueError: it is malformed or too large."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ValueError(f"{path}: larger than {MAX_BYTES} bytes")
            text = file.read(MAX_BYTES)
    except OSError:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, SharedModel])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
