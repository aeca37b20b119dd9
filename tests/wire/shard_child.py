"""Begins to write a shard and hangs in the middle of it, so that a test can kill it there.

python -m tests.wire.shard_child TARGET KEPT SHARE FILE...
"""

from __future__ import annotations

import sys
from pathlib import Path

from meshd.experts import shard_writer

CHECKPOINT_BYTES = 2 << 20
BLOCK_BYTES = 1 << 18


def fine() -> None:
    """Checkpoints fit for a small model."""
    shard_writer._CHECKPOINT_BYTES = CHECKPOINT_BYTES
    shard_writer._BLOCK_BYTES = BLOCK_BYTES


def main() -> None:
    target, kept, share, *files = sys.argv[1:]
    selection = tuple(
        tuple(int(one) for one in block.split(",") if one) for block in kept.split(";")
    )

    def progress(done: int, total: int) -> None:
        if done > float(share) * total:
            print(done, flush=True)
            sys.stdin.read()  # for ever

    fine()
    shard_writer.write_shard(
        tuple(files), selection, Path(target), progress=progress, stopped=lambda: False
    )


if __name__ == "__main__":
    main()
