"""Typed, bounded access to a GGUF header's metadata under its architecture's prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshd.models.gguf_header import Array, GgufError, Scalar

# LLAMA_MAX_LAYERS; any dimension of a real model is far below 2^31.
LAYERS_MAX = 512
NUMBER_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Metadata:
    """:ivar architecture: replaces ``%s`` in upstream's key names, e.g. ``%s.block_count``."""

    path: Path
    values: Mapping[str, Scalar | Array]
    architecture: str

    def fail(self, key: str, cause: str) -> GgufError:
        return GgufError(f"{self.path}: {key} {cause}")

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"should be text, not {_shown(value)}")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """:raises GgufError: absent without a default, no whole number, negative or absurd."""
        key = self.key(name)
        value = self.values.get(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        return self._checked(key, value)

    def per_layer(self, name: str, layers: int, default: int | None = None) -> tuple[int, ...]:
        """One number for all layers, or an array with one for each (upstream allows both)."""
        key = self.key(name)
        value = self.values.get(key)
        if not isinstance(value, Array):
            return (self.number(name, default),) * layers
        if value.values is None or value.length < layers:
            raise self.fail(key, f"should have {layers} elements, not {value.length}")
        return tuple(self._checked(key, element) for element in value.values[:layers])

    def array(self, name: str) -> Array | None:
        value = self.values.get(self.key(name))
        return value if isinstance(value, Array) else None

    def _checked(self, key: str, value: Scalar | Array) -> int:
        if not isinstance(value, int) or not 0 <= value <= NUMBER_MAX:
            raise self.fail(key, f"should be a number from 0 to {NUMBER_MAX}, not {_shown(value)}")
        return int(value)


def _shown(value: object) -> str:
    if isinstance(value, Array):
        return f"an array of {value.length}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
