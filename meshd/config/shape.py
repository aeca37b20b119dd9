"""The second layer of checks: does one file have the shape that the schema wants?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from meshd.config.findings import Finding, Mark, finding
from meshd.config.schema import is_list_change, validator
from meshd.config.shape_words import MAX_COMPLAINTS, Complaint, explain, schema_of
from meshd.config.tree import ListNode, MapNode, Path, at, plain, without

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

MAX_FINDINGS = MAX_COMPLAINTS
_ATTEMPTS = 6


def check(tree: MapNode, texts: Mapping[str, str]) -> tuple[MapNode | None, list[Finding]]:
    """Check one file's tree.

    :returns: what of the tree is in order (None when that cannot be told), and the findings.
    """
    findings: list[Finding] = []
    rest: MapNode = tree
    for attempt in range(_ATTEMPTS):
        found, wrong = _faults(rest, texts)
        if not wrong:
            return rest, findings
        if attempt == 0:
            findings = found
            if len(found) >= MAX_FINDINGS:
                break
        # To cut out what is wrong can leave something incomplete: that is cut out next, in silence.
        cut = without(rest, frozenset(wrong))
        if not isinstance(cut, MapNode):
            break
        rest = cut
    return None, findings


def _faults(tree: MapNode, texts: Mapping[str, str]) -> tuple[list[Finding], set[Path]]:
    findings: dict[Finding, None] = {}
    wrong: set[Path] = set()
    for error in islice(_leaves(validator().iter_errors(_json(tree))), MAX_FINDINGS):
        path = tuple(error.absolute_path)
        for complaint in explain(error, at(tree, path)):
            mark = _mark(tree, path, complaint)
            findings[finding(mark, complaint.message, texts, hint=complaint.hint)] = None
            wrong.add((*path, complaint.key) if complaint.key is not None else path)
            if len(findings) >= MAX_FINDINGS:
                return list(findings), wrong
    return list(findings), wrong


def _json(tree: MapNode) -> Any:
    return plain(tree)


def _leaves(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """Errors with every anyOf replaced by those of the branch that was meant, if one can be."""
    for error in errors:
        branch = _meant(error) if error.validator == "anyOf" else None
        if branch is None:
            yield error
        else:
            yield from _leaves(branch)


def _meant(error: ValidationError) -> list[ValidationError] | None:
    branches: dict[int, list[ValidationError]] = {}
    for sub in error.context or ():
        branches.setdefault(int(sub.schema_path[0]), []).append(sub)
    fitting = [
        branch
        for branch in branches.values()
        if not any(sub.validator in ("type", "const") and not sub.relative_path for sub in branch)
    ]
    if len(fitting) != 1:
        return None
    unknown = any(
        sub.validator == "additionalProperties" and is_list_change(schema_of(sub))
        for sub in fitting[0]
    )
    if (
        unknown
        and isinstance(error.instance, dict)
        and not {"merge", "replace"} & set(error.instance)
    ):
        return None  # a mapping where a list belongs: to list its keys would lead astray
    return fitting[0]


def _mark(tree: MapNode, path: Path, complaint: Complaint) -> Mark:
    node = at(tree, path)
    if complaint.key is not None:
        if isinstance(node, MapNode) and isinstance(complaint.key, str):
            entry = node.entry(complaint.key)
            if entry is not None:
                return entry.mark
        if isinstance(node, ListNode) and isinstance(complaint.key, int):
            return node.items[complaint.key].mark
    if complaint.at_key and path and isinstance(path[-1], str):
        parent = at(tree, path[:-1])
        entry = parent.entry(path[-1]) if isinstance(parent, MapNode) else None
        if entry is not None:
            return entry.mark
    return node.mark
