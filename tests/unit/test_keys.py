from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.keys.edit import add_file, entry_text, without
from meshd.keys.key import ApiKey, digest, named_well, new_key
from meshd.keys.key_file import parse_expiry, parse_keys
from meshd.keys.key_folder import KeyFolder, KeyPlaces
from meshd.keys.key_ring import ring
from meshd.keys.quota import Quota, parse_quota

HASH = "a" * 64
OTHER = "b" * 64


def one(text: str) -> str:
    """The only error of a file with one key."""
    said = parse_keys("f.yaml", f"keys:\n  - {{name: a, hash: {HASH}, {text}}}\n".encode())
    (error,) = said.errors
    assert said.keys == ()
    return error


def test_a_file_says_what_its_keys_may() -> None:
    said = parse_keys(
        "f.yaml",
        f"""# who has what
keys:
  - name: alice
    hash: sha256:{HASH}
    models: [tiny, "qwen*"]
    rate: 60/min
    concurrency: 4
    tokens: 1M/day
    priority: -3
    expires: 2027-01-31
  - name: bob
    hash: {OTHER.upper()}
    models: big
""".encode(),
    )
    assert not said.errors
    alice, bob = said.keys
    assert (alice.name, alice.digest, alice.place) == ("alice", bytes.fromhex(HASH), "f.yaml:3")
    assert alice.rate == Quota(60, 60.0)
    assert alice.tokens == Quota(1_000_000, 86400.0)
    assert (alice.concurrency, alice.priority) == (4, -3)
    assert alice.expires_s == 1801440000.0
    assert [alice.allows(model) for model in ("tiny", "qwen3-8b", "tiny2")] == [True, True, False]
    assert bob == ApiKey("bob", bytes.fromhex(OTHER), ("big",), place="f.yaml:11")


@pytest.mark.parametrize("text", ["", "keys:\n", "keys: []\n", "# nothing\n", "keys: null\n"])
def test_a_file_may_hold_no_keys(text: str) -> None:
    said = parse_keys("f.yaml", text.encode())
    assert (said.keys, said.errors) == ((), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tokns: 1M/day", "`tokns` is not known here; did you mean `tokens`?"),
        ("rate: 60", "rate: write a number and a time, such as 60/min"),
        ("rate: 0/min", "rate: write a number"),
        ("tokens: [1]", "tokens: write a number"),
        ("concurrency: 0", "concurrency must be a number from 1"),
        ('concurrency: "4"', "concurrency must be a number"),
        ("priority: 11", "priority must be a number from -10 to 10"),
        ("expires: tomorrow", "expires: write a day such as 2027-01-31"),
        ("expires: 2027-01-31T12:00:00", "with its Z"),
        ("models: []", "models must have 1 to"),
        ("models: [{}]", "the name of a model"),
        ("name: b", "is set a second time"),
    ],
)
def test_an_error_says_where_and_what(text: str, words: str) -> None:
    error = one(text)
    assert error.startswith("f.yaml:2:")
    assert words in error


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[]", "f.yaml:1:1: the file must begin with `keys:`"),
        ("key: []", "f.yaml:1:1: `key` is not known here"),
        ("keys: a", "f.yaml:1:7: `keys:` must be a list"),
        ("keys:\n  - name: a\n", "f.yaml:2:5: this key has no hash"),
        (f"keys:\n  - hash: {HASH}\n", "f.yaml:2:5: this key has no name"),
        (f"keys:\n  - name: '../a'\n    hash: {HASH}\n", "f.yaml:2:11: a name has"),
        ("keys: [\n", "f.yaml:2:1: "),
        ("keys: &a []\n", "f.yaml:1:7: anchors and aliases"),
        ("keys: !!python/none []\n", "f.yaml:1:7: tags"),
        ("---\n---\n", "f.yaml:2:1: a second YAML document"),
        ("[[[[[[[[]]]]]]]]", "nested more than"),
        ("keys:\n  - 1\n", "f.yaml:2:5: a key is written as"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, place: str) -> None:
    said = parse_keys("f.yaml", text.encode())
    assert said.keys == ()
    assert place in said.errors[0]


