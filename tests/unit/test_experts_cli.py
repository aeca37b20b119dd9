"""`meshd experts` as somebody types it, but for what needs an engine (tests/wire)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from meshd.cli import experts_work
from meshd.cli.bar import Bar
from meshd.cli.experts_model import kept_of, mixture, nodes_of, own_texts, ranking_of
from meshd.cli.main import main
from meshd.errors import UserError
from meshd.experts import ranking_file
from meshd.experts.ranking import Ranking
from meshd.models.gguf_facts import read_headers
from tests.unit import mixtures
from tests.unit.mixtures import Mixture

GROUPED = Mixture(groups=4, experts=8)


@dataclass
class Said:
    code: int
    out: str
    err: str


Experts = Callable[..., Said]


@pytest.fixture
def experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Experts:
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Said:
        capsys.readouterr()
        try:
            code = main(["experts", *map(str, words)])
        except SystemExit as usage:  # of argparse
            code = int(usage.code or 0)
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    mixtures.write(Mixture(dense=1, blocks=3), tmp_path / "mix.gguf")
    return tmp_path / "mix.gguf"


@pytest.fixture
def ranking(model: Path, tmp_path: Path) -> Path:
    """Layer 1 prefers the first experts, layer 2 the last."""
    falling = (400, 300, 200, 100, 0, 0, 0, 0)
    counts = ((), falling, falling[::-1])
    found = Ranking(mixture(model).fingerprint, "c" * 64, 500, counts)
    ranking_file.write(tmp_path / "mix.ranking.json", found)
    return tmp_path / "mix.ranking.json"


def test_show_says_what_is_in_it(experts: Experts, model: Path) -> None:
    said = experts("show", model)
    assert said.code == 0
    assert "2 of 3 layers have 8 experts; 2 for a token" in said.out
    shown = json.loads(experts("show", model, "--json").out)
    assert (shown["experts"], shown["counted"], shown["undividable"]) == (8, [0, 8, 8], "")


def test_show_says_why_it_cannot_be_divided(experts: Experts, tmp_path: Path) -> None:
    path = tmp_path / "dense.gguf"
    mixtures.write(Mixture(dense=2, experts=1), path)
    said = experts("show", path)
    assert (said.code, said.out) == (1, "")
    assert said.err == f"meshd: {path}: it has no routed experts\n"
    shown = experts("show", path, "--json")
    assert shown.code == 1
    assert "no routed experts" in json.loads(shown.out)["undividable"]


def test_cut_keeps_the_most_chosen_of_each_layer(
    experts: Experts, model: Path, ranking: Path, tmp_path: Path
) -> None:
    said = experts("cut", model, "--ranking", ranking, "--keep", "50%")
    assert said.code == 0, said.err
    assert said.out.startswith("mix.4of8.gguf: 4 of 8 experts")
    assert "took 100.0% of the choices" in said.out
    _, (header,) = read_headers(tmp_path / "mix.4of8.gguf")
    assert header.metadata["meshd.shard.kept"] == ";0-3;4-7"

    told = json.loads(
        experts("cut", model, "--ranking", ranking, "--keep", "2", "-o", "two.gguf", "--json").out
    )
    assert told["mass"] == told["least_mass"] == 0.7
    assert told["size_bytes"] == (tmp_path / "two.gguf").stat().st_size


def test_nothing_is_overwritten_the_model_least_of_all(
    experts: Experts, model: Path, ranking: Path
) -> None:
    before = model.read_bytes()
    said = experts("cut", model, "--ranking", ranking, "--keep", "4", "-o", model)
    assert said.code == 1
    assert said.err == f"meshd: {model}: is there already (-o names another file)\n"
    assert model.read_bytes() == before


def test_an_interrupted_cut_leaves_nothing(
    experts: Experts, model: Path, ranking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = experts_work.write_shard, []

    def interrupted(*args: object, **named: object) -> object:
        def progress(done: int, total: int) -> None:
            seen.extend(one.name for one in tmp_path.glob(".four.gguf*"))
            raise KeyboardInterrupt

        return real(*args, **{**named, "progress": progress})  # type: ignore[arg-type]

    monkeypatch.setattr(experts_work, "write_shard", interrupted)
    said = experts("cut", model, "--ranking", ranking, "--keep", "4", "-o", "four.gguf")
    assert said.code == 130
    assert ".four.gguf.part" in seen
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mix.gguf", "mix.ranking.json"]


def test_plan_is_a_table_of_nodes(experts: Experts, model: Path, ranking: Path) -> None:
    said = experts("plan", model, "--ranking", ranking, "--nodes", "ann=6,bob=4")
    head, columns, ann, bob = said.out.splitlines()
    assert head == (
        "2 of 8 experts of each layer on every node, each of the other 6 on one at least"
    )
    assert columns.split() == ["experts", "file", "mass", "in", "the", "worst", "layer"]
    assert ann.split()[:2] == ["ann", "6"]
    assert bob.split()[:2] == ["bob", "4"]
    told = json.loads(
        experts("plan", model, "--ranking", ranking, "--nodes", "ann=6,bob=4", "--json").out
    )
    kept = [told["nodes"][node]["selection"][1] for node in ("ann", "bob")]
    assert [len(own) for own in kept] == [6, 4]
    assert set(kept[0]) | set(kept[1]) == set(range(8))
    refused = experts("plan", model, "--ranking", ranking, "--nodes", "3,3")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("meshd: no plan: the nodes have room for 6 of 8 experts")


@pytest.mark.parametrize("what", ["missing", "damaged", "another model's", "no ranking"])
def test_a_ranking_that_is_not_this_models_is_refused(
    experts: Experts, model: Path, ranking: Path, what: str
) -> None:
    if what == "missing":
        ranking.unlink()
    elif what == "damaged":
        ranking.write_bytes(ranking.read_bytes().replace(b"400", b"401"))
    elif what == "no ranking":
        ranking.write_bytes(b"\xff\0" * 100)
    else:
        other = ranking_of(mixture(model), ranking)
        ranking_file.write(ranking, replace(other, fingerprint="0" * 16))
    said = experts("cut", model, "--ranking", ranking, "--keep", "4")
    assert said.code == 1
    assert said.err.startswith(f"meshd: {ranking}: ")
    assert said.err.endswith("(meshd experts rank mix.gguf makes one)\n")
    assert said.err.count("\n") == 1
    assert not Path("mix.4of8.gguf").exists()


@pytest.mark.parametrize("words", [
    ["show", "nowhere.gguf"],
    ["show", "mix.ranking.json"],
    ["cut", "mix.gguf", "--ranking", "mix.ranking.json", "--keep", "4", "-o", "no/where.gguf"],
    ["measure", "mix.gguf", "--against", "nowhere.gguf"],
    ["measure", "mix.gguf", "--against", "mix.gguf", "--text", "a"],
    ["rank", "mix.gguf", "--text", "a=b", "--text", "a=c"],
    ["rank", "mix.gguf", "-o", "mix.gguf"],
])  # fmt: skip
def test_whatever_is_wrong_is_said_in_one_line(
    experts: Experts, ranking: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHD_ENGINE_ROOT", "/nowhere")
    said = experts(*words)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("meshd: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("text", "kept"), [
    ("4", 4), ("75%", 6), ("62 %", 5), ("100%", 8), ("25.0%", 2),
])  # fmt: skip
def test_how_many_are_kept(model: Path, text: str, kept: int) -> None:
    assert kept_of(text, mixture(model).anatomy) == kept


@pytest.mark.parametrize("text", ["", "0", "1", "9", "101%", "-2", "half", "3.5", "nan%", "5%"])
def test_how_many_cannot_be_kept(model: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"^--keep: "):
        kept_of(text, mixture(model).anatomy)


def test_of_groups_equally_many_are_kept(tmp_path: Path) -> None:
    mixtures.write(GROUPED, tmp_path / "grouped.gguf")
    anatomy = mixture(tmp_path / "grouped.gguf").anatomy
    assert kept_of("100%", anatomy) == 8
    with pytest.raises(UserError, match=r"8 to 8 can be kept in steps of 4, not 6"):
        kept_of("6", anatomy)


def test_nodes_are_numbered_or_named() -> None:
    assert nodes_of("12,10,8") == {"node1": 12, "node2": 10, "node3": 8}
    assert nodes_of("ann=12, bob=10") == {"ann": 12, "bob": 10}
    assert list(nodes_of(",".join("9" * 12))) == sorted(nodes_of(",".join("9" * 12)))
    for wrong in ("", "12,", "a=1,a=2", "-3", "a=b", ",".join(["1"] * 65)):
        with pytest.raises(UserError, match=r"^--nodes: "):
            nodes_of(wrong)


def test_texts_have_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert own_texts(["notes=a=b.txt"]) == {"notes": str(tmp_path / "a=b.txt")}
    for wrong in ("notes", "=a.txt", "notes=", "No Tes=a.txt"):
        with pytest.raises(UserError, match=r"^--text: "):
            own_texts([wrong])


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_only() -> None:
    now_s = [0.0]
    terminal, log = _Terminal(), io.StringIO()
    bars = [Bar("model", out, lambda: now_s[0]) for out in (terminal, log)]
    for now_s[0], share in ((0.0, 0.0), (5.0, 0.25), (12.0, 0.5)):
        for bar in bars:
            bar.show(share, "code")
    for bar in bars:
        bar.end()
    assert f"model: code [{'#' * 12:24}]  50%, 12 s left" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert log.getvalue() == "model: code  50%, 12 s left\n"
