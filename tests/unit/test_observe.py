from __future__ import annotations

from pathlib import Path

import pytest

from meshd import observe
from meshd.config.load import SourceFile, parse_layers
from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.observe import NodeObserver
from meshd.paths import under

BUILD = EngineBuild("system", "/", 1, "0.7.0", "", "", None, (), ("CPU",), "")
LOADED = parse_layers((SourceFile("/etc/mesh/mesh.yaml", "models: []\n"),))


async def test_an_engine_in_mid_upgrade_is_still_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[EngineBuild | UserError] = [UserError("none"), BUILD, UserError("half unpacked")]

    def described(_: object) -> EngineBuild:
        answer = answers.pop(0)
        if isinstance(answer, UserError):
            raise answer
        return answer

    monkeypatch.setattr(observe, "require", lambda _: None)
    monkeypatch.setattr(observe, "describe", described)
    observer = NodeObserver(under(tmp_path))
    without = await observer(LOADED)
    assert (without.engine, without.engine_problem) == (None, "none")
    assert (await observer(LOADED)).engine == BUILD
    assert (await observer(LOADED)).engine == BUILD
