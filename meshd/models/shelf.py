"""Which models lie on this machine's disks, and which file a `models[].source` means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from meshd import paths
from meshd.errors import UserError
from meshd.models.gguf_facts import SPLIT_NAME

DEPTH_MAX = 6
ENTRIES_MAX = 50_000
_SHOWN_MAX = 8


def find(source: str, directories: Sequence[Path]) -> Path:
    """Resolve what the configuration names: a path, or a glob in the first folder where it matches.

    Relative sources are sought in `directories` in order, then among the shipped models. A glob
    without a slash matches file names in every subfolder; ``**`` stands for any folders. Of a
    split, the first part is returned. Projectors (``mmproj``) match only a glob that says so.

    :raises UserError: nothing there, several there, or a source that leaves the folders.
    """
    if not source or "\0" in source:
        raise UserError("models[].source is empty or no path")
    if is_glob(source):
        return _find_glob(source, directories)
    if PurePosixPath(source).is_absolute():
        candidates = [Path(source)]
    elif ".." in PurePosixPath(source).parts:
        raise UserError(f"source {source} leaves the model folders", hint="give an absolute path")
    else:
        candidates = [directory / source for directory in _with_shipped(directories)]
    for candidate in candidates:
        if candidate.is_file():
            return _first_part(candidate)
        if candidate.is_dir():
            raise UserError(f"source {candidate} is a folder", hint=f"try {source}/*.gguf")
    raise _not_found(source, directories)


def scan(directories: Sequence[Path]) -> tuple[Path, ...]:
    """Every model in the folders and among the shipped ones, splits by their first part.

    Looks at no more than `ENTRIES_MAX` entries a folder, `DEPTH_MAX` deep. Folders that do not
    exist or cannot be read are passed over; a file that is reached twice is listed once.
    """
    found: dict[str, Path] = {}
    for directory in _with_shipped(directories):
        for file in sorted(_files(directory)):
            if _is_later_part(file):
                continue
            found.setdefault(os.path.realpath(file), file)
    return tuple(found.values())


def _find_glob(source: str, directories: Sequence[Path]) -> Path:
    pattern = PurePosixPath(source)
    if pattern.is_absolute():
        fixed = [part for part in pattern.parts if not is_glob(part)]
        depth = next(i for i, part in enumerate(pattern.parts) if is_glob(part))
        roots = [Path(*fixed[:depth])]
        pattern = PurePosixPath(*pattern.parts[depth:])
        anywhere = False
    else:
        roots = list(_with_shipped(directories))
        anywhere = len(pattern.parts) == 1
    for root in roots:
        matches = sorted(
            {
                _first_part(file)
                for file in _files(root)
                if _matches(file.relative_to(root).parts, pattern.parts, anywhere=anywhere)
                and ("mmproj" in source or not file.name.startswith("mmproj"))
            }
        )
        if len(matches) > 1:
            shown = ", ".join(str(match.relative_to(root)) for match in matches[:_SHOWN_MAX])
            more = f" and {len(matches) - _SHOWN_MAX} more" if len(matches) > _SHOWN_MAX else ""
            raise UserError(
                f"source {source} matches {len(matches)} models in {root}: {shown}{more}",
                hint="make it more exact",
            )
        if matches:
            return matches[0]
    raise _not_found(source, directories)


def _matches(parts: Sequence[str], pattern: Sequence[str], *, anywhere: bool) -> bool:
    if anywhere:
        return fnmatchcase(parts[-1], pattern[0])
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(
            _matches(parts[skipped:], pattern[1:], anywhere=False)
            for skipped in range(len(parts) + 1)
        )
    return (
        bool(parts)
        and fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:], anywhere=False)
    )


def _files(directory: Path) -> Iterator[Path]:
    """Yield the GGUF files below a folder, bounded; links to folders are not followed."""
    left = ENTRIES_MAX
    pending = [(directory, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            entries = os.scandir(folder)
        except OSError:
            continue
        with entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if depth < DEPTH_MAX:
                            pending.append((folder / entry.name, depth + 1))
                    elif entry.name.endswith(".gguf") and entry.is_file():
                        yield folder / entry.name
                except OSError:
                    continue


def _with_shipped(directories: Sequence[Path]) -> Iterator[Path]:
    shipped = paths.shipped("models")
    yield from directories
    if shipped not in directories:
        yield shipped


def _first_part(file: Path) -> Path:
    match = SPLIT_NAME.fullmatch(file.name)
    if match is None:
        return file
    return file.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf")


def _is_later_part(file: Path) -> bool:
    match = SPLIT_NAME.fullmatch(file.name)
    return match is not None and int(match["part"]) != 1


def is_glob(text: str) -> bool:
    """Whether a source is a pattern rather than a path."""
    return any(character in text for character in "*?[")


def _not_found(source: str, directories: Sequence[Path]) -> UserError:
    if PurePosixPath(source).is_absolute():
        return UserError(f"no model at {source}")
    folders = ", ".join(str(directory) for directory in _with_shipped(directories))
    return UserError(f"no model {source} in {folders}", hint="`meshd doctor` lists what is there")
