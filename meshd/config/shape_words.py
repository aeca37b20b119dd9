"""What the schema's complaints mean to the person who wrote the file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshd.config.findings import did_you_mean, printable, quoted
from meshd.config.scalars import Ambiguous
from meshd.config.schema import Schema, expectation, homes, is_list_change, resolved
from meshd.config.tree import ListNode, MapNode, Node, Scalar, path_text
from meshd.quality import parse

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_LOOSE_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)

_LOOSE_NUMBER = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)")

MAX_COMPLAINTS = 200

_SAYS_BOOL = {
    **dict.fromkeys(("true", "yes", "on", "y"), "true"),
    **dict.fromkeys(("false", "no", "off", "n"), "false"),
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """:ivar key: the child of the faulty node that is at fault, where it is not the node itself.
    :ivar at_key: point at the node's own key, as its value is empty.
    """

    message: str
    hint: str = ""
    key: str | int | None = None
    at_key: bool = False


def explain(error: ValidationError, node: Node) -> list[Complaint]:
    """Put one error of the schema in words; an unknown-key error is as many as there are keys."""
    words = WORDS.get(_keyword(error))
    if words is None:
        raise AssertionError(f"the schema uses {error.validator}, which has no words here")
    return words(error, node)


def _keyword(error: ValidationError) -> str:
    """What of the schema complains; a key's own schema does so on behalf of its section."""
    return "propertyNames" if "propertyNames" in error.schema_path else str(error.validator)


def _wrong_value(error: ValidationError, node: Node) -> list[Complaint]:
    schema = schema_of(error)
    name = _name(error)
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, Ambiguous):
        return [
            Complaint(f"{name}: {quoted(value.text)} is {value.reading}", _plainly(value, schema))
        ]
    wanted = expectation(schema)
    if isinstance(node, Scalar) and value is None:
        return [
            Complaint(f"{name} has no value", f"give it {wanted}, or delete the line", None, True)
        ]
    return [Complaint(f"{name} must be {wanted}, not {_shown(node)}", _hint(schema, node, name))]


def _unknown_keys(error: ValidationError, node: Node) -> list[Complaint]:
    known = sorted(schema_of(error)["properties"])
    keys = [entry.key for entry in node.entries] if isinstance(node, MapNode) else []
    unknown = [key for key in keys if key not in known][:MAX_COMPLAINTS]
    return [Complaint(f"unknown key {quoted(key)}", _key_hint(key, known), key) for key in unknown]


def _key_hint(key: str, known: Sequence[str]) -> str:
    if hint := did_you_mean(key, known):
        return hint
    places = [place for place in homes(key) if not place.endswith((".merge", ".replace"))]
    if places:
        return f"it belongs at {' or '.join(places)}"
    return f"known here: {', '.join(known)}"


def _missing_key(error: ValidationError, node: Node) -> list[Complaint]:
    present = {entry.key for entry in node.entries} if isinstance(node, MapNode) else set()
    missing = [key for key in schema_of(error)["required"] if key not in present]
    # The validator complains once for each missing key without naming it as data; the caller
    # drops what was said twice.
    return [
        Complaint(f"{_name(error)} has no `{key}:`", f"add {key}: and a value") for key in missing
    ]


def _list_length(error: ValidationError, node: Node) -> list[Complaint]:
    count = len(node.items) if isinstance(node, ListNode) else 0
    bound = schema_of(error)[str(error.validator)]
    side = "at least" if error.validator == "minItems" else "at most"
    return [Complaint(f"{_name(error)} has {count} items; it must have {side} {bound}")]


def _twice(error: ValidationError, node: Node) -> list[Complaint]:
    items = node.items if isinstance(node, ListNode) else ()
    seen: set[object] = set()
    again = []
    for index, item in enumerate(items):
        value = item.value if isinstance(item, Scalar) else item
        if value in seen:
            message = f"{_name(error)}: {quoted(value)} is in the list twice"
            again.append(Complaint(message, "keep one of the two", index))
        seen.add(value)
    return again


def _wrong_key(error: ValidationError, _node: Node) -> list[Complaint]:
    key = str(error.instance)
    wanted = expectation(schema_of(error))
    return [Complaint(f"{_name(error)}: a name has {wanted}, not {quoted(key)}", "", key)]


def _number_of_keys(error: ValidationError, node: Node) -> list[Complaint]:
    schema, name = schema_of(error), _name(error)
    if error.validator == "minProperties":
        wanted = "a list" if is_list_change(schema) else expectation(schema)
        return [Complaint(f"{name} is empty", f"write {wanted}, or delete the line")]
    if is_list_change(schema):
        return [Complaint(f"{name} has both merge: and replace:", "keep one of the two")]
    count = len(node.entries) if isinstance(node, MapNode) else 0
    return [Complaint(f"{name} has {count} keys; it must have at most {schema['maxProperties']}")]


