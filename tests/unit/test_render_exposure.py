"""How much each unit is exposed, by `systemd-analyze security --offline`; 0 is best, 10 worst.

The lab tier asks a newer systemd about the same units as they run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meshd.paths import SYSTEM
from meshd.units.render import render_dropin
from meshd.units.spec import EngineKind, EngineSpec, GpuAccess

UNITS = Path(__file__).parents[2] / "systemd"
_ANALYZE = shutil.which("systemd-analyze")
_OFFLINE_SINCE = 252
_MOST = 2.0
# tenths, as --threshold= wants them
_THRESHOLD = round(_MOST * 10)


def _version() -> int:
    if not _ANALYZE:
        return 0
    first = subprocess.run([_ANALYZE, "--version"], capture_output=True, text=True, check=True)
    match = re.match(r"systemd (\d+)", first.stdout)
    return int(match[1]) if match else 0


pytestmark = pytest.mark.skipif(
    _version() < _OFFLINE_SINCE, reason=f"needs systemd-analyze {_OFFLINE_SINCE} or newer"
)


def exposure(unit: Path) -> subprocess.CompletedProcess[str]:
    assert _ANALYZE
    arguments = ["security", "--offline=yes", "--no-pager", f"--threshold={_THRESHOLD}", str(unit)]
    return subprocess.run([_ANALYZE, *arguments], capture_output=True, text=True, timeout=60)


def check(unit: Path) -> None:
    found = exposure(unit)
    assert "Overall exposure level" in found.stdout, found.stderr
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("unit", ["meshd.service", "mesh-gateway.service", "mesh-apply.service"])
def test_services_of_meshd(unit: str) -> None:
    check(UNITS / unit)


@pytest.mark.parametrize("gpu", GpuAccess)
@pytest.mark.parametrize("kind", EngineKind)
def test_engines_with_the_lines_that_their_gpus_relax(
    kind: EngineKind, gpu: GpuAccess, tmp_path: Path
) -> None:
    spec = EngineSpec(kind, "x", "x", ("/bin/true",), reads=("/srv/x.gguf",), gpu=gpu)
    unit = tmp_path / spec.unit
    shutil.copy(UNITS / f"mesh-{kind}@.service", unit)
    # Offline, drop-ins are not read: append what this one says, without its second [Unit].
    relaxed = render_dropin(spec, SYSTEM).partition("[Service]")[2]
    unit.write_text(f"{unit.read_text()}\n[Service]{relaxed}")
    check(unit)


def test_the_threshold_is_one_that_can_fail(tmp_path: Path) -> None:
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(unit).returncode != 0
