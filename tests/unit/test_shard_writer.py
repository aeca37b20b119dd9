"""Files of shards: which bytes they have, going on after a break, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFReader, dequantize
from gguf.quants import _type_traits
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.experts import shard_writer
from meshd.experts.anatomy import UndividableError
from meshd.experts.ranking import Selection
from meshd.experts.shard_writer import (
    StoppedError,
    Written,
    discard,
    partial_files,
    shard_bytes,
    write_shard,
)
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_facts
from meshd.models.gguf_header import GgufError
from tests.unit.mixtures import Mixture, Q, write

SLICED = ("_exps.", "ffn_gate_inp.", "exp_probs_b.")


def cut(
    files: tuple[str, ...],
    selection: Selection,
    target: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Written:
    return write_shard(files, selection, target, progress=progress, stopped=stopped)


def source_tensors(files: tuple[str, ...]) -> Iterator[tuple[str, Q, np.ndarray]]:
    for file in files:
        for tensor in GGUFReader(file).tensors:
            yield tensor.name, tensor.tensor_type, tensor.data


def same_but_for_the_cut(files: tuple[str, ...], selection: Selection, target: Path) -> None:
    """By the `gguf` package's own reader."""
    shard = GGUFReader(target)
    expected = list(source_tensors(files))
    assert [one.name for one in shard.tensors] == [name for name, _, _ in expected]
    end = 0
    for one, (name, kind, data) in zip(shard.tensors, expected, strict=True):
        assert one.tensor_type == kind
        assert one.data_offset % shard.alignment == 0
        assert one.data_offset >= end
        end = one.data_offset + one.n_bytes
        if any(part in name for part in SLICED):
            data = data[list(selection[int(name.split(".")[1])])]
        assert one.data.shape == data.shape, name
        assert one.data.tobytes() == data.tobytes(), name
    alignment = int(shard.alignment)
    assert target.stat().st_size == -(-int(end) // alignment) * alignment


def keys_of(path: str | Path) -> dict[str, bytes]:
    return {
        name: b"".join(part.tobytes() for part in field.parts)
        for name, field in GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    }


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Mixture, Selection]:
    groups = draw(st.sampled_from([0, 0, 2, 4]))
    size = draw(st.integers(2, 5)) if groups else draw(st.integers(2, 9))
    experts = size * (groups or 1)
    each = draw(st.integers(2, size))
    kept = each * (groups or 1)
    one = Mixture(
        blocks=draw(st.integers(1, 3)),
        experts=experts,
        used=draw(st.integers(1, experts)),
        kind=draw(st.sampled_from([Q.Q4_0, Q.Q4_K, Q.IQ3_S, Q.F16, Q.MXFP4])),
        groups=groups,
        alignment=draw(st.sampled_from([32, 64, 4096])),
        files=draw(st.sampled_from([0, 0, 3])),
    )
    one = Mixture(**{f: getattr(one, f) for f in one.__dataclass_fields__} | {
        "dense": draw(st.integers(0, one.blocks - 1))})  # fmt: skip

    def ids() -> tuple[int, ...]:
        chosen: list[int] = []
        for group in range(groups or 1):
            some = draw(st.permutations(range(size)))[:each]
            chosen += sorted(group * size + n for n in some)
        return tuple(chosen)

    selection = tuple(() if b < one.dense else ids() for b in range(one.blocks))
    assert all(len(chosen) in (0, kept) for chosen in selection)
    return one, selection


@settings(max_examples=40)  # each syncs a file
@given(mixtures())
def test_every_byte_is_the_sources(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Mixture, Selection]
) -> None:
    one, selection = case
    folder = tmp_path_factory.mktemp("any")
    files = write(one, folder / "m.gguf")
    target = folder / "shard.gguf"
    expected = shard_bytes(files, selection)
    written = cut(files, selection, target)
    assert written == Written(target, expected, hashlib.sha256(target.read_bytes()).hexdigest())
    assert target.stat().st_size == expected
    same_but_for_the_cut(files, selection, target)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*(Path(f).name for f in files), target.name]
    )
    shutil.rmtree(folder)


