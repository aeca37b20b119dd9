"""What the gateway must know of a request's body: the model it names, and nothing else."""

from __future__ import annotations

import msgspec


class BadBodyError(ValueError):
    """:ivar param: the field at fault, None when it is the document itself."""

    def __init__(self, message: str, *, param: str | None = None, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class _Named(msgspec.Struct):
    # Raw: a wrong type here is our own message, not the decoder's.
    model: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Named)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def model_of(body: bytes) -> str:
    """The `model` that the body asks for.

    The rest is skipped, not built, so that 64 MiB of base64 take about 45 ms and no memory, and
    nesting deeper than the interpreter's limit is refused before any engine sees it.

    :raises BadBodyError: not a JSON object, or no usable `model`.
    """
    try:
        raw = _decoder.decode(body).model
        model = msgspec.json.decode(raw)
    except RecursionError:
        raise BadBodyError("the request body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError:
        raise BadBodyError("the request body must be a JSON object", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBodyError(f"the request body is not JSON: {error}", code="invalid_json") from None
    if model is None:
        raise BadBodyError(
            "you must provide a model parameter", param="model", code="missing_required_parameter"
        )
    if not isinstance(model, str):
        raise BadBodyError("model must be a string", param="model", code="invalid_type")
    return model


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