def test_what_is_no_text_is_refused() -> None:
    assert "not UTF-8" in parse_keys("f.yaml", b"keys: \xff\n").errors[0]
    assert "larger than" in parse_keys("f.yaml", b" " * 300_000).errors[0]


@pytest.mark.parametrize("field", ["hash", "name", "rate", "sk-mesh-abc", "models"])
def test_no_message_shows_a_key_that_was_written_down(field: str) -> None:
    secret = new_key()
    lines = {"name": "a", "hash": HASH, field: secret}
    text = "keys:\n  - " + "\n    ".join(f"{name}: {value}" for name, value in lines.items())
    said = parse_keys("f.yaml", text.encode())
    if field != "models":  # which may have any name
        assert said.errors
    assert secret not in str(said.errors)
    if field == "hash":
        assert "is it a key itself?" in said.errors[0]


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    said = parse_keys("f.yaml", data)
    assert all(error.startswith("f.yaml") and "\n" not in error for error in said.errors)


@given(st.integers(1, 10**9), st.sampled_from([1.0, 60.0, 3600.0, 86400.0]))
def test_quotas_are_read_back_as_they_are_written(limit: int, period_s: float) -> None:
    assert parse_quota(str(Quota(limit, period_s))) == Quota(limit, period_s)


def test_a_day_lasts_until_its_end() -> None:
    assert parse_expiry("2027-01-31") == parse_expiry("2027-02-01T00:00:00Z")
    assert parse_expiry("2027-02-01T01:00:00+01:00") == parse_expiry("2027-02-01T00:00:00Z")


def test_keys_are_found_by_what_is_sent_and_are_not_kept() -> None:
    secret = new_key()
    key = ApiKey("a", digest(secret))
    assert digest(secret) == hashlib.sha256(secret.encode()).digest()
    keys = ring([key])
    assert keys.find(secret) is key
    assert keys.find(secret + "x") is None
    assert keys.find("") is None
    assert keys.find("\udcff") is None  # as aiohttp hands on bytes that are no UTF-8
    assert secret not in repr(keys)
    assert key.digest.hex() not in repr(keys)


def test_new_keys_have_256_bits_and_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-mesh-") and len(key) == len("sk-mesh-") + 43 for key in keys)


def test_of_two_keys_with_one_name_or_hash_the_first_counts() -> None:
    first = ApiKey("a", b"1", place="a.yaml:2")
    keys = ring([first, ApiKey("a", b"2", place="b.yaml:2"), ApiKey("b", b"1", place="b.yaml:4")])
    assert [*keys.by_digest.values()] == [first]
    assert keys.errors == (
        "b.yaml:2: the key 'a' is there already, at a.yaml:2",
        "b.yaml:4: 'b' has the same key as 'a'",
    )


def write(path: Path, *names: str, mode: int = 0o640) -> None:
    entries = "".join(
        f"  - name: {name}\n    hash: {hashlib.sha256(name.encode()).hexdigest()}\n"
        for name in names
    )
    path.write_text(f"keys:\n{entries}")
    path.chmod(mode)


def test_a_file_that_breaks_takes_no_key_away(tmp_path: Path) -> None:
    folder = KeyFolder(KeyPlaces(tmp_path))
    write(tmp_path / "a.yaml", "alice", "ann")
    write(tmp_path / "b.yaml", "bob")
    write(tmp_path / "c.yml", "not read")
    assert sorted(folder.read().names) == ["alice", "ann", "bob"]
    (tmp_path / "a.yaml").write_text("keys: [")
    broken = folder.read()
    assert sorted(broken.names) == ["alice", "ann", "bob"]
    assert "its keys from before still count" in broken.errors[0]
    write(tmp_path / "a.yaml", "ann")
    mended = folder.read()
    assert sorted(mended.names) == ["ann", "bob"]
    assert mended.errors == ()
    (tmp_path / "b.yaml").unlink()
    assert folder.read().names == ["ann"]


def test_a_file_broken_from_the_start_gives_what_is_in_order(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "alice")
    with (tmp_path / "a.yaml").open("a") as file:
        file.write("  - name: bob\n")
    keys = KeyFolder(KeyPlaces(tmp_path)).read()
    assert keys.names == ["alice"]
    assert len(keys.errors) == 1
    assert keys.configured


