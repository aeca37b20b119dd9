"""`meshd seed` with a real engine."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.engine.locate import Place
from tools.bench_load import random_model

SHAPE = random_model.shape("cached", 3, 512, 22_528)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(SHAPE, tmp_path_factory.mktemp("model"))


class Node:
    def __init__(self, root: Path, engine: Place) -> None:
        self.root = root
        self.environment = {**os.environ, "MESHD_ENGINE_ROOT": str(engine.root)}

    def command(self, *words: str | Path) -> list[str]:
        return [
            sys.executable, "-m", "meshd.cli.main", "--root", str(self.root), "seed",
            *map(str, words),
        ]  # fmt: skip

    def seed(self, *words: str | Path, code: int = 0) -> str:
        """What it prints, on stdout, or on stderr when it fails by an error."""
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr


@pytest.fixture
def node(engine: Place, tmp_path: Path) -> Node:
    return Node(tmp_path / "n", engine)


def test_by_hand(node: Node, model: Path) -> None:
    some = json.loads(node.seed(model, "--layers", "1-2", "--json"))
    assert (some["first_layer"], some["layers"], some["tensors"]) == (1, 2, 6)
    assert some["added_bytes"] == some["cached_bytes"] > 60 << 20
    assert "nothing new" in node.seed(model, "--layers", "1-2")
    assert json.loads(node.seed(model, "--json"))["added_bytes"] == some["added_bytes"] // 2
    assert "in 9 tensors, layers 0-2, used 2" in node.seed("--list")
    listed = json.loads(node.seed("--list", "--json"))
    assert listed["bytes"] == some["cached_bytes"] * 3 // 2
    assert "all as it was stored" in node.seed("--verify")


def test_damage_is_found_and_removed(node: Node, model: Path) -> None:
    node.seed(model)
    rpc = node.root / "state/rpc-cache/rpc"
    written, rotten = sorted(rpc.iterdir())[:2]
    written.write_bytes(written.read_bytes() + b"x")
    about = rotten.stat()
    rotten.write_bytes(bytes(about.st_size))
    os.utime(rotten, ns=(about.st_atime_ns, about.st_mtime_ns))
    said = json.loads(node.seed("--verify", "--json", code=1))
    assert set(said["damaged"]) == {written.name, rotten.name}
    assert "has another content" in said["damaged"][rotten.name]
    assert not written.exists()
    assert not rotten.exists()
    assert json.loads(node.seed("--verify", "--json"))["damaged"] == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which model?"),
        (("--list", "m"), "no single model"),
        (("nothing.gguf",), "mesh.yaml"),
    ],
)
def test_errors_are_one_line(node: Node, words: tuple[str, ...], said: str) -> None:
    text = node.seed(*words, code=1)
    assert said in text
    assert text.count("\n") == 1


def test_layers_that_it_has_not(node: Node, model: Path) -> None:
    assert "has layers 0-2" in node.seed(model, "--layers", "2-3", code=1)
    assert "is no range" in node.seed(model, "--layers", "all", code=1)


def test_a_bar_on_a_terminal(node: Node, model: Path) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        node.command(model), env=node.environment, stdout=subprocess.DEVNULL, stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.wait(60) == 0
    os.close(master)
    assert b"[#" in shown
    assert shown.endswith(b"\r\x1b[K")
