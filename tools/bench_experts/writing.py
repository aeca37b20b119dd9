"""How fast a shard is written beside `cp` of a file of the same size, and in how much memory."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from meshd.errors import UserError
from meshd.experts.ranking import Selection
from meshd.experts.shard_writer import StoppedError, shard_bytes, write_shard
from meshd.models.gguf_header import read_header
from tools.memory_table import sparse
from tools.memory_table.sparse import Shape

ROUNDS = 5
KEPT_SHARE = 0.75
_FILL_BYTES = 64 << 20
_ROOM_BYTES = 12 << 30

# 2.2 GB: of a Qwen3-30B-A3B's width and experts, with fewer layers.
MODEL = Shape(
    "mixture", "qwen3moe", 6, 2048, 32, 4, 6144, 2048, 40960,
    head=128, qk_norm=True, post_norms=("ffn_norm",), experts=128, experts_used=8, expert_ff=768,
    quantisation=GGMLQuantizationType.Q4_K,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one round. :ivar synced_s: until the disk had it."""

    wall_s: float
    synced_s: float
    peak_bytes: int = 0


def table() -> str:
    """Markdown. Takes a minute or two and 6 GB below the folder for temporary files.

    :raises UserError: there is no room.
    """
    with tempfile.TemporaryDirectory(prefix="meshd-bench-") as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < _ROOM_BYTES:
            raise UserError(f"{folder}: {_ROOM_BYTES >> 30} GiB have to be free for this")
        source = _filled(sparse.write(MODEL, folder))
        selection = _selection()
        size = shard_bytes((str(source),), selection)
        # cp gets the same bytes: a shard, which the first round leaves.
        twin = folder / "twin.gguf"
        _in_child(source, selection, twin)
        copies: list[Timing] = []
        shards: list[Timing] = []
        for number in range(ROUNDS):
            # Whatever goes first in a round finds other memory than what goes second.
            for copies_now in (number % 2 == 0, number % 2 == 1):
                os.sync()
                if copies_now:
                    copies.append(_copied(twin, folder / "copy"))
                else:
                    shards.append(_in_child(source, selection, folder / "shard"))
        hashing = _hashing_bytes_s()
        resumed = _resumed(source, selection, folder / "resumed", size)
    return _shown(source.name, size, copies, shards, resumed, hashing)


def _filled(path: Path) -> Path:
    """Random bytes in place of the hole: a file system may store zeros in no time."""
    header, random = read_header(path), np.random.default_rng(1)
    some = random.bytes(_FILL_BYTES)
    with path.open("r+b") as file:
        file.seek(header.data_offset)
        left = header.file_bytes - header.data_offset
        while left:
            left -= file.write(some[: min(left, _FILL_BYTES)])
        os.fsync(file.fileno())
    return path


def _selection() -> Selection:
    """Scattered, another set in each layer."""
    random = np.random.default_rng(2)
    count = int(MODEL.experts * KEPT_SHARE)
    return tuple(
        tuple(sorted(int(one) for one in random.permutation(MODEL.experts)[:count]))
        for _ in range(MODEL.layers)
    )


def _copied(source: Path, target: Path) -> Timing:
    target.unlink(missing_ok=True)
    begun = time.monotonic()
    subprocess.run(["cp", str(source), str(target)], check=True)
    copied = time.monotonic()
    subprocess.run(["sync", str(target)], check=True)
    timing = Timing(copied - begun, time.monotonic() - begun)
    target.unlink()
    return timing


def _in_child(source: Path, selection: Selection, target: Path) -> Timing:
    """In a process of its own, whose peak of memory is then the writer's."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_write, args=(source, selection, target, sender))
    child.start()
    timing: Timing = receiver.recv()
    child.join()
    if target.name != "twin.gguf":
        target.unlink()
    return timing


def _write(source: Path, selection: Selection, target: Path, sender) -> None:  # type: ignore[no-untyped-def]
    begun = time.monotonic()
    write_shard(
        (str(source),), selection, target, progress=lambda done, total: None, stopped=lambda: False
    )
    wall_s = time.monotonic() - begun
    sender.send(Timing(wall_s, wall_s, _peak_bytes()))


def _peak_bytes() -> int:
    """Of this process. Its ru_maxrss would begin with the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/self/status tells no VmHWM")


def _resumed(source: Path, selection: Selection, target: Path, size: int) -> float:
    """Seconds for a shard of which nine tenths lay there."""
    done = [0]
    with contextlib.suppress(StoppedError):
        write_shard(
            (str(source),), selection, target,
            progress=lambda now, total: done.__setitem__(0, now),
            stopped=lambda: done[0] > 0.9 * size,
        )  # fmt: skip
    os.sync()
    begun = time.monotonic()
    write_shard(
        (str(source),), selection, target, progress=lambda now, total: None, stopped=lambda: False
    )
    return time.monotonic() - begun


def _hashing_bytes_s() -> float:
    some = os.urandom(_FILL_BYTES)
    begun = time.monotonic()
    hashlib.sha256(some).digest()
    return _FILL_BYTES / (time.monotonic() - begun)


def _shown(
    name: str, size: int, copies: list[Timing], shards: list[Timing], resumed: float, hashing: float
) -> str:
    def row(what: str, seconds: list[float], memory: str = "") -> str:
        """The ratio is the median of the rounds' own, since the machine is not always the same."""
        ratio = statistics.median(a.wall_s / b for a, b in zip(copies, seconds, strict=True))
        rate = size / statistics.median(seconds) / 1e6
        return f"| {what} | {rate:.0f} | {ratio:.0%} | {memory} |"

    written = [one.wall_s for one in shards]
    peak = max(one.peak_bytes for one in shards)
    lines = [
        f"A shard of {size / 1e9:.2f} GB, {KEPT_SHARE:.0%} of the experts of {name}; medians of "
        f"{ROUNDS} rounds. SHA-256 alone makes {hashing / 1e6:.0f} MB/s here. A run that finds "
        f"nine tenths written takes {resumed:.1f} s, a whole one "
        f"{statistics.median(written):.1f} s. Load while it ran: {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} processors.",
        "",
        "| | MB/s | by `cp` | peak RSS |",
        "|---|---:|---:|---:|",
        row("`cp`, not synced", [one.wall_s for one in copies]),
        row("`cp`, then `sync` of the file", [one.synced_s for one in copies]),
        row("`write_shard`, hashed and synced", written, f"{peak / 1e6:.0f} MB"),
    ]
    return "\n".join(lines)


def main() -> None:
    print(table())


if __name__ == "__main__":
    main()
