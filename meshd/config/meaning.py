"""The third layer of checks: does what the files say, taken together, make sense?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from meshd.config import split_ports
from meshd.config.addresses import Address, parse_address
from meshd.config.durations import format_duration
from meshd.config.findings import Finding, Mark, Severity, did_you_mean, finding, quoted
from meshd.config.settings import MIB, Config, ModelSettings
from meshd.config.tree import Entry, ListNode, MapNode, Node, Path, Scalar

_BODY_BYTES = (64 * 1024, 4096 * MIB)
_MEMORY_BYTES = 1024 * 1024 * MIB * 16
_LEAST_LIMIT_BYTES = 64 * MIB
_DEMAND_S = {"half_life": (60, 7 * 86400), "dwell": (0, 86400)}
_LONGEST_WAIT_S = 3600
_SMALL_CONTEXT = 512
_LARGE_TOTAL_CONTEXT = 16 * 1024 * 1024
# Of quality: bounds that only the whole model keeps, and those that everything does.
_LOSES_NOTHING = {"min_top1": 1.0, "max_kl": 0.0}
_LOSES_ALL = {"min_top1": 0.0, "max_perplexity_ratio": 100.0, "max_kl": 100.0}
_SHIPPED_KINDS = ("prose", "code")


def nearest(root: Node, path: Path) -> Mark:
    """Where a value is written; the nearest section around it where it is not written at all."""
    node, mark = root, root.mark
    for step in path:
        child: Node | None = None
        if isinstance(node, MapNode) and isinstance(step, str):
            child = node.get(step)
        elif isinstance(node, ListNode) and isinstance(step, int) and step < len(node.items):
            child = node.items[step]
        if child is None:
            return mark
        node, mark = child, child.mark
    return mark


def complete(tree: MapNode, texts: Mapping[str, str]) -> tuple[MapNode, list[Finding]]:
    """Report models that no file gives a source, and leave them out."""
    models = tree.get("models")
    if not isinstance(models, ListNode):
        return tree, []
    whole, findings = [], []
    names = [_text(item, "name") for item in models.items if _has(item, "source")]
    for item in models.items:
        if _has(item, "source"):
            whole.append(item)
            continue
        name = _text(item, "name")
        hint = did_you_mean(name, names) or "add source: and a path"
        message = f"model {quoted(name)} has no source in any file"
        findings.append(finding(item.mark, message, texts, hint=hint))
    entries = tuple(
        Entry(one.key, one.mark, ListNode(models.mark, tuple(whole)))
        if one.key == "models"
        else one
        for one in tree.entries
    )
    return MapNode(tree.mark, entries), findings


def check(config: Config, tree: MapNode, texts: Mapping[str, str]) -> list[Finding]:
    """Everything that the schema cannot say. :param tree: the tree that `config` was built from."""
    book = _Book(tree, texts, [])
    _names(config.models, book)
    for index, model in enumerate(config.models):
        _model(model, index, book)
    _listening(config, book)
    _sizes(config, book)
    _demand(config, book)
    _front(config, book)
    if config.discovery.nostr:
        message = "discovery.nostr has no effect in this version"
        book.say(("discovery", "nostr"), message, severity=Severity.WARNING)
    return book.findings


@dataclass(frozen=True, slots=True)
class _Book:
    tree: MapNode
    texts: Mapping[str, str]
    findings: list[Finding]

    def say(
        self, path: Path, message: str, hint: str = "", severity: Severity = Severity.ERROR
    ) -> None:
        mark = nearest(self.tree, path)
        self.findings.append(finding(mark, message, self.texts, hint=hint, severity=severity))


def _names(models: Sequence[ModelSettings], book: _Book) -> None:
    taken: dict[str, Path] = {}
    for index, model in enumerate(models):
        path: Path = ("models", index, "name")
        if model.name in taken:
            first = nearest(book.tree, taken[model.name])
            message = f"a model named {quoted(model.name)} is there already ({first})"
            book.say(path, message, "give one of the two another name")
        taken.setdefault(model.name, path)
    for index, model in enumerate(models):
        for position, alias in enumerate(model.aliases):
            path = ("models", index, "aliases", position)
            if alias in taken:
                first = nearest(book.tree, taken[alias])
                book.say(path, f"the alias {quoted(alias)} is a name in use already ({first})")
            taken.setdefault(alias, path)


def _model(model: ModelSettings, index: int, book: _Book) -> None:
    here: Path = ("models", index)
    _source(model.source, (*here, "source"), book)
    least, most = model.replicas.min, model.replicas.max
    if most != "auto" and least > most:
        book.say((*here, "replicas", "min"), f"replicas.min ({least}) is above max ({most})")
    if model.nodes != "auto" and least > len(model.nodes):
        message = f"{least} replicas do not fit on {len(model.nodes)} nodes"
        book.say((*here, "replicas", "min"), message, "name more nodes, or ask for fewer replicas")
    _quality(model, here, book)
    if isinstance(model.context, int):
        _context(model.context, model.slots, here, book)


def _source(source: str, path: Path, book: _Book) -> None:
    if "://" in source:
        hint = "download the file and give its path"
        book.say(path, "a source is a file on this machine, not an address", hint)
    elif source.startswith("~"):
        book.say(path, "~ does not stand for a home folder here", "write the absolute path")
    elif ".." in source.split("/"):
        hint = "write the absolute path"
        book.say(path, "a source may not climb out of its folder with ..", hint)
    elif source.endswith("/") or source != source.strip():
        book.say(path, f"{quoted(source)} is not the name of a file")


def _quality(model: ModelSettings, here: Path, book: _Book) -> None:
    for kind, _ in model.calibration:
        if kind in _SHIPPED_KINDS:
            message = (
                f"calibration: {kind} takes the place of the text of that kind that is shipped"
            )
            book.say((*here, "calibration", kind), message, severity=Severity.NOTE)
    if model.quality.exact:
        if model.calibration:
            message = f"calibration has no effect: the quality of {quoted(model.name)} is exact"
            book.say((*here, "calibration"), message, "quality: {min_top1: 0.95}", Severity.NOTE)
        return
    bounds = {name: bound for name, bound in asdict(model.quality).items() if bound is not None}
    for name, bound in bounds.items():
        if bound == _LOSES_NOTHING.get(name):
            message = f"{name}: {bound:g} is kept by no part of a model: it is served exactly"
            book.say((*here, "quality", name), message, "quality: exact", Severity.NOTE)
    if all(bound == _LOSES_ALL[name] for name, bound in bounds.items()):
        message = f"{model.quality} is kept by any part of a model, however bad it is"
        book.say((*here, "quality"), message, "such as {min_top1: 0.95}", Severity.WARNING)


def _context(context: int, slots: str | int, here: Path, book: _Book) -> None:
    if context < _SMALL_CONTEXT:
        message = f"a context of {context} tokens is too small for most conversations"
        book.say((*here, "context"), message, severity=Severity.WARNING)
    if isinstance(slots, int) and context * slots > _LARGE_TOTAL_CONTEXT:
        message = (
            f"{slots} slots of {context} tokens are {slots * context} tokens in memory at once"
        )
        book.say((*here, "slots"), message, "each slot has a context of its own", Severity.WARNING)


def _listening(config: Config, book: _Book) -> None:
    places: list[tuple[Path, str]] = [
        (("gateway", "listen", index), text) for index, text in enumerate(config.gateway.listen)
    ]
    if config.console.enabled:
        places.append((("console", "listen"), config.console.listen))
    places.append((("mesh", "listen"), config.mesh.listen))
    taken: list[tuple[str, Address]] = []
    first = config.mesh.split_ports
    ports = range(first, first + split_ports.COUNT)
    mine = f"ports {ports[0]} to {ports[-1]}"
    for path, text in places:
        try:
            address = parse_address(text)
        except ValueError as error:
            book.say(path, f"{quoted(text)}: {error}")
            continue
        for other, before in taken:
            if address.clashes(before):
                section = str(path[0])
                message = f"the {section} cannot listen on {text}: {other} is taken already"
                book.say(path, message, f"give the {section} another port")
                break
        else:
            taken.append((f"{path[0]}.listen {text}", address))
        if address.port in ports:
            message = f"the {path[0]} cannot listen on {text}: {mine} are for split models"
            book.say(path, message, "give it another port, or move mesh.split_ports")
        if not address.loopback and path[0] != "mesh":
            _exposed(path, text, bool(config.gateway.tls.certificate), book)


def _exposed(path: Path, text: str, secure: bool, book: _Book) -> None:
    if path[0] == "gateway":
        message = f"{text} stays closed to other machines until there is an API key"
        if not secure:
            message += ", which without gateway.tls can be read on the way, like prompts"
        severity = Severity.NOTE if secure else Severity.WARNING
        book.say(path, message, "meshd keys add NAME", severity)
    else:
        message = f"{text} can be reached from other machines, and asks for no password"
        book.say(path, message, severity=Severity.WARNING)


def _front(config: Config, book: _Book) -> None:
    tls = config.gateway.tls
    if bool(tls.certificate) is not bool(tls.key):
        given, missing = ("certificate", "key") if tls.certificate else ("key", "certificate")
        message = f"gateway.tls has a {given} and no {missing}"
        book.say(("gateway", "tls", given), message, f"add {missing}: and the path of a PEM file")
    if config.gateway.wait_s > _LONGEST_WAIT_S:
        book.say(("gateway", "wait"), "gateway.wait must be at most 1h")
    if config.gateway.otlp and not _is_url(config.gateway.otlp):
        book.say(("gateway", "otlp"), f"gateway.otlp: {config.gateway.otlp} is no URL")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _demand(config: Config, book: _Book) -> None:
    for key, (low_s, high_s) in _DEMAND_S.items():
        if not low_s <= getattr(config.demand, f"{key}_s") <= high_s:
            limits = f"from {format_duration(low_s)} to {format_duration(high_s)}"
            book.say(("demand", key), f"demand.{key} must be {limits}")


def _sizes(config: Config, book: _Book) -> None:
    low, high = _BODY_BYTES
    if not low <= config.gateway.max_body_bytes <= high:
        book.say(("gateway", "max_body"), "gateway.max_body must be from 64KiB to 4GiB")
    for key in ("vram", "ram"):
        if getattr(config.node.reserve, f"{key}_bytes") > _MEMORY_BYTES:
            book.say(("node", "reserve", key), f"node.reserve.{key} must be at most 16TiB")
        limit = getattr(config.node.limit, f"{key}_bytes")
        if limit is not None and not _LEAST_LIMIT_BYTES <= limit <= _MEMORY_BYTES:
            book.say(("node", "limit", key), f"node.limit.{key} must be from 64MiB to 16TiB")


def _has(item: Node, key: str) -> bool:
    return isinstance(item, MapNode) and item.get(key) is not None


def _text(item: Node, key: str) -> str:
    value = item.get(key) if isinstance(item, MapNode) else None
    return str(value.value) if isinstance(value, Scalar) else ""
