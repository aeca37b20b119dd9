"""The merged configuration as YAML, each value with the place that it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from meshd.config.build import to_data
from meshd.config.layers import Loaded, Origin
from meshd.config.scalars import resolve

_SAFE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._/+@-]*")


def as_yaml(loaded: Loaded, *, origins: bool = False) -> str:
    """Write the whole configuration as a mesh.yaml that means the same.

    :param origins: end each line that has a value with ``# FILE:LINE`` or ``# default``.
    """
    lines = list(_mapping(to_data(loaded.config), "", 0))
    if not origins:
        return "".join(f"{text}\n" for text, _ in lines)
    width = min(max(len(text) for text, _ in lines), 60)
    return "".join(
        f"{text:<{width}}  # {_place(loaded.origins, path)}\n" if path else f"{text}\n"
        for text, path in lines
    )


def origins_by_path(loaded: Loaded) -> dict[str, str]:
    """``FILE:LINE`` or ``default`` for every value of the configuration."""
    lines = _mapping(to_data(loaded.config), "", 0)
    return {path: _place(loaded.origins, path) for _, path in lines if path}


def _place(origins: Mapping[str, Origin], path: str) -> str:
    # An item that says nothing of its own came with its list.
    found = origins.get(path)
    return str(found) if found else "default"


def _mapping(data: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, str]]:
    indent = "  " * depth
    for key, value in data.items():
        below = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _mapping(value, below, depth + 1)
        elif isinstance(value, list) and value:
            yield f"{indent}{key}:", ""
            yield from _items(value, below, depth + 1)
        else:
            yield f"{indent}{key}: {scalar(value)}", below


def _items(items: list[Any], path: str, depth: int) -> Iterator[tuple[str, str]]:
    indent = "  " * depth
    for index, item in enumerate(items):
        if isinstance(item, dict):
            lines = _mapping(item, f"{path}[{item['name']}]", depth + 1)
            text, below = next(lines)
            yield f"{indent}- {text.lstrip()}", below
            yield from lines
        else:
            yield f"{indent}- {scalar(item)}", f"{path}[{index}]"


def scalar(value: object) -> str:
    """One value in YAML; text is quoted unless every reader takes it for the same text."""
    if isinstance(value, str) and _SAFE.fullmatch(value) and resolve(value) == value:
        return value
    if isinstance(value, float):
        return _number(value)
    # JSON's text and numbers are YAML's as well (YAML 1.2, section 1.3).
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """With a point, without which 1e-05 is text to some readers."""
    digits, e, exponent = repr(value).partition("e")
    return f"{digits}{'' if '.' in digits else '.0'}{e}{exponent}"
