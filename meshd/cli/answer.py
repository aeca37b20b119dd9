"""How verbs print what they found."""

from __future__ import annotations

import msgspec


def print_json(value: object) -> None:
    """One JSON document, indented, keys as in the dataclasses."""
    print(msgspec.json.format(msgspec.json.encode(value)).decode())
