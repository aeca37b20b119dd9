from __future__ import annotations

import os
import random
import secrets
import stat
from pathlib import Path

import pytest

from meshd.errors import UserError
from meshd.mesh.secret import new_secret, parse_secret, read_secret, strength_bits, write_secret

ALONE: dict[str, str] = {}


def test_a_new_secret_is_one_that_is_taken() -> None:
    made = {new_secret() for _ in range(200)}
    assert len(made) == 200
    for text in made:
        assert parse_secret(f"{text}\n".encode(), "secret") == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        *(secrets.token_hex(16) for _ in range(50)),
        *(secrets.token_urlsafe(24) for _ in range(50)),
        "correct horse battery staple correct".replace(" ", "-"),
        "8436290175839201746583920174658392017465",
    ],
)
def test_what_other_tools_make_is_taken(text: str) -> None:
    assert parse_secret(text.encode(), "secret") == text.encode()


@pytest.mark.parametrize(
    "text",
    ["secret", "changeme", "a" * 100, "passwordpasswordpasswordpassword", "0123456789" * 9,
     "1234-5678-9012-3456", "abcabcabcabcabcabcabcabcabcabcabc"],
)  # fmt: skip
def test_what_can_be_guessed_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"guessed.*meshd mesh secret"):
        parse_secret(text.encode(), "secret")


@pytest.mark.parametrize("data", [b"", b" \n", b"\r\n"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="is empty"):
        parse_secret(data, "secret")


@pytest.mark.parametrize(
    "data", [b"two\nlines" * 9, b"caf\xc3\xa9" * 20, b"\xff\xfe" * 30, b"a b" * 40]
)
def test_what_is_no_line_of_ascii_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="not one line"):
        parse_secret(data, "secret")


def test_the_white_space_around_it_is_none_of_it() -> None:
    text = new_secret().encode()
    assert parse_secret(b"  " + text + b"\r\n", "secret") == parse_secret(text, "secret")


def test_strength_is_what_a_random_text_of_that_look_has() -> None:
    assert strength_bits("0123456789abcdef" * 2) == 0
    assert 127 < strength_bits("4c1f0a9e77d25b38e6b0c9d1a3f24587") < 129
    assert strength_bits(new_secret()) >= 160


def test_no_file_is_no_mesh(tmp_path: Path) -> None:
    assert read_secret(tmp_path / "secret", ALONE) is None
    assert read_secret(tmp_path / "missing/secret", ALONE) is None


@pytest.mark.parametrize(("mode", "taken"), [
    (0o600, True), (0o640, True), (0o400, True), (0o644, False), (0o604, False), (0o641, False),
])  # fmt: skip
def test_the_group_may_read_it_and_nobody_else(tmp_path: Path, mode: int, taken: bool) -> None:
    path = tmp_path / "secret"
    path.write_text(new_secret())
    path.chmod(mode)
    if taken:
        assert read_secret(path, ALONE) == path.read_bytes()
    else:
        with pytest.raises(UserError, match=f"{path}: mode {mode:04o} lets others at it"):
            read_secret(path, ALONE)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        read_secret(tmp_path, ALONE)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UserError, match="is not a file"):
        read_secret(tmp_path / "pipe", ALONE)


def test_a_path_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read"):
        read_secret(tmp_path / "file/secret", ALONE)
    with pytest.raises(UserError, match="cannot be read"):
        read_secret(Path("a\0b"), ALONE)


def test_a_systemd_credential_wins(tmp_path: Path) -> None:
    path, folder = tmp_path / "secret", tmp_path / "credentials"
    folder.mkdir()
    write_secret(path, new_secret(), group=None)
    environment = {"CREDENTIALS_DIRECTORY": str(folder)}
    assert read_secret(path, environment) == path.read_bytes().strip()
    passed = new_secret()
    (folder / "mesh.secret").write_text(passed)
    (folder / "mesh.secret").chmod(0o440)
    assert read_secret(path, environment) == passed.encode()


@pytest.mark.parametrize(("group", "mode"), [(None, 0o600), (os.getgid(), 0o640)])
def test_writing_never_overwrites(tmp_path: Path, group: int | None, mode: int) -> None:
    path = tmp_path / "secret"
    write_secret(path, "first", group=group)
    with pytest.raises(UserError, match="left as it is"):
        write_secret(path, "second", group=group)
    assert path.read_text() == "first\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_secret(tmp_path / "none/secret", new_secret(), group=None)


def test_a_thousand_random_secrets_are_refused_or_taken() -> None:
    chance = random.Random(5)
    taken = 0
    for _ in range(1000):
        alphabet = bytes(range(chance.choice((32, 0)), chance.choice((127, 256))))
        data = bytes(chance.choices(alphabet, k=chance.randrange(80)))
        try:
            line = parse_secret(data, "secret")
        except UserError:
            continue
        taken += 1
        assert line == data.strip()
        assert len(line) >= 20
    assert 10 < taken < 900
