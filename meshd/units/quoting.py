"""How a value is written in a unit file so that systemd reads back exactly it. Pure.

Rules: systemd.syntax(7) "Quoting", systemd.service(5) "Command lines", systemd.unit(5)
"Specifiers".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_@:,./=+-]+")
_NAMED_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "%": "%%"}
_FLAG = re.compile(r"--?[A-Za-z]")


def quote(word: str) -> str:
    """One word of ``ExecStart=:``, ``Environment=`` or ``LogExtraFields=``.

    ``$`` stays as it is: the ``:`` prefix switches variables off, and the other two have none.

    :raises ValueError: for a NUL byte, which no argument can hold.
    """
    if "\0" in word:
        raise ValueError(f"a NUL byte cannot be an argument: {word!r}")
    if _PLAIN.fullmatch(word):
        return word
    return '"' + "".join(map(_escape, word)) + '"'


def _escape(character: str) -> str:
    if character in _NAMED_ESCAPES:
        return _NAMED_ESCAPES[character]
    if character.isprintable():
        return character
    # Controls, odd separators, and bytes that are no UTF-8 (Python's surrogates): byte by byte.
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def quote_path(path: str) -> str:
    """One path of ``BindReadOnlyPaths=``, where a colon would begin the destination.

    :raises ValueError: for characters that this setting cannot carry in every version of systemd.
    """
    if not path.startswith("/") or not path.isprintable() or set(path) & set("\\\"'"):
        raise ValueError(f"not a path that a unit can bind: {path!r}")
    escaped = path.replace("%", "%%").replace(":", "\\:")
    return f'"{escaped}"' if " " in path else escaped


def plain(text: str) -> str:
    """A value that is not split into words (``Description=``): one line, specifiers off."""
    return "".join(c if c.isprintable() else " " for c in text).strip().replace("%", "%%")


def command(argv: Sequence[str]) -> str:
    """A command line over several lines, one flag with its values on each, for people to read."""
    return " \\\n    ".join(" ".join(map(quote, group)) for group in _by_flag(argv))


def _by_flag(argv: Sequence[str]) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    for word in argv:
        if group and _FLAG.match(word):
            yield tuple(group)
            group = []
        group.append(word)
    if group:
        yield tuple(group)
