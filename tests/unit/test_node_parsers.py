"""The parsers of the kernel's texts, on texts."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.node.amd import AmdMemory, is_apu, shared_memory, stable_id
from meshd.node.drm_query import I915_QUERY, XE_DEVICE_QUERY, parse_i915, parse_xe, query
from meshd.node.inventory import Ram
from meshd.node.memory import (
    GroupMemory,
    available,
    parse_meminfo,
    parse_own_groups,
    parse_stat,
    read_ram,
)
from meshd.node.pci import normalise_address, parse_device_name, parse_uevent
from meshd.node.processor import count_cores, parse_cpu_list, parse_cpu_name
from meshd.node.sysfs import parse_number, read_number, read_text


def test_meminfo_is_in_units_of_1024() -> None:
    text = "MemTotal:       24684092 kB\nHugePages_Total:       3\nBroken\nOdd: x kB\n"
    assert parse_meminfo(text) == {"MemTotal": 25276510208, "HugePages_Total": 3}


def test_own_groups_of_both_versions() -> None:
    assert parse_own_groups("0::/user.slice\n").unified == "/user.slice"
    hybrid = parse_own_groups("4:memory:/a\n2:cpu,cpuacct:/b:c\n0::/\nnonsense\n")
    assert (hybrid.unified, hybrid.memory_v1) == ("/", "/a")


def test_memory_is_the_least_of_machine_and_groups() -> None:
    meminfo = {"MemAvailable": 1000}
    assert available(meminfo, ()) == 1000
    assert available(meminfo, (GroupMemory(900, 500, reclaimable_bytes=200),)) == 600
    assert available(meminfo, (GroupMemory(100, 500),)) == 0
    assert available({"MemFree": 5, "Cached": 7}, ()) == 12


def test_page_cache_counts_as_free() -> None:
    assert parse_stat("anon 5\ninactive_file 123\n", "inactive_file") == 123
    assert parse_stat(None, "inactive_file") == 0


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_limit_on_a_group_above_ours_holds(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n",
            "proc/self/cgroup": "0::/box.slice/meshd.service\n",
            "sys/fs/cgroup/box.slice/meshd.service/memory.max": "max\n",
            "sys/fs/cgroup/box.slice/meshd.service/memory.current": "1\n",
            "sys/fs/cgroup/box.slice/memory.max": "614400\n",
            "sys/fs/cgroup/box.slice/memory.high": "512000\n",
            "sys/fs/cgroup/box.slice/memory.current": "102400\n",
            "sys/fs/cgroup/box.slice/memory.stat": "inactive_file 2400\n",
        },
    )
    ram = read_ram(root)
    assert ram == Ram(total_bytes=1024000, available_bytes=512000 - 100000)


def test_engines_are_measured_by_their_group_not_by_ours(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n",
            "proc/self/cgroup": "0::/system.slice/meshd.service\n",
            "sys/fs/cgroup/system.slice/meshd.service/memory.max": "4096\n",
            "sys/fs/cgroup/system.slice/meshd.service/memory.current": "1024\n",
        },
    )
    assert read_ram(root).available_bytes == 3072
    engines = read_ram(root, engine_group="/mesh.slice/mesh-engine.slice")
    assert engines.available_bytes == 921600


def test_a_limit_of_version_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n",
            "proc/self/cgroup": "4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "204800\n",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "104800\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "104800\n",
        },
    )
    assert read_ram(root).available_bytes == 100000


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert read_ram(tmp_path) == Ram(0, 0)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}),
        ("", set()),
        ("5-2,x,1", {1}),
        ("0-99999999", set()),
    ],
)
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


def test_threads_of_one_core_are_one_core() -> None:
    assert count_cores(["0,8", "1,9", "0,8", "1,9"]) == 2


def test_cpu_names() -> None:
    assert parse_cpu_name("processor\t: 0\nmodel name\t: A  B\n") == "A B"
    assert parse_cpu_name("CPU implementer\t: 0x41\n") == ""


def test_pci_addresses_of_nvml_and_sysfs_agree() -> None:
    assert normalise_address("00000000:0A:00.0") == "0000:0a:00.0"
    assert normalise_address("0000000F:01:00.0") == "000f:01:00.0"
    assert normalise_address("01:00.0") == "0000:01:00.0"
    assert normalise_address("Weird") == "weird"


def test_device_names_stay_with_their_vendor() -> None:
    amd = "1002  AMD\n\t164e  Raphael\n# note\n\t164f  Phoenix [Radeon]\n"
    ids = f"{amd}10de  NVIDIA\n\t2684  AD102\n"
    assert parse_device_name(ids, 0x1002, 0x164F) == "Radeon"
    assert parse_device_name(ids, 0x10DE, 0x2684) == "AD102"
    assert parse_device_name(ids, 0x1002, 0x2684) == ""
    assert parse_device_name(ids, 0x8086, 0x2684) == ""


def test_uevents() -> None:
    assert parse_uevent("DRIVER=amdgpu\nnonsense\nA=b=c\n") == {"DRIVER": "amdgpu", "A": "b=c"}


def test_only_metrics_tell_an_apu() -> None:
    assert is_apu(bytes.fromhex("08010300"))
    assert is_apu(bytes.fromhex("78000201"))
    assert not is_apu(bytes.fromhex("78000103"))
    assert not is_apu(b"")
    assert not is_apu(None)


def test_amd_ids() -> None:
    assert stable_id("0x398A3F843A146602", "0000:03:00.0") == "GPU-398a3f843a146602"
    for absent in (None, "", "0", "0000000000000000", "N/A"):
        assert stable_id(absent, "0000:03:00.0") == "pci-0000:03:00.0"


def test_used_memory_above_the_total_is_no_negative_free_memory() -> None:
    memory = AmdMemory(vram_total=100, vram_used=120, gtt_total=50, gtt_used=60)
    assert shared_memory(memory, Ram(1000, 900)) == (150, 0, 100)


def test_ioctl_numbers_are_those_of_the_headers() -> None:
    # From C: printf("%lu", DRM_IOCTL_XE_DEVICE_QUERY), DRM_IOCTL_I915_QUERY on x86-64.
    assert XE_DEVICE_QUERY == 3223872576
    assert I915_QUERY == 3222299769


@given(st.binary(max_size=400))
def test_answers_of_any_bytes_do_not_crash(answer: bytes) -> None:
    for parse in (parse_xe, parse_i915):
        memory = parse(answer)
        assert memory is None or memory.total_bytes >= 0


def test_a_count_beyond_the_answer_is_cut() -> None:
    assert parse_xe(struct.pack("=II", 1000, 0)) is None


def test_a_node_that_is_no_gpu_says_so(tmp_path: Path) -> None:
    node = tmp_path / "renderD128"
    node.write_text("")
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        query(node, "xe")
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        query(node, "i915")
    assert query(node, "nouveau") is None


def test_numbers(tmp_path: Path) -> None:
    assert parse_number("0x1002") == 0x1002
    assert parse_number("12") == 12
    assert parse_number("max") is None
    assert parse_number(None) is None
    assert read_number(tmp_path / "absent") is None
    assert read_text(tmp_path) is None  # a folder
