from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from meshd.config.settings import Config, ModelSettings, NodeSettings
from meshd.errors import UserError
from meshd.models.facts import GgufFacts
from meshd.models.library import Library
from meshd.observe import NodeObserver
from meshd.paths import under
from meshd.pipeline import Sought
from tests.unit.worlds import facts


class Headers:
    """In place of the facts cache: what a model's header says, or that it cannot be read."""

    def __init__(self) -> None:
        self.away = False

    def facts(self, model: Path) -> GgufFacts:
        if self.away:
            raise UserError(f"{model}: stale file handle")
        return facts_of(model)


def facts_of(model: Path) -> GgufFacts:
    return replace(facts(), files=(str(model),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    return tmp_path


def test_a_model_that_is_away_for_a_moment_is_what_it_was(folder: Path) -> None:
    observer, headers = NodeObserver(under(folder)), Headers()
    observer._library = Library(headers)  # type: ignore[arg-type]
    node = NodeSettings(model_dirs=(str(folder),))
    config = Config(node=node, models=(ModelSettings("a", "a.gguf"),))
    (first,) = observer._candidates(config)
    headers.away = True
    assert observer._candidates(config) == (first,)
    other = Config(node=node, models=(ModelSettings("a", "b.gguf"),))
    (changed,) = observer._candidates(other)
    assert changed.facts is None, "another source is another wish"
    assert "b.gguf" in changed.problem


def test_a_model_that_was_never_seen_is_missing(folder: Path) -> None:
    observer = NodeObserver(under(folder))
    (found,) = observer._candidates(Config(models=(ModelSettings("a", str(folder / "no.gguf")),)))
    assert found.facts is None
    assert found.problem


def test_a_pattern_of_another_node_is_matched_with_our_own_names_only(folder: Path) -> None:
    observer = NodeObserver(under(folder))
    observer._library = Library(Headers())  # type: ignore[arg-type]
    deep = folder / "some/where/deep/down"
    deep.mkdir(parents=True)
    (deep / "b-7b.gguf").write_bytes(b"GGUF other")
    config = Config(node=NodeSettings(model_dirs=(str(folder),)))

    def found(source: str, fingerprint: str = "") -> str:
        (one,) = observer._others(config, (Sought("m", source, fingerprint),))
        return one.identity.partition(":")[0] if one.facts else ""

    assert found("b*.gguf") == str(deep / "b-7b.gguf")
    assert found("/srv/b-*.gguf") == str(deep / "b-7b.gguf")
    # As a path this would be tried in more ways than there is time for.
    assert found("**/" * 160 + "x*.gguf") == ""
    assert found("/srv/a.gguf") == str(folder / "a.gguf")
    assert found("../a.gguf") == ""
    (known,) = observer._others(config, (Sought("m", "b*.gguf"),))
    assert found("/srv/a.gguf", known.fingerprint) == str(deep / "b-7b.gguf")


def test_whose_files_others_may_read_is_told_when_it_changes(folder: Path) -> None:
    told: list[Mapping[str, tuple[str, ...]]] = []
    observer = NodeObserver(under(folder), share=told.append)
    observer._library = Library(Headers())  # type: ignore[arg-type]
    config = Config(node=NodeSettings(model_dirs=(str(folder),)))
    observer._shown(config)
    observer._shown(config)
    (shared,) = told
    assert str(folder / "a.gguf") in {files[0] for files in shared.values()}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.gguf").write_bytes(b"GGUF c")
    named = Config(
        node=NodeSettings(model_dirs=(str(folder / "none"),)),
        models=(ModelSettings("c", str(elsewhere / "c.gguf")),),
    )
    observer._candidates(named)
    observer._shown(named)
    assert (str(elsewhere / "c.gguf"),) in told[-1].values()
    assert (str(folder / "a.gguf"),) not in told[-1].values()
