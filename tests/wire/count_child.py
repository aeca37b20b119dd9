"""Counts experts until it is killed: MODEL, CHUNKS, FOLDER and the texts are its arguments."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.experts.imatrix import count_experts
from meshd.models.fingerprint import fingerprint

EXPERTS = (16,) * 6


def main() -> None:
    model, chunks, folder, *texts = sys.argv[1:]
    counting = count_experts(
        (model,),
        tuple(Path(text) for text in texts),
        Path(folder),
        describe(require()),
        fingerprint=fingerprint([Path(model)]),
        experts=EXPERTS,
        progress=lambda share: print(share, flush=True),
        niceness=0,
        chunks=int(chunks),
    )
    print(asyncio.run(counting).digest)


if __name__ == "__main__":
    main()