WORDS: dict[str, Callable[[ValidationError, Node], list[Complaint]]] = {
    "type": _wrong_value,
    "enum": _wrong_value,
    "const": _wrong_value,
    "pattern": _wrong_value,
    "minimum": _wrong_value,
    "maximum": _wrong_value,
    "anyOf": _wrong_value,
    "additionalProperties": _unknown_keys,
    "required": _missing_key,
    "minItems": _list_length,
    "maxItems": _list_length,
    "uniqueItems": _twice,
    "propertyNames": _wrong_key,
    "minProperties": _number_of_keys,
    "maxProperties": _number_of_keys,
}
"""Words by keyword of JSON Schema 2020-12; a test sees to it that the schema uses no other."""


def schema_of(error: ValidationError) -> Schema:
    """The schema that complains."""
    assert isinstance(error.schema, Mapping)
    return error.schema


def _name(error: ValidationError) -> str:
    return path_text(error.absolute_path) or "the file"


def _shown(node: Node) -> str:
    match node:
        case MapNode():
            return "a section with keys of its own"
        case ListNode():
            return "a list"
        case Scalar():
            return quoted(node.text) if isinstance(node.value, str) else printable(node.text)[:60]


def _types(schema: Schema) -> set[Any]:
    schema = resolved(schema)
    kinds = schema.get("type", "string" if "enum" in schema or "const" in schema else [])
    types = set(kinds) if isinstance(kinds, list) else {kinds}
    return types.union(*(_types(branch) for branch in schema.get("anyOf", ())))


def _plainly(value: Ambiguous, schema: Schema) -> str:
    types = _types(schema)
    fitting = [text for text in value.plainly if _kinds(text) & types]
    if fitting:
        return f"write {' or '.join(fitting)}"
    if types == {"string"}:
        return f'write "{printable(value.text)[:60]}" in quotes'
    return f"it must be {expectation(schema)}"


def _kinds(plain: str) -> set[str]:
    if plain in ("true", "false"):
        return {"boolean"}
    return {"number"} if "." in plain else {"number", "integer"}


def _hint(schema: Schema, node: Node, name: str) -> str:
    if isinstance(node, ListNode | MapNode):
        return ""
    value = node.value
    types = _types(schema)
    if name.endswith(".quality"):
        return _quality_hint(node.text)
    if isinstance(value, str):
        return _text_hint(value, schema, types)
    if types == {"number"} and isinstance(value, int | float):
        return _share_hint(value, schema)
    if schema.get("title", "").startswith("a size"):
        return f"give it a unit, such as {node.text}MiB"
    if name.startswith("node.gpus") and isinstance(value, int):
        return "a GPU's number can change at every boot; `nvidia-smi -L` prints its id"
    if types == {"string"} and value is not None:
        return f'to have it read as text, write "{printable(node.text)[:60]}" in quotes'
    return ""


def _quality_hint(text: str) -> str:
    """In the words of before there were bounds, as a number alone, or as a header has it."""
    if did_you_mean(text, ["high", "fair"]):
        return "there are bounds in place of high and fair, such as {min_top1: 0.95}"
    for written in (text, f"min_top1={text}"):
        with contextlib.suppress(ValueError):
            bounds = parse(written)
            return (
                f"write {{{str(bounds).replace('=', ': ')}}}" if not bounds.exact else "write exact"
            )
    return did_you_mean(text, ["exact"])


def _share_hint(value: float, schema: Schema) -> str:
    return f"did you mean {value / 100:g}?" if 1 == schema["maximum"] < value <= 100 else ""


def _text_hint(value: str, schema: Schema, types: set[Any]) -> str:
    choices = [*schema.get("enum", ()), *_constants(schema)]
    if "integer" in types and re.fullmatch(r"[0-9]{1,18}", value):
        return f"write {value} without quotes"
    if types == {"number"} and (number := _LOOSE_NUMBER.fullmatch(value.strip())):
        if not number.group(2):
            return f"write {number.group(1)} without quotes"
        share = float(number.group(1)) / 100
        return f"write {share:g}" if share <= schema["maximum"] == 1 else ""
    if types == {"boolean"} and value.lower() in _SAYS_BOOL:
        return f"write {_SAYS_BOOL[value.lower()]} without quotes"
    if "array" in types and expectation(schema) != value:
        near = did_you_mean(value, choices)
        return near or "begin each item of a list with `- ` on a line of its own"
    title = str(schema.get("title", ""))
    if title.startswith("a size") and (size := _LOOSE_SIZE.fullmatch(value.strip())):
        unit = f"{size.group(2).upper()}iB" if size.group(2) else "B"
        return f"did you mean {size.group(1)}{unit}?"
    if title.startswith("lower-case") and value.lower() != value:
        return "other spellings can be given as aliases"
    return did_you_mean(value, choices)


def _constants(schema: Schema) -> list[str]:
    own = [str(schema["const"])] if "const" in schema else []
    return own + [str(branch["const"]) for branch in schema.get("anyOf", ()) if "const" in branch]
