"""The figures as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from tools.bench_mesh.stress import Stress
from tools.bench_mesh.trials import Figures

# Of mesh-llm: its documents and threads, 2026-04-30 to 2026-09. Published, not measured here.
_PUBLISHED = {
    "kill -9: missed by all": "41 s",
    "kill -9: dead for all": "41 s; a phantom served 45 min",
    "silent (SIGSTOP): dead for all": "120 s; behind a relay 5 min",
}
_PUBLISHED_BY = "mesh-llm, published"


def _times(found: Sequence[float | None]) -> str:
    """Median and worst."""
    seen = [one for one in found if one is not None]
    if not seen:
        return "never" if found else "-"
    text = f"{_time(statistics.median(seen))} / {_time(max(seen))}"
    missed = len(found) - len(seen)
    return f"{text}, {missed} of {len(found)} never" if missed else text


def _time(one: float) -> str:
    return f"{one * 1000:.0f} ms" if one < 1 else f"{one:.1f} s"


def _mean_worst(found: Sequence[float], scale: float, form: str) -> str:
    if not found:
        return "-"
    return f"{statistics.mean(found) * scale:{form}} / {max(found) * scale:{form}}"


_MIB = 1 / (1 << 20)
_ROWS: dict[str, Callable[[Figures], str]] = {
    "record": lambda one: f"{one.record_bytes} B",
    "all started: one view": lambda one: _times([one.start_s]).split(" / ")[0],
    "a change reaches all": lambda one: _times(one.changed_s),
    "newcomer has the whole view": lambda one: _times(one.joined_s),
    "all see the newcomer": lambda one: _times(one.known_s),
    "leaver is gone for all": lambda one: _times(one.left_s),
    "kill -9: missed by all": lambda one: _times(one.killed_suspect_s),
    "kill -9: dead for all": lambda one: _times(one.killed_dead_s),
    "silent (SIGSTOP): missed by all": lambda one: _times(one.stopped_suspect_s),
    "silent (SIGSTOP): dead for all": lambda one: _times(one.stopped_dead_s),
    "SIGCONT: alive for all again": lambda one: _times(one.resumed_s),
    "idle: bytes sent per node and second": lambda one: _mean_worst(one.sent_bytes_s, 1, ".0f"),
    "idle: CPU per node, % of a core": lambda one: _mean_worst(one.cpu, 100, ".2f"),
    "memory: RSS, MiB": lambda one: _mean_worst(one.rss_bytes, _MIB, ".1f"),
    "memory: PSS, MiB": lambda one: _mean_worst(one.pss_bytes, _MIB, ".1f"),
    "load average while idle": lambda one: f"{one.load[0]:.1f}, {one.load[1]:.1f}",
}


def render(figures: Sequence[Figures]) -> str:
    """A column a fleet and size, what mesh-llm published beside it."""
    heads = ["", *(f"{one.fleet}, {one.nodes}" for one in figures), _PUBLISHED_BY]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for name, cell in _ROWS.items():
        lines.append(_line([name, *map(cell, figures), _PUBLISHED.get(name, "")]))
    return "\n".join(lines)


def render_stress(found: Sequence[Stress]) -> str:
    lines = [
        "| under stress | nodes | false deaths | false suspicions | |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        deaths = "" if one.deaths is None else str(one.deaths)
        suspicions = "" if one.suspicions is None else str(one.suspicions)
        lines.append(_line([one.what, str(one.nodes), deaths, suspicions, one.remark]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
