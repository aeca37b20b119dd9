"""What a client may ask in more ways than llama-server understands. Pure.

All else passes byte for byte, and most requests do so as a whole.
"""

from __future__ import annotations

from meshd.gateway.ask import Ask
from meshd.gateway.request_body import with_field
from meshd.gateway.tool_choice import with_chosen_tools


def in_engine_words(path: str, body: bytes, ask: Ask) -> bytes:
    """:param path: of the endpoint. :param ask: what `read` made of the body.

    :raises BadBodyError: it chooses a tool that is not there.
    """
    if ask.tools.names is not None:
        body = with_chosen_tools(path, body, ask.tools)
    if ask.answer_format:
        body = with_field(body, "response_format", ask.answer_format)
    return body
