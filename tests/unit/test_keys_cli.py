"""`meshd keys` as somebody types it who has not read the manual."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshd.cli.main import main
from meshd.keys.key import digest, new_key
from meshd.keys.key_folder import read_keys


@dataclass
class Said:
    code: int
    out: str
    err: str


Keys = Callable[..., Said]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys.d"


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    def call(*words: str) -> Said:
        where = ["--config", str(tmp_path / "mesh.yaml"), "--root", str(tmp_path / "root")]
        capsys.readouterr()
        try:
            code = main([*where, "keys", *words])
        except SystemExit as usage:  # of argparse
            code = int(usage.code or 0)
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    return call


def test_a_key_is_made_shown_once_and_taken_back(keys: Keys, folder: Path) -> None:
    assert keys("list").out.startswith("no keys: the gateway serves this machine only")
    made = keys("add", "alice", "--models", "tiny,qwen*", "--rate", "60/min", "--priority", "-2")
    secret = made.out.removesuffix("\n")
    assert made.code == 0
    assert secret.startswith("sk-mesh-")  # alone, for KEY=$(meshd keys add alice)
    assert "this is the first key" in made.err
    (key,) = read_keys(folder, {}).by_digest.values()
    assert (key.digest, key.models, key.priority) == (digest(secret), ("tiny", "qwen*"), -2)
    assert secret not in (folder / "alice.yaml").read_text()

    assert "first key" not in keys("add", "bob", "--expires", "2099-01-31").err
    listed = keys("list")
    assert secret not in listed.out
    assert listed.out.splitlines()[1].split()[:3] == ["alice", "tiny", "qwen*"]
    assert "2099-01-31 " in listed.out.splitlines()[2]
    assert {key["name"] for key in json.loads(keys("list", "--json").out)["keys"]} == {
        "alice",
        "bob",
    }

    assert "requests that run end by themselves" in keys("remove", "alice").out
    assert "that was the last key" in keys("remove", "bob").out
    assert [*folder.iterdir()] == []


def test_models_before_the_name_do_not_swallow_it(keys: Keys, folder: Path) -> None:
    assert keys("add", "--models", "tiny", "--models", "a, b", "carol").code == 0
    (key,) = read_keys(folder, {}).by_digest.values()
    assert (key.name, key.models) == ("carol", ("tiny", "a", "b"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add", "b c"), "cannot be a name"),
        (("add", "sk-mesh-abc"), "cannot be a name"),
        (("add", "x", "--rate", "60"), "--rate '60': write a number and a time, such as 60/min"),
        (("add", "x", "--tokens", "1M"), "--tokens '1M': write a number"),
        (("add", "x", "--priority", "11"), "--priority '11': must be a number from -10 to 10"),
        (("add", "x", "--concurrency", "0"), "--concurrency '0': must be a number from 1"),
        (("add", "x", "--expires", "soon"), "--expires 'soon': write a day such as 2027-01-31"),
        (("add", "x", "--expires", "2020-01-31"), "--expires '2020-01-31': is over already"),
        (("remove", "nobody"), "there is no key 'nobody' (meshd keys list)"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    keys: Keys, folder: Path, words: tuple[str, ...], told: str
) -> None:
    said = keys(*words)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("meshd: ")
    assert said.err.count("\n") == 1
    assert told in said.err
    assert not folder.exists()


def test_a_name_is_given_once(keys: Keys, folder: Path) -> None:
    keys("add", "alice")
    said = keys("add", "alice")
    assert (said.code, said.out) == (1, "")
    assert f"at {folder}/alice.yaml:2" in said.err
    assert "meshd keys remove alice" in said.err


def test_a_broken_file_is_said_with_its_place(keys: Keys, folder: Path) -> None:
    keys("add", "alice")
    (folder / "b.yaml").write_text("keys:\n  - name: bob\n    hash: sk-mesh-oops\n")
    said = keys("list")
    assert said.code == 1
    assert "alice" in said.out
    assert f"{folder}/b.yaml:3:11: this is no hash; is it a key itself?" in said.err
    assert "oops" not in said.err
    assert f"warning: {folder}/b.yaml:3:11" in keys("add", "carol").err


def test_a_key_of_ones_own_is_hashed(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(text: str) -> Said:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return keys("hash")

    secret = new_key()
    assert given(f"{secret}\n").out == f"sha256:{digest(secret).hex()}\n"
    for text, told in (
        ("", "nothing came on standard input"),
        ("hunter2\n", "can be guessed"),
        ("two words\n", "one line of letters"),
    ):
        said = given(text)
        assert (said.code, said.out) == (1, "")
        assert told in said.err
        assert not text or text.strip() not in said.err


@pytest.mark.parametrize("words", [(), ("--help",), ("add", "--help"), ("lst",)])
def test_usage_names_what_there_is(keys: Keys, words: tuple[str, ...]) -> None:
    said = keys(*words)
    assert said.code == (0 if "--help" in words else 2)
    text = said.out + said.err
    assert "usage: meshd keys" in text
    if words == ("lst",):
        assert "'add', 'list', 'remove', 'hash'" in text
