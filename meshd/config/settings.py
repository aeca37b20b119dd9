"""The configuration as the program sees it: frozen dataclasses, one per section of mesh.yaml.

Field names are the YAML keys. Defaults here are the built-in layer below every file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

MIB = 1024 * 1024

Auto = Literal["auto"]


class Role(StrEnum):
    AUTO = "auto"
    SERVE = "serve"
    STANDBY = "standby"
    CLIENT = "client"


class Quality(StrEnum):
    """What a model may lose to be served at all: exact, or a bounded rise in perplexity."""

    EXACT = "exact"
    HIGH = "high"
    FAIR = "fair"


@dataclass(frozen=True, slots=True)
class MeshSettings:
    name: str = "mesh"


@dataclass(frozen=True, slots=True)
class Reserve:
    """Memory left to others. In YAML: sizes such as ``512MiB``."""

    vram_bytes: int = 512 * MIB
    ram_bytes: int = 1024 * MIB


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """:ivar gpus: stable ids to use, or "auto" for all; an id that is not there fails closed."""

    role: Role = Role.AUTO
    reserve: Reserve = Reserve()
    gpus: Auto | tuple[str, ...] = "auto"
    model_dirs: tuple[str, ...] = ("/var/lib/mesh/models", "/usr/share/meshd/models")


@dataclass(frozen=True, slots=True)
class Replicas:
    min: int = 1
    max: int = 1


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """:ivar source: absolute path, or a path or glob searched in node.model_dirs."""

    name: str
    source: str
    context: Auto | int = "auto"
    slots: Auto | int = "auto"
    replicas: Replicas = Replicas()
    quality: Quality = Quality.EXACT
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    listen: tuple[str, ...] = ("127.0.0.1:9337",)
    max_body_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    enabled: bool = True
    listen: str = "127.0.0.1:3131"


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    lan: bool = False
    nostr: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    mesh: MeshSettings = MeshSettings()
    node: NodeSettings = NodeSettings()
    models: tuple[ModelSettings, ...] = ()
    gateway: GatewaySettings = GatewaySettings()
    console: ConsoleSettings = ConsoleSettings()
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
