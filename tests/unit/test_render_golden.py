"""The exact text of drop-ins. `UPDATE_GOLDEN=1 pytest ...` rewrites the files; read the diff."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from meshd.mesh.record import Part
from meshd.paths import SYSTEM
from meshd.planner.lent import Way
from meshd.units.guard import host_guard_spec, member_guard_spec
from meshd.units.llama import llama_spec
from meshd.units.render import attempt_in, dropin_path, render_dropin
from meshd.units.rpc import rpc_spec
from meshd.units.spec import EngineKind, EngineSpec, GpuAccess
from tests.unit.split_world import HOST, LENT, MEMBER, build, split
from tests.unit.worlds import GIB, facts, hardware

_GOLDEN = Path(__file__).parent / "golden" / "units"

_LLAMA = (
    "/usr/bin/llama-server",
    "--model",
    "/var/lib/mesh/models/tiny-Q8_0.gguf",
    "--alias",
    "tiny",
    "--host",
    "/run/mesh-engine/tiny/llama.sock",
    "--ctx-size",
    "4096",
    "--parallel",
    "2",
    "--n-gpu-layers",
    "0",
    "--fit",
    "off",
    "--metrics",
)
_HELP = (Path(__file__).parent / "help/llama-server-0.7.0.txt").read_text("utf-8")
_BIG = "/data/models/Llama 3.3 70B-Q4_K_M"

SPECS = {
    "cpu": EngineSpec(
        EngineKind.LLAMA,
        "tiny",
        "tiny",
        _LLAMA,
        reads=("/var/lib/mesh/models/tiny-Q8_0.gguf",),
        memory_max_bytes=2_147_483_648,
        load_bytes=20_000_000,
    ),
    "nvidia": EngineSpec(
        EngineKind.LLAMA,
        "llama-70b",
        "llama-3.3-70b",
        (
            "/usr/bin/llama-server",
            "--model",
            f"{_BIG}-00001-of-00002.gguf",
            "--host",
            "/run/mesh-engine/llama-70b/llama.sock",
            "--n-gpu-layers",
            "81",
            "--tensor-split",
            "1,1",
        ),
        environment=(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")),
        reads=(f"{_BIG}-00001-of-00002.gguf", f"{_BIG}-00002-of-00002.gguf"),
        gpu=GpuAccess.NVIDIA,
    ),
    "dri": EngineSpec(
        EngineKind.LLAMA,
        "qwen",
        "qwen3-30b-a3b",
        ("/usr/bin/llama-server", "--model", "/home/ada/qwen.gguf", "--device", "Vulkan0"),
        environment=(("GGML_VK_VISIBLE_DEVICES", "0"),),
        reads=("/home/ada/qwen.gguf",),
        gpu=GpuAccess.DRI,
    ),
    "rpc": EngineSpec(
        EngineKind.RPC,
        "gpu0",
        "",
        (
            "/usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server",
            "--host",
            "127.0.0.1",
            "--port",
            "50052",
            "-c",
        ),
        gpu=GpuAccess.NVIDIA,
    ),
    "lent": rpc_spec(LENT, build(), hardware(), SYSTEM),
    "door": member_guard_spec(LENT, "[::]", build(), SYSTEM),
    "ways": host_guard_spec(
        "big", "big", 3, (Way(MEMBER, "10.0.0.2:9340", 9404),), 20.0, build(), SYSTEM
    ),
    "split": llama_spec(
        split(Part(HOST, "ram", 8, GIB), Part(MEMBER, "ram", 24, 3 * GIB)),
        facts(),
        build(_HELP),
        hardware(),
        SYSTEM,
    ),
    "nasty": EngineSpec(
        EngineKind.LLAMA,
        "nasty.name_1",
        'it\'s 100 %n "$HOME"\nRestart=no',
        (
            "/usr/bin/llama-server",
            "--model",
            "/srv/100% #1: größe 模型.gguf",
            "--alias",
            "a\\b $HOME ${X} %i ; 'q' \"d\"\ttab",
            "--grammar",
            "",
            ";",
            "#no comment\nRestart=no",
            "\udcff\x7f",
        ),
        environment=(("X", "a b%c"),),
        reads=("/srv/100% #1: größe 模型.gguf",),
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_text_is_the_reviewed_one(name: str) -> None:
    text = render_dropin(SPECS[name], SYSTEM)
    golden = _GOLDEN / f"{name}.conf"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SPECS)
def test_no_value_begins_a_setting_of_its_own(name: str) -> None:
    """A newline inside a value must not become a line of the unit."""
    assert "\nRestart=" not in render_dropin(SPECS[name], SYSTEM)


def test_the_number_of_a_try_is_in_the_text_and_read_back() -> None:
    spec = SPECS["cpu"]
    first = render_dropin(spec, SYSTEM)
    assert "MESHD_ATTEMPT" not in first
    assert attempt_in(first) == 0
    third = render_dropin(replace(spec, attempt=3), SYSTEM)
    assert sorted(set(third.splitlines()) - set(first.splitlines())) == [
        "Environment=MESHD_ATTEMPT=3"
    ]
    assert attempt_in(third) == 3
    # Whatever a model is called, it is no number.
    sly = replace(spec, model="x Environment=MESHD_ATTEMPT=9")
    assert attempt_in(render_dropin(sly, SYSTEM)) == 0


def test_load_bytes_are_for_people_only() -> None:
    spec = SPECS["cpu"]
    lighter = EngineSpec(
        spec.kind,
        spec.name,
        spec.model,
        spec.argv,
        spec.environment,
        spec.reads,
        spec.gpu,
        spec.memory_max_bytes,
    )
    assert lighter != spec
    assert render_dropin(lighter, SYSTEM) == render_dropin(spec, SYSTEM)


@pytest.mark.parametrize("path", ["relative.gguf", "/a\nb", "/a'b", '/a"b', "/a\\b", "/a\tb"])
def test_a_path_that_cannot_be_bound_is_refused(path: str) -> None:
    spec = EngineSpec(EngineKind.LLAMA, "x", "x", ("/usr/bin/llama-server",), reads=(path,))
    with pytest.raises(ValueError, match="not a path"):
        render_dropin(spec, SYSTEM)


@pytest.mark.parametrize(
    ("path", "tree"),
    [
        ("/data/models/x.gguf", "/data"),
        ("/root/x.gguf", "/root"),
        ("/home/ada/x.gguf", ""),
        ("/srv/x.gguf", ""),
        ("/var/lib/mesh/models/x.gguf", ""),
        ("/usr/share/meshd/models/x.gguf", ""),
    ],
)
def test_a_tree_with_files_to_read_is_emptied_of_all_others(path: str, tree: str) -> None:
    """The operating system's trees stay, and those that the template empties are not repeated."""
    spec = EngineSpec(EngineKind.LLAMA, "x", "x", ("/usr/bin/llama-server",), reads=(path,))
    lines = render_dropin(spec, SYSTEM).splitlines()
    emptied = [line for line in lines if line.startswith("TemporaryFileSystem=")]
    assert emptied == ([f"TemporaryFileSystem={tree}:ro"] if tree else [])
    assert f"BindReadOnlyPaths={path}" in lines


def test_a_dropin_lies_where_systemd_looks_for_it() -> None:
    path = dropin_path("mesh-llama@tiny.service", Path("/run/systemd/system"))
    assert str(path) == "/run/systemd/system/mesh-llama@tiny.service.d/50-meshd.conf"
