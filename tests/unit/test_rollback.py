from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshd.cli.main import main
from meshd.config.load import SourceFile
from meshd.generations import GenerationStore
from meshd.paths import Paths, under

GOOD = "models: []\n"
NAMED = "mesh: {name: x}\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = under(tmp_path)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text("models: [\n")
    return paths


def roll_back(tmp_path: Path) -> int:
    return main(["--root", str(tmp_path), "rollback"])


def keep(paths: Paths, *files: tuple[Path, str]) -> None:
    sources = tuple(SourceFile(str(path), text) for path, text in files)
    GenerationStore(paths.generations).save(sources, now_s=0)


def test_the_last_good_configuration_comes_back_with_its_dropins(
    paths: Paths, tmp_path: Path
) -> None:
    one, other = paths.config_dropins / "10-a.yaml", paths.config_dropins / "20-b.yaml"
    keep(paths, (paths.config, GOOD), (one, NAMED))
    paths.config_dropins.mkdir()
    other.write_text(GOOD)
    assert roll_back(tmp_path) == 0
    assert paths.config.read_text() == GOOD
    assert one.read_text() == NAMED
    assert not other.exists()


@pytest.mark.parametrize(
    "where", ["/elsewhere/x.yaml", "etc/mesh.d/../x.yaml", "etc/mesh.d/x.conf"]
)
def test_a_generation_writes_nowhere_else(paths: Paths, tmp_path: Path, where: str) -> None:
    # A brain gone bad writes the generations, and root puts them back.
    outside = Path(f"{tmp_path}/{where}")
    outside.parent.mkdir(parents=True, exist_ok=True)
    keep(paths, (paths.config, GOOD), (outside, NAMED))
    assert roll_back(tmp_path) == 1
    assert not outside.exists()
    assert paths.config.read_text() == "models: [\n"


def test_a_folder_that_leads_elsewhere_is_not_followed(paths: Paths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths.transient_config.parent.mkdir(parents=True)
    paths.transient_config.symlink_to(elsewhere)
    keep(paths, (paths.config, GOOD), (paths.transient_config / "x.yaml", NAMED))
    assert roll_back(tmp_path) == 1
    assert list(elsewhere.iterdir()) == []


def test_programs_are_told_in_json(
    paths: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(paths, (paths.config, GOOD))
    assert main(["--root", str(tmp_path), "rollback", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == 1
