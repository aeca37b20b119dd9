"""What to ask another engine so that it goes on with a broken stream.

Two ways, both measured with llama-server 0.7. *Prefill*: the text so far becomes the beginning of
the assistant's answer; quick, and equal to an unbroken run but for rounding (a prompt read in
batches is not computed bit by bit like tokens made one by one). *Replay*: the same request again,
whose answer is compared with what was sent and only then passed on; exact wherever the engine
repeats itself, that is for greedy and for seeded sampling, and the only way under a grammar, which
cannot begin in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import msgspec

from meshd.gateway.stream_end import closing
from meshd.gateway.transcript import CHAT, COMPLETIONS, MESSAGES, Told

# The client waits about as long again as the first engine wrote.
REPLAY_S = 10.0
# llama-server's "choose a seed yourself".
_NO_SEED = 0xFFFFFFFF
_LIMITS = ("n_predict", "max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Continuation:
    """A request for the same path. :ivar replays: its answer begins at the beginning."""

    body: bytes
    replays: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The text is complete; nobody need be asked. :ivar events: what the client still lacks."""

    events: bytes


@dataclass(frozen=True, slots=True)
class CannotResume:
    """:ivar reason: for people, to follow "because"."""

    reason: str


Plan = Continuation | Finished | CannotResume

_Request = dict[str, msgspec.Raw]
_request_decoder = msgspec.json.Decoder(_Request)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


class _UnfitError(Exception):
    """Says why the text so far cannot be put into the request."""


def continuation(body: bytes, told: Told, *, spent_s: float = 0.0, replay: bool = True) -> Plan:
    """How to go on with a stream.

    :param body: the request as the first engine got it.
    :param told: what the client was sent, by that engine and those after it.
    :param spent_s: since the first event: about what a replay takes.
    :param replay: False once a replay said something else than the first engine.
    """
    if told.unknown:
        return CannotResume(told.unknown)
    if told.finish or told.done:
        return Finished(closing(told, by_limit=False))
    if told.tools:
        return CannotResume("half of a tool call was sent already")
    try:
        request = _request_decoder.decode(body)
        if told.choices > 1 or _several(request):
            return CannotResume("several answers were asked for at once")
        constrained = _constrained(request)
        if replay and _repeatable(request) and (constrained or spent_s <= REPLAY_S):
            return Continuation(body, replays=True)
        if constrained:
            return CannotResume("its constraints cannot begin in the middle without a seed")
        if not told.text and not told.reasoning:
            return Continuation(body)
        if not _shorten(request, told):
            return Finished(closing(told, by_limit=True))
        _prefill(request, told)
    except _UnfitError as why:
        return CannotResume(str(why))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return CannotResume("its request is of a kind that is not known")
    return Continuation(msgspec.json.encode(request))


def hopeless(status: int) -> bool:
    """Whether an engine's refusal of a continuation holds for every other engine too."""
    return (400 <= status < 500 and status not in (404, 408, 429)) or status == 501


def _value(request: _Request, name: str) -> Any:
    raw = request.get(name)
    return None if raw is None else msgspec.json.decode(raw)


