"""API keys for gateways under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshd.keys.edit import add_file, entry_text
from meshd.keys.key import ApiKey, digest, new_key
from meshd.keys.key_folder import KeyPlaces


class Keys:
    """A folder as `/etc/mesh/keys.d`. :ivar where: for the gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "keys.d"
        self.where = KeyPlaces(self.folder)

    def add(self, name: str, *, models: tuple[str, ...] = (), expires: str = "", **may: Any) -> str:
        """A key as `meshd keys add` makes it. :returns: what a client sends."""
        secret = new_key()
        key = ApiKey(name, digest(secret), **may)
        add_file(self.folder, key, entry_text(key, models=models, expires=expires), group=None)
        return secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}
