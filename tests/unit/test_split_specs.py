"""What a split is told: llama-server's devices, rpc-server's, and the two ends of the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshd.errors import UserError
from meshd.mesh.record import Part
from meshd.paths import SYSTEM
from meshd.planner.lent import Way
from meshd.planner.plan import Decision, Layout
from meshd.units.guard import host_guard_spec, member_guard_spec
from meshd.units.llama import llama_spec
from meshd.units.render import render_dropin
from meshd.units.rpc import rpc_spec
from meshd.units.spec import EngineKind, EngineSpec, GpuAccess
from meshd.units.split_layout import split_layout
from tests.unit.split_world import HOST, LENT, MEMBER, OTHER, RPC_SERVER, build, split
from tests.unit.worlds import GIB, facts, gpu, hardware

HELP = (Path(__file__).parent / "help/llama-server-0.7.0.txt").read_text("utf-8")


def part(node: str, device: str, layers: int) -> Part:
    return Part(node, device, layers, layers * GIB)


CPU_HOST = split(part(HOST, "ram", 8), part(MEMBER, "ram", 24))


def llama(decision: Decision, *names: str) -> EngineSpec:
    return llama_spec(
        decision, facts(), build(HELP), hardware(*(gpu(name) for name in names)), SYSTEM
    )


def value(spec: EngineSpec, flag: str) -> str:
    return spec.argv[spec.argv.index(flag) + 1]


def test_a_host_without_a_gpu_keeps_the_output_layer_by_an_override() -> None:
    spec = llama(CPU_HOST)
    assert value(spec, "--rpc") == "127.0.0.1:9404"
    assert value(spec, "--device") == "RPC0"
    # The output layer is counted with the last device, and then taken from it again.
    assert (value(spec, "--n-gpu-layers"), value(spec, "--tensor-split")) == ("25", "25")
    assert value(spec, "--override-tensor") == "^(output|token_embd)=CPU"
    assert value(spec, "--fit") == "off"
    assert value(spec, "--load-mode") == "mmap"
    assert {"--kv-offload", "--no-op-offload"} <= {*spec.argv}


def test_the_hosts_own_gpus_come_last_and_have_the_output_layer() -> None:
    decision = split(
        part(HOST, "ram", 2),
        part(MEMBER, "GPU-9", 10),
        part(OTHER, "ram", 8),
        part(HOST, "GPU-1", 5),
        part(HOST, "GPU-2", 7),
        layout=Layout(("GPU-1", "GPU-2"), (5, 8)),
    )
    spec = llama(decision, "GPU-1", "GPU-2")
    assert value(spec, "--rpc") == "127.0.0.1:9404,127.0.0.1:9405"
    assert value(spec, "--device") == "RPC0,RPC1,CUDA0,CUDA1"
    assert value(spec, "--tensor-split") == "10,8,5,8"
    assert value(spec, "--n-gpu-layers") == "31"
    assert "--override-tensor" not in spec.argv
    assert spec.environment == (("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2"), ("MESHD_TERM", "3"))
    assert spec.gpu is GpuAccess.NVIDIA


def test_an_engine_without_the_backend_hosts_no_split() -> None:
    without = replace(build(HELP), backends=("CPU",))
    with pytest.raises(UserError, match="RPC") as caught:
        llama_spec(CPU_HOST, facts(), without, hardware(), SYSTEM)
    assert "libggml0-backend-rpc" in caught.value.hint


def test_a_gpu_may_have_the_output_layer_alone() -> None:
    decision = split(part(MEMBER, "ram", 32), layout=Layout(("GPU-1",), (1,)))
    spec = llama(decision, "GPU-1")
    assert (value(spec, "--device"), value(spec, "--tensor-split")) == ("RPC0,CUDA0", "32,1")


def test_devices_are_numbered_over_all_endpoints_in_the_order_of_their_nodes() -> None:
    """Each rpc-server has its node's devices in the order of its parts, wherever others stand."""
    decision = split(
        part(MEMBER, "GPU-1", 10),
        part(OTHER, "ram", 12),
        part(MEMBER, "ram", 10),
    )
    assert split_layout(decision, ()).devices == ("RPC0", "RPC2", "RPC1")
    assert split_layout(decision, ()).layers == (10, 12, 11)


def test_another_term_is_another_text_at_both_ends() -> None:
    later = replace(CPU_HOST, term=4)
    assert render_dropin(llama(CPU_HOST), SYSTEM) != render_dropin(llama(later), SYSTEM)
    machine = hardware()
    lent = (
        render_dropin(rpc_spec(replace(LENT, term=term), build(), machine, SYSTEM), SYSTEM)
        for term in (3, 4)
    )
    assert next(lent) != next(lent)


