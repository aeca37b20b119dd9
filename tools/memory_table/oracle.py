"""What the engine itself says that a model takes, per device."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.locate import RPC_SERVER, SERVER, Place
from meshd.planner.kv import ContextSettings

MIB = 1 << 20
_START_S = 20.0
_RUN_S = 120.0


@dataclass(frozen=True, slots=True)
class Reported:
    """:ivar device: ``Host`` or the engine's device name, in its order, the host last."""

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


class OracleError(Exception):
    """The engine did not answer."""


def flags(settings: ContextSettings) -> tuple[str, ...]:
    """The settings as the engine spells them; weights are not repacked, so that all are counted."""
    return (
        "--no-repack",
        *("--ctx-size", str(settings.context)),
        *("--parallel", str(settings.slots)),
        *("--batch-size", str(settings.batch), "--ubatch-size", str(settings.ubatch)),
        *("--cache-type-k", settings.key_type, "--cache-type-v", settings.value_type),
        *("--flash-attn", "on" if settings.flash_attention else "off"),
        *(("--swa-full",) if settings.swa_full else ()),
        *(() if settings.op_offload else ("--no-op-offload",)),
    )


def fit_params(
    engine: Place, model: Path, settings: ContextSettings, placement: Sequence[str]
) -> tuple[Reported, ...]:
    """Ask llama-fit-params, which builds the graphs but loads and allocates nothing.

    It reckons with the logits of a whole batch: `settings.outputs` should be the batch.

    :raises OracleError: with the last line that the engine said.
    """
    program = engine.binary("llama-fit-params")
    if program is None:
        raise OracleError("this engine has no llama-fit-params")
    done = subprocess.run(
        [str(program), "--model", str(model), "--fit-print", "on", *flags(settings), *placement],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_RUN_S,
        check=False,
    )
    rows = re.findall(r"^(\S+) (\d+) (\d+) (\d+) *$", done.stdout, re.MULTILINE)
    if done.returncode or not rows:
        raise OracleError(_cause(done.stderr))
    return tuple(
        Reported(device, *(int(number) * MIB for number in numbers)) for device, *numbers in rows
    )


def loaded(engine: Place, model: Path, settings: ContextSettings) -> Reported:
    """Let llama-server really load a model into RAM, and read its log.

    :raises OracleError: it ended, or took too long.
    """
    program = engine.binary(SERVER)
    if program is None:
        raise OracleError(f"this engine has no {SERVER}")
    command = [str(program), "--model", str(model), "--no-warmup", "--fit", "off"]
    command += ["--device", "none", "--cache-ram", "0", "--host", "127.0.0.1"]
    command += ["--port", str(_free_port()), "--log-verbosity", "4", *flags(settings)]
    if settings.unified:
        command.append("--kv-unified")
    sums = {"model": 0.0, "KV": 0.0, "RS": 0.0, "compute": 0.0}
    with tempfile.TemporaryFile() as log, _running(command, log) as process:
        deadline = time.monotonic() + _RUN_S
        while time.monotonic() < deadline:
            log.seek(0)
            said = log.read().decode(errors="replace")
            if "sched_reserve: reserve took" in said:
                for kind, size in re.findall(
                    r"(model|KV|RS|compute) buffer size *= *([\d.]+) MiB", said
                ):
                    sums[kind] += float(size) * MIB
                kv = sums["KV"] + sums["RS"]
                return Reported("Host", int(sums["model"]), int(kv), int(sums["compute"]))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                raise OracleError(_cause(said))
    raise OracleError(f"not loaded after {_RUN_S:.0f} s")


def _cause(log: str) -> str:
    """Of an engine's log, the line that says why; an abort adds a debugger's words after it."""
    lines = log.strip().splitlines() or ["no message"]
    telling = [line for line in lines if re.search(r" E |what\(\)|error|abort", line)]
    return (telling or lines)[-1].strip()


@contextlib.contextmanager
def rpc_servers(engine: Place, count: int) -> Iterator[tuple[str, ...]]:
    """Start `count` rpc-servers on loopback, which stand in for GPUs; yields their endpoints.

    :raises OracleError: one did not start.
    """
    program = engine.binary(RPC_SERVER)
    if program is None:
        raise OracleError(f"this engine has no {RPC_SERVER}")
    with contextlib.ExitStack() as stack:
        endpoints = []
        for _ in range(count):
            port = _free_port()
            command = [str(program), "--host", "127.0.0.1", "--port", str(port)]
            process = stack.enter_context(_running(command, subprocess.DEVNULL))
            _wait_for(port, process)
            endpoints.append(f"127.0.0.1:{port}")
        yield tuple(endpoints)


@contextlib.contextmanager
def _running(command: list[str], log: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=log, stderr=log)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        # Connecting and closing at once is safe; sending HELLO and leaving is not.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            raise OracleError(f"{RPC_SERVER} ended with {process.returncode}")
    raise OracleError(f"{RPC_SERVER} did not listen within {_START_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
