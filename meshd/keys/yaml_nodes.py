"""A small YAML file as nodes that know their place: no tags, no anchors, bounded in every way.

The configuration has a reader of its own, which the gateway has no part in; this one is for files
of a fixed, flat form, and makes nothing but text, lists and mappings.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

MAX_BYTES = 256 * 1024
_MAX_DEPTH = 6

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class BadYamlError(ValueError):
    """:ivar line: from 1, with `column`; 0 for the file as a whole."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Span:
    """Where a value stands: lines and columns from 1, the end behind it."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Text:
    """:ivar plain: it stands without quotes."""

    value: str
    span: Span
    plain: bool


@dataclass(frozen=True, slots=True)
class Items:
    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Fields:
    """:ivar fields: keys and values in their order; no key is there twice."""

    fields: tuple[tuple[Text, Node], ...]
    span: Span

    def get(self, name: str) -> Node | None:
        return next((value for key, value in self.fields if key.value == name), None)


Node = Text | Items | Fields


def read_nodes(data: bytes) -> Node | None:
    """What a file holds; None where that is nothing.

    :raises BadYamlError: not UTF-8, too large, or not the YAML that is meant here.
    """
    if len(data) > MAX_BYTES:
        raise BadYamlError(f"larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
        _check_events(text)
        node = yaml.compose(text, Loader=_LOADER)
    except UnicodeDecodeError as error:
        raise BadYamlError("not UTF-8", data[: error.start].count(b"\n") + 1, 1) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join((error.problem or "not YAML").split())[:200]
        raise BadYamlError(
            message, mark.line + 1 if mark else 0, mark.column + 1 if mark else 0
        ) from None
    except (yaml.YAMLError, RecursionError):
        raise BadYamlError("not YAML") from None
    return None if node is None else _node(node)


def _check_events(text: str) -> None:
    """Before anything is built of it."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_LOADER):
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise BadYamlError("a second YAML document begins here", line, column)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise BadYamlError("anchors and aliases (& and *) have no place here", line, column)
        if getattr(event, "tag", None):
            raise BadYamlError("tags (!) have no place here", line, column)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise BadYamlError(f"nested more than {_MAX_DEPTH} levels deep", line, column)


def _node(node: yaml.Node) -> Node:
    span = _span(node)
    if isinstance(node, yaml.SequenceNode):
        return Items(tuple(_node(item) for item in node.value), span)
    if isinstance(node, yaml.MappingNode):
        fields: list[tuple[Text, Node]] = []
        for key, value in node.value:
            name = _node(key)
            if not isinstance(name, Text):
                raise BadYamlError("a key must be a plain word", name.span.line, name.span.column)
            if any(name.value == before.value for before, _ in fields):
                message = "this word is set a second time here"
                raise BadYamlError(message, name.span.line, name.span.column)
            fields.append((name, _node(value)))
        return Fields(tuple(fields), span)
    return Text(str(node.value), span, not getattr(node, "style", None))


def _span(node: yaml.Node) -> Span:
    start, end = node.start_mark, node.end_mark
    return Span(start.line + 1, start.column + 1, end.line + 1, end.column + 1)
