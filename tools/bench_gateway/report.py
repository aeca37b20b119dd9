"""The table's place in docs/benchmarks.md: between two marks, so that a new run replaces it."""

from __future__ import annotations

from pathlib import Path

from meshd.files import write_atomically

_BEGIN = "<!-- begin: make bench-gateway ARGS=--write -->"
_END = "<!-- end: make bench-gateway -->"


def write_section(document: Path, text: str) -> None:
    """:raises ValueError: the document has not both marks, in order."""
    write_atomically(document, replaced(document.read_text(), text).encode())


def replaced(document: str, text: str) -> str:
    """The document with the text between its marks.

    :raises ValueError: it has not both, in order.
    """
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"docs/benchmarks.md lacks {_BEGIN} or, after it, {_END}")
    return f"{before}{begin}\n{text}\n{end}{after}"
