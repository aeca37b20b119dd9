"""From bytes to a tree with marks: the first of the three layers of checks.

Only libyaml's event stream is used, never a YAML constructor: no tag makes an object, and depth,
size and aliases are bounded while the tree grows.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from meshd.config.findings import (
    LINE_BREAK,
    ConfigError,
    Finding,
    Mark,
    Severity,
    SourceFile,
    finding,
    printable,
    quoted,
)
from meshd.config.scalars import Ambiguous, resolve
from meshd.config.syntax_words import explain
from meshd.config.tree import Entry, ListNode, MapNode, Node, Scalar

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 24
MAX_VALUES = 20_000
MAX_FINDINGS = 100

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
# YAML 1.1 section 5.1, less what libyaml would refuse without saying where.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decode(path: str, data: bytes) -> SourceFile:
    """Read a file's bytes as UTF-8, with or without a byte order mark.

    :raises ConfigError: too large, or another encoding.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError([too_large(path, len(data))])
    for mark, name in _WIDE:
        if data.startswith(mark):
            raise ConfigError([_encoding(path, f"this file is in {name}, not UTF-8", name)])
    if b"\0" in data:
        where = data.index(b"\0")
        # Every second byte of plain text in UTF-16 is NUL.
        if data.count(b"\0") * 3 > len(data):
            raise ConfigError([_encoding(path, "this file is in UTF-16, not UTF-8", "UTF-16")])
        raise ConfigError([_byte_finding(path, data, where, "a NUL byte", "is this a text file?")])
    try:
        return SourceFile(path, data.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        start = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        what = f"byte 0x{data[start]:02x} is not UTF-8"
        hint = f"if this file is in Latin-1: {_iconv(path, 'LATIN1')}"
        raise ConfigError([_byte_finding(path, data, start, what, hint)]) from None


def too_large(path: str, size_bytes: int) -> Finding:
    return Finding(
        Severity.ERROR,
        path,
        0,
        0,
        f"{size_bytes} bytes is too large for a configuration file, which has at most {MAX_BYTES}",
        hint="is this the right file?",
    )


def parse(file: SourceFile) -> tuple[MapNode | None, list[Finding]]:
    """Parse one file. The tree is None when the text cannot be read as YAML at all.

    An empty file is valid and says nothing: an empty mapping.
    """
    texts = {file.path: file.text}
    if bad := _UNPRINTABLE.search(file.text):
        before = LINE_BREAK.split(file.text[: bad.start()])
        mark = Mark(file.path, len(before), len(before[-1]) + 1)
        hint = "delete it" if bad.group() != "\ufeff" else "two files were joined here; delete it"
        message = f"the character U+{ord(bad.group()):04X} may not stand in YAML"
        return None, [finding(mark, message, texts, hint=hint)]
    builder = _Builder(file.path, texts)
    try:
        for event in yaml.parse(file.text, Loader=_LOADER):
            builder.feed(event)
            if builder.stopped:
                return None, builder.findings
    except yaml.MarkedYAMLError as error:
        lines = LINE_BREAK.split(file.text)
        line, column, message, hint = explain(error, lines)
        mark = Mark(file.path, line, column)
        return None, [*builder.findings, finding(mark, message, texts, hint=hint)]
    except yaml.YAMLError as error:
        message = printable(str(error).splitlines()[0])
        return None, [*builder.findings, finding(Mark(file.path), message, texts)]
    return builder.document(), builder.findings


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is still open. Keys and values of a mapping alternate."""

    mark: Mark
    is_map: bool
    anchor: str | None
    children: list[Node] = field(default_factory=list)
    size: int = 1
    height: int = 0


class _Builder:
    """Builds the tree from events without recursion."""

    def __init__(self, path: str, texts: dict[str, str]) -> None:
        self.findings: list[Finding] = []
        self.stopped = False
        self._path = path
        self._texts = texts
        self._open: list[_Frame] = []
        self._anchors: dict[str, tuple[Node, int, int] | None] = {}
        self._documents = 0
        self._root: Node | None = None

    def feed(self, event: yaml.Event) -> None:
        start = event.start_mark
        assert start is not None
        mark = Mark(self._path, start.line + 1, start.column + 1)
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents == 2:
                    self._stop(
                        mark,
                        "a second YAML document begins here; a file holds one",
                        "delete the line, or use a drop-in in mesh.d/",
                    )
            case yaml.ScalarEvent():
                self._check_tag(event.tag, mark)
                plain = event.tag is None and event.implicit[0]
                value = resolve(event.value) if plain else event.value
                self._add(Scalar(mark, value, event.value), event.anchor, 1, 0)
            case yaml.AliasEvent():
                self._alias(event.anchor or "", mark)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._check_tag(event.tag, mark)
                if event.anchor:
                    self._anchors[event.anchor] = None
                is_map = isinstance(event, yaml.MappingStartEvent)
                self._open.append(_Frame(mark, is_map, event.anchor))
                self._check_depth(mark, 0)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._close(self._open.pop())
            case _:
                pass

    def document(self) -> MapNode | None:
        """The finished tree, once the stream has ended."""
        match self._root:
            case None | Scalar(value=None):
                return MapNode(Mark(self._path, 1, 1), ())
            case MapNode():
                return self._root
            case other:
                what = "a list" if isinstance(other, ListNode) else "a single value"
                self._find(
                    other.mark,
                    f"the file must hold sections such as `models:`, not {what}",
                )
                return None

    def _add(self, node: Node, anchor: str | None, size: int, height: int) -> None:
        if anchor:
            self._anchors[anchor] = (node, size, height)
        if not self._open:
            self._root = node
            return
        frame = self._open[-1]
        frame.children.append(node)
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if frame.size > MAX_VALUES:
            self._stop(
                node.mark,
                f"more than {MAX_VALUES} values",
                "do aliases (*name) multiply each other here?",
            )

    def _close(self, frame: _Frame) -> None:
        node: Node
        if frame.is_map:
            node = MapNode(frame.mark, tuple(self._entries(frame.children)))
        else:
            node = ListNode(frame.mark, tuple(frame.children))
        self._add(node, frame.anchor, frame.size, frame.height)

    def _entries(self, children: list[Node]) -> Iterator[Entry]:
        seen: dict[str, Mark] = {}
        for key, value in zip(children[::2], children[1::2], strict=True):
            name = self._key(key)
            if name is None:
                continue
            if name in seen:
                line = seen[name].line
                self._find(
                    key.mark,
                    f"{quoted(name)} is set a second time here, after line {line}",
                    "keep one of the two",
                )
                continue
            seen[name] = key.mark
            yield Entry(name, key.mark, value)

    def _key(self, key: Node) -> str | None:
        if not isinstance(key, Scalar):
            what = "list" if isinstance(key, ListNode) else "mapping"
            self._find(key.mark, f"a key must be a plain word, not a {what}")
        elif isinstance(key.value, Ambiguous):
            reading = f"the key {quoted(key.value.text)} is {key.value.reading}"
            self._find(key.mark, reading, f'if text is meant, write "{key.value.text}" in quotes')
        elif key.value is None:
            self._find(key.mark, "a key is missing before the colon")
        elif not isinstance(key.value, str):
            self._find(key.mark, f"a key must be a plain word, not {quoted(key.value)}")
        elif key.value == "<<":
            self._find(
                key.mark,
                "merge keys (<<) are not supported, as they hide which value counts",
                "write the values out, or use a drop-in in mesh.d/",
            )
        else:
            return key.value
        return None

    def _alias(self, name: str, mark: Mark) -> None:
        if name not in self._anchors:
            self._stop(
                mark,
                f"nothing is named &{printable(name)} above this alias",
                "a value that begins with * must be in quotes",
            )
            return
        target = self._anchors[name]
        if target is None:
            self._stop(mark, f"the alias *{printable(name)} stands inside the value it repeats")
            return
        node, size, height = target
        self._check_depth(mark, height)
        self._add(node, None, size, height)

    def _check_depth(self, mark: Mark, height: int) -> None:
        if len(self._open) + height > MAX_DEPTH:
            self._stop(mark, f"nested more than {MAX_DEPTH} levels deep")

    def _check_tag(self, tag: str | None, mark: Mark) -> None:
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            self._find(
                mark,
                f"tags such as {printable(shown)[:40]} are not supported",
                "to have a value read as text, put it in quotes",
            )

    def _find(self, mark: Mark, message: str, hint: str = "") -> None:
        self.findings.append(finding(mark, message, self._texts, hint=hint))
        self.stopped = self.stopped or len(self.findings) >= MAX_FINDINGS

    def _stop(self, mark: Mark, message: str, hint: str = "") -> None:
        self._find(mark, message, hint)
        self.stopped = True


def _encoding(path: str, message: str, name: str) -> Finding:
    return Finding(Severity.ERROR, path, 0, 0, message, hint=f"convert it: {_iconv(path, name)}")


def _iconv(path: str, name: str) -> str:
    return f"iconv -f {name} -t UTF-8 {printable(path)}"


def _byte_finding(path: str, data: bytes, where: int, what: str, hint: str) -> Finding:
    lines = data.splitlines()
    line = data[:where].count(b"\n") + 1
    column = where - (data.rfind(b"\n", 0, where) + 1) + 1
    source = lines[line - 1].decode("latin-1") if line <= len(lines) else ""
    return Finding(Severity.ERROR, path, line, column, what, source, hint)
