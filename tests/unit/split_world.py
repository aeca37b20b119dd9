"""Small splits for tests of the pure core: a host without a GPU or with one, and its members."""

from __future__ import annotations

from meshd.engine.build import Binary, EngineBuild
from meshd.mesh.record import Part
from meshd.planner.lent import Lent
from meshd.planner.plan import Decision, DeviceUse, Layout, Link, Strategy
from tests.unit.worlds import GIB

HOST = "aaaaaaaaaaaaaaaa"
MEMBER = "bbbbbbbbbbbbbbbb"
OTHER = "cccccccccccccccc"
RPC_SERVER = "/usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server"

LENT = Lent(
    name="big.aaaaaaaa",
    model="big",
    fingerprint="f",
    host=HOST,
    term=3,
    parts=(Part(MEMBER, "ram", 12, 4 * GIB),),
    first_layer=8,
    door_port=9340,
    rpc_port=9372,
)


def build(help_text: str = "", rpc: tuple[int, int, int] | None = (8, 0, 0)) -> EngineBuild:
    return EngineBuild(
        origin="system",
        root="/",
        build=11669,
        version="0.7.0",
        package="",
        ggml="",
        rpc_protocol=rpc,
        binaries=(
            Binary("llama-server", "/usr/bin/llama-server", "0" * 64),
            Binary("ggml-rpc-server", RPC_SERVER, "0" * 64),
        ),
        backends=("CPU", "CUDA", "RPC"),
        help_text=help_text,
    )


def split(*parts: Part, layout: Layout | None = None, linked: bool = True) -> Decision:
    """A pipeline on `HOST` with these parts."""
    nodes = dict.fromkeys(part.node for part in parts if part.node != HOST)
    links = [Link(node, "10.0.0.2", 9404 + place) for place, node in enumerate(nodes)]
    return Decision(
        model="big",
        strategy=Strategy.PIPELINE,
        node=HOST,
        context=8192,
        slots=2,
        layout=layout or Layout(),
        memory=(DeviceUse("ram", 4 * GIB, GIB, GIB // 4),),
        parts=parts,
        term=3,
        links=tuple(links) if linked else (),
    )
