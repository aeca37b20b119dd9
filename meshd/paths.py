"""Where meshd keeps things, so that a test or a demo can put all of it elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SOURCE_TREE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one node.

    :ivar config: the main configuration file; drop-ins lie in ``mesh.d`` beside it.
    :ivar state: what outlives a reboot: generations, caches, keys.
    :ivar run: what does not: control socket, routing table, desired units.
    :ivar engines: one folder per engine instance, holding its socket (kept short: a socket's path
        has at most 107 bytes, unix(7)).
    :ivar guards: likewise of guards.
    :ivar transient_config: drop-ins that last until the next boot.
    """

    config: Path
    state: Path
    run: Path
    engines: Path
    transient_config: Path
    guards: Path = Path("/run/mesh-guard")

    @property
    def config_dropins(self) -> Path:
        return self.config.parent / "mesh.d"

    @property
    def keys(self) -> Path:
        """Files with the hashes of API keys; read by brain, gateway and hand."""
        return self.config.parent / "keys.d"

    @property
    def control_socket(self) -> Path:
        return self.run / "meshd.sock"

    @property
    def routes(self) -> Path:
        return self.run / "routes.json"

    @property
    def shared_models(self) -> Path:
        """Whose files other nodes may read; written by the brain, read by the gateway."""
        return self.run / "models.json"

    @property
    def desired(self) -> Path:
        """What the brain wants to run; written by `_meshd`, read by the root hand."""
        return self.run / "desired.json"

    @property
    def tls(self) -> Path:
        """The node's certificate in its mesh; read by the gateway and by Zenoh."""
        return self.run / "tls"

    @property
    def generations(self) -> Path:
        return self.state / "generations"

    @property
    def load_times(self) -> Path:
        """How long models took to load on this node."""
        return self.state / "load-times.json"

    @property
    def speeds(self) -> Path:
        """How fast this node's devices are."""
        return self.state / "speeds.json"

    @property
    def drain(self) -> Path:
        """There while this node is being drained."""
        return self.run / "drain.json"

    @property
    def rpc_cache(self) -> Path:
        """Tensors that rpc-servers need not be sent; written by the brain, read by engines."""
        return self.state / "rpc-cache"

    @property
    def experts(self) -> Path:
        """Rankings of experts, logits to measure shards with, and what shards lose."""
        return self.state / "experts"

    @property
    def shards(self) -> Path:
        """Models with a part of their experts; written by the brain, read by engines."""
        return self.state / "shards"

    def guard_socket(self, instance: str) -> Path:
        """Where a guard answers `GET /status` and `GET /metrics`."""
        return self.guards / instance / "guard.sock"

    def engine_socket(self, instance: str) -> Path:
        return self.engines / instance / "llama.sock"


SYSTEM = Paths(
    config=Path("/etc/mesh/mesh.yaml"),
    state=Path("/var/lib/mesh"),
    run=Path("/run/mesh"),
    engines=Path("/run/mesh-engine"),
    transient_config=Path("/run/mesh/mesh.d"),
)


def under(root: Path, *, config: Path | None = None) -> Paths:
    """All of a node's folders under one root, as the demo and the tests want them."""
    return Paths(
        config=config or root / "etc/mesh.yaml",
        state=root / "state",
        run=root / "run",
        engines=root / "run/engine",
        transient_config=root / "run/mesh.d",
        guards=root / "run/guard",
    )


def from_environment(environment: Mapping[str, str] = os.environ) -> Paths:
    """`MESHD_ROOT` moves everything, `MESHD_CONFIG` only the configuration file."""
    config = environment.get("MESHD_CONFIG")
    root = environment.get("MESHD_ROOT")
    if root:
        return under(Path(root), config=Path(config) if config else None)
    if config:
        return Paths(
            config=Path(config),
            state=SYSTEM.state,
            run=SYSTEM.run,
            engines=SYSTEM.engines,
            transient_config=SYSTEM.transient_config,
        )
    return SYSTEM


def shipped(*parts: str) -> Path:
    """A data file that meshd ships: from the source tree, the installation, or the system.

    Returns the first that exists, else where the installation should have put it.
    """
    roots = (
        _SOURCE_TREE / "share",
        Path(sys.prefix) / "share/meshd",
        Path("/usr/share/meshd"),
    )
    candidates = [root.joinpath(*parts) for root in roots]
    return next((path for path in candidates if path.exists()), candidates[-1])


def shipped_config() -> Path:
    """The shipped mesh.yaml: in the source tree under etc/, installed beside the other data."""
    in_source = _SOURCE_TREE / "etc/mesh.yaml"
    return in_source if in_source.exists() else shipped("etc/mesh.yaml")
