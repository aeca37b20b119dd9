"""What `meshd experts` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.planner.shard_plan import ShardPlan


def planned(plan: ShardPlan, sizes: Mapping[str, int], experts: int) -> str:
    rest = experts - max(plan.core)
    homes = "one" if plan.homes == 1 else f"{plan.homes}"
    rows = []
    for node, selection in plan.selections.items():
        masses = plan.masses[node]
        least = plan.least_mass(node)
        worst = next(at for at, ids in enumerate(selection) if ids and masses[at] == least)
        rows.append(
            (
                node,
                f"{max(map(len, selection))}",
                size(sizes[node]),
                f"{plan.mass(node):.1%}",
                f"{least:.1%} (layer {worst})",
            )
        )
    head = ("", "experts", "file", "mass", "in the worst layer")
    core = f"{max(plan.core)} of {experts} experts of each layer on every node"
    return f"{core}, each of the other {rest} on {homes} at least\n{table(head, rows)}"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        first, *others = zip(row, widths, strict=True)
        cells = [f"{first[0]:{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.2f} MB"
