"""How one file's settings lie over those of the files before it.

Mappings merge key by key. A list that a file before has set is changed by saying so:
``{merge: [...]}`` adds to it (models: by name), ``{replace: [...]}`` takes its place. A plain list
there is an error, as nobody could tell which of the two was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshd.config.findings import Finding, Mark, finding, quoted
from meshd.config.settings import Config
from meshd.config.tree import Entry, ListNode, MapNode, Node, Path, Scalar, path_text

DEFAULT_MARK = Mark("default")
_DEFAULTS = Config()
_DEFAULT_LISTS: Mapping[Path, tuple[str, ...]] = {
    ("node", "model_dirs"): _DEFAULTS.node.model_dirs,
    ("gateway", "listen"): _DEFAULTS.gateway.listen,
}


def merge(layers: Sequence[MapNode], texts: Mapping[str, str]) -> tuple[MapNode, list[Finding]]:
    """Lay files of the right shape over each other, the first at the bottom.

    :returns: a tree in which no ``merge:``, ``replace:`` or empty section is left, whose marks
        name the file that each value comes from; and the findings.
    """
    merger = _Merger(texts)
    merged = MapNode(DEFAULT_MARK, ())
    for layer in layers:
        merged = merger.maps(merged, layer, ())
    return merged, merger.findings


class _Merger:
    def __init__(self, texts: Mapping[str, str]) -> None:
        self.findings: list[Finding] = []
        self._texts = texts

    def maps(self, lower: MapNode, upper: MapNode, path: Path) -> MapNode:
        entries = {entry.key: entry for entry in lower.entries}
        for entry in upper.entries:
            before = entries.get(entry.key)
            value = self._value(before, entry, (*path, entry.key))
            if value is not None:
                entries[entry.key] = Entry(entry.key, entry.mark, value)
        return MapNode(upper.mark, tuple(entries.values()))

    def _value(self, before: Entry | None, entry: Entry, path: Path) -> Node | None:
        lower, upper = before.value if before else None, entry.value
        if isinstance(upper, Scalar):
            if path[0] == "models" and path[-1] == "name" and lower is not None:
                return lower  # only says which model is meant; it was named before
            return upper if upper.value is not None else lower
        if isinstance(upper, ListNode):
            if isinstance(lower, ListNode) and before is not None:
                self._find(
                    entry.mark,
                    f"{path_text(path)} is a list that {before.mark} has set already",
                    f"write `{entry.key}: {{merge: [...]}}` to add to it,"
                    f" or `{entry.key}: {{replace: [...]}}` to take its place",
                )
            return self._items(upper, path)
        if isinstance(given := upper.get("replace"), ListNode):
            return self._items(given, path)
        if isinstance(given := upper.get("merge"), ListNode):
            return self._added(lower, given, path)
        return self.maps(lower if isinstance(lower, MapNode) else _empty(upper), upper, path)

    def _items(self, given: ListNode, path: Path) -> ListNode:
        items = [
            self.maps(_empty(item), item, (*path, index)) if isinstance(item, MapNode) else item
            for index, item in enumerate(given.items)
        ]
        return ListNode(given.mark, tuple(items))

    def _added(self, lower: Node | None, given: ListNode, path: Path) -> Node:
        if path == ("models",):
            return self._models(lower, given)
        if path == ("node", "gpus") and not isinstance(lower, ListNode):
            self._find(
                given.mark,
                "node.gpus is auto (all GPUs) so far, which nothing can be added to",
                "use replace:",
            )
            return given
        if not isinstance(lower, ListNode):
            defaults = _DEFAULT_LISTS.get(path, ())
            lower = ListNode(
                given.mark, tuple(Scalar(DEFAULT_MARK, text, text) for text in defaults)
            )
        have = {item.value for item in lower.items if isinstance(item, Scalar)}
        new = [item for item in given.items if isinstance(item, Scalar) and item.value not in have]
        return ListNode(given.mark, (*lower.items, *new))

    def _models(self, lower: Node | None, given: ListNode) -> ListNode:
        models: list[Node] = list(lower.items) if isinstance(lower, ListNode) else []
        places = {_model_name(model): index for index, model in enumerate(models)}
        changed: set[str] = set()
        for item in given.items:
            name = _model_name(item)
            if not isinstance(item, MapNode):
                continue
            if name in changed:
                self._find(item.mark, f"model {quoted(name)} is in this list twice", "join the two")
                continue
            changed.add(name)
            index = places.get(name, len(models))
            old = models[index] if index < len(models) else _empty(item)
            merged = self.maps(
                old if isinstance(old, MapNode) else _empty(item), item, ("models", index)
            )
            models[index : index + 1] = [merged]
        return ListNode(given.mark, tuple(models))

    def _find(self, mark: Mark, message: str, hint: str) -> None:
        self.findings.append(finding(mark, message, self._texts, hint=hint))


def _empty(node: MapNode) -> MapNode:
    return MapNode(node.mark, ())


def _model_name(model: Node) -> str:
    name = model.get("name") if isinstance(model, MapNode) else None
    return str(name.value) if isinstance(name, Scalar) else ""
