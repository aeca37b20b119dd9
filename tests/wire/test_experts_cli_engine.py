"""`meshd experts` from a model to what a shard of it loses, with a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshd.engine.locate import Place
from meshd.experts import ranking_file
from meshd.models.fingerprint import fingerprint
from tests.wire.count_child import EXPERTS

ROOT = Path(__file__).resolve().parents[2]
MOE = ROOT / "share/models/tiny-moe.gguf"
DEADLINE_S = 300.0

pytestmark = pytest.mark.skipif(not MOE.exists(), reason="share/models/tiny-moe.gguf is not here")


class Shell:
    """Somebody in a folder of their own."""

    def __init__(self, folder: Path, engine: Place) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "MESHD_ENGINE_ROOT": str(engine.root),
            "PYTHONPATH": str(ROOT),
        }

    def begin(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "meshd.cli.main", "experts", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, code: int = 0) -> str:
        """What it prints, on stdout, or on stderr when it fails."""
        child = self.begin(*words)
        out, errors = child.communicate(timeout=DEADLINE_S)
        assert child.returncode == code, errors
        return out if code == 0 else errors

    def files(self) -> list[str]:
        return sorted(one.name for one in self.folder.iterdir())


@pytest.fixture(scope="module")
def shell(engine: Place, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("experts"), engine)


@pytest.fixture(scope="module")
def ranking(shell: Shell) -> Path:
    """Counted by a command that was interrupted once."""
    first = shell.begin("rank", MOE)
    counting = shell.folder / ".tiny-moe.ranking.json.counting"
    end_s = time.monotonic() + DEADLINE_S
    while not list(counting.glob("*.counting")):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < end_s, "no piece was counted"
        time.sleep(0.05)
    # As Ctrl-C: the child that counts is in the same group on a terminal, here it is not.
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=DEADLINE_S)
    assert first.returncode == 130
    assert shell.files() == [counting.name]
    (begun,) = counting.glob("*.counting")
    pieces = len(json.loads(begun.read_bytes())["pieces"])
    assert pieces >= 1

    told = json.loads(shell.run("rank", MOE, "--json"))
    assert shell.files() == ["tiny-moe.ranking.json"]
    found = ranking_file.read(
        shell.folder / told["ranking"], fingerprint=fingerprint([MOE]), experts=EXPERTS, used=2
    )
    assert (told["digest"], told["tokens"]) == (found.digest, found.tokens)
    return shell.folder / "tiny-moe.ranking.json"


def test_all_experts_kept_lose_nothing_and_half_of_them_something(
    shell: Shell, ranking: Path
) -> None:
    for keep in ("100%", "8"):
        shell.run("cut", MOE, "--ranking", ranking, "--keep", keep)
    assert (shell.folder / "tiny-moe.8of16.gguf").stat().st_size < 0.6 * MOE.stat().st_size

    # A path relative to the folder that it is typed in.
    whole = json.loads(shell.run("measure", "tiny-moe.16of16.gguf", "--against", MOE, "--json"))
    assert [one["domain"] for one in whole["measured"]] == ["prose", "code"]
    for one in whole["measured"]:
        assert one["top1"] == 1.0
        assert one["perplexity_ratio"] == pytest.approx(1, abs=1e-4)

    half = json.loads(shell.run("measure", "tiny-moe.8of16.gguf", "--against", MOE, "--json"))
    for one in half["measured"]:
        assert 0.3 < one["top1"] < 0.9
        assert one["kl"] > 0.1

    (shell.folder / "tiny-moe.16of16.gguf").unlink()
    (shell.folder / "tiny-moe.8of16.gguf").unlink()


def test_what_cannot_be_compared_is_refused(shell: Shell, ranking: Path) -> None:
    shell.run("cut", MOE, "--ranking", ranking, "--keep", "4", "-o", "four.gguf")
    said = shell.run("measure", MOE, "--against", "four.gguf", code=1)
    assert said == "meshd: four.gguf: it is itself a shard (name the whole model)\n".replace(
        "four", str(shell.folder / "four")
    )
    said = shell.run("measure", "four.gguf", "--against", ROOT / "share/models/tiny.gguf", code=1)
    assert "it is a shard of another model" in said
    said = shell.run("cut", "four.gguf", "--ranking", ranking, "--keep", "2", code=1)
    assert said.endswith("it is itself a shard of a model\n")
    assert shell.files() == ["four.gguf", "tiny-moe.ranking.json"]
