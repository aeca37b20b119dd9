"""`meshd check` and `meshd config show`: what is printed, and the exit code."""

import argparse
import json

import pytest

from meshd.cli import check, config
from meshd.config.findings import ConfigError, SourceFile
from meshd.config.layers import parse_layers
from meshd.paths import Paths, under

TEXT = "mesh: {name: lab}\nmodels:\n  - name: a\n    source: /nowhere/a.gguf\n"


@pytest.fixture
def paths(tmp_path) -> Paths:
    paths = under(tmp_path)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text(TEXT)
    return paths


def meshd(paths: Paths, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(required=True)
    check.register(verbs)
    config.register(verbs)
    args = parser.parse_args(argv)
    args.paths = paths
    return args.run(args)


def test_check_with_a_warning_is_ok(paths, capsys):
    assert meshd(paths, "check") == 0
    out, err = capsys.readouterr()
    assert out == f"ok: {paths.config} (1 warning)\n"
    assert err.splitlines()[0].startswith(f"{paths.config}:4:13: warning: ")


def test_check_lists_errors(paths, capsys):
    paths.config.write_text("a: 1\nb: 2\n")
    assert meshd(paths, "check") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{paths.config}:1:1: unknown key" in err
    assert f"{paths.config}:2:1: unknown key" in err
    assert err.endswith("not usable: 2 errors\n")


def test_check_json(paths, capsys):
    assert meshd(paths, "check", "--json") == 0
    good = json.loads(capsys.readouterr().out)
    assert good["ok"] is True
    assert good["files"] == [str(paths.config)]
    assert [one["severity"] for one in good["findings"]] == ["warning"]
    paths.config.write_text("node:\n  role: x\n")
    assert meshd(paths, "check", "--json") == 1
    bad = json.loads(capsys.readouterr().out)
    assert bad["ok"] is False
    (found,) = bad["findings"]
    assert (found["file"], found["line"], found["column"]) == (str(paths.config), 2, 9)
    assert found["source_line"] == "  role: x"


def test_check_of_another_file(paths, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text("nod: 1\n")
    assert meshd(paths, "check", str(other)) == 1
    assert f"{other}:1:1: " in capsys.readouterr().err
    other.write_text("node:\n")
    assert meshd(paths, "check", str(other)) == 0
    assert meshd(paths, "check", str(tmp_path / "missing.yaml")) == 1


def test_a_drop_in_is_checked_in_its_place(paths, capsys):
    paths.config_dropins.mkdir()
    dropin = paths.config_dropins / "10-a.yaml"
    dropin.write_text("models: {merge: [{name: a, slots: 2}]}\n")
    assert meshd(paths, "check", str(dropin)) == 0
    assert str(dropin) in capsys.readouterr().out


def test_wrong_usage_exits_with_2(paths, capsys):
    with pytest.raises(SystemExit) as caught:
        meshd(paths, "check", "--jsn")
    assert caught.value.code == 2


def test_show_prints_a_file_that_means_the_same(paths, capsys):
    assert meshd(paths, "config", "show") == 0
    text = capsys.readouterr().out
    again = parse_layers([SourceFile("shown.yaml", text)])
    assert again.config == parse_layers([SourceFile("mesh.yaml", TEXT)]).config


def test_show_prints_bounds_that_every_reader_takes_for_numbers(paths, capsys):
    text = TEXT + "    quality: {max_kl: 0.00001, min_top1: 1}\n    calibration: {law: /l.txt}\n"
    paths.config.write_text(text)
    assert meshd(paths, "config", "show") == 0
    shown = capsys.readouterr().out
    assert "      max_kl: 1.0e-05\n" in shown
    assert "      law: /l.txt\n" in shown
    again = parse_layers([SourceFile("shown.yaml", shown)])
    assert again.config == parse_layers([SourceFile("mesh.yaml", text)]).config


def test_check_warns_of_calibration_texts_that_cannot_be_used(paths, tmp_path, capsys):
    there = tmp_path / "law.txt"
    there.write_text("Whoever\n" * 10_000)
    short = tmp_path / "short.txt"
    short.write_text("Whoever\n")
    lines = [
        "    quality: {min_top1: 0.9}",
        "    calibration:",
        f"      law: {there}",
        "      gone: /nowhere/a.txt",
        f"      folder: {tmp_path}",
        f"      short: {short}",
    ]
    paths.config.write_text(TEXT.replace("/nowhere/a.gguf", str(there)) + "\n".join(lines) + "\n")
    assert meshd(paths, "check") == 0
    err = capsys.readouterr().err
    assert f"{paths.config}:8:13: warning: /nowhere/a.txt: cannot be read: No such file" in err
    assert f"{paths.config}:9:15: warning: {tmp_path}: this is a folder, not a file" in err
    assert f"{paths.config}:10:14: warning: {short}: a text for calibration has from 64 KiB" in err
    assert "law.txt" not in err


def test_show_origin(paths, capsys):
    paths.config_dropins.mkdir()
    dropin = paths.config_dropins / "10-a.yaml"
    dropin.write_text("\nmodels:\n  merge:\n    - name: a\n      slots: 2\n")
    assert meshd(paths, "config", "show", "--origin") == 0
    text = capsys.readouterr().out
    lines = {line.split(":")[0].strip(" -"): line for line in text.splitlines()}
    assert lines["slots"].endswith(f"# {dropin}:5")
    assert lines["source"].endswith(f"# {paths.config}:4")
    assert lines["role"].endswith("# default")
    assert parse_layers([SourceFile("shown.yaml", text)]).config.models[0].slots == 2


def test_show_json(paths, capsys):
    assert meshd(paths, "config", "show", "--json", "--origin") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["mesh"]["name"] == "lab"
    assert shown["config"]["gateway"]["listen"] == ["127.0.0.1:9337"]
    assert shown["origins"]["mesh.name"] == f"{paths.config}:1"
    assert shown["origins"]["gateway.listen[0]"] == "default"


def test_show_refuses_a_bad_configuration(paths):
    paths.config.write_text("a: 1")
    with pytest.raises(ConfigError, match="unknown key"):
        meshd(paths, "config", "show")
