"""What is wrong with a configuration, where, and how a person reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache

from meshd.errors import UserError

LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""YAML 1.1's line breaks (section 5.4), which is what the parser's line numbers count."""

_SHOWN_LINE = 120
_SHOWN_FINDINGS = 100
_CLOSE_ENOUGH = 0.72


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One layer's text. :ivar path: as it is to be shown in findings; nothing opens it."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file. Line and column count from 1; line 0 is the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about one place.

    :ivar line: from 1; 0 when the whole file is meant.
    :ivar column: from 1, in characters.
    :ivar hint: the way out, such as a did-you-mean; "" when there is none.
    """

    severity: Severity
    file: str
    line: int
    column: int
    message: str
    source_line: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        prefix = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        head = f"{printable(place)}: {prefix}{self.message}"
        if self.hint:
            head += f" ({self.hint})"
        return "\n".join([head, *_excerpt(self)])


class ConfigError(UserError):
    """A configuration that cannot be used. :ivar findings: everything found, errors first."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = in_order(findings)
        errors = [one for one in self.findings if one.severity is Severity.ERROR]
        files = list(dict.fromkeys(printable(one.file) for one in errors))
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        super().__init__(f"{count} in {', '.join(files) or 'the configuration'}")

    def __str__(self) -> str:
        return report(self.findings)


def report(findings: Sequence[Finding]) -> str:
    """All findings as text, one after the other; beyond a hundred only their number."""
    lines = [str(one) for one in findings[:_SHOWN_FINDINGS]]
    if len(findings) > _SHOWN_FINDINGS:
        lines.append(f"... and {len(findings) - _SHOWN_FINDINGS} more")
    return "\n".join(lines)


def in_order(findings: Iterable[Finding], layers: Iterable[SourceFile] = ()) -> tuple[Finding, ...]:
    """Errors first, then by file and place; files in the order of the layers, then of mention."""
    severities = list(Severity)
    files = {file.path: index for index, file in enumerate(layers)}
    unique = list(dict.fromkeys(findings))
    for one in unique:
        files.setdefault(one.file, len(files))
    return tuple(
        sorted(
            unique,
            key=lambda one: (
                severities.index(one.severity),
                files[one.file],
                one.line,
                one.column,
            ),
        )
    )


def finding(
    mark: Mark,
    message: str,
    texts: Mapping[str, str],
    *,
    hint: str = "",
    severity: Severity = Severity.ERROR,
) -> Finding:
    """Make a finding, with its source line looked up in `texts` (text by file)."""
    source_line = ""
    if mark.line:
        lines = lines_of(texts.get(mark.file, ""))
        source_line = lines[mark.line - 1] if mark.line <= len(lines) else ""
    return Finding(severity, mark.file, mark.line, mark.column, message, source_line, hint)


@lru_cache(maxsize=16)
def lines_of(text: str) -> tuple[str, ...]:
    """A file's lines as the parser counts them; a file has many findings, so it is kept."""
    return tuple(LINE_BREAK.split(text))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the one near word, or "" where the nearest would be a weak guess."""
    candidates = list(known)
    folded = {candidate.lower(): candidate for candidate in candidates}
    near = get_close_matches(word[:64].lower(), folded, n=1, cutoff=_CLOSE_ENOUGH)
    return f"did you mean '{folded[near[0]]}'?" if near else ""


def quoted(value: object) -> str:
    """A value as shown in a message: in double quotes if text, printable, at most 60 characters."""
    if isinstance(value, str):
        shown = printable(value)
        return f'"{shown[:57]}..."' if len(shown) > 60 else f'"{shown}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = printable(str(value))
    return f"{shown[:57]}..." if len(shown) > 60 else shown


def printable(text: str) -> str:
    """Keep escape sequences and line breaks of a hostile file out of a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _excerpt(found: Finding) -> list[str]:
    if not found.line or not found.source_line.strip():
        return []
    at = max(found.column - 1, 0)
    start = max(0, at - _SHOWN_LINE // 2) if len(found.source_line) > _SHOWN_LINE else 0
    window = found.source_line[start : start + _SHOWN_LINE]
    shown = "".join(char if char == "\t" else printable(char) for char in window)
    padding = "".join("\t" if char == "\t" else " " for char in shown[: at - start])
    return [f"  {shown}", f"  {padding}^"]
