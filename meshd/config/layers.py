"""From the texts of all files to one `Config`. Pure: the same texts give the same result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshd.config import meaning, shape, syntax
from meshd.config.build import build
from meshd.config.findings import (
    ConfigError,
    Finding,
    Mark,
    Severity,
    SourceFile,
    in_order,
)
from meshd.config.merge import DEFAULT_MARK, merge
from meshd.config.settings import Config
from meshd.config.tree import ListNode, MapNode, Node, Scalar, plain

Origin = Mark
"""Where a value comes from: file, line and column."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used.

    :ivar findings: warnings and notes only.
    :ivar origins: by path, such as ``node.reserve.vram``, ``models[tiny].slots`` and
        ``gateway.listen[0]``; what is not there has its built-in default.
    :ivar files: what was read, lowest layer first; `parse_layers` of these gives the same again.
    """

    config: Config
    findings: tuple[Finding, ...]
    origins: Mapping[str, Origin]
    files: tuple[SourceFile, ...]


def parse_layers(files: Sequence[SourceFile]) -> Loaded:
    """Parse, check and merge files, the lowest layer first.

    :raises ConfigError: with all findings, when any of them is an error.
    """
    texts = {file.path: file.text for file in files}
    findings: list[Finding] = []
    trees: list[MapNode] = []
    for file in files:
        tree, found = syntax.parse(file)
        findings += found
        if tree is not None:
            tree, found = shape.check(tree, texts)
            findings += found
        if tree is not None:
            trees.append(tree)
    if len(trees) < len(files):
        # What a lost file said is unknown: to judge the rest without it would be guesswork.
        raise ConfigError(in_order(findings, files))
    merged, found = merge(trees, texts)
    findings += found
    whole, found = meaning.complete(merged, texts)
    findings += found
    data = plain(whole)
    assert isinstance(data, dict)
    config = build(data)
    findings += meaning.check(config, whole, texts)
    if any(one.severity is Severity.ERROR for one in findings):
        raise ConfigError(in_order(findings, files))
    return Loaded(config, in_order(findings, files), dict(_origins(whole, "")), tuple(files))


def _origins(node: Node, path: str) -> Iterator[tuple[str, Origin]]:
    if isinstance(node, MapNode):
        if not node.entries and path and node.mark != DEFAULT_MARK:
            yield path, node.mark  # such as `calibration: {}`
        for entry in node.entries:
            below = f"{path}.{entry.key}" if path else entry.key
            yield from _origins(entry.value, below)
        return
    if node.mark != DEFAULT_MARK:
        yield path, node.mark
    if isinstance(node, ListNode):
        for index, item in enumerate(node.items):
            name = item.get("name") if isinstance(item, MapNode) else None
            key = name.value if isinstance(name, Scalar) else index
            yield from _origins(item, f"{path}[{key}]")
