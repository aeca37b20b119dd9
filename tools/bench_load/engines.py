"""Real engines of a split on this machine: rpc-servers, and the llama-server that uses them."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.locate import RPC_SERVER, SERVER, Place

START_S = 60.0
LOAD_S = 240.0
_POLL_S = 0.01


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def rpc_server(
    place: Place, cache: Path | None, log: Path, *, user: int | None = None
) -> Iterator[int]:
    """Yield its port. :param user: whom it runs as, None for us."""
    binary, port = place.binary(RPC_SERVER), free_port()
    assert binary is not None
    command = [
        str(binary), "--host", "127.0.0.1", "--port", str(port), "--device", "CPU",
        "--threads", "1", *(["--cache"] if cache else []),
    ]  # fmt: skip
    environment = {"HOME": "/nonexistent", "GGML_NO_BACKTRACE": "1"}
    if cache:
        environment["LLAMA_CACHE"] = str(cache)
    with _child(command, environment, log, user) as process:
        _until_listening(process, port, log)
        yield port


def _until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    # Not by connecting: it serves one connection after the other, and ours would be one.
    wanted = f"0100007F:{port:04X}"
    until_s = time.monotonic() + START_S
    while not any(
        line.split()[1] == wanted and line.split()[3] == "0A"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
    ):
        assert process.poll() is None, f"rpc-server ended: {log.read_text(errors='replace')}"
        assert time.monotonic() < until_s, "rpc-server does not listen"
        time.sleep(_POLL_S)


@dataclass(frozen=True)
class Split:
    """A llama-server that answers. :ivar load_s: from its start until it did."""

    base: str
    load_s: float
    pid: int

    def complete(self, prompt: str, tokens: int) -> tuple[int, ...]:
        """The tokens of a greedy continuation."""
        body = {
            "prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False,
            "ignore_eos": True, "return_tokens": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.base}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=LOAD_S) as answer:
            return tuple(json.load(answer)["tokens"])


@contextmanager
def llama_server(
    place: Place, model: Path, layers: int, ports: Sequence[int], log: Path
) -> Iterator[Split]:
    """One that has all of its blocks on rpc-servers, in equal parts, and its output layer here."""
    binary, port = place.binary(SERVER), free_port()
    assert binary is not None
    devices = ",".join(f"RPC{number}" for number in range(len(ports)))
    # The output layer counts as one more of the last device, wherever it really lies.
    shares = [layers // len(ports)] * len(ports) if ports else []
    share = ",".join(map(str, [*shares[:-1], shares[-1] + 1] if shares else []))
    remote = [
        "--rpc", ",".join(f"127.0.0.1:{one}" for one in ports), "--device", devices,
        "--tensor-split", share, "--n-gpu-layers", str(layers + 1),
        "--override-tensor", "^output=CPU",
    ] if ports else ["--device", "none"]  # fmt: skip
    command = [
        str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--ctx-size", "512", "--parallel", "1", "--fit", "off", "--threads", "1", "--cache-ram",
        "0", "--no-ui", "--no-warmup", "--flash-attn", "off", *remote,
    ]  # fmt: skip
    environment = {"HOME": "/nonexistent", "GGML_NO_BACKTRACE": "1"}
    began_s = time.monotonic()
    with _child(command, environment, log, None) as process:
        base = f"http://127.0.0.1:{port}"
        _until_healthy(process, base, log)
        yield Split(base, time.monotonic() - began_s, process.pid)


def _until_healthy(process: subprocess.Popen[bytes], base: str, log: Path) -> None:
    until_s = time.monotonic() + LOAD_S
    while True:
        assert process.poll() is None, f"llama-server: {log.read_text(errors='replace')[-2000:]}"
        assert time.monotonic() < until_s, "llama-server does not load"
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(_POLL_S)


@contextmanager
def _child(
    command: list[str], environment: dict[str, str], log: Path, user: int | None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            user=user,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
