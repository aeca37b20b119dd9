"""The form of an answer, in the words that llama-server understands. Pure.

llama-server 0.7 (measured) does not heed `text.format` of Responses, but heeds Chat Completions'
`response_format` there. In Messages it heeds neither that nor Anthropic's `output_config.format`,
so there nothing can be done.

Shapes: OpenAI's references of both ("Structured Outputs").
"""

from __future__ import annotations

import msgspec

RESPONSES = "/v1/responses"

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Format(msgspec.Struct):
    type: str = ""
    name: msgspec.Raw = msgspec.Raw(b'"answer"')
    schema: msgspec.Raw = msgspec.Raw(b"{}")
    strict: msgspec.Raw = msgspec.Raw(b"null")


class _Text(msgspec.Struct):
    format: _Format


_text = msgspec.json.Decoder(_Text)


def answer_format(path: str, raw: msgspec.Raw) -> bytes:
    """The `response_format` that says the same, b"" where there is nothing to say.

    :param path: of the endpoint. :param raw: the body's `text`.
    """
    if path != RESPONSES or bytes(memoryview(raw)[:1]) != b"{":
        return b""
    try:
        form = _text.decode(raw).format
    except _NOT_JSON:
        return b""  # not what the endpoint takes; the engine will say so
    if form.type == "json_object":
        return b'{"type":"json_object"}'
    if form.type != "json_schema":
        return b""
    schema = {"name": form.name, "schema": form.schema, "strict": form.strict}
    return msgspec.json.encode({"type": "json_schema", "json_schema": schema})