@pytest.mark.parametrize("files", [0, 3])
def test_keys_stay_byte_for_byte(files: int, tmp_path: Path) -> None:
    parts = write(Mixture(files=files, used=6), tmp_path / "m.gguf")
    ids = (1, 3, 4, 6)
    target = cut(parts, (ids, ids), tmp_path / "s.gguf").path
    before, after = keys_of(parts[0]), keys_of(target)
    split = {name for name in before if name.startswith("split.")}
    before = {name: value for name, value in before.items() if name not in split}
    own = {name: after.pop(name) for name in list(after) if name.startswith("meshd.shard.")}
    changed = {name for name in before if after[name] != before[name]}
    assert set(after) == set(before)
    assert files == len({"split.no", "split.count", "split.tensors.count"} & split)
    assert changed == {"qwen3moe.expert_count", "qwen3moe.expert_used_count"}
    assert set(own) == {f"meshd.shard.{one}" for one in ("format", "source", "experts_all", "kept")}
    reader = GGUFReader(target)
    assert reader.fields["qwen3moe.expert_count"].contents() == 4
    assert reader.fields["qwen3moe.expert_used_count"].contents() == 4
    assert reader.fields["meshd.shard.kept"].contents() == "1,3-4,6;1,3-4,6"
    assert reader.fields["meshd.shard.experts_all"].contents() == 8
    assert reader.fields["meshd.shard.source"].contents() == fingerprint([Path(p) for p in parts])


def test_used_experts_by_block_are_bounded_each(tmp_path: Path) -> None:
    files = write(Mixture(used=[1, 6]), tmp_path / "m.gguf")
    target = cut(files, ((0, 1, 2), (5, 6, 7)), tmp_path / "s.gguf").path
    assert GGUFReader(target).fields["qwen3moe.expert_used_count"].contents() == [1, 3]
    whole = cut(files, (tuple(range(8)),) * 2, tmp_path / "w.gguf").path
    assert GGUFReader(whole).fields["qwen3moe.expert_used_count"].contents() == [1, 6]


def test_no_experts_of_groups_that_are_not_chosen(tmp_path: Path) -> None:
    files = write(Mixture(experts=16, groups=4, used=8), tmp_path / "m.gguf")
    ids = (0, 1, 4, 5, 8, 9, 12, 13)
    target = cut(files, (ids, ids), tmp_path / "s.gguf").path
    # Two of four groups are chosen, and a group has two: four, not eight.
    assert GGUFReader(target).fields["qwen3moe.expert_used_count"].contents() == 4


def test_fewer_used_needs_the_experts_width(tmp_path: Path) -> None:
    files = write(Mixture(used=6, keys={"expert_feed_forward_length": 0}), tmp_path / "m.gguf")
    with pytest.raises(UndividableError, match="6 experts for a token, 3 are too few"):
        shard_bytes(files, ((0, 1, 2),) * 2)
    assert shard_bytes(files, (tuple(range(6)),) * 2)


