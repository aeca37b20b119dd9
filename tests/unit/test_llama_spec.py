"""Golden command lines: what the planner decided, in three builds' own words."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config.settings import Limit
from meshd.engine.build import Binary, EngineBuild
from meshd.errors import UserError
from meshd.instance import instance_name
from meshd.mesh.record import Part
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Hardware
from meshd.paths import SYSTEM
from meshd.planner.plan import Decision, DeviceUse, Layout, Strategy
from meshd.units.llama import llama_spec
from meshd.units.spec import EngineSpec, GpuAccess
from tests.unit.split_world import HOST, MEMBER, OTHER, split
from tests.unit.worlds import GIB, facts, gpu, hardware

HERE = Path(__file__).parent
HELPS = ("0.7.0", "0.5.0", "4227c9be")

SERVED = Decision(
    model="coder",
    strategy=Strategy.SOLO_CPU,
    node="box",
    context=8192,
    slots=4,
    memory=(DeviceUse("ram", 4 * GIB, GIB, GIB // 4),),
)
ONE_GPU = replace(SERVED, strategy=Strategy.SOLO_GPU, layout=Layout(("GPU-1",), (33,)))
TWO_GPUS = replace(SERVED, layout=Layout(("GPU-1", "GPU-2"), (20, 13)))
EXPERTS = replace(SERVED, layout=Layout(("GPU-1",), (33,), cpu_moe_layers=7))
PARTLY = replace(SERVED, layout=Layout(("GPU-1",), (12,)))

CASES: dict[str, tuple[Decision, GgufFacts, Hardware]] = {
    "cpu": (SERVED, facts(), hardware()),
    "one-gpu": (ONE_GPU, facts(), hardware(gpu())),
    "two-gpus": (TWO_GPUS, facts(), hardware(gpu("GPU-1"), gpu("GPU-2"))),
    "experts-in-ram": (EXPERTS, facts(expert_share=0.8), hardware(gpu())),
    "layers-in-ram": (PARTLY, facts(), hardware(gpu())),
    "split": (
        split(Part(HOST, "ram", 8, GIB), Part(MEMBER, "ram", 14, GIB), Part(OTHER, "ram", 10, GIB)),
        facts(),
        hardware(),
    ),
    "split-on-gpus": (
        split(
            Part(MEMBER, "GPU-9", 20, GIB),
            Part(HOST, "GPU-1", 12, GIB),
            layout=Layout(("GPU-1",), (13,)),
        ),
        facts(),
        hardware(gpu()),
    ),
    "embeddings": (SERVED, replace(facts(), pooling="mean"), hardware()),
}


def build(help_name: str) -> EngineBuild:
    return EngineBuild(
        origin="system",
        root="/",
        build=1,
        version=help_name,
        package="",
        ggml="",
        rpc_protocol=None,
        binaries=(Binary("llama-server", "/usr/bin/llama-server", "0" * 64),),
        backends=("CPU", "CUDA", "RPC"),
        help_text=(HERE / f"help/llama-server-{help_name}.txt").read_text("utf-8"),
    )


def text(spec: EngineSpec) -> str:
    """One flag a line, as a person would diff it."""
    environment = "".join(f"{name}={value}\n" for name, value in spec.environment)
    return environment + " ".join(spec.argv).replace(" --", "\n--") + "\n"


# Built without RPC.
ALONE = "4227c9be"
SPLITS = ("split", "split-on-gpus")


@pytest.mark.parametrize(
    ("case", "help_name"),
    [
        (case, help_name)
        for case in CASES
        for help_name in HELPS
        if help_name != ALONE or case not in SPLITS
    ],
)
def test_golden(case: str, help_name: str) -> None:
    decision, model, machine = CASES[case]
    rendered = text(llama_spec(decision, model, build(help_name), machine, SYSTEM))
    golden = HERE / f"golden/argv/{case}-{help_name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(rendered, "utf-8")
    assert rendered == golden.read_text("utf-8")


@pytest.mark.parametrize("case", SPLITS)
def test_a_build_without_rpc_hosts_no_split(case: str) -> None:
    decision, model, machine = CASES[case]
    with pytest.raises(UserError, match="rpc="):
        llama_spec(decision, model, build(ALONE), machine, SYSTEM)


def test_a_flag_that_must_be_said_and_cannot_is_an_error() -> None:
    older = build("0.7.0")
    lines = older.help_text.replace("--n-cpu-moe", "--n-gone-moe")
    with pytest.raises(UserError, match="cpu-moe"):
        llama_spec(
            EXPERTS,
            facts(expert_share=0.8),
            replace(older, help_text=lines),
            hardware(gpu()),
            SYSTEM,
        )


def test_what_may_be_left_out_is_left_out() -> None:
    older = build("0.7.0")
    lines = older.help_text.replace("--metrics", "--no-such-thing")
    spec = llama_spec(SERVED, facts(), replace(older, help_text=lines), hardware(), SYSTEM)
    assert "--metrics" not in spec.argv


def test_an_engine_without_a_server_is_an_error() -> None:
    with pytest.raises(UserError, match="llama-server"):
        llama_spec(SERVED, facts(), replace(build("0.7.0"), binaries=()), hardware(), SYSTEM)


def test_a_gpu_engine_gets_its_device_nodes_and_a_processor_engine_none() -> None:
    on_gpu = llama_spec(ONE_GPU, facts(), build("0.7.0"), hardware(gpu()), SYSTEM)
    on_cpu = llama_spec(SERVED, facts(), build("0.7.0"), hardware(gpu()), SYSTEM)
    assert (on_gpu.gpu, on_cpu.gpu) == (GpuAccess.NVIDIA, GpuAccess.NONE)


def test_free_memory_is_no_part_of_the_text() -> None:
    roomy, tight = (
        llama_spec(ONE_GPU, facts(), build("0.7.0"), hardware(gpu(free_gib=free)), SYSTEM)
        for free in (23.0, 1.0)
    )
    assert roomy == tight


@given(st.text(min_size=1, max_size=80))
def test_every_name_becomes_an_instance_that_systemd_can_bear(model: str) -> None:
    name = instance_name(model)
    assert instance_name(name) == name
    assert len(name) <= 40
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    assert name[0].isalnum()


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_two_models_never_share_an_instance(one: str, other: str) -> None:
    assert one == other or instance_name(one) != instance_name(other)


def test_a_limit_of_system_memory_is_the_engines_own_too() -> None:
    free, bound = (
        llama_spec(SERVED, facts(), build("0.7.0"), hardware(), SYSTEM, limit)
        for limit in (None, Limit(ram_bytes=6 * GIB))
    )
    assert free.memory_max_bytes is not None
    assert free.memory_max_bytes > 6 * GIB
    # The program itself is none of the models.
    assert bound.memory_max_bytes == 6 * GIB + GIB // 8
    cache = bound.argv[bound.argv.index("--cache-ram") + 1]
    assert int(cache) == 6 * GIB // 20 // 1024**2
