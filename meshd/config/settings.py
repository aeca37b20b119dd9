"""The configuration as the program sees it: frozen dataclasses, one per section of mesh.yaml.

Field names are the YAML keys. Defaults here are the built-in layer below every file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from meshd.quality import EXACT, Budget

MIB = 1024 * 1024

Auto = Literal["auto"]


class Role(StrEnum):
    AUTO = "auto"
    SERVE = "serve"
    STANDBY = "standby"
    CLIENT = "client"


class Preset(StrEnum):
    """How soon a silent node is missed: within 3 s on one network, 10 s over the internet."""

    LAN = "lan"
    WAN = "wan"


class Split(StrEnum):
    """Whether a model may be spread over several nodes: where it is faster so, or never."""

    AUTO = "auto"
    NEVER = "never"


class Core(StrEnum):
    """Whether this node relays for others: as the mesh needs it, always, or never."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """:ivar secret: file with the mesh's shared secret; where there is none, the node is alone.

    :ivar listen: where other nodes reach this one: QUIC over UDP and HTTPS over TCP on one port.
    :ivar advertise: ``host`` or ``host:port`` told to others; auto: this machine's addresses.
    :ivar peers: ``host`` or ``host:port`` of nodes to join through; any one that answers is enough.
    :ivar split_ports: the first of those in `config.split_ports`.
    """

    name: str = "mesh"
    secret: str = "/etc/mesh/secret"  # noqa: S105 -- where it lies, not what it is
    listen: str = "[::]:9338"
    advertise: Auto | tuple[str, ...] = "auto"
    peers: tuple[str, ...] = ()
    preset: Preset = Preset.LAN
    core: Core = Core.AUTO
    split_ports: int = 9340


@dataclass(frozen=True, slots=True)
class Reserve:
    """Memory left to others. In YAML: sizes such as ``512MiB``."""

    vram_bytes: int = 512 * MIB
    ram_bytes: int = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limit:
    """Memory that engines use at most, all together: on each GPU, and of the system's; None for as
    much as there is. In YAML: sizes, or ``auto``.
    """

    vram_bytes: int | None = None
    ram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """:ivar name: for people and for ``models[].nodes``; "" for the machine's hostname.

    :ivar gpus: stable ids to use, or "auto" for all; an id that is not there fails closed.
    """

    name: str = ""
    role: Role = Role.AUTO
    reserve: Reserve = Reserve()
    limit: Limit = Limit()
    gpus: Auto | tuple[str, ...] = "auto"
    model_dirs: tuple[str, ...] = ("/var/lib/mesh/models", "/usr/share/meshd/models")


@dataclass(frozen=True, slots=True)
class Replicas:
    """:ivar max: auto: as many as demand asks for and idle memory holds."""

    min: int = 1
    max: Auto | int = "auto"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """:ivar source: absolute path, or a path or glob searched in node.model_dirs.

    :ivar nodes: names or ids of the only nodes that may run it; auto for any.
    :ivar calibration: kinds of text that its experts are ranked by and its shards are measured on
        beside the shipped ones: name and absolute path of a text file.
    """

    name: str
    source: str
    context: Auto | int = "auto"
    slots: Auto | int = "auto"
    replicas: Replicas = Replicas()
    quality: Budget = EXACT
    aliases: tuple[str, ...] = ()
    nodes: Auto | tuple[str, ...] = "auto"
    split: Split = Split.AUTO
    calibration: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DemandSettings:
    """:ivar half_life_s: after which a request counts half; in YAML a time such as ``30min``.

    :ivar dwell_s: a replica that was loaded stays at least so long, whatever demand does.
    """

    half_life_s: float = 1800.0
    dwell_s: float = 300.0


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """:ivar certificate: PEM file with the chain, "" for plain HTTP. :ivar key: PEM file."""

    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """:ivar hosts: names under which clients may reach it, beside this machine's own.

    :ivar origins: of web pages that may use it. :ivar wait_s: how long a request may wait for its
        model. :ivar queue: how many may. :ivar local_keys: clients of this machine need a
        key too. :ivar otlp: URL that takes traces, "" for none.
    """

    listen: tuple[str, ...] = ("127.0.0.1:9337",)
    max_body_bytes: int = 64 * MIB
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    tls: TlsSettings = field(default_factory=TlsSettings)
    wait_s: int = 120
    queue: int = 256
    local_keys: bool = False
    otlp: str = ""


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
    demand: DemandSettings = DemandSettings()
    gateway: GatewaySettings = GatewaySettings()
    console: ConsoleSettings = ConsoleSettings()
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
