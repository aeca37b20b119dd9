from __future__ import annotations

from pathlib import Path

import pytest

from meshd import persistence
from meshd.mesh.record import Part
from meshd.paths import under
from meshd.persistence import Disk
from meshd.planner.lent import Lent


def test_what_runs_is_read_back(tmp_path: Path) -> None:
    disk = Disk(under(tmp_path))
    (tmp_path / "run").mkdir()
    lent = Lent("big.aaaa", "big", "f" * 8, "a" * 16, 3, (Part("b", "ram", 4, 5),), 2, 9340, 9372)
    disk.save_running((), 7, (lent,))
    assert disk.load_running() == ((), 7, (lent,))


def test_a_full_disk_is_logged_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(persistence, "write_atomically", full)
    disk = Disk(under(tmp_path))
    disk.save_running((), 7)
    assert disk.load_running() == ((), 0, ())
