"""Adding and removing keys in their files, which people write in too."""

from __future__ import annotations

import os
from pathlib import Path

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.keys.key import ApiKey
from meshd.keys.key_file import entries, parse_keys
from meshd.mesh.new_file import create_atomically

_MODE = 0o640


def entry_text(key: ApiKey, *, models: tuple[str, ...] = (), expires: str = "") -> str:
    """A file for one key. :param expires: as the person wrote it."""
    lines = ["keys:", f"  - name: {key.name}", f"    hash: sha256:{key.digest.hex()}"]
    if models:
        lines.append("    models: [" + ", ".join(_quoted(model) for model in models) + "]")
    if key.rate:
        lines.append(f"    rate: {key.rate}")
    if key.concurrency:
        lines.append(f"    concurrency: {key.concurrency}")
    if key.tokens:
        lines.append(f"    tokens: {key.tokens}")
    if key.priority:
        lines.append(f"    priority: {key.priority}")
    if expires:
        lines.append(f"    expires: {_quoted(expires)}")
    return "\n".join(lines) + "\n"


def add_file(folder: Path, key: ApiKey, text: str, *, group: int | None) -> Path:
    """A file of its own for a key, for root and one group.

    :param group: gid that may read it; None for the writer's own.

    :raises UserError: there is such a file, it cannot be written, or would not be read back.
    """
    path = folder / f"{key.name}.yaml"
    said = parse_keys(str(path), text.encode())
    if said.errors:
        raise UserError(said.errors[0])
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        create_atomically(path, text.encode(), mode=_MODE, group=group)
    except FileExistsError:
        raise UserError(
            f"{path}: exists already, and is left as it is", hint="meshd keys list shows all keys"
        ) from None
    except OSError as error:
        hint = "run as root" if isinstance(error, PermissionError) else f"ls -ld {folder}"
        raise UserError(f"{path}: cannot be written: {error.strerror}", hint=hint) from error
    return path


def remove_key(path: Path, name: str) -> bool:
    """Take one key out of a file; whether others are left in it. The last takes the file along.

    :raises UserError: it cannot be done without touching anything else.
    """
    try:
        data = path.read_bytes()
        rest = without(str(path), data, name)
        if rest is None:
            path.unlink()
            return False
        before = path.stat()
        write_atomically(path, rest, mode=None)
        _own(path, before.st_uid, before.st_gid)
    except OSError as error:
        hint = "run as root" if isinstance(error, PermissionError) else f"ls -l {path}"
        raise UserError(f"{path}: cannot be changed: {error.strerror}", hint=hint) from error
    return True


def without(path: str, data: bytes, name: str) -> bytes | None:
    """The file less one key, all else as it was written; None when nothing is left. Pure.

    :raises UserError: the file is broken, or so written that a person must do it.
    """
    said = parse_keys(path, data)
    if said.errors:
        raise UserError(f"{said.errors[0]}", hint="mend that first")
    left = tuple(key.name for key in said.keys if key.name != name)
    if not left:
        return None
    lines = data.decode("utf-8").splitlines(keepends=True)
    for found, first, end in entries(path, data):
        if found == name:
            rest = "".join([*lines[: first - 1], *lines[end - 1 :]]).encode()
            after = parse_keys(path, rest)
            if not after.errors and tuple(key.name for key in after.keys) == left:
                return rest
            raise UserError(
                f"{path}:{first}: {name!r} does not have lines of its own",
                hint="remove it with an editor",
            )
    raise UserError(f"{path}: has no key {name!r}", hint="meshd keys list")


def _own(path: Path, user: int, group: int) -> None:
    os.chown(path, user, group)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
