"""The edge: reads the configuration's files from disk, and looks whether its models are there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from glob import has_magic
from itertools import islice
from pathlib import Path

from meshd.config.findings import (
    ConfigError,
    Finding,
    Severity,
    SourceFile,
    did_you_mean,
    finding,
    in_order,
    printable,
    quoted,
)
from meshd.config.layers import Loaded, Origin, parse_layers
from meshd.config.syntax import MAX_BYTES, decode, too_large
from meshd.experts.texts import LEAST_BYTES, MOST_BYTES
from meshd.paths import Paths, shipped

__all__ = [
    "ConfigError",
    "Finding",
    "Loaded",
    "Origin",
    "SourceFile",
    "load",
    "parse_layers",
    "read_file",
    "read_files",
]

_MAX_DROPINS = 200
_MAX_LISTED = 1000


def load(paths: Paths) -> Loaded:
    """Read and check the whole configuration of this node.

    :raises ConfigError: with every finding in every file, when any of them is an error.
    """
    files, findings = _read(paths)
    try:
        loaded = parse_layers(files)
    except ConfigError as error:
        raise ConfigError((*findings, *error.findings)) from None
    findings += _missing_sources(loaded)
    findings += _missing_texts(loaded)
    if any(one.severity is Severity.ERROR for one in findings):
        raise ConfigError((*findings, *loaded.findings))
    return replace(loaded, findings=in_order((*loaded.findings, *findings), files))


def read_files(paths: Paths) -> tuple[SourceFile, ...]:
    """Read the main file and all drop-ins, the lowest layer first, and check nothing but that.

    :raises ConfigError: a file cannot be read as text, or the main file is not there.
    """
    files, findings = _read(paths)
    if any(one.severity is Severity.ERROR for one in findings):
        raise ConfigError(findings)
    return files


def _read(paths: Paths) -> tuple[tuple[SourceFile, ...], list[Finding]]:
    files: list[SourceFile] = []
    findings: list[Finding] = []
    dropins = [
        *_dropins(paths.config_dropins, findings),
        *_dropins(paths.transient_config, findings),
    ]
    for path in (paths.config, *dropins):
        try:
            files.append(read_file(path))
        except ConfigError as error:
            findings += error.findings
    return tuple(files), findings


def _dropins(folder: Path, findings: list[Finding]) -> list[Path]:
    try:
        entries = sorted(islice(folder.iterdir(), _MAX_LISTED), key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        findings.append(_unreadable(folder, error))
        return []
    visible = [path for path in entries if not path.name.startswith(".")]
    for path in visible:
        if path.suffix in (".yml", ".json"):
            message = "this file is not read: the name of a drop-in ends in .yaml"
            findings.append(Finding(Severity.WARNING, str(path), 0, 0, message))
    chosen = [path for path in visible if path.suffix == ".yaml"]
    if len(chosen) > _MAX_DROPINS:
        message = f"{len(chosen)} drop-ins are too many; at most {_MAX_DROPINS} are read"
        findings.append(Finding(Severity.ERROR, str(folder), 0, 0, message))
    return chosen[:_MAX_DROPINS]


def read_file(path: Path) -> SourceFile:
    """Read one file as text.

    :raises ConfigError: it is not there, not a regular file, above 1 MiB, or not UTF-8.
    """
    name = str(path)
    try:
        # Looked at before opening: to open a device can do things, a FIFO would block.
        if problem := _not_a_file(path.stat().st_mode):
            raise ConfigError([Finding(Severity.ERROR, name, 0, 0, problem)])
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if problem := _not_a_file(status.st_mode):
                raise ConfigError([Finding(Severity.ERROR, name, 0, 0, problem)])
            if status.st_size > MAX_BYTES:
                raise ConfigError([too_large(name, status.st_size)])
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([_unreadable(path, error)]) from None
    return decode(name, data)


def _not_a_file(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(mode)), "a device")
    return f"this is {kind}, not a file"


def _unreadable(path: Path, error: OSError | ValueError) -> Finding:
    number = error.errno if isinstance(error, OSError) else None
    hint = ""
    if number == errno.ENOENT and path.is_symlink():
        message = (
            f"this symbolic link leads to {printable(str(path.readlink()))}, which is not there"
        )
    elif number == errno.ENOENT:
        message = "there is no such file"
        template = shipped("etc", "mesh.yaml")
        copy = f"cp {template} {printable(str(path))}"
        hint = copy if template.exists() else "an empty file takes every default"
    elif number in (errno.EACCES, errno.EPERM):
        message, hint = "may not be read by this user", "run as root, or change the file's mode"
    elif number == errno.ELOOP:
        message = "symbolic links lead in a circle here"
    else:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return Finding(Severity.ERROR, str(path), 0, 0, message, hint=hint)


def _missing_sources(loaded: Loaded) -> Iterator[Finding]:
    """Warn of models whose file is not there: a disk or a download may come later."""
    texts = {file.path: file.text for file in loaded.files}
    folders = [*map(Path, loaded.config.node.model_dirs), shipped("models")]
    for model in loaded.config.models:
        source = Path(model.source)
        places = [source.parent] if source.is_absolute() else folders
        pattern = source.name if source.is_absolute() else model.source
        if any(_exists(folder, pattern) for folder in places):
            continue
        mark = loaded.origins[f"models[{model.name}].source"]
        what = "" if source.is_absolute() else f" in {', '.join(map(str, places))}"
        hint = did_you_mean(pattern, _ggufs(places))
        message = f"{quoted(model.source)} is not there now{what}"
        yield finding(mark, message, texts, hint=hint, severity=Severity.WARNING)


def _missing_texts(loaded: Loaded) -> Iterator[Finding]:
    """Warn of calibration texts that cannot be used: without one nothing is measured."""
    texts = {file.path: file.text for file in loaded.files}
    for model in loaded.config.models:
        for kind, path in model.calibration:
            try:
                about = Path(path).stat()
                problem = _not_a_file(about.st_mode) or _wrong_size(about.st_size)
            except (OSError, ValueError) as error:
                problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            if not problem:
                continue
            mark = loaded.origins[f"models[{model.name}].calibration.{kind}"]
            message = f"{printable(path)}: {problem}"
            yield finding(mark, message, texts, severity=Severity.WARNING)


def _wrong_size(size_bytes: int) -> str:
    if LEAST_BYTES <= size_bytes <= MOST_BYTES:
        return ""
    least, most = f"{LEAST_BYTES >> 10} KiB", f"{MOST_BYTES >> 20} MiB"
    return f"a text for calibration has from {least} to {most}, not {size_bytes} bytes"


def _exists(folder: Path, pattern: str) -> bool:
    try:
        if (folder / pattern).exists():
            return True
        return has_magic(pattern) and next(folder.glob(pattern), None) is not None
    except (OSError, ValueError, NotImplementedError):
        return False


def _ggufs(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        try:
            for path in islice(folder.iterdir(), _MAX_LISTED):
                if path.suffix == ".gguf":
                    yield path.name
        except OSError:
            continue