def test_a_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "alice", mode=0o666)
    keys = KeyFolder(KeyPlaces(tmp_path)).read()
    assert keys.names == []
    assert "chmod go-w" in keys.errors[0]
    assert keys.configured


def test_no_folder_is_no_keys_and_odd_files_are_said(tmp_path: Path) -> None:
    assert not KeyFolder(KeyPlaces(tmp_path / "none")).read().configured
    (tmp_path / "x.yaml").mkdir()
    (tmp_path / "y.yaml").symlink_to("nowhere")
    errors = KeyFolder(KeyPlaces(tmp_path)).read().errors
    assert "is not a file" in errors[0] or "cannot be read" in errors[0]
    assert "leads nowhere" in errors[1]


def test_credentials_count_too(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    write(credentials / "mesh.keys", "alice")
    write(credentials / "mesh.keys.more", "bob")
    write(credentials / "mesh.secret", "no")
    keys = KeyFolder(KeyPlaces(tmp_path / "none", credentials)).read()
    assert sorted(keys.names) == ["alice", "bob"]


def test_the_signature_changes_with_every_file(tmp_path: Path) -> None:
    where = KeyPlaces(tmp_path)
    seen = [where.signature()]
    write(tmp_path / "a.yaml", "alice")
    seen.append(where.signature())
    write(tmp_path / "a.yaml", "alice", "bob")
    seen.append(where.signature())
    (tmp_path / "a.yaml").chmod(0o600)
    seen.append(where.signature())
    assert len(set(seen)) == 4


def test_a_new_key_has_a_file_of_its_own_and_overwrites_none(tmp_path: Path) -> None:
    key = ApiKey("al.ice", digest(new_key()), rate=Quota(60, 60.0), concurrency=2, priority=-1)
    text = entry_text(key, models=("a", 'q"*'), expires="2027-01-31")
    path = add_file(tmp_path / "keys.d", key, text, group=None)
    assert path.stat().st_mode & 0o777 == 0o640
    (read,) = KeyFolder(KeyPlaces(tmp_path / "keys.d")).read().by_digest.values()
    assert (read.name, read.digest, read.models) == (key.name, key.digest, ("a", 'q"*'))
    assert (read.rate, read.concurrency, read.priority) == (key.rate, 2, -1)
    with pytest.raises(UserError, match="exists already"):
        add_file(tmp_path / "keys.d", key, text, group=None)


def test_a_key_is_removed_and_all_else_stays_as_it_was() -> None:
    text = f"""# ours
keys:
  # the first
  - name: a
    hash: {HASH}  # of a
    models:
      - one
      - two
  # the second

  - name: b
    hash: {OTHER}
# end
"""
    rest = without("f.yaml", text.encode(), "a")
    assert rest is not None
    assert rest.decode() == (
        f"# ours\nkeys:\n  # the first\n  # the second\n\n  - name: b\n    hash: {OTHER}\n# end\n"
    )
    assert without("f.yaml", rest, "b") is None
    last = without("f.yaml", text.encode(), "b")
    assert last is not None
    assert last.decode().endswith("      - two\n  # the second\n\n# end\n")


def test_what_has_no_lines_of_its_own_is_left_to_people() -> None:
    text = f"keys: [{{name: a, hash: {HASH}}}, {{name: b, hash: {OTHER}}}]\n".encode()
    with pytest.raises(UserError, match="with an editor"):
        without("f.yaml", text, "a")
    with pytest.raises(UserError, match="has no key 'c'"):
        without("f.yaml", text.replace(b", {", b",\n {"), "c")
    with pytest.raises(UserError, match="mend that first"):
        without("f.yaml", b"keys: [", "c")


@pytest.mark.parametrize(
    ("name", "good"),
    [("alice", True), ("a@b.org", True), ("-a", False), ("a/b", False), ("", False), ("ä", False)],
)
def test_names_are_fit_for_files(name: str, good: bool) -> None:
    assert named_well(name) is good
