"""A `NodeRecord` as MessagePack: strict about types and meaning, deaf to fields it does not know.

Maps by field name; a field that has its default is left out, which halves a usual record.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgspec

from meshd.mesh.record import RECORD_MAX_BYTES, NodeRecord

TEXT_MAX = 512
LIST_MAX = 256
NUMBER_MAX = 2**63 - 1

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(NodeRecord)

_TRIMS: tuple[tuple[str, int], ...] = (
    ("rtt", 16),
    ("leases", 32),
    ("shards", 16),
    ("intents", 32),
    ("load", 64),
    ("held", 64),
    ("offers", 64),
    ("rtt", 0),
    ("wishes", 32),
    ("held", 16),
    ("offers", 32),
    ("load", 16),
    ("held", 0),
    ("offers", 8),
    ("wishes", 8),
    ("assignments", 16),
    ("load", 0),
    ("devices", 16),
    ("offers", 0),
    ("addresses", 4),
    ("shards", 0),
    ("leases", 0),
    ("intents", 0),
    ("wishes", 0),
    ("assignments", 0),
    ("devices", 0),
)
"""What a record that is too long does without, the least missed first: field, how many stay.

Without an intent its split ends, and without a lease that of another node: later than offers, which
only keep from the node what is new.
"""


class BadRecordError(ValueError):
    """A record that cannot be believed; the message says why in one line."""


def encode_record(record: NodeRecord) -> bytes:
    """The record as it is published.

    :raises BadRecordError: it would be refused by whoever reads it.
    """
    _check(record)
    data = _encoder.encode(_lean(record))
    if len(data) > RECORD_MAX_BYTES:
        raise BadRecordError(f"record: {len(data)} bytes, at most {RECORD_MAX_BYTES} may be sent")
    return data


def decode_record(data: bytes, node: str) -> NodeRecord:
    """:param node: whose record it must be, by the key that signed it.

    :raises BadRecordError: not a record, of somebody else, or with values that cannot be.
    """
    if len(data) > RECORD_MAX_BYTES:
        raise BadRecordError(f"record of {node}: {len(data)} bytes are too many")
    try:
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRecordError(f"record of {node}: {error}") from None
    if record.id != node:
        raise BadRecordError(f"record of {node}: says that it is of {record.id[:64]!r}")
    _check(record)
    return record


def bounded(record: NodeRecord) -> NodeRecord:
    """The record, cut until it may be published: texts, lists, then what is missed least.

    Numbers that cannot be stay: `encode_record` refuses them.
    """
    record = _cut(record)
    for name, keep in _TRIMS:
        if len(_encoder.encode(_lean(record))) <= RECORD_MAX_BYTES:
            break
        record = dataclasses.replace(record, **{name: getattr(record, name)[:keep]})
    return record


def _lean(value: Any) -> Any:
    if type(value) is tuple:
        return [_lean(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    return {
        name: _lean(found)
        for name, default in _fields(type(value))
        if (found := getattr(value, name)) is not default and found != default
    }


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        text = value if value.isprintable() else "".join(c for c in value if c.isprintable())
        return type(value)(text[:TEXT_MAX])
    if isinstance(value, tuple):
        return tuple(_cut(one) for one in value[:LIST_MAX])
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    return dataclasses.replace(
        value, **{name: _cut(getattr(value, name)) for name, _ in _fields(type(value))}
    )


def _check(record: NodeRecord) -> None:
    _check_value(record, "record")
    if not record.id:
        raise BadRecordError("record: has no id")
    if any(assignment.progress > 1 for assignment in record.assignments):
        raise BadRecordError("record: an assignment's progress is beyond 1")
    if any(max(shard.progress, shard.mass) > 1 for shard in record.shards):
        raise BadRecordError("record: a shard's progress or share is beyond 1")
    measured = [fidelity for shard in record.shards for fidelity in shard.measured]
    measured += [fidelity for offer in record.offers for fidelity in offer.measured]
    measured += [fidelity for one in record.assignments for fidelity in one.measured]
    if any(fidelity.top1 > 1 for fidelity in measured):
        raise BadRecordError("record: more than all tokens agree")
    for name, keys in (
        ("devices", [device.id for device in record.devices]),
        ("offers", [offer.model for offer in record.offers]),
        ("assignments", [assignment.model for assignment in record.assignments]),
        ("wishes", [wish.model for wish in record.wishes]),
        ("shards", [shard.model for shard in record.shards]),
    ):
        if len(keys) != len(set(keys)):
            raise BadRecordError(f"record: {name} name the same thing twice")
        if "" in keys:
            raise BadRecordError(f"record: {name} have one without a name")


def _check_value(value: Any, place: str) -> None:
    kind = type(value)
    if kind is int:
        if not 0 <= value <= NUMBER_MAX:
            raise BadRecordError(f"{place}: {value} is out of range")
    elif kind is float:
        if not math.isfinite(value) or value < 0:
            raise BadRecordError(f"{place}: {value} is no measure")
    elif isinstance(value, str):
        if len(value) > TEXT_MAX or not value.isprintable():
            raise BadRecordError(f"{place}: a text that is too long or cannot be printed")
    elif kind is tuple:
        if len(value) > LIST_MAX:
            raise BadRecordError(f"{place}: {len(value)} are too many")
        for one in value:
            _check_value(one, place)
    elif dataclasses.is_dataclass(value):
        for name, _ in _fields(kind):
            _check_value(getattr(value, name), name)


_FIELDS: dict[type, tuple[tuple[str, Any], ...]] = {}


def _fields(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Name and default of each field of a dataclass."""
    found = _FIELDS.get(kind)
    if found is None:
        found = tuple((field.name, field.default) for field in dataclasses.fields(kind))
        _FIELDS[kind] = found
    return found
