"""What seeding takes on this node."""

from __future__ import annotations

from pathlib import Path

from meshd.engine.locate import RPC_SERVER, require
from meshd.errors import UserError
from meshd.paths import Paths
from meshd.seeding.seed import Tools
from meshd.seeding.store import Store


def node_tools(paths: Paths) -> Tools:
    """The node's own store, engine and certificate. Nothing is touched before it is used."""

    def rpc_server() -> Path:
        found = require(paths).binary(RPC_SERVER)
        if found is None:
            raise UserError(f"the engine here has no {RPC_SERVER}", hint="meshd engine install")
        return found

    return Tools(Store(paths.rpc_cache), rpc_server, paths.tls)
