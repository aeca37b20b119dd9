from __future__ import annotations

from pathlib import Path

import pytest

from meshd import paths as folders
from meshd.engine import locate
from meshd.engine.manifest import Manifest, read_manifest, write_manifest
from meshd.errors import UserError


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def engine(root: Path, *, without: tuple[str, ...] = ()) -> Path:
    for name in (*locate.REQUIRED, *locate.OPTIONAL):
        folder = "usr/libexec/x86_64-linux-gnu/llama/bin" if name.startswith("ggml") else "usr/bin"
        if name not in without:
            executable(root / folder / name)
    return root


def test_debians_layout_is_found_whole(tmp_path: Path) -> None:
    place = locate.in_root(engine(tmp_path))
    assert place is not None
    assert place.missing == ()
    rpc = place.binary("ggml-rpc-server")
    assert rpc == tmp_path / "usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    place = locate.in_root(engine(tmp_path, without=("llama-bench", "llama-quantize")))
    assert place is not None
    assert place.missing == ("llama-bench",)


def test_a_folder_without_a_server_is_no_engine(tmp_path: Path) -> None:
    assert locate.in_root(engine(tmp_path, without=("llama-server",))) is None
    assert locate.in_root(tmp_path / "nowhere") is None


def test_a_file_that_cannot_run_is_not_taken(tmp_path: Path) -> None:
    (engine(tmp_path) / "usr/bin/llama-server").chmod(0o644)
    assert locate.in_root(tmp_path) is None


def test_order_of_preference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_SHARED", tmp_path / "no-shared-root")
    explicit, own, path = tmp_path / "explicit", tmp_path / "node", tmp_path / "bin"
    executable(path / "llama-server")
    executable(path / "rpc-server")  # the name in upstream's own builds
    environment = {"PATH": str(path), "XDG_DATA_HOME": str(tmp_path / "none")}
    paths = folders.under(own)

    on_path = locate.locate(paths, environment, system=tmp_path / "no-system")
    assert on_path is not None
    assert (on_path.origin, on_path.binary("llama-server")) == ("system", path / "llama-server")
    assert on_path.binary("ggml-rpc-server") == path / "rpc-server"

    engine(paths.state / "engine")
    in_state = locate.locate(paths, environment)
    assert in_state is not None
    assert in_state.root == paths.state / "engine"

    engine(explicit)
    named = locate.locate(paths, {**environment, "MESHD_ENGINE_ROOT": str(explicit)})
    assert named is not None
    assert named.root == explicit


def test_an_explicit_root_without_an_engine_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    executable(tmp_path / "bin/llama-server")
    environment = {"MESHD_ENGINE_ROOT": str(tmp_path / "empty"), "PATH": str(tmp_path / "bin")}
    with pytest.raises(UserError, match="MESHD_ENGINE_ROOT"):
        locate.locate(folders.under(tmp_path), environment)


def test_nothing_at_all_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="meshd engine install"):
        locate.require(
            folders.under(tmp_path), {"MESHD_ENGINE_ROOT": str(tmp_path / "x"), "PATH": ""}
        )


def test_debians_package_is_told_from_a_build_of_ones_own(tmp_path: Path) -> None:
    engine(tmp_path)
    own = locate.on_system({"PATH": ""}, system=tmp_path)
    assert own is not None
    assert own.origin == "system"
    info = tmp_path / "var/lib/dpkg/info/llama.cpp-tools.list"
    info.parent.mkdir(parents=True)
    info.write_text("/usr/bin/llama-server\n")
    packaged = locate.on_system({"PATH": ""}, system=tmp_path)
    assert packaged is not None
    assert packaged.origin == "debian"


def test_where_an_engine_would_be_installed() -> None:
    assert locate.engine_root({}, uid=0) == Path("/var/lib/mesh/engine")
    assert locate.engine_root({"XDG_DATA_HOME": "/d"}, uid=1000) == Path("/d/meshd/engine")
    assert locate.engine_root({"MESHD_ENGINE_ROOT": "/e"}, uid=0) == Path("/e")


def test_manifest_reads_back_and_rubbish_is_none(tmp_path: Path) -> None:
    manifest = Manifest("/x", "forky", {"libc6": "2.43-7"})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    (tmp_path / "meshd-engine.json").write_text('{"prefix": 3}')
    assert read_manifest(tmp_path) is None
