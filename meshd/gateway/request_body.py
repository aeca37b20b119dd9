"""Changes one field of a request's body; every other value keeps its very bytes."""

from __future__ import annotations

import msgspec


class BadBodyError(ValueError):
    """:ivar param: the field at fault, None when it is the document itself."""

    def __init__(self, message: str, *, param: str | None = None, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_model(body: bytes, model: str) -> bytes:
    """The same body asking for another model; every other value keeps its very bytes.

    :raises BadBodyError: a field's name is not Unicode.
    """
    return with_field(body, "model", msgspec.json.encode(model))


def with_field(body: bytes, name: str, value: bytes) -> bytes:
    """The same body with one field set, likewise. :param value: as JSON."""
    try:
        fields = _fields.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBodyError(f"the request body is not JSON: {error}", code="invalid_json") from None
    fields[name] = msgspec.Raw(value)
    return msgspec.json.encode(fields)
