"""From what a node lends to the rpc-server that holds it. Pure: the same in, the same out."""

from __future__ import annotations

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.node.inventory import Hardware
from meshd.paths import Paths
from meshd.planner.layout import RAM
from meshd.planner.lent import Lent
from meshd.units.gpus import gpu_access, gpu_devices
from meshd.units.spec import TERM, EngineKind, EngineSpec

# A tensor is received whole before it goes to its device; and the server itself.
_BESIDES_BYTES = 1024**3


def rpc_spec(lent: Lent, build: EngineBuild, hardware: Hardware, paths: Paths) -> EngineSpec:
    """The rpc-server for one lease, on loopback: other nodes come through its guard.

    Its devices are in the order of the lent parts, which is that of the host's ``RPCn``.

    :raises UserError: the build lacks rpc-server, or a device cannot be used.
    """
    server = build.rpc_server
    if server is None:
        raise UserError("the engine has no rpc-server", hint="meshd engine install")
    gpus = tuple(part.device for part in lent.parts if part.device != RAM)
    names, environment = gpu_devices(gpus, hardware, build)
    name_of = dict(zip(gpus, names, strict=True)) | {RAM: "CPU"}
    ram_bytes = sum(part.size_bytes for part in lent.parts if part.device == RAM)
    return EngineSpec(
        kind=EngineKind.RPC,
        name=lent.name,
        model=lent.model,
        argv=(
            server.path,
            *("--host", "127.0.0.1", "--port", str(lent.rpc_port)),
            "--cache",
            *("--device", ",".join(name_of[part.device] for part in lent.parts)),
            *("--threads", str(max(1, hardware.cpu.physical_cores))),
        ),
        # The tensors that it need not be sent lie in the folder "rpc" below this one.
        environment=tuple(
            sorted((*environment, ("LLAMA_CACHE", str(paths.rpc_cache)), (TERM, str(lent.term))))
        ),
        gpu=gpu_access(gpus, hardware),
        memory_max_bytes=ram_bytes * 5 // 4 + _BESIDES_BYTES,
    )
