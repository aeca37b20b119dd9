"""The text that tiny-moe never saw, cut so that experts are ranked on other text than is measured.

Each domain is cut once, at a paragraph's end near its middle: at most one document has a part on
either side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "share/models"
MODEL = MODELS / "tiny-moe.gguf"
# As heldout.json names them, and as the tables do.
_NAMES = {"english": "prose", "man": "man pages", "python": "code"}


@dataclass(frozen=True, slots=True)
class Half:
    """A domain. :ivar ranks: file to count on. :ivar measures: file to measure on."""

    domain: str
    ranks: Path
    measures: Path


def halves(folder: Path) -> tuple[Half, ...]:
    """Of share/models/heldout.txt, written to a folder."""
    text = (MODELS / "heldout.txt").read_bytes()
    spans = json.loads((MODELS / "heldout.json").read_text())
    found = []
    for key, domain in _NAMES.items():
        own = text[spans[key]["begin"] : spans[key]["end"]]
        found.append(Half(domain, *_written(key, own, middle(own), folder)))
    return tuple(found)


def middle(text: bytes) -> int:
    """Where the paragraph around the middle ends; the middle itself in a text without any."""
    end = text.find(b"\n\n", len(text) // 2)
    return end + 2 if end >= 0 else len(text) // 2


def _written(key: str, text: bytes, at: int, folder: Path) -> tuple[Path, Path]:
    ranks, measures = folder / f"{key}.ranks.txt", folder / f"{key}.measures.txt"
    ranks.write_bytes(text[:at])
    measures.write_bytes(text[at:])
    return ranks, measures
