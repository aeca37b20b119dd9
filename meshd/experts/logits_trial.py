"""Whether another node's logits are the whole model's, tried on one chunk of them.

Which chunk cannot be foreseen. The model here computes it anew; another processor or build rounds
otherwise. docs/experts.md has what was measured: between instruction sets the worst chunk had a
top-1 of 0.980, a divergence of 0.00034 and a ratio that was 0.002 off. What is allowed is some
times that, and an eighth of what a shard without one of 16 experts loses in its best chunk.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.experts import logits_file, tool_child
from meshd.experts.logits_file import CHUNK_TOKENS, TOKENS, DifferError, chunks_of
from meshd.experts.logits_thread import in_logits_thread
from meshd.experts.perplexity import part_of
from meshd.experts.perplexity_output import MeasureError, fidelity, told
from meshd.experts.perplexity_tool import BASE, perplexity_tool
from meshd.experts.tool_child import Started, ignored
from meshd.quality import Fidelity

# Ten of a chunk's 255 tokens.
TOP1_MIN = 0.96
KL_MAX = 0.002
# A divergence that small leaves room for a text's own tokens to be made a little likelier, or less.
RATIO_OFF = 0.01


async def try_logits(
    model: Path,
    text: Path,
    logits: Path,
    build: EngineBuild,
    *,
    started: Started = ignored,
    tokens: int = TOKENS,
    niceness: int = 19,
    chosen: Callable[[int], int] = secrets.randbelow,
) -> None:
    """Compute one chunk anew, and compare. Cancelling it ends the child.

    :param model: the whole one, its first file. :param logits: a file that `logits_file.check`
        found sound. :param chosen: which of so many chunks.
    :raises DifferError: they are another model's or another text's; it says by how much.
    :raises MeasureError: nothing was found out.
    :raises OSError: the chunk cannot be written beside them.
    """
    tool = await perplexity_tool(build, niceness, started)
    header, begin = await asyncio.to_thread(logits_file.begin_of, logits)
    ours = await tool.begin(model, text, chunks_of(tokens))
    if begin != ours:
        raise DifferError(logits_file.difference(begin, ours))
    chunk = chosen(header.counted)
    with part_of(logits) as part:
        await in_logits_thread(lambda _: logits_file.excerpt(logits, chunk, part))
        words = tool.words(model, CHUNK_TOKENS, 2, ("--kl-divergence", ""), (BASE, part))
        ended = await tool.run(words, lambda _: None, lambda said: told(said, 1))
    try:
        found = fidelity(ended.out, "", 1)
    except MeasureError as error:
        if ended.enough:
            # It did compute; beside these, what it says is impossible.
            raise DifferError(str(error)) from error
        raise MeasureError(f"{model.name}: {error}; {tool_child.complaint(ended)}") from error
    if not _alike(found):
        raise DifferError(
            f"in chunk {chunk} they are not the model's: top-1 {found.top1:.3f}, KL "
            f"{found.kl:.5f}, perplexity ratio {found.perplexity_ratio:.4f}"
        )


def _alike(found: Fidelity) -> bool:
    return (
        found.top1 >= TOP1_MIN
        and found.kl <= KL_MAX
        and abs(found.perplexity_ratio - 1) <= RATIO_OFF
    )
