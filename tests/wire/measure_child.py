"""Saves a model's logits until it is killed: MODEL, TEXT, TARGET and TOKENS are its arguments."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.experts.perplexity import save_logits


def main() -> None:
    model, text, target, tokens = sys.argv[1:]
    build = describe(require())

    def progress(done: float) -> None:
        print(done, flush=True)

    saving = save_logits(
        Path(model), Path(text), Path(target), build, progress=progress, tokens=int(tokens)
    )
    asyncio.run(saving)


if __name__ == "__main__":
    main()
