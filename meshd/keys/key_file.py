"""The files that say which API keys there are, `/etc/mesh/keys.d/*.yaml`.

::

    keys:
      - name: alice                     # the key itself is nowhere: see `meshd keys add`
        hash: sha256:0f4a...            # SHA-256 of the key, in hex
        models: [tiny, "qwen*"]         # the only models that it may use; all without this
        rate: 60/min                    # requests
        concurrency: 4                  # requests at once
        tokens: 1M/day                  # of prompts and answers
        priority: 5                     # -10 to 10: who waits for a model is served by it
        expires: 2027-01-31             # the last day, in UTC; or a time: 2027-01-31T12:00:00Z

All but name and hash may be left out. No message quotes a hash, since what stands there by mistake
is a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from typing import TypeVar

from meshd.keys.key import LEAST_PRIORITY, MOST_PRIORITY, ApiKey, named_well
from meshd.keys.quota import Quota, parse_quota
from meshd.keys.yaml_nodes import BadYamlError, Fields, Items, Node, Text, read_nodes

MAX_KEYS = 1000
_MAX_MODELS = 256
_MAX_CONCURRENCY = 100_000
_KEY_FIELDS = (
    "name",
    "hash",
    "models",
    "rate",
    "concurrency",
    "tokens",
    "priority",
    "expires",
)
_HASH = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})", re.ASCII)
T = TypeVar("T")
_WORD = re.compile(r"[A-Za-z_-]{1,24}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What one file says.

    :ivar keys: those that are in order. :ivar errors: ``FILE:LINE:COLUMN: what is wrong``.
    """

    keys: tuple[ApiKey, ...] = ()
    errors: tuple[str, ...] = ()


class _BadValueError(Exception):
    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.message = message


def parse_keys(path: str, data: bytes) -> KeyFile:
    """Read a file. An empty one is in order and has no keys. :param path: for messages."""
    try:
        root = read_nodes(data)
        listed = _listed(root)
    except BadYamlError as error:
        place = f"{path}:{error.line}:{error.column}" if error.line else path
        return KeyFile(errors=(f"{place}: {error.message}",))
    except _BadValueError as error:
        return KeyFile(errors=(_said(path, error),))
    keys: list[ApiKey] = []
    errors: list[str] = []
    if len(listed) > MAX_KEYS:
        errors.append(f"{path}: {len(listed)} keys are more than the {MAX_KEYS} of one file")
    for node in listed[:MAX_KEYS]:
        try:
            keys.append(_key(node, path))
        except _BadValueError as error:
            errors.append(_said(path, error))
    return KeyFile(tuple(keys), tuple(errors))


def _listed(root: Node | None) -> tuple[Node, ...]:
    if root is None or (isinstance(root, Text) and root.plain and root.value in ("", "~", "null")):
        return ()
    if not isinstance(root, Fields):
        raise _BadValueError(root, "the file must begin with `keys:`, and a list below it")
    for name, _ in root.fields:
        if name.value != "keys":
            raise _BadValueError(name, f"{_word(name)} is not known here; the only one is `keys:`")
    keys = root.get("keys")
    if isinstance(keys, Items):
        return keys.items
    if keys is None or (isinstance(keys, Text) and keys.plain and keys.value in ("", "~", "null")):
        return ()
    raise _BadValueError(keys, "`keys:` must be a list: each key begins with a dash")


