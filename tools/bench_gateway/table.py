"""The figures as Markdown, and how ours stand to the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.bench_gateway import figures
from tools.bench_gateway.figures import STREAMS, Figures
from tools.bench_gateway.stream_load import Streamed

_MIB = 1 << 20
_MB = 1_000_000
_MOST = max(STREAMS)


@dataclass(frozen=True, slots=True)
class Columns:
    """:ivar ours: the one that the goals are for, None when it is not there."""

    all: Sequence[Figures]
    direct: Figures | None
    ours: Figures | None

    def named(self, beginning: str) -> Figures | None:
        return next((one for one in self.all if one.name.startswith(beginning)), None)


def columns(found: Sequence[Figures]) -> Columns:
    return Columns(
        found,
        next((one for one in found if one.name == "direct"), None),
        next((one for one in found if one.name.startswith("meshd")), None),
    )


_Cell = Callable[[Columns, Figures], str]


def render(found: Sequence[Figures]) -> str:
    """A column a proxy; the last one says which goals ours meets."""
    seen = columns(found)
    goals = _goals(seen)
    lines = [_line(["", *(one.name for one in found), "goal of meshd"])]
    lines.append("|---" * (len(found) + 2) + "|")
    for name, cell in _rows(seen).items():
        lines.append(_line([name, *(cell(seen, one) for one in found), goals.get(name, "")]))
    return "\n".join(lines)


_SMALL = "requests/s a core, 1 kB"
_LARGE = "requests/s a core, 400 kB"
_JITTER = f"added inter-token jitter, {_MOST} streams: p99"
_MEMORY = "memory (PSS) with the streams held"


def _first(streams: int) -> str:
    what = "1 stream" if streams == 1 else f"{streams} streams"
    return f"added time to first byte, {what}: p50 / p99"


def _rows(seen: Columns) -> dict[str, _Cell]:
    rows: dict[str, _Cell] = {
        _SMALL: lambda _, one: _number(figures.per_core(one.small)),
        _LARGE: lambda _, one: _number(figures.per_core(one.large)),
        "requests/s here, 1 kB": lambda _, one: _number(figures.answered_s(one.small)),
        "requests/s here, 400 kB": lambda _, one: _number(figures.answered_s(one.large)),
    }
    for streams in STREAMS:
        rows[_first(streams)] = _first_cell(streams)
    rows[_JITTER] = lambda seen, one: _ms(_over(seen, one, _MOST, _uneven, 0.99), seen, one)
    rows["CPU s for a million tokens"] = lambda _, one: _number(
        figures.cpu_s_per_million(one.streamed.get(_MOST, ()))
    )
    rows["streams held"] = lambda _, one: "-" if one.held is None else str(one.held.streams)
    rows["memory (PSS) before"] = lambda _, one: (
        "-" if one.held is None else f"{one.held.before_bytes / _MB:.0f} MB"
    )
    rows[_MEMORY] = lambda _, one: "-" if one.held is None else f"{one.held.pss_bytes / _MB:.0f} MB"
    rows[f"machine in use, {_MOST} streams"] = lambda _, one: _busy(one.streamed.get(_MOST, ()))
    rows["failed"] = lambda _, one: str(one.failed)
    return rows


def _first_cell(streams: int) -> _Cell:
    def cell(seen: Columns, one: Figures) -> str:
        half = _over(seen, one, streams, _first_ms, 0.5)
        most = _over(seen, one, streams, _first_ms, 0.99)
        return f"{_ms(half, seen, one)} / {_ms(most, seen, one)}"

    return cell


def _first_ms(streamed: Streamed) -> Sequence[float]:
    return streamed.first_ms


def _uneven(streamed: Streamed) -> Sequence[float]:
    return streamed.uneven_ms


def _over(
    seen: Columns,
    one: Figures,
    streams: int,
    values: Callable[[Streamed], Sequence[float]],
    share: float,
) -> float | None:
    """Over no proxy; of no proxy, the value itself."""
    base = None if seen.direct is None or one is seen.direct else seen.direct
    direct = None if base is None else base.streamed.get(streams, ())
    return figures.over(one.streamed.get(streams, ()), direct, values, share)


def _goals(seen: Columns) -> dict[str, str]:
    """By row: the goal, and whether ours meets it."""
    ours = seen.ours
    if ours is None:
        return {}
    goals = {}
    small = figures.per_core(ours.small)
    against = []
    for beginning, factor in (("smg", 0.8), ("litellm", 10.0)):
        other = seen.named(beginning)
        theirs = None if other is None else figures.per_core(other.small)
        if small is not None and theirs is not None:
            ratio = small / theirs
            against.append(f"≥ {factor:g} x {beginning}: {_met(ratio >= factor)}, {ratio:.2f} x")
    if against:
        goals[_SMALL] = "; ".join(against)
    half = _over(seen, ours, _MOST, _first_ms, 0.5)
    most = _over(seen, ours, _MOST, _first_ms, 0.99)
    if seen.direct is not None and half is not None and most is not None:
        goals[_first(_MOST)] = f"≤ 1 ms: {_met(half <= 1)}; ≤ 5 ms: {_met(most <= 5)}"
    uneven = _over(seen, ours, _MOST, _uneven, 0.99)
    if seen.direct is not None and uneven is not None:
        goals[_JITTER] = f"≤ 2 ms: {_met(uneven <= 2)}"
    if ours.held is not None:
        held = ours.held.streams >= 1000 and ours.held.pss_bytes <= 150 * _MB
        goals[_MEMORY] = f"≤ 150 MB with 1,000: {_met(held)}"
    return goals


def _met(true: bool) -> str:
    return "met" if true else "MISSED"


def _busy(streamed: Sequence[Streamed]) -> str:
    if not streamed:
        return "-"
    return f"{statistics.median(one.busy for one in streamed) * 100:.0f} %"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _ms(value: float | None, seen: Columns, one: Figures) -> str:
    """Signed where it is a difference."""
    if value is None:
        return "-"
    sign = "" if one is seen.direct or seen.direct is None else "+"
    return f"{value:{sign}.2f} ms"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