def test_only_a_split_has_a_network() -> None:
    text = render_dropin(llama(CPU_HOST), SYSTEM)
    assert {"PrivateNetwork=no", "IPAddressAllow=localhost"} <= {*text.splitlines()}
    rest = tuple(word for word in llama(CPU_HOST).argv if word != "--rpc")
    assert "PrivateNetwork" not in render_dropin(replace(llama(CPU_HOST), argv=rest), SYSTEM)


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        (split(part(MEMBER, "ram", 24), part(HOST, "ram", 8)), "order"),
        (split(part(HOST, "GPU-1", 8), part(MEMBER, "ram", 24)), "order"),
        (split(part(MEMBER, "ram", 20), part(MEMBER, "ram", 12)), "two parts"),
        (split(part(HOST, "ram", 0), part(MEMBER, "ram", 32)), "without layers"),
        (split(part(MEMBER, "ram", 32), linked=False), "0 ways to 1 members"),
        (split(part(HOST, "ram", 32)), "0 members"),
        (split(part(MEMBER, "ram", 24), part(HOST, "GPU-1", 8)), "layout"),
        (
            split(
                part(MEMBER, "ram", 24),
                part(HOST, "GPU-1", 8),
                layout=Layout(("GPU-1",), (8,)),
            ),
            "layout",
        ),
    ],
)
def test_what_the_engine_cannot_be_told_is_an_error(decision: Decision, why: str) -> None:
    with pytest.raises(UserError, match=why):
        llama(decision, "GPU-1")


# -- what is lent -----------------------------------------------------------------------------


def test_an_rpc_server_offers_its_parts_devices_in_their_order() -> None:
    lent = replace(LENT, parts=(part(MEMBER, "GPU-2", 4), part(MEMBER, "ram", 2)))
    spec = rpc_spec(lent, build(), hardware(gpu("GPU-1"), gpu("GPU-2")), SYSTEM)
    assert spec.argv == (
        RPC_SERVER,
        *("--host", "127.0.0.1", "--port", "9372", "--cache"),
        *("--device", "CUDA0,CPU", "--threads", "8"),
    )
    assert spec.environment == (
        ("CUDA_VISIBLE_DEVICES", "GPU-2"),
        ("LLAMA_CACHE", "/var/lib/mesh/rpc-cache"),
        ("MESHD_TERM", "3"),
    )
    assert spec.gpu is GpuAccess.NVIDIA
    assert spec.memory_max_bytes == 2 * GIB * 5 // 4 + GIB
    assert spec.unit == "mesh-rpc@big.aaaaaaaa.service"


def test_a_build_without_rpc_server_lends_nothing() -> None:
    with pytest.raises(UserError, match="no rpc-server"):
        rpc_spec(LENT, replace(build(), binaries=()), hardware(), SYSTEM)


def test_a_gpu_that_is_not_there_is_not_lent() -> None:
    lent = replace(LENT, parts=(part(MEMBER, "GPU-7", 4),))
    with pytest.raises(UserError, match="GPU-7"):
        rpc_spec(lent, build(), hardware(gpu("GPU-1")), SYSTEM)


# -- the way between -------------------------------------------------------------------------


def test_the_members_end() -> None:
    spec = member_guard_spec(LENT, "[::]", build(), SYSTEM)
    assert (spec.kind, spec.unit) == (EngineKind.GUARD, "mesh-guard@big.aaaaaaaa.service")
    assert " ".join(spec.argv) == (
        "/usr/bin/meshd guard big.aaaaaaaa member --listen [::]:9340 --front 127.0.0.1:9372"
        f" --admit {HOST} --term 3 --protocol 8.0.0 --tls /run/mesh/tls"
        " --status /run/mesh-guard/big.aaaaaaaa/guard.sock"
    )


def test_the_hosts_end() -> None:
    ways = (Way(MEMBER, "10.0.0.2:9340", 9404), Way(OTHER, "[fd00::3]:9341", 9405))
    spec = host_guard_spec("big", "big", 3, ways, 20.0, build(), SYSTEM)
    assert " ".join(spec.argv) == (
        f"/usr/bin/meshd guard big host --local 127.0.0.1:9404={MEMBER}@10.0.0.2:9340"
        f" --local 127.0.0.1:9405={OTHER}@[fd00::3]:9341 --term 3 --protocol 8.0.0"
        " --ubatch-s 20.0 --tls /run/mesh/tls --status /run/mesh-guard/big/guard.sock"
    )


def test_no_guard_without_knowing_what_the_engine_speaks() -> None:
    with pytest.raises(UserError, match="version of RPC"):
        member_guard_spec(LENT, "[::]", build(rpc=None), SYSTEM)
