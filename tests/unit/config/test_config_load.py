"""The edge: files on a real file system, in every state that a file can be in."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshd.config.findings import ConfigError, Finding, Severity
from meshd.config.load import load, parse_layers, read_files
from meshd.paths import Paths, under


@pytest.fixture
def paths(tmp_path) -> Paths:
    paths = under(tmp_path)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text("mesh: {name: main}\n")
    return paths


def dropin(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def error(paths: Paths) -> Finding:
    with pytest.raises(ConfigError) as caught:
        load(paths)
    found = [one for one in caught.value.findings if one.severity is Severity.ERROR]
    assert len(found) == 1, str(caught.value)
    assert "Traceback" not in str(caught.value)
    return found[0]


def test_layers_in_order(paths):
    first = dropin(paths.config_dropins, "10-a.yaml", "mesh: {name: a}")
    second = dropin(paths.config_dropins, "9-b.yaml", "mesh: {name: b}")
    third = dropin(paths.transient_config, "00-c.yaml", "node: {role: client}")
    loaded = load(paths)
    assert [file.path for file in loaded.files] == [
        str(path) for path in (paths.config, first, second, third)
    ]
    assert loaded.config.mesh.name == "b"
    assert loaded.config.node.role == "client"
    assert loaded.origins["mesh.name"].file == str(second)
    assert parse_layers(read_files(paths)) == loaded


def test_what_is_not_a_drop_in(paths):
    dropin(paths.config_dropins, ".hidden.yaml", "no yaml: [")
    dropin(paths.config_dropins, "a.yaml~", "no yaml: [")
    stray = dropin(paths.config_dropins, "a.yml", "no yaml: [")
    loaded = load(paths)
    (found,) = loaded.findings
    assert (found.severity, found.file) == (Severity.WARNING, str(stray))


def test_the_main_file_is_missing(paths):
    paths.config.unlink()
    found = error(paths)
    assert found.message == "there is no such file"
    assert found.hint


def test_a_dangling_link(paths):
    (paths.config_dropins).mkdir()
    (paths.config_dropins / "a.yaml").symlink_to("/nowhere/at/all")
    assert "/nowhere/at/all" in error(paths).message


def test_a_link_in_a_circle(paths):
    paths.config.unlink()
    paths.config.symlink_to(paths.config)
    assert "circle" in error(paths).message


def test_a_link_to_a_file_is_followed(paths, tmp_path):
    (tmp_path / "real").write_text("mesh: {name: real}")
    paths.config.unlink()
    paths.config.symlink_to(tmp_path / "real")
    assert load(paths).config.mesh.name == "real"


def test_a_folder_instead_of_a_file(paths):
    paths.config.unlink()
    paths.config.mkdir()
    assert "a folder" in error(paths).message


def test_a_fifo_does_not_block(paths):
    paths.config.unlink()
    os.mkfifo(paths.config)
    assert "a FIFO" in error(paths).message


def test_a_device(paths):
    paths.config.unlink()
    paths.config.symlink_to("/dev/zero")
    assert "a device" in error(paths).message


def test_a_file_instead_of_a_folder_of_drop_ins(paths):
    paths.config_dropins.write_text("")
    assert error(paths).file == str(paths.config_dropins)


def test_a_file_of_a_hundred_megabytes_is_not_read(paths):
    with paths.config.open("wb") as file:
        file.truncate(100_000_000)
    start = time.process_time()
    found = error(paths)
    assert time.process_time() - start < 0.5
    assert "100000000 bytes" in found.message


def test_too_many_drop_ins(paths):
    for i in range(201):
        dropin(paths.config_dropins, f"{i}.yaml", "")
    assert "too many" in error(paths).message


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not read")
def test_a_file_that_may_not_be_read(paths):
    paths.config.chmod(0)
    paths.config.parent.parent.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from meshd.config.load import read_file\n"
        "from meshd.errors import UserError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: read_file(Path(sys.argv[1]))\n"
        "except UserError as error: print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(paths.config)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "may not" in out.stdout or "Permission denied" in out.stdout


def test_errors_of_reading_and_of_content_come_together(paths):
    paths.config.write_text("nod: 1\n")
    dropin(paths.config_dropins, "a.yaml", "").write_bytes(b"\xff")
    with pytest.raises(ConfigError) as caught:
        load(paths)
    assert {Path(one.file).name for one in caught.value.findings} == {"mesh.yaml", "a.yaml"}


def test_a_model_that_is_not_there_is_a_warning(paths, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "big-00001-of-00002.gguf").touch()
    (folder / "qwen3-30b.gguf").touch()
    paths.config.write_text(
        f"node: {{model_dirs: [{folder}, /nowhere]}}\n"
        "models:\n"
        "- {name: a, source: 'big-*.gguf'}\n"
        "- {name: b, source: qwen3-30.gguf}\n"
        f"- {{name: c, source: {folder}/qwen3-30b.gguf}}\n"
        f"- {{name: d, source: {folder}/*.bin}}\n"
    )
    findings = load(paths).findings
    assert [(one.severity, one.line) for one in findings] == [
        (Severity.WARNING, 4),
        (Severity.WARNING, 6),
    ]
    assert findings[0].hint == "did you mean 'qwen3-30b.gguf'?"


def test_loading_a_typical_configuration_takes_less_than_50_ms(paths):
    models = "".join(f"- {{name: m{i}, source: m{i}.gguf, slots: 4}}\n" for i in range(10))
    paths.config.write_text(f"models:\n{models}node: {{role: serve}}\n")
    dropin(paths.config_dropins, "a.yaml", "models: {merge: [{name: m3, slots: 2}]}")
    load(paths)
    times = []
    for _ in range(5):
        start = time.process_time()
        load(paths)
        times.append(time.process_time() - start)
    assert min(times) < 0.05
