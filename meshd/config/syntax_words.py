"""libyaml's and PyYAML's complaints in words that lead to the mistake."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

_PLAIN_WORDS = (
    ("found unexpected end of stream", "the quote that opens here is never closed", ""),
    ("found unknown escape", "an unknown escape after \\", "use single quotes for a literal \\"),
    ("could not find expected ':'", "a colon is missing after this key", ""),
    ("did not find expected '-' indicator", "this line should be an item beginning with `- `", ""),
    ("did not find expected ',' or ']'", "the list that [ opens here is not closed by ]", ""),
    ("did not find expected ',' or '}'", "the mapping that { opens here is not closed by }", ""),
    ("did not find expected key", "the indentation fits no line above", "use two spaces a level"),
    ("block sequence entries are not allowed", "a list item cannot begin here", ""),
    ("did not find expected node content", "a value cannot begin like this", "put it in quotes"),
    ("found incompatible YAML document", "unknown YAML version", "delete the %YAML line"),
    ("found unexpected ':'", "a space is missing after the colon", ""),
    # libyaml since 0.2.6 has a limit of its own, above ours, and reads ahead of its events.
    ("exceeded maximum nesting depth", "nested a thousand levels deep", ""),
    ("found unknown directive name", "a line cannot begin with %", "put the value in quotes"),
)
# These name where something was opened; the parser's own mark is where the file ended.
_AT_CONTEXT = ("end of stream", "',' or ']'", "',' or '}'", "an alias", "an anchor")


def explain(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> tuple[int, int, str, str]:
    """Line, column (both from 1), message and hint for what the parser says.

    :param lines: the file's lines.
    """
    problem = str(error.problem or "")
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 0, 0, f"not YAML: {problem}", ""
    said = f"{problem} {error.context}"
    if error.context_mark is not None and any(text in said for text in _AT_CONTEXT):
        mark = error.context_mark
    line = lines[mark.line] if mark.line < len(lines) else ""
    message, hint = _words(problem, str(error.context or ""), line, mark.column)
    return mark.line + 1, mark.column + 1, message, hint


def _words(problem: str, context: str, line: str, column: int) -> tuple[str, str]:
    if "mapping values are not allowed" in problem:
        key = line[:column].strip()
        if ": " in key or key.endswith(":"):
            return "a second `: ` in one line", "put the value in quotes"
        return (
            "a key cannot begin here",
            "is a space missing after the colon, or is the indentation of this line or the one"
            " above off?",
        )
    if "cannot start any token" in problem:
        character = line[column : column + 1]
        if character == "\t" or "\t" in line[: column + 1]:
            return "a tab where YAML wants spaces", "indent with two spaces a level"
        return f"a value cannot begin with {character}", "put it in quotes"
    if "scanning an alias" in context:
        return "a value that begins with * is an alias in YAML", "put it in quotes"
    if "scanning an anchor" in context:
        return "a value that begins with & is an anchor in YAML", "put it in quotes"
    if "expected node content" in problem and not line[column:].strip():
        return "the file ends where a value should be", ""
    for known, message, hint in _PLAIN_WORDS:
        if known in problem:
            return message, hint
    return f"not YAML: {f'{context}, ' if context else ''}{problem}", ""
