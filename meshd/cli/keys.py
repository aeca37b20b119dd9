"""`meshd keys`: API keys for clients of this node's gateway."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.keys.key import ApiKey
    from meshd.keys.key_ring import KeyRing
    from meshd.keys.quota import Quota

T = TypeVar("T")

_GROUP = "_meshd"
_LEAST_BITS = 128
_DAY_S = 86_400


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "keys",
        help="API keys for clients of this node's gateway",
        description="API keys for clients of this node's gateway. Once there is one, the gateway"
        " also serves other machines, where gateway.listen says so. Changes count at once.",
    )
    actions = verb.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser(
        "add",
        help="make a key, and print it this once",
        description="Makes a key and prints it, this once. Its hash and what it may go to a file of"
        " its own in keys.d beside mesh.yaml, which may be edited.",
        epilog="For example: meshd keys add alice --models 'tiny,qwen*' --rate 60/min",
    )
    add.add_argument("name", metavar="NAME", help="who will have it")
    # Not one word each: the last would often be the NAME.
    add.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="MODEL,...",
        help="only these; patterns too ('qwen*')",
    )
    add.add_argument("--rate", metavar="N/TIME", help="requests, such as 60/min")
    add.add_argument("--concurrency", metavar="N", help="requests at once")
    add.add_argument("--tokens", metavar="N/TIME", help="of prompts and answers, such as 1M/day")
    add.add_argument("--priority", metavar="N", help="-10 to 10: who waits is served by it")
    add.add_argument("--expires", metavar="DAY", help="the last day, such as 2027-01-31")
    add.set_defaults(run=_add)
    listing = actions.add_parser("list", help="list the keys, without the keys themselves")
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    listing.set_defaults(run=_list)
    remove = actions.add_parser("remove", help="take a key back, from now on")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)
    hashing = actions.add_parser(
        "hash", help="print the hash of a key of your own, which is read from standard input"
    )
    hashing.set_defaults(run=_hash)


def _add(arguments: argparse.Namespace) -> int:
    from meshd.keys.edit import add_file, entry_text
    from meshd.keys.key import ApiKey, digest, named_well, new_key

    if not named_well(arguments.name):
        raise UserError(
            f"keys add: {arguments.name[:80]!r} cannot be a name",
            hint="up to 64 letters, digits and .-_@, the first of them a letter or a digit",
        )
    ring = _ring(arguments.paths.keys)
    for known in ring.by_digest.values():
        if known.name == arguments.name:
            raise UserError(
                f"there is a key {known.name!r} already, at {known.place}",
                hint=f"another name, or first: meshd keys remove {known.name}",
            )
    if arguments.expires:
        _option("--expires", arguments.expires, _coming)
    secret = new_key()
    key = ApiKey(
        name=arguments.name,
        digest=digest(secret),
        rate=_quota("--rate", arguments.rate),
        concurrency=_number("--concurrency", arguments.concurrency, 1, 100_000),
        tokens=_quota("--tokens", arguments.tokens),
        priority=_number("--priority", arguments.priority, -10, 10),
    )
    models = tuple(filter(None, (one.strip() for one in ",".join(arguments.models).split(","))))
    text = entry_text(key, models=models, expires=arguments.expires or "")
    path = add_file(arguments.paths.keys, key, text, group=_group())
    # The key alone goes to standard output: KEY=$(meshd keys add NAME).
    print(secret, flush=True)
    print(f"{path} has its hash; the key itself is shown this once only", file=sys.stderr)
    if not ring.configured:
        print(
            "this is the first key: within seconds other machines are served too, at the addresses"
            f" of gateway.listen in {arguments.paths.config}",
            file=sys.stderr,
        )
    for error in ring.errors:
        print(f"meshd: warning: {error}", file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json

    ring = _ring(arguments.paths.keys)
    keys = sorted(ring.by_digest.values(), key=lambda key: key.name)
    if arguments.json:
        print_json({"keys": [_document(key) for key in keys], "errors": ring.errors})
    elif keys:
        print("\n".join(_table(keys)))
    elif not ring.errors:
        print("no keys: the gateway serves this machine only (meshd keys add NAME)")
    for error in ring.errors:
        print(f"meshd: {error}", file=sys.stderr)
    return 1 if ring.errors else 0


def _remove(arguments: argparse.Namespace) -> int:
    from meshd.keys.edit import remove_key
    from meshd.keys.key_file import parse_keys
    from meshd.keys.key_folder import KeyPlaces

    folder: Path = arguments.paths.keys
    try:
        files = KeyPlaces(folder).files()
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", hint="run as root") from error
    for path in files:
        try:
            names = [key.name for key in parse_keys(str(path), path.read_bytes()).keys]
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}", hint="run as root") from error
        if arguments.name in names:
            remove_key(path, arguments.name)
            print(f"{arguments.name} is removed from {path}; requests that run end by themselves")
            if not _ring(folder).by_digest:
                print("that was the last key: the gateway serves this machine only from now on")
            return 0
    raise UserError(f"there is no key {arguments.name[:80]!r}", hint="meshd keys list")


def _hash(_: argparse.Namespace) -> int:
    from meshd.keys.key import digest
    from meshd.mesh.secret import strength_bits

    if sys.stdin.isatty():
        print("The key, then Enter: ", end="", file=sys.stderr, flush=True)
    key = sys.stdin.readline(4096).strip()
    if not key:
        raise UserError("keys hash: nothing came on standard input", hint="meshd keys hash < FILE")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("keys hash: a key is one line of letters, digits and signs")
    if strength_bits(key) < _LEAST_BITS:
        raise UserError(
            f"keys hash: this key can be guessed: it has less than {_LEAST_BITS} bits",
            hint="meshd keys add NAME makes a good one",
        )
    print(f"sha256:{digest(key).hex()}")
    return 0


def _ring(folder: Path) -> KeyRing:
    import os

    from meshd.keys.key_folder import read_keys

    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be read", hint="run as root")
    return read_keys(folder)


def _table(keys: Sequence[ApiKey]) -> Iterator[str]:
    now_s = time.time()
    rows: list[tuple[str, ...]] = [
        ("NAME", "MODELS", "RATE", "TOKENS", "AT ONCE", "PRIORITY", "EXPIRES", "FILE")
    ]
    rows += [
        (
            key.name,
            " ".join(key.models) or "all",
            str(key.rate or "-"),
            str(key.tokens or "-"),
            str(key.concurrency or "-"),
            str(key.priority),
            _expiry(key, now_s),
            key.place.rpartition(":")[0],
        )
        for key in keys
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _expiry(key: ApiKey, now_s: float) -> str:
    if key.expires_s is None:
        return "-"
    if key.expires_s % _DAY_S == 0:
        # The last day, as it is written.
        when = datetime.fromtimestamp(key.expires_s - 1, UTC).strftime("%Y-%m-%d")
    else:
        when = datetime.fromtimestamp(key.expires_s, UTC).strftime("%Y-%m-%d %H:%MZ")
    return f"{when} (over)" if key.expires_s <= now_s else when


def _document(key: ApiKey) -> dict[str, object]:
    return {
        "name": key.name,
        "models": key.models,
        "rate": str(key.rate) if key.rate else None,
        "tokens": str(key.tokens) if key.tokens else None,
        "concurrency": key.concurrency or None,
        "priority": key.priority,
        "expires_s": key.expires_s,
        "place": key.place,
    }


def _group() -> int | None:
    """The gid of meshd's own group; None where it is not installed as a service."""
    import grp
    import os

    try:
        return grp.getgrnam(_GROUP).gr_gid if os.geteuid() == 0 else None
    except KeyError:
        return None


def _option(option: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(f"keys add: {option} {text[:80]!r}: {error}") from None


def _coming(text: str) -> float:
    from meshd.keys.key_file import parse_expiry

    expires_s = parse_expiry(text)
    if expires_s <= time.time():
        raise ValueError("is over already")
    return expires_s


def _quota(option: str, text: str | None) -> Quota | None:
    from meshd.keys.quota import parse_quota

    return _option(option, text, parse_quota) if text else None


def _number(option: str, text: str | None, least: int, most: int) -> int:
    def parse(given: str) -> int:
        number = int(given) if given.lstrip("-").isdecimal() and len(given) < 10 else most + 1
        if not least <= number <= most:
            raise ValueError(f"must be a number from {least} to {most}")
        return number

    return _option(option, text, parse) if text is not None else 0
