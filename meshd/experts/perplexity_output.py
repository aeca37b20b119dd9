"""What ``llama-perplexity --kl-divergence`` says, read so that it is right or refused.

Format: upstream's tools/perplexity/perplexity.cpp. After each chunk there is a row of figures over
all chunks so far. The statistics at the very end say the same with a digit more, but cannot be
relied on: builds up to now leave their last lines unsaid when they end on a busy machine (llama.cpp
issue 22142). So the last row that more work follows is what counts. Pure.
"""

from __future__ import annotations

import math
import re

from meshd.errors import UserError
from meshd.quality import Fidelity

# How far a figure may be off; not a number where a variance came out a little below 0.
_OFF = r" ± +(?:\d+\.\d+|-?nan|-?inf)"
_ROW = re.compile(
    rf" *(?P<chunk>\d+) +(?P<perplexity>\d+\.\d{{4}}){_OFF}"
    rf" +(?P<log_ratio>-?\d+\.\d{{5}}){_OFF}"
    rf" +(?P<kl>-?\d+\.\d{{5}}){_OFF}"
    rf" +\d+\.\d{{3}}{_OFF} %"
    rf" +(?P<top>\d+\.\d{{3}}){_OFF} %"
)
_BEGUN_ROW = re.compile(r" *(?P<chunk>\d+) {4,}(?P<first>\S+) ±")
_PROGRESS = re.compile(r"^ *(\d+) {4,}[-\d]|\[(\d+)\]", re.MULTILINE)
# The base's probabilities are rounded to 16 bits, so that a model beside itself is at 0 and a
# little more or less.
_ROUNDING = 0.001
_LOG_RATIO_MAX = 20.0


class MeasureError(UserError):
    """Nothing was measured; the message says why in one sentence."""


def fidelity(said: str, domain: str, chunks: int) -> Fidelity:
    """:param said: on standard output, up to the row of the last chunk that counts or further.

    :param chunks: that count.
    :raises MeasureError: a row is missing, or a figure is no number or impossible.
    """
    begun = _rows_begun(said)[:chunks]
    if any(not re.fullmatch(r"\d+\.\d+", first) for _, first, _ in begun):
        raise MeasureError("its probabilities are no numbers")
    rows = [row for _, _, line in begun if (row := _ROW.fullmatch(line))]
    right = sum(int(row["chunk"]) == number for number, row in enumerate(rows, 1))
    if not right == len(rows) == chunks:
        raise MeasureError(f"llama-perplexity told {right} of {chunks} chunks in words we know")
    perplexity, log_ratio, kl, top = (
        float(rows[-1][name]) for name in ("perplexity", "log_ratio", "kl", "top")
    )
    if not (perplexity > 0 and abs(log_ratio) <= _LOG_RATIO_MAX):
        raise MeasureError("llama-perplexity found a perplexity that cannot be")
    if not (kl >= -_ROUNDING and top <= 100):
        raise MeasureError("llama-perplexity found a divergence or an agreement that cannot be")
    return Fidelity(domain, round(top / 100, 5), round(math.exp(log_ratio), 5), max(0.0, kl))


def told(said: str, chunks: int) -> bool:
    """Whether the row of the last chunk that counts is there as a whole."""
    return any(chunk == chunks for chunk, _, _ in _rows_begun(said))


def last_chunk(said: str) -> int:
    """The last chunk that is done in a piece of output, of either kind of run; 0 where none is."""
    return max((int(one[1] or one[2]) for one in _PROGRESS.finditer(said)), default=0)


def _rows_begun(said: str) -> list[tuple[int, str, str]]:
    """Chunk, first figure and all of each whole line that begins as a row."""
    lines = said.split("\n")[:-1]
    begun = ((found, line) for line in lines if (found := _BEGUN_ROW.match(line)))
    return [(int(found["chunk"]), found["first"], line.rstrip()) for found, line in begun]
