from __future__ import annotations

from pathlib import Path

import pytest

from meshd import persistence
from meshd.paths import under
from meshd.persistence import Disk


def test_what_runs_is_read_back(tmp_path: Path) -> None:
    disk = Disk(under(tmp_path))
    (tmp_path / "run").mkdir()
    disk.save_running((), 7)
    assert disk.load_running() == ((), 7)


def test_a_full_disk_is_logged_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(persistence, "write_atomically", full)
    disk = Disk(under(tmp_path))
    disk.save_running((), 7)
    assert disk.load_running() == ((), 0)
