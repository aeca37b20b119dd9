"""A tool of the engine's that cannot be started says why, and that is what people are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.engine.build import Binary, EngineBuild
from meshd.experts import perplexity
from meshd.experts.imatrix_run import IMATRIX, program
from meshd.experts.perplexity import MeasureError
from meshd.experts.ranking import RankingError

MOE = Path(__file__).resolve().parents[2] / "share/models/tiny-moe.gguf"
WHY = "libllama.so: cannot open shared object file"


def build(folder: Path, name: str) -> EngineBuild:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\necho '{name}: error: {WHY}' >&2\nexit 127\n")
    tool.chmod(0o755)
    return EngineBuild(
        origin="path",
        root=str(folder),
        build=None,
        version="",
        package="",
        ggml="",
        rpc_protocol=None,
        binaries=(Binary(name, str(tool), ""),),
        backends=(),
        help_text="",
    )


async def test_who_counts_experts(tmp_path: Path) -> None:
    with pytest.raises(RankingError, match=f"exit 127: .*{WHY}"):
        await program(build(tmp_path, IMATRIX), niceness=0)


async def test_who_measures_shards(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a text")
    with pytest.raises(MeasureError, match=f"exit 127: .*{WHY}"):
        await perplexity.save_logits(
            MOE,
            text,
            tmp_path / "logits",
            build(tmp_path, perplexity.TOOL),
            progress=lambda _: None,
        )
