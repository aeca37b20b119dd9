"""What lab tests do with meshd on a node: start it, ask it, talk to its models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.lab.node import LabError, Node, Reply

CONFIG = "/etc/mesh/mesh.yaml"
CONTROL = "/run/mesh/meshd.sock"
MODELS = ("tiny", "small")
ENGINES = {model: f"mesh-llama@{model}.service" for model in MODELS}


def config(*, slots: int = 2, console_port: int = 3131, models: tuple[str, ...] = MODELS) -> str:
    """A configuration with two models; ``slots`` are tiny's."""
    entries = {
        "tiny": f"  - {{name: tiny, source: tiny.gguf, context: 1024, slots: {slots}}}\n",
        "small": "  - {name: small, source: tiny-draft.gguf, context: 512, slots: 1}\n",
    }
    return (
        "models:\n"
        + "".join(entries[model] for model in models)
        + "node:\n  reserve: {ram: 64MiB}\n"
        + f'console:\n  listen: "127.0.0.1:{console_port}"\n'
    )


def start(node: Node, text: str | None = None) -> None:
    """Start the whole mesh with a configuration and wait until every model is served."""
    node.write(CONFIG, text or config())
    node.systemctl("start", "mesh.target", timeout_s=120)
    settled(node)


def status(node: Node) -> dict[str, Any]:
    """The brain's status; empty while it does not answer."""
    reply = node.http("/v1/status", url="http://meshd", unix=CONTROL, timeout_s=5)
    answer: dict[str, Any] = reply.json() if reply.status == 200 else {}
    return answer


def model(node: Node, name: str) -> dict[str, Any]:
    """One model's part of the status; empty where there is none."""
    models = status(node).get("models", [])
    found: dict[str, Any] = next((one for one in models if one["name"] == name), {})
    return found


def settled(node: Node, *names: str, timeout_s: float = 60) -> None:
    """Wait until these models (or else all of the configuration's) are ready."""

    def waiting() -> bool:
        states = {one["name"]: one["state"] for one in status(node).get("models", [])}
        wanted = names or tuple(states)
        return bool(wanted) and all(states.get(name) == "ready" for name in wanted)

    try:
        node.wait(waiting, timeout_s, f"the models {names or 'of the configuration'}", every_s=0.2)
    except LabError as error:
        raise LabError(f"{error}; status {json.dumps(status(node), indent=1)}") from None


def engine_pids(node: Node) -> dict[str, int]:
    return {name: node.main_pid(unit) for name, unit in ENGINES.items()}


def chat(
    node: Node, name: str = "tiny", *, stream: bool = False, tokens: int = 8, timeout_s: float = 60
) -> Reply:
    """A chat completion through the gateway, which waits for the model half of the time at most."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "Write a Python function."}],
        "max_tokens": tokens,
        "stream": stream,
        "temperature": 0,
        "ignore_eos": True,
    }
    patience = {"X-Request-Timeout": f"{timeout_s / 2:g}"}
    return node.http("/v1/chat/completions", body, headers=patience, timeout_s=timeout_s)


def served(node: Node, name: str = "tiny") -> bool:
    return chat(node, name, tokens=1).status == 200


@dataclass(frozen=True, slots=True)
class Stream:
    """A parsed event stream. :ivar done: it ended with ``[DONE]``."""

    chunks: tuple[dict[str, Any], ...]
    done: bool

    @property
    def text(self) -> str:
        deltas = (chunk["choices"][0]["delta"] for chunk in self.chunks if chunk["choices"])
        return "".join(delta.get("content") or "" for delta in deltas)


def parse_stream(body: str) -> Stream:
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data:")]
    done = bool(events) and events[-1] == "[DONE]"
    return Stream(tuple(json.loads(event) for event in events if event != "[DONE]"), done)