def _key(node: Node, path: str) -> ApiKey:
    if not isinstance(node, Fields):
        raise _BadValueError(node, "a key is written as `name: ...` and `hash: ...`")
    for word, _ in node.fields:
        if word.value not in _KEY_FIELDS:
            raise _BadValueError(word, f"{_word(word)} is not known here{_near(word.value)}")
    name = node.get("name")
    if name is None:
        raise _BadValueError(node, "this key has no name")
    hashed = node.get("hash")
    if hashed is None:
        raise _BadValueError(node, "this key has no hash; `meshd keys add NAME` makes both")
    models = node.get("models")
    expires = node.get("expires")
    return ApiKey(
        name=_name(name),
        digest=_hash(hashed),
        models=_models(models) if models else (),
        rate=_quota(node, "rate"),
        concurrency=_number(node, "concurrency", 1, _MAX_CONCURRENCY),
        tokens=_quota(node, "tokens"),
        priority=_number(node, "priority", LEAST_PRIORITY, MOST_PRIORITY),
        expires_s=_value(expires, "expires", parse_expiry) if expires else None,
        place=f"{path}:{node.span.line}",
    )


def parse_expiry(text: str) -> float:
    """Unix time of the end of a day in UTC, or of a moment with its time zone.

    :raises ValueError: neither.
    """
    form = "write a day such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z"
    try:
        if len(text) == 10:
            day = date.fromisoformat(text)
            after = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
            return after.timestamp()
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(form) from None
    if moment.tzinfo is None:
        raise ValueError(f"{form}, with its Z")
    return moment.timestamp()


def _name(node: Node) -> str:
    if not isinstance(node, Text) or not named_well(node.value):
        raise _BadValueError(
            node, "a name has up to 64 letters, digits and .-_@, and begins with one of the first"
        )
    return node.value


def _hash(node: Node) -> bytes:
    found = _HASH.fullmatch(node.value) if isinstance(node, Text) else None
    if found is None:
        raise _BadValueError(
            node,
            "this is no hash; is it a key itself? A file holds `sha256:` and 64 hex digits, which "
            "`meshd keys hash` makes of a key; whoever could read this file may have the key",
        )
    return bytes.fromhex(found.group(1))


def _models(node: Node) -> tuple[str, ...]:
    items = node.items if isinstance(node, Items) else (node,)
    if not items or len(items) > _MAX_MODELS:
        message = f"models must have 1 to {_MAX_MODELS} names; without it, all are allowed"
        raise _BadValueError(node, message)
    names = []
    for item in items:
        if not isinstance(item, Text) or not 0 < len(item.value) <= 200:
            raise _BadValueError(item, "the name of a model, or a pattern such as qwen*, is meant")
        names.append(item.value)
    return tuple(names)


def _quota(node: Fields, field: str) -> Quota | None:
    value = node.get(field)
    return _value(value, field, parse_quota) if value else None


def _value(node: Node, field: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(node.value if isinstance(node, Text) else "")
    except ValueError as error:
        raise _BadValueError(node, f"{field}: {error}") from None


def _number(node: Fields, field: str, least: int, most: int) -> int:
    value = node.get(field)
    if value is None:
        return 0
    text = value.value if isinstance(value, Text) and value.plain else ""
    if not re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        raise _BadValueError(value, f"{field} must be a number from {least} to {most}")
    return int(text)


def _said(path: str, error: _BadValueError) -> str:
    span = error.node.span
    return f"{path}:{span.line}:{span.column}: {error.message}"


def _word(node: Text) -> str:
    """A word of the file, unless it may be something that is not to be shown."""
    return f"`{node.value}`" if _WORD.fullmatch(node.value) else "this word"


def _near(word: str) -> str:
    near = get_close_matches(word[:64].lower(), _KEY_FIELDS, n=1)
    return f"; did you mean `{near[0]}`?" if near else f" ({', '.join(_KEY_FIELDS)})"


def entries(path: str, data: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, first line and the line behind the last of each key in a file that is in order."""
    for node in _listed(read_nodes(data)):
        if isinstance(node, Fields):
            yield _key(node, path).name, node.span.line, _last_line(node) + 1


def _last_line(node: Node) -> int:
    """Of its last word: by YAML, what follows up to the next value belongs to it, comments too."""
    if isinstance(node, Text):
        return node.span.end_line - (node.span.end_column == 1)
    inner = node.items if isinstance(node, Items) else [value for _, value in node.fields]
    return max([node.span.line, *map(_last_line, inner)])
