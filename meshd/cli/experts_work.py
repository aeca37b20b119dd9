"""The long work of `meshd experts`: each step by the engine's tools, or to a file."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshd.cli.experts_model import Mixture
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.errors import UserError
from meshd.experts import ranking_file, shard_mark
from meshd.experts.imatrix import count_experts
from meshd.experts.logits_file import TOKENS, logits_bytes
from meshd.experts.perplexity import measure, save_logits
from meshd.experts.ranking import Ranking, Selection
from meshd.experts.shard_writer import Written, discard, write_shard
from meshd.experts.texts import texts_of
from meshd.experts.wish import Text
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_facts, read_headers
from meshd.paths import Paths
from meshd.quality import Fidelity

# Whoever types it waits for it, but others may use the machine too.
_NICENESS = 5


def rank(
    model: Mixture,
    texts: Mapping[str, str],
    output: Path,
    paths: Paths,
    progress: Callable[[float], None],
) -> Ranking:
    """Count, and write the ranking. What was counted when it is interrupted stays in a folder
    beside it, and the next call goes on there.

    :raises RankingError: it cannot be counted.
    :raises UserError: a text or the engine is not there.
    """
    build = describe(require(paths))
    with _alone(output.with_name(f".{output.name}.counting")) as folder:
        known = texts_of(texts.items(), folder)
        ranking = asyncio.run(
            count_experts(
                model.files,
                tuple(Path(text.ranks) for text in known),
                folder,
                build,
                fingerprint=model.fingerprint,
                experts=model.anatomy.counted,
                progress=progress,
                niceness=_NICENESS,
            )
        )
        ranking_file.write(output, ranking)
        shutil.rmtree(folder, ignore_errors=True)
    return ranking


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """:raises UserError: another process counts there."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError:
        raise UserError(f"{folder}: another process counts the same") from None
    finally:
        os.close(descriptor)


def cut(
    model: Mixture, selection: Selection, output: Path, progress: Callable[[float], None]
) -> Written:
    """:raises UserError: it cannot be written. Interrupted, it leaves nothing."""
    try:
        return write_shard(
            model.files,
            selection,
            output,
            progress=lambda done, total: progress(done / total),
            stopped=lambda: False,
        )
    except KeyboardInterrupt:
        discard(output)
        raise


@dataclass(frozen=True, slots=True)
class Measured:
    """:ivar tokens: of each text at most."""

    engine: str
    tokens: int
    measured: tuple[Fidelity, ...]


def measure_by_domain(
    file: Path,
    against: Path,
    texts: Mapping[str, str],
    paths: Paths,
    progress: Callable[[float, str], None],
) -> Measured:
    """:raises UserError: they cannot be compared, or the whole model's logits have no room."""
    build = describe(require(paths))
    file, against = file.absolute(), against.absolute()
    vocabulary = _comparable(file, against)
    with tempfile.TemporaryDirectory(prefix="meshd-experts-") as name:
        folder = Path(name)
        free, needed = shutil.disk_usage(folder).free, logits_bytes(vocabulary)
        if free < needed:
            raise UserError(
                f"{folder.parent}: logits need {needed / 1e9:.2f} GB there, {free / 1e9:.2f} GB "
                "are free",
                hint="TMPDIR names another folder",
            )
        known = texts_of(texts.items(), folder)
        found = asyncio.run(_measured(file, against, known, folder, build, progress))
    return Measured(f"llama.cpp {build.version}".strip(), TOKENS, found)


def _comparable(file: Path, against: Path) -> int:
    """:return: how many tokens their vocabulary has."""
    shard, whole = read_facts(file), read_facts(against)
    if shard.vocabulary_sha256 != whole.vocabulary_sha256:
        raise UserError(f"{file}: its tokens are not those of {against}")
    if _source(against) is not None:
        raise UserError(f"{against}: it is itself a shard", hint="name the whole model")
    source = _source(file)
    content = fingerprint([Path(one) for one in whole.files])
    if source is not None and source != content:
        raise UserError(f"{file}: it is a shard of another model ({source}), not of {against}")
    return whole.vocabulary_size


def _source(file: Path) -> object:
    """Fingerprint of the model that it is a shard of, None of a whole one."""
    _, headers = read_headers(file)
    return headers[0].metadata.get(shard_mark.SOURCE)


async def _measured(
    file: Path,
    against: Path,
    texts: tuple[Text, ...],
    folder: Path,
    build: EngineBuild,
    progress: Callable[[float, str], None],
) -> tuple[Fidelity, ...]:
    logits, found = folder / "logits", []
    for number, text in enumerate(texts):

        def said(share: float, begin: int = 2 * number, domain: str = text.domain) -> None:
            progress((begin + share) / (2 * len(texts)), domain)

        await save_logits(
            against, Path(text.measures), logits, build, progress=said, niceness=_NICENESS
        )
        found.append(
            await measure(
                file, Path(text.measures), logits, text.domain, build,
                progress=lambda share, said=said: said(1 + share),  # type: ignore[misc]
                niceness=_NICENESS,
            )
        )  # fmt: skip
        logits.unlink()
    return tuple(found)
