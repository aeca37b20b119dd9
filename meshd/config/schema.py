"""The published schema, and the compiled validator for it.

The schema is part of the program that happens to be JSON, so that editors can use it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Schema = Mapping[str, Any]

INSTALLED_AT = "/usr/share/meshd/mesh.schema.json"


@cache
def published() -> Schema:
    """The schema as shipped, mesh.schema.json beside this file."""
    text = resources.files("meshd.config").joinpath("mesh.schema.json").read_text("utf-8")
    schema: Schema = json.loads(text)
    return schema


@cache
def validator() -> Validator:
    """Compile the validator once a process; importing jsonschema is what takes the time."""
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import ValidationError

    def pattern(
        _validator: Validator, pattern: str, instance: object, _schema: Schema
    ) -> Iterator[ValidationError]:
        # ECMA's $ is the end of the text; Python's also matches before a last line break.
        if isinstance(instance, str) and not re.search(_strict(pattern), instance):
            yield ValidationError("pattern")

    strict = validators.extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"pattern": pattern}
    )
    compiled: Validator = strict(published())
    return compiled


def resolved(schema: Schema) -> Schema:
    """A schema with its `$ref` (always into `$defs`) followed; keys beside the $ref win."""
    merged = dict(schema)
    while ref := merged.pop("$ref", None):
        target = published()["$defs"][ref.removeprefix("#/$defs/")]
        merged = {**target, **merged}
    return merged


def expectation(schema: Schema) -> str:
    """What a schema wants, as a noun phrase: "a whole number from 1 to 256"."""
    if "$ref" in schema:
        return expectation(published()["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        return " or ".join(expectation(branch) for branch in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kinds = schema.get("type", [])
    match kinds[0] if isinstance(kinds, list) and kinds else kinds:
        case "integer":
            return f"a whole number from {schema['minimum']} to {schema['maximum']}"
        case "number":
            return f"a number from {schema['minimum']} to {schema['maximum']}"
        case "boolean":
            return "true or false"
        case "object" if "properties" in schema and "minProperties" not in schema:
            return "a section with keys of its own"
        case _:
            return str(schema["title"])


def is_list_change(schema: Schema) -> bool:
    """Whether it is ``merge:`` or ``replace:``, which says how files lie over each other."""
    return {"merge", "replace"} == set(resolved(schema).get("properties", ()))


def homes(key: str) -> tuple[str, ...]:
    """Where in the configuration a key of this name belongs, such as ``models[].slots``."""
    return _homes().get(key, ())


@cache
def _homes() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in _all_keys(published(), ""):
        key = path.rsplit(".", 1)[-1]
        found[key] = (*found.get(key, ()), path)
    return found


def _all_keys(schema: Schema, prefix: str) -> Iterator[str]:
    schema = resolved(schema)
    for name, child in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path
        for branch in (child, *resolved(child).get("anyOf", ())):
            if not isinstance(branch, dict):
                continue
            if items := resolved(branch).get("items"):
                yield from _all_keys(items, f"{path}[]")
            if branch is not child and not is_list_change(branch):
                yield from _all_keys(branch, path)
        yield from _all_keys(child, path)


def _strict(pattern: str) -> str:
    return pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern
