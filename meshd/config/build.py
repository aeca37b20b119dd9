"""From a merged tree of the right shape to `Config`, and back to plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meshd.config.settings import (
    Config,
    ConsoleSettings,
    DiscoverySettings,
    GatewaySettings,
    MeshSettings,
    ModelSettings,
    NodeSettings,
    Quality,
    Replicas,
    Reserve,
    Role,
)
from meshd.config.sizes import format_size, parse_size

Section = Mapping[str, Any]


def build(data: Section) -> Config:
    """Build a Config from what the files say; whatever they do not say has its default.

    :param data: as `merge` leaves it: valid by the schema, no ``merge:`` or ``replace:``.
    """
    return Config(
        mesh=replace(MeshSettings(), **data.get("mesh", {})),
        node=_node(data.get("node", {})),
        models=tuple(_model(item) for item in data.get("models", ())),
        gateway=_gateway(data.get("gateway", {})),
        console=replace(ConsoleSettings(), **data.get("console", {})),
        discovery=replace(DiscoverySettings(), **data.get("discovery", {})),
    )


def to_data(config: Config) -> dict[str, Any]:
    """The complete configuration as it could stand in mesh.yaml, defaults included."""
    return {
        "models": [
            {
                "name": model.name,
                "source": model.source,
                "context": model.context,
                "slots": model.slots,
                "replicas": {"min": model.replicas.min, "max": model.replicas.max},
                "quality": str(model.quality),
                "aliases": list(model.aliases),
            }
            for model in config.models
        ],
        "mesh": {"name": config.mesh.name},
        "node": {
            "role": str(config.node.role),
            "reserve": {
                "vram": format_size(config.node.reserve.vram_bytes),
                "ram": format_size(config.node.reserve.ram_bytes),
            },
            "gpus": "auto" if config.node.gpus == "auto" else list(config.node.gpus),
            "model_dirs": list(config.node.model_dirs),
        },
        "gateway": {
            "listen": list(config.gateway.listen),
            "max_body": format_size(config.gateway.max_body_bytes),
        },
        "console": {"enabled": config.console.enabled, "listen": config.console.listen},
        "discovery": {"lan": config.discovery.lan, "nostr": config.discovery.nostr},
    }


def _node(data: Section) -> NodeSettings:
    given: dict[str, Any] = {}
    if "role" in data:
        given["role"] = Role(data["role"])
    if "reserve" in data:
        given["reserve"] = _reserve(data["reserve"])
    if "gpus" in data:
        given["gpus"] = "auto" if data["gpus"] == "auto" else tuple(data["gpus"])
    if "model_dirs" in data:
        given["model_dirs"] = tuple(data["model_dirs"])
    return NodeSettings(**given)


def _reserve(data: Section) -> Reserve:
    return Reserve(**{f"{key}_bytes": parse_size(size) for key, size in data.items()})


def _gateway(data: Section) -> GatewaySettings:
    given: dict[str, Any] = {}
    if "listen" in data:
        given["listen"] = tuple(data["listen"])
    if "max_body" in data:
        given["max_body_bytes"] = parse_size(data["max_body"])
    return GatewaySettings(**given)


def _model(data: Section) -> ModelSettings:
    given = dict(data)
    for key in ("context", "slots"):
        if given.get(key, "auto") != "auto":
            given[key] = int(given[key])  # JSON Schema takes 4.0 for an integer
    if "replicas" in given:
        given["replicas"] = _replicas(given["replicas"])
    if "quality" in given:
        given["quality"] = Quality(given["quality"])
    if "aliases" in given:
        given["aliases"] = tuple(given["aliases"])
    return ModelSettings(**given)


def _replicas(data: Section) -> Replicas:
    low = int(data["min"]) if "min" in data else 1
    # Who asks for at least three means at most three as well, unless they say otherwise.
    return Replicas(min=low, max=int(data["max"]) if "max" in data else max(low, 1))