KINDS = [kind for kind in GGML_QUANT_SIZES if kind in _type_traits or kind in (Q.F32, Q.F16)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_quantisation_is_cut_between_blocks(kind: Q, tmp_path: Path) -> None:
    files = write(Mixture(blocks=1, kind=kind, width=512), tmp_path / "m.gguf")
    ids = (0, 2, 3, 7)
    target = cut(files, (ids,), tmp_path / "s.gguf").path
    by_name = {one.name: one for one in GGUFReader(target).tensors}
    with np.errstate(all="ignore"):  # random bytes make scales of any kind
        for name, found, data in source_tensors(files):
            if "_exps.weight" not in name:
                continue
            assert found == kind
            whole = dequantize(data, kind)
            np.testing.assert_array_equal(dequantize(by_name[name].data, kind), whole[list(ids)])


def test_these_are_the_quantisations_that_the_engine_makes() -> None:
    """What the test before goes over."""
    assert {kind.name for kind in KINDS} >= {
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K",
        "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
        "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
    }  # fmt: skip


def test_prediction_blocks_keep_some_unasked(tmp_path: Path) -> None:
    files = write(Mixture(blocks=3, keys={"nextn_predict_layers": 1}), tmp_path / "m.gguf")
    selection = ((1, 2), (5, 7), ())
    cut(files, selection, tmp_path / "s.gguf")
    same_but_for_the_cut(files, (*selection[:2], (0, 1)), tmp_path / "s.gguf")


# Breaks


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints in small files, too."""
    monkeypatch.setattr(shard_writer, "_BLOCK_BYTES", 10_007)
    monkeypatch.setattr(shard_writer, "_CHECKPOINT_BYTES", 50_000)


IDS = ((0, 2, 3, 5, 7), (1, 2, 3, 4, 6))


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, ...]:
    return write(Mixture(), tmp_path / "m.gguf")


def stop_at(files: tuple[str, ...], target: Path, share: float) -> int:
    """Break off there; returns how far it was."""
    done = [0, 1]

    def note(*now: int) -> None:
        done[:] = now

    with pytest.raises(StoppedError):
        cut(files, IDS, target, progress=note, stopped=lambda: done[0] >= share * done[1])
    assert not target.exists()
    return done[0]


class Meter:
    """Counts what is copied, and copies it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        real = os.sendfile

        def sendfile(output: int, source: int, start: int, size: int) -> int:
            count = real(output, source, start, size)
            self.bytes += count
            return count

        monkeypatch.setattr(os, "sendfile", sendfile)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_goes_on_from_where_it_was(
    share: float, model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = cut(model, IDS, tmp_path / "straight.gguf")
    target = tmp_path / "s.gguf"
    done = stop_at(model, target, share)
    meter = Meter(monkeypatch)
    written = cut(model, IDS, target)
    assert written.sha256 == straight.sha256
    assert target.read_bytes() == straight.path.read_bytes()
    assert meter.bytes <= straight.size_bytes - done + 50_000 + 10_007
    assert not any(one.exists() for one in partial_files(target))


def damage_part(part: Path, journal: Path) -> None:
    with part.open("r+b") as file:
        file.seek(120_000)
        byte = file.read(1)[0]
        file.seek(120_000)
        file.write(bytes([byte ^ 1]))


def shorten_part(part: Path, journal: Path) -> None:
    os.truncate(part, 130_000)


def drop_part(part: Path, journal: Path) -> None:
    part.unlink()


def drop_journal(part: Path, journal: Path) -> None:
    journal.unlink()


def tear_journal(part: Path, journal: Path) -> None:
    os.truncate(journal, journal.stat().st_size - 40)


def wild_journal(part: Path, journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b"\xff 12\n99999999999999999999999 x\n" + os.urandom(200))


def other_journal(part: Path, journal: Path) -> None:
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([b"0" * 64, *lines[1:]]))


def lying_journal(part: Path, journal: Path) -> None:
    lines = journal.read_text().split("\n")
    end = int(lines[-2].split()[0])
    digest = hashlib.sha256(part.read_bytes()[:end]).hexdigest()
    journal.write_text("\n".join([*lines[:-1], f"{10**9} {digest}", ""]))


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize(
    "harm",
    [
        damage_part, shorten_part, drop_part, drop_journal, tear_journal, wild_journal,
        other_journal, lying_journal,
    ],
)  # fmt: skip
def test_what_was_harmed_meanwhile_is_written_again(
    harm: Callable[[Path, Path], None], model: tuple[str, ...], tmp_path: Path
) -> None:
    straight = cut(model, IDS, tmp_path / "straight.gguf")
    target = tmp_path / "s.gguf"
    stop_at(model, target, 0.8)
    harm(*partial_files(target))
    assert cut(model, IDS, target).sha256 == straight.sha256
    assert target.read_bytes() == straight.path.read_bytes()


@pytest.mark.usefixtures("fine")
def test_a_harmed_part_is_gone_on_with_before_the_harm(
    model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "s.gguf"
    stop_at(model, target, 0.8)
    damage_part(*partial_files(target))
    meter = Meter(monkeypatch)
    size = cut(model, IDS, target).size_bytes
    # All but the header and the paddings is copied.
    assert size - 120_000 - 10_000 <= meter.bytes <= size - 120_000 + 70_000


@pytest.mark.usefixtures("fine")
def test_other_experts_of_the_same_name_begin_anew(model: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "s.gguf"
    stop_at(model, target, 0.8)
    other = ((0, 1, 2, 3, 4),) * 2
    cut(model, other, target)
    same_but_for_the_cut(model, other, target)


@pytest.mark.usefixtures("fine")
def test_nothing_stays_of_a_larger_one(model: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "s.gguf"
    stop_at(model, target, 0.95)
    few = ((0, 1),) * 2
    cut(model, few, target)
    same_but_for_the_cut(model, few, target)


@pytest.mark.usefixtures("fine")
def test_another_source_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    files = write(Mixture(), tmp_path / "m.gguf", seed=1)
    target = tmp_path / "s.gguf"
    stop_at(files, target, 0.8)
    write(Mixture(), tmp_path / "m.gguf", seed=2)
    cut(files, IDS, target)
    same_but_for_the_cut(files, IDS, target)


def test_the_old_file_stays_until_the_new_one_is_whole(
    model: tuple[str, ...], tmp_path: Path
) -> None:
    target = cut(model, IDS, tmp_path / "s.gguf").path
    before = target.read_bytes()
    with pytest.raises(StoppedError):
        cut(model, ((0, 1), (0, 1)), target, stopped=lambda: True)
    assert target.read_bytes() == before
    discard(target)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.gguf", "s.gguf"]
    discard(target)


def test_two_at_once_are_refused(model: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "s.gguf"
    refused = []

    def another(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another process writes it"):
            cut(model, IDS, target)
        refused.append(done)

    cut(model, IDS, target, progress=another)
    assert refused
    same_but_for_the_cut(model, IDS, target)


def test_progress_only_rises_and_ends_at_the_whole(model: tuple[str, ...], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    size = cut(model, IDS, tmp_path / "s.gguf", progress=lambda *now: seen.append(now)).size_bytes
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {size}
    assert seen[-1][0] == size


# Refusals


def test_a_full_disk_is_told_beforehand(
    model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = shard_bytes(model, IDS)
    free = [needed + (64 << 20) - 1]
    status = lambda folder: SimpleNamespace(f_bavail=free[0], f_frsize=1)  # noqa: E731
    monkeypatch.setattr(os, "statvfs", status)
    meter = Meter(monkeypatch)
    with pytest.raises(UserError, match=r"needs 0\.00 GB more there, and 0\.07 GB have to stay"):
        cut(model, IDS, tmp_path / "s.gguf")
    assert meter.bytes == 0
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]
    free[0] += 1
    cut(model, IDS, tmp_path / "s.gguf")


def test_a_folder_that_is_not_there(model: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cut(model, IDS, tmp_path / "none" / "s.gguf")
    with pytest.raises(NotADirectoryError):
        cut(model, IDS, Path(model[0]) / "s.gguf")


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(output: int, source: int, start: int, size: int) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(UserError, match=r"no room for a shard of 0\.00 GB"):
        cut(model, IDS, tmp_path / "s.gguf")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def spoil(how: str, path: Path) -> None:
    if how == "grows":
        with path.open("ab") as file:
            file.write(b"more")
    elif how == "shrinks":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "touched":
        os.utime(path, ns=(1, 1))
    elif how == "replaced":
        path.rename(path.with_suffix(".old"))
        shutil.copy2(path.with_suffix(".old"), path)
    else:
        path.unlink()


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("how", ["grows", "shrinks", "touched", "replaced", "removed"])
@pytest.mark.parametrize("part", [0, -1])
def test_a_source_that_changes_meanwhile_is_refused(how: str, part: int, tmp_path: Path) -> None:
    files = write(Mixture(files=5), tmp_path / "m.gguf")
    target = tmp_path / "s.gguf"
    left = [1]

    def change(done: int, total: int) -> None:
        if left and done > total // 4:
            left.clear()
            spoil(how, Path(files[part]))

    with pytest.raises(UserError, match="changed while a shard was made of it"):
        cut(files, IDS, target, progress=change)
    assert not left
    assert not target.exists()
    assert not any(one.exists() for one in partial_files(target))


def test_no_shard_of_a_shard(model: tuple[str, ...], tmp_path: Path) -> None:
    shard = cut(model, IDS, tmp_path / "s.gguf").path
    assert read_facts(shard).undividable == "it is itself a shard of a model"
    with pytest.raises(UndividableError, match=r"s\.gguf: it is itself a shard"):
        cut((str(shard),), ((0, 1), (0, 1)), tmp_path / "t.gguf")


def test_foreign_and_damaged_files_are_refused(model: tuple[str, ...], tmp_path: Path) -> None:
    def refuses(files: tuple[str, ...], said: str) -> None:
        with pytest.raises(UserError, match=said):
            cut(files, IDS, tmp_path / "t.gguf")
        assert not list(tmp_path.glob(".t.gguf*"))

    whole = Path(model[0]).read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(whole[:-1])
    refuses((str(bad),), "cut short")
    bad.write_bytes(whole[:500])
    refuses((str(bad),), "ends inside its header")
    bad.write_bytes(b"PK" + whole[2:])
    refuses((str(bad),), "not a GGUF")
    bad.write_bytes(b"")
    refuses((str(bad),), "ends inside its header")
    refuses((str(tmp_path / "none.gguf"),), "none.gguf: No such file")
    refuses((str(tmp_path),), "Is a directory")
    refuses((), "none was named")
    refuses(model * 2, "has 1 files, not these 2")
    dense = write(Mixture(dense=2, experts=1, used=0), tmp_path / "dense.gguf")
    refuses(dense, "has no routed experts")


def test_parts_have_to_be_all_and_in_order(tmp_path: Path) -> None:
    files = write(Mixture(files=5), tmp_path / "m.gguf")
    assert len(files) > 2
    for wrong in (files[:1], files[::-1], (files[0], files[0], *files[2:])):
        with pytest.raises(UserError, match="files, not these"):
            cut(wrong, IDS, tmp_path / "t.gguf")
    Path(files[1]).unlink()
    with pytest.raises(UserError, match=r"No such file"):
        cut(files, IDS, tmp_path / "t.gguf")
    with pytest.raises(GgufError, match="parts are missing"):
        shard_bytes(files, IDS)


def test_a_wrong_selection_writes_nothing(model: tuple[str, ...], tmp_path: Path) -> None:
    for wrong in (((0, 1),), ((0, 1), (1, 0)), ((0, 1), (7, 8)), ((), ()), ((0, 1), (0, 1, 2))):
        with pytest.raises(UserError):
            cut(model, wrong, tmp_path / "t.gguf")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_a_link_in_place_of_the_unfinished_file_is_not_followed(
    model: tuple[str, ...], tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 100)
    partial_files(tmp_path / "s.gguf")[0].symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        cut(model, IDS, tmp_path / "s.gguf")
    assert precious.read_bytes() == b"x" * 100


def test_others_may_read_it(model: tuple[str, ...], tmp_path: Path) -> None:
    assert cut(model, IDS, tmp_path / "s.gguf").path.stat().st_mode & 0o777 == 0o644
