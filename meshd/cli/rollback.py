"""`meshd rollback`: put an earlier good configuration back on disk and take it up."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.errors import UserError
from meshd.paths import Paths

if TYPE_CHECKING:
    from meshd.config.load import SourceFile
    from meshd.generations import Generation


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("rollback", help="go back to the last good configuration")
    parser.add_argument("--to", type=int, metavar="N", help="a certain generation")
    parser.add_argument("--list", action="store_true", help="list the generations that are kept")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd.generations import GenerationStore

    paths: Paths = arguments.paths
    generations = GenerationStore(paths.generations).newest_first()
    if arguments.list:
        _list(generations, as_json=arguments.json)
        return 0
    return asyncio.run(_roll_back(paths, generations, arguments.to, as_json=arguments.json))


def _list(generations: list[Generation], *, as_json: bool) -> None:
    from meshd.cli.answer import print_json

    if as_json:
        print_json(generations)
        return
    for generation in generations:
        saved = datetime.fromtimestamp(generation.saved_s, UTC).isoformat(" ", "seconds")
        print(f"{generation.number:>6}  {saved}  {generation.summary}")


async def _roll_back(
    paths: Paths, generations: list[Generation], number: int | None, *, as_json: bool
) -> int:
    from meshd.cli.answer import print_json
    from meshd.config.load import parse_layers
    from meshd.control import ControlClient, NotRunningError
    from meshd.generations import previous

    chosen = previous(generations, _on_disk(paths), number=number)
    if chosen is None:
        wanted = "no other good generation is kept" if number is None else f"no generation {number}"
        raise UserError(f"rollback: {wanted}", hint="meshd rollback --list")
    _only_ours(paths, chosen)
    parse_layers(chosen.files)
    _restore(paths, chosen.files)
    try:
        words = (await ControlClient(paths.control_socket).reload()).sentence
    except NotRunningError:
        words = "meshd does not run; it will start with it"
    if as_json:
        print_json({"generation": chosen.number, "sentence": words})
    else:
        print(f"generation {chosen.number} is back in {paths.config.parent}\n{words}")
    return 0


def _on_disk(paths: Paths) -> tuple[SourceFile, ...]:
    """What lies there now, even when it is so bad that it cannot be read."""
    from meshd.config.load import ConfigError, read_files

    try:
        return read_files(paths)
    except ConfigError:
        return ()


def _only_ours(paths: Paths, generation: Generation) -> None:
    """The brain keeps the generations, root writes them back: nowhere but where they belong.

    :raises UserError: a file lies elsewhere.
    """
    folders = {
        folder
        for folder in (paths.config_dropins, paths.transient_config)
        if not folder.is_symlink()
    }
    for file in generation.files:
        path = Path(file.path)
        if path != paths.config and (path.parent not in folders or path.suffix != ".yaml"):
            raise UserError(
                f"generation {generation.number} holds {file.path!r}, which is no file of a "
                "configuration here",
                hint="meshd rollback --to another generation",
            )


def _restore(paths: Paths, files: tuple[SourceFile, ...]) -> None:
    """Write every file of the generation and set aside drop-ins that it did not have."""
    from meshd.files import write_atomically

    wanted = {Path(file.path): file.text for file in files}
    try:
        for folder in (paths.config_dropins, paths.transient_config):
            for path in folder.glob("*.yaml"):
                if path not in wanted:
                    path.rename(path.with_name(f"{path.name}.rolled-back"))
        for path, text in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode(), mode=None)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written: {error.strerror}", hint="run as root"
        ) from error
