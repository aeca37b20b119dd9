"""The doctor's eyes: parsers of what the system says, and a look at this very machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd import paths
from meshd.cli import doctor as verb
from meshd.config.settings import Config, ModelSettings
from meshd.doctor.evidence import Unit
from meshd.doctor.listeners import parse_address, parse_tcp, parse_unit, read_listeners
from meshd.doctor.run import examine, gather
from meshd.doctor.surroundings import read_disks, read_folders, read_kernel
from meshd.doctor.systemctl import output, parse_units, parse_version
from meshd.doctor.texts import read_texts

SHOWN = """\
Id=meshd.service
LoadState=loaded
ActiveState=activating
SubState=auto-restart
UnitFileState=enabled
Result=watchdog
NRestarts=4

Id=mesh.target
LoadState=loaded
ActiveState=active
SubState=active
UnitFileState=enabled

Id=llama-server.service
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=

"""

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2479 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24511 1
   1: 0100007F:0016 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 24512 1
   2: garbage
"""


def test_units_as_systemctl_shows_them() -> None:
    meshd, target = parse_units(SHOWN)
    expected = Unit(
        "meshd.service", "loaded", "activating", "auto-restart", "enabled", "watchdog", 4
    )
    assert meshd == expected
    assert (target.name, target.restarts) == ("mesh.target", 0)


def test_systemd_versions() -> None:
    assert parse_version("systemd 257 (257.9-1~deb13u1)\n+PAM +AUDIT\n") == 257
    assert parse_version("systemd 262~rc1 (x)") == 262
    assert parse_version("") is None


def test_addresses_of_proc_net_tcp() -> None:
    assert parse_address("0100007F:2479") == ("127.0.0.1", 9337)
    assert parse_address("00000000000000000000000001000000:0C3B") == ("::1", 3131)
    with pytest.raises(ValueError, match="no address"):
        parse_address("0000007F0100007F:0016")


def test_only_listening_sockets_count() -> None:
    assert parse_tcp(TCP) == [("127.0.0.1", 9337, 24511)]


def test_units_of_processes() -> None:
    assert parse_unit("0::/mesh.slice/meshd.service\n") == "meshd.service"
    assert parse_unit("0::/user.slice/user-0.slice/session-1.scope\n") == ""
    assert parse_unit("1:name=systemd:/\n") == ""


def test_a_listener_is_found_with_its_process() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        (listener,) = read_listeners({port})
    assert (listener.address, listener.port) == ("127.0.0.1", port)
    assert os.getpid() in [process.pid for process in listener.processes]
    assert read_listeners({port}) == ()


def test_a_command_that_hangs_is_ended() -> None:
    before = time.monotonic()
    assert asyncio.run(output("sleep", "60", timeout_s=0.1)) == ""
    assert time.monotonic() - before < 10
    assert asyncio.run(output("no-such-command")) == ""


def test_disks_and_folders(tmp_path: Path) -> None:
    node = paths.under(tmp_path)
    node.state.mkdir()
    node.state.chmod(0o750)
    (disk,) = read_disks(node, [str(tmp_path), str(tmp_path / "absent")])
    assert disk.used_for == "state"
    assert 0 < disk.free_bytes <= disk.total_bytes
    state, run = read_folders(node)
    assert state.mode == 0o750
    assert run.mode is None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """pytest's own are closed to all other users."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_texts_that_the_service_may_not_read(open_folder: Path) -> None:
    good, closed, hidden = (open_folder / name for name in ("good", "closed", "in/hidden"))
    hidden.parent.mkdir()
    for file in (good, closed, hidden):
        file.write_text("text")
        file.chmod(0o644)
    closed.chmod(0o600)
    hidden.parent.chmod(0o700)
    gone = open_folder / "gone"
    texts = {"a": good, "b": closed, "c": hidden, "d": gone, "e": open_folder}
    calibration = tuple((kind, str(path)) for kind, path in texts.items())
    config = Config(models=(ModelSettings("m", "m.gguf", calibration=calibration),))
    missing = {str(gone): "No such file or directory", str(open_folder): "this is no file"}
    others = {
        str(closed): f"nobody may not read {closed}",
        str(hidden): f"nobody may not read {hidden.parent}",
    }
    # Whoever is not root asks for itself, and these are its own.
    found = dict(read_texts(config, user="nobody"))
    assert found == (missing | others if os.geteuid() == 0 else missing)
    assert dict(read_texts(config, user="no-such-user")) == missing


def test_kernel_settings(tmp_path: Path) -> None:
    for name, text in {
        "sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "proc/meminfo": "SwapTotal: 8 kB\nSwapFree: 3 kB\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    kernel = read_kernel(tmp_path)
    assert kernel.controllers == {"cpu", "io", "memory", "pids"}
    assert (kernel.overcommit, kernel.swap_total_bytes, kernel.swap_free_bytes) == (2, 8192, 3072)
    assert read_kernel(tmp_path / "absent").controllers is None


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Paths:
    """A node with a configuration whose model is not there, and an engine root without engine."""
    made = paths.under(tmp_path)
    made.config.parent.mkdir(parents=True)
    made.config.write_text(
        f"node:\n  model_dirs: [{tmp_path}]\n"
        "gateway:\n  listen: ['127.0.0.1:1']\nconsole:\n  enabled: false\n"
        "models:\n  - name: tiny\n    source: /nowhere/tiny.gguf\n"
    )
    monkeypatch.setenv("MESHD_ENGINE_ROOT", str(tmp_path / "no-engine"))
    return made


def test_this_machine_can_be_gathered(node: paths.Paths) -> None:
    evidence = gather(node)
    assert evidence.status is None
    assert evidence.observation is not None
    assert evidence.observation.hardware.ram.total_bytes > 0
    ids = {issue.id for issue in examine(evidence)}
    assert "engine.missing" in ids


def test_a_hidden_port_holder_is_named(node: paths.Paths) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        text = node.config.read_text().replace("127.0.0.1:1'", f"127.0.0.1:{port}'")
        node.config.write_text(text)
        issues = {issue.id: issue for issue in examine(gather(node))}
    held = issues[f"port.held:{port}"]
    assert any(f"pid {os.getpid()}:" in line for line in held.evidence)


def doctor(node: paths.Paths, *words: str) -> int:
    parser = argparse.ArgumentParser()
    verb.register(parser.add_subparsers())
    arguments = parser.parse_args(["doctor", *words])
    arguments.paths = node
    return int(arguments.run(arguments))


def test_the_verb_prints_json_and_exits_1(
    node: paths.Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(node, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    engine = next(one for one in document["issues"] if one["id"] == "engine.missing")
    assert engine["severity"] == "error"
    assert engine["mend"] == "meshd engine install"


def test_the_verb_prints_for_people(node: paths.Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(node) == 1
    out = capsys.readouterr().out
    assert "error: there is no llama.cpp that can be run [engine.missing]" in out
    assert "    mend: meshd engine install" in out
