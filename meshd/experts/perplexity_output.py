"""What ``llama-perplexity --kl-divergence`` says in the end, read so that it is right or refused.

Upstream's tools/perplexity/perplexity.cpp writes each figure twice, once in the last chunk's row,
which is over all chunks so far, and once in the statistics at the end. Both have to agree. Pure.
"""

from __future__ import annotations

import math
import re

from meshd.errors import UserError
from meshd.quality import Fidelity

_NUMBER = r"(-?\d+\.\d+)"
# How far it may be off; not a number where a variance came out a little below 0.
_ABOUT = r" ± +(?:\d+\.\d+|-?nan|-?inf)"
_ROW = re.compile(
    rf" *(\d+) +{_NUMBER}{_ABOUT} +{_NUMBER}{_ABOUT} +{_NUMBER}{_ABOUT}"
    rf" +{_NUMBER}{_ABOUT} % +{_NUMBER}{_ABOUT} %"
)
_BROKEN_ROW = re.compile(r" *\d+ +-?(?:nan|inf)\b")
_PERPLEXITY = "Mean PPL(Q)"
_BASE = "Mean PPL(base)"
_RATIO = "Mean PPL(Q)/PPL(base)"
_KL = "Mean    KLD"
_TOP = "Same top p"
_STATISTICS = {
    name: re.compile(rf"{re.escape(name)} *: +{_NUMBER}{_ABOUT}(?: %)?")
    for name in (_PERPLEXITY, _BASE, _RATIO, _KL, _TOP)
}
_NO_NUMBER = re.compile(r"\b(nan|inf)\b")
_PROGRESS = re.compile(r"^ *(\d+) +\d|\[(\d+)\]", re.MULTILINE)
# The base's probabilities are rounded to 16 bits, so that a model beside itself is at 0 and a
# little more or less.
_ROUNDING = 0.001
# Half of the last digit that is printed, and the rounding on the way there.
_ROW_LAST = 0.6


class MeasureError(UserError):
    """Nothing was measured; the message says why in one sentence."""


class LostError(MeasureError):
    """A figure is missing. Builds up to now leave their last lines unsaid when they end on a busy
    machine (llama.cpp issue 22142), so it is worth another try.
    """


def fidelity(said: str, domain: str, chunks: int) -> Fidelity:
    """:param said: all of the standard output.

    :param chunks: that were to be measured.
    :raises LostError: a figure is missing.
    :raises MeasureError: a figure is no number, is impossible, or is told two ways.
    """
    lines = said.splitlines()
    if any(_BROKEN_ROW.match(line) for line in lines):
        raise MeasureError("its probabilities are no numbers")
    rows = [found for line in lines if (found := _ROW.fullmatch(line.rstrip()))]
    if not rows or [int(row[1]) for row in rows] != list(range(1, chunks + 1)):
        raise LostError(f"llama-perplexity told {len(rows)} of {chunks} chunks in words we know")
    figures = {name: _statistic(name, lines) for name in _STATISTICS}
    perplexity, log_ratio, kl, _, top = (float(rows[-1][place]) for place in range(2, 7))
    ratio = figures[_RATIO]
    if not (ratio > 0 and figures[_BASE] > 0):
        raise MeasureError("llama-perplexity found a perplexity that cannot be")
    for name, here, there, digits in (
        ("perplexity", perplexity, figures[_PERPLEXITY], 4),
        ("ratio of perplexities", log_ratio, math.log(ratio), 5),
        ("KL divergence", kl, figures[_KL], 5),
        ("top-1 agreement", top, figures[_TOP], 3),
    ):
        if not abs(here - there) <= _ROW_LAST * 10.0**-digits + 1e-6 * (1 / ratio):
            raise MeasureError(f"llama-perplexity told the {name} as {here} and as {there}")
    if not math.isclose(figures[_PERPLEXITY] / figures[_BASE], ratio, rel_tol=1e-4, abs_tol=1e-6):
        raise MeasureError("llama-perplexity's perplexities do not have the ratio that it told")
    if figures[_KL] < -_ROUNDING or not 0 <= figures[_TOP] <= 100:
        raise MeasureError("llama-perplexity found a divergence or an agreement that cannot be")
    return Fidelity(domain, round(figures[_TOP] / 100, 5), ratio, max(0.0, figures[_KL]))


def last_chunk(said: str) -> int:
    """The last chunk that is done in a piece of output, of either kind of run; 0 where none is."""
    return max((int(one[1] or one[2]) for one in _PROGRESS.finditer(said)), default=0)


def _statistic(name: str, lines: list[str]) -> float:
    told = [line.rstrip() for line in lines if line.startswith((f"{name} ", f"{name}:"))]
    if len(told) == 1 and _NO_NUMBER.search(told[0].partition("±")[0].removeprefix(name)):
        raise MeasureError(f"llama-perplexity's {name} is not a number")
    found = _STATISTICS[name].fullmatch(told[0]) if len(told) == 1 else None
    if found is None:
        raise LostError(f"llama-perplexity's {name} is missing")
    return float(found[1])
