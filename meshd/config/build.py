"""From a merged tree of the right shape to `Config`, and back to plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from meshd.config.durations import format_duration, parse_duration
from meshd.config.settings import (
    Config,
    ConsoleSettings,
    Core,
    DemandSettings,
    DiscoverySettings,
    GatewaySettings,
    Limit,
    MeshSettings,
    ModelSettings,
    NodeSettings,
    Preset,
    Replicas,
    Reserve,
    Role,
    Split,
    TlsSettings,
)
from meshd.config.sizes import format_size, parse_size
from meshd.quality import EXACT, Budget

Section = Mapping[str, Any]


def build(data: Section) -> Config:
    """Build a Config from what the files say; whatever they do not say has its default.

    :param data: as `merge` leaves it: valid by the schema, no ``merge:`` or ``replace:``.
    """
    return Config(
        mesh=_mesh(data.get("mesh", {})),
        node=_node(data.get("node", {})),
        models=tuple(_model(item) for item in data.get("models", ())),
        demand=_demand(data.get("demand", {})),
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
                "quality": _quality_data(model.quality),
                "aliases": list(model.aliases),
                "nodes": _auto_or_list(model.nodes),
                "split": str(model.split),
                "calibration": dict(model.calibration),
            }
            for model in config.models
        ],
        "mesh": {
            "name": config.mesh.name,
            "secret": config.mesh.secret,
            "peers": list(config.mesh.peers),
            "listen": config.mesh.listen,
            "advertise": _auto_or_list(config.mesh.advertise),
            "preset": str(config.mesh.preset),
            "core": str(config.mesh.core),
            "split_ports": config.mesh.split_ports,
        },
        "node": {
            "name": config.node.name,
            "role": str(config.node.role),
            "reserve": {
                "vram": format_size(config.node.reserve.vram_bytes),
                "ram": format_size(config.node.reserve.ram_bytes),
            },
            "limit": {
                "vram": _auto_or_size(config.node.limit.vram_bytes),
                "ram": _auto_or_size(config.node.limit.ram_bytes),
            },
            "gpus": _auto_or_list(config.node.gpus),
            "model_dirs": list(config.node.model_dirs),
        },
        "demand": {
            "half_life": format_duration(config.demand.half_life_s),
            "dwell": format_duration(config.demand.dwell_s),
        },
        "gateway": {
            "listen": list(config.gateway.listen),
            "max_body": format_size(config.gateway.max_body_bytes),
            "hosts": list(config.gateway.hosts),
            "origins": list(config.gateway.origins),
            "tls": {
                "certificate": config.gateway.tls.certificate,
                "key": config.gateway.tls.key,
            },
            "wait": format_duration(config.gateway.wait_s),
            "queue": config.gateway.queue,
            "local_keys": config.gateway.local_keys,
            "otlp": config.gateway.otlp,
        },
        "console": {"enabled": config.console.enabled, "listen": config.console.listen},
        "discovery": {"lan": config.discovery.lan, "nostr": config.discovery.nostr},
    }


def _auto_or_list(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


def _auto_or_size(size_bytes: int | None) -> str:
    return "auto" if size_bytes is None else format_size(size_bytes)


def _mesh(data: Section) -> MeshSettings:
    given = dict(data)
    if "peers" in given:
        given["peers"] = tuple(given["peers"])
    if given.get("advertise", "auto") != "auto":
        given["advertise"] = tuple(given["advertise"])
    if "preset" in given:
        given["preset"] = Preset(given["preset"])
    if "core" in given:
        given["core"] = Core(given["core"])
    if "split_ports" in given:
        given["split_ports"] = int(given["split_ports"])
    return MeshSettings(**given)


def _demand(data: Section) -> DemandSettings:
    return DemandSettings(**{f"{key}_s": parse_duration(text) for key, text in data.items()})


def _node(data: Section) -> NodeSettings:
    given: dict[str, Any] = {}
    if "name" in data:
        given["name"] = data["name"]
    if "role" in data:
        given["role"] = Role(data["role"])
    if "reserve" in data:
        given["reserve"] = _reserve(data["reserve"])
    if "limit" in data:
        given["limit"] = _limit(data["limit"])
    if "gpus" in data:
        given["gpus"] = "auto" if data["gpus"] == "auto" else tuple(data["gpus"])
    if "model_dirs" in data:
        given["model_dirs"] = tuple(data["model_dirs"])
    return NodeSettings(**given)


def _reserve(data: Section) -> Reserve:
    return Reserve(**{f"{key}_bytes": parse_size(size) for key, size in data.items()})


def _limit(data: Section) -> Limit:
    return Limit(
        **{
            f"{key}_bytes": None if size == "auto" else parse_size(size)
            for key, size in data.items()
        }
    )


def _gateway(data: Section) -> GatewaySettings:
    given: dict[str, Any] = {}
    if "listen" in data:
        given["listen"] = tuple(data["listen"])
    if "max_body" in data:
        given["max_body_bytes"] = parse_size(data["max_body"])
    for key in ("hosts", "origins"):
        if key in data:
            given[key] = tuple(data[key])
    if "tls" in data:
        given["tls"] = TlsSettings(**data["tls"])
    if "wait" in data:
        given["wait_s"] = parse_duration(data["wait"])
    if "queue" in data:
        given["queue"] = int(data["queue"])
    for key in ("local_keys", "otlp"):
        if key in data:
            given[key] = data[key]
    return GatewaySettings(**given)


def _model(data: Section) -> ModelSettings:
    given = dict(data)
    for key in ("context", "slots"):
        if given.get(key, "auto") != "auto":
            given[key] = int(given[key])  # JSON Schema takes 4.0 for an integer
    if "replicas" in given:
        given["replicas"] = _replicas(given["replicas"])
    if "quality" in given:
        given["quality"] = _quality(given["quality"])
    if "calibration" in given:
        given["calibration"] = tuple(sorted(given["calibration"].items()))
    if "aliases" in given:
        given["aliases"] = tuple(given["aliases"])
    if given.get("nodes", "auto") != "auto":
        given["nodes"] = tuple(given["nodes"])
    if "split" in given:
        given["split"] = Split(given["split"])
    return ModelSettings(**given)


def _quality(data: str | Section) -> Budget:
    if isinstance(data, str):
        return EXACT
    return Budget(**{name: float(bound) for name, bound in data.items()})


def _quality_data(budget: Budget) -> str | Section:
    bounds = {name: bound for name, bound in asdict(budget).items() if bound is not None}
    return bounds or str(budget)


def _replicas(data: Section) -> Replicas:
    most = data.get("max", "auto")
    return Replicas(min=int(data.get("min", 1)), max="auto" if most == "auto" else int(most))
