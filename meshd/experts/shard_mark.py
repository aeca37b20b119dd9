"""Metadata keys by which a shard is known as one, and what they say. Pure.

A name below ``meshd.`` is no key of llama.cpp's, which passes over those it does not know.
"""

from __future__ import annotations

from meshd.experts.ranking import Selection

PREFIX = "meshd.shard."
FORMAT = f"{PREFIX}format"
SOURCE = f"{PREFIX}source"
EXPERTS_ALL = f"{PREFIX}experts_all"
KEPT = f"{PREFIX}kept"

FORMAT_NOW = 1


def written(selection: Selection) -> str:
    """``0-3,7;1,2;``: by block, runs of ids; nothing of a block without routed experts."""
    return ";".join(",".join(_runs(ids)) for ids in selection)


def _runs(ids: tuple[int, ...]) -> list[str]:
    runs: list[list[int]] = []
    for one in ids:
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]