def _put(request: _Request, name: str, value: object) -> None:
    request[name] = msgspec.Raw(msgspec.json.encode(value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _several(request: _Request) -> bool:
    for name in ("n", "n_cmpl"):
        count = _value(request, name)
        if _is_number(count) and count > 1:
            return True
    prompt = request.get("prompt")
    if prompt is None or not bytes(prompt).lstrip().startswith(b"["):
        return False
    parts = _list_decoder.decode(prompt)
    # llama-server: numbers, alone or among strings, are one prompt; else each part is one.
    return len(parts) > 1 and not any(bytes(part)[:1] in b"-0123456789" for part in parts)


def _constrained(request: _Request) -> bool:
    """Whether a grammar holds from the first token on; that of tools a model may call does not."""
    if _value(request, "grammar") or _value(request, "json_schema") is not None:
        return True
    shape = _value(request, "response_format")
    text = _value(request, "text")
    for wanted in (shape, text.get("format") if isinstance(text, dict) else None):
        if isinstance(wanted, dict) and wanted.get("type") not in (None, "", "text"):
            return True
    choice = _value(request, "tool_choice")
    if isinstance(choice, dict):
        return choice.get("type") not in ("auto", "none")
    return bool(choice == "required")


def _repeatable(request: _Request) -> bool:
    """Whether the engine says the same again: greedy, or with a seed."""
    temperature, top_k, seed = (_value(request, name) for name in ("temperature", "top_k", "seed"))
    if (_is_number(temperature) and temperature <= 0) or top_k == 1:
        return True
    return isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < _NO_SEED


def _shorten(request: _Request, told: Told) -> bool:
    """Take off what was sent from all limits. :returns: whether anything is left.

    Not from budgets of thoughts: the engine counts those that it is given, too (measured).
    """
    for name in _LIMITS:
        limit = _value(request, name)
        if _is_number(limit) and limit >= 0:
            if limit <= told.tokens:
                return False
            _put(request, name, limit - told.tokens)
    return True


def _prefill(request: _Request, told: Told) -> None:
    if told.path == COMPLETIONS:
        _prefill_prompt(request, told)
        return
    if _value(request, "reasoning_format") not in (None, "auto", "deepseek"):
        raise _UnfitError("its thoughts were sent as text")
    # The engine puts a line's end before that of the thoughts itself.
    thoughts = told.reasoning.removesuffix("\n") if told.text else told.reasoning
    if told.path == CHAT:
        _prefill_chat(request, told.text, thoughts)
    elif told.path == MESSAGES:
        _prefill_messages(request, told.text, thoughts)
    else:
        _prefill_input(request, told.text, thoughts)


def _prefill_prompt(request: _Request, told: Told) -> None:
    prompt = _value(request, "prompt")
    if isinstance(prompt, str):
        prompt += told.text
    elif isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0] + told.text
    elif isinstance(prompt, list) and prompt and not isinstance(prompt[0], list | dict):
        prompt = [*prompt, told.text]
    elif isinstance(prompt, dict) and isinstance(prompt.get("prompt_string"), str):
        prompt["prompt_string"] += told.text
    else:
        raise _UnfitError("its prompt is of a kind that is not known")
    _put(request, "prompt", prompt)


def _last_of(request: _Request, name: str) -> tuple[list[msgspec.Raw], dict[str, Any]]:
    """The messages, and the last one if it is a beginning that the client itself gave."""
    raw = request.get(name)
    if raw is None:
        raise _UnfitError("its request has no messages")
    entries = _list_decoder.decode(raw)
    last = msgspec.json.decode(entries[-1]) if entries else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        if _value(request, "echo"):
            raise _UnfitError("the beginning that the client gave was echoed")
        return entries[:-1], last
    return entries, {}


def _store(request: _Request, name: str, entries: list[msgspec.Raw], *more: object) -> None:
    added = [msgspec.Raw(msgspec.json.encode(one)) for one in more]
    request[name] = msgspec.Raw(msgspec.json.encode([*entries, *added]))


def _append(content: Any, text: str, kind: str) -> Any:
    """A message's content, a string or a list of parts, with more text at its end."""
    if not text:
        return content
    if content is None or isinstance(content, str):
        return (content or "") + text
    if not isinstance(content, list):
        raise _UnfitError("its last message is of a kind that is not known")
    last = content[-1] if content else None
    if isinstance(last, dict) and last.get("type") == kind and isinstance(last.get("text"), str):
        return [*content[:-1], {**last, "text": last["text"] + text}]
    return [*content, {"type": kind, "text": text}]


def _prefill_chat(request: _Request, text: str, thoughts: str) -> None:
    entries, message = _last_of(request, "messages")
    if message:
        if message.get("tool_calls") or (thoughts and message.get("content")):
            raise _UnfitError("its last message cannot be gone on with")
    elif _value(request, "continue_final_message") or _value(request, "add_generation_prompt") is (
        False
    ):
        raise _UnfitError("the client laid out the answer's beginning itself")
    message = {"role": "assistant", "content": "", **message}
    message["content"] = _append(message["content"], text, "text")
    if thoughts:
        message["reasoning_content"] = (message.get("reasoning_content") or "") + thoughts
    _store(request, "messages", entries, message)


def _prefill_messages(request: _Request, text: str, thoughts: str) -> None:
    entries, message = _last_of(request, "messages")
    if message:
        if thoughts:
            raise _UnfitError("its last message cannot be gone on with")
        message["content"] = _append(message.get("content"), text, "text")
    elif thoughts:
        content = [{"type": "thinking", "thinking": thoughts, "signature": ""}]
        message = {"role": "assistant", "content": _append(content, text, "text")}
    else:
        message = {"role": "assistant", "content": text}
    _store(request, "messages", entries, message)


def _prefill_input(request: _Request, text: str, thoughts: str) -> None:
    given = request.get("input")
    if given is not None and bytes(given).lstrip().startswith(b'"'):
        _put(request, "input", [{"role": "user", "content": _value(request, "input")}])
    entries, message = _last_of(request, "input")
    last = msgspec.json.decode(entries[-1]) if entries and not message else None
    if isinstance(last, dict) and last.get("type") in ("function_call", "reasoning"):
        raise _UnfitError("its last item cannot be gone on with")  # the engine would merge them
    if message and thoughts:
        raise _UnfitError("its last message cannot be gone on with")
    more: list[object] = []
    if thoughts:
        part = {"type": "reasoning_text", "text": thoughts}
        more.append({"type": "reasoning", "summary": [], "content": [part]})
    if text or message:
        message = {"type": "message", "role": "assistant", "content": [], **message}
        message["content"] = _append(message["content"], text, "output_text")
        more.append(message)
    _store(request, "input", entries, *more)
