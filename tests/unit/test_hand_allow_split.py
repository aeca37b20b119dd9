"""The allow-list for the units of splits: a brain that was taken over, and its guards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import split_ports
from meshd.paths import SYSTEM, under
from meshd.planner.lent import Way
from meshd.units import allow_split, flags
from meshd.units.allow import refusals
from meshd.units.guard import host_guard_spec, member_guard_spec
from meshd.units.policy import load_policy
from meshd.units.rpc import rpc_spec
from meshd.units.spec import EngineKind, EngineSpec, GpuAccess
from tests.unit.split_world import HOST, LENT, MEMBER, OTHER, build
from tests.unit.test_hand_allow import LLAMA, POLICY, RPC, seen, why, with_flags
from tests.unit.worlds import hardware

MEMBER_END = member_guard_spec(LENT, "[::]", build(), SYSTEM)
HOST_END = host_guard_spec(
    "big",
    "big",
    3,
    (Way(MEMBER, "10.0.0.2:9340", 9404), Way(OTHER, "[fe80::1%eth0]:9341", 9405)),
    20.0,
    build(),
    SYSTEM,
)
LENT_OUT = rpc_spec(LENT, build(), hardware(), SYSTEM)


def instead(spec: EngineSpec, flag: str, value: str) -> EngineSpec:
    """The same with another value after a flag."""
    place = spec.argv.index(flag) + 1
    return replace(spec, argv=(*spec.argv[:place], value, *spec.argv[place + 1 :]))


def without(spec: EngineSpec, flag: str) -> EngineSpec:
    place = spec.argv.index(flag)
    return replace(spec, argv=(*spec.argv[:place], *spec.argv[place + 2 :]))


@pytest.mark.parametrize("spec", [MEMBER_END, HOST_END, LENT_OUT])
def test_what_meshd_renders_passes(spec: EngineSpec) -> None:
    assert why(spec) == ""


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(MEMBER_END, argv=("/bin/sh", *MEMBER_END.argv[1:])), "not how a guard"),
        (replace(MEMBER_END, argv=("/usr/bin/meshd",)), "not how a guard"),
        (replace(MEMBER_END, argv=()), "no program"),
        (replace(MEMBER_END, argv=("/usr/bin/meshd", "hand")), "not how a guard"),
        (replace(MEMBER_END, name="other"), "not how a guard"),
        (replace(MEMBER_END, argv=(*MEMBER_END.argv[:3], "both")), "not how a guard"),
        (replace(MEMBER_END, argv=(*MEMBER_END.argv[:3], *HOST_END.argv[3:])), "own socket"),
        (with_flags("--config", "/etc/shadow", spec=MEMBER_END), "not a flag"),
        (with_flags("--local", HOST_END.argv[5], spec=MEMBER_END), "not a flag"),
        (with_flags("--front", "127.0.0.1:9372", spec=HOST_END), "not a flag"),
        # What is admitted is sent on: only to an rpc-server, from a door of splits.
        (instead(MEMBER_END, "--front", "127.0.0.1:22"), "an rpc-server on this node"),
        (instead(MEMBER_END, "--front", "127.0.0.1:9337"), "an rpc-server on this node"),
        (instead(MEMBER_END, "--front", "127.0.0.1:9404"), "an rpc-server on this node"),
        (instead(MEMBER_END, "--front", "10.0.0.9:9372"), "an rpc-server on this node"),
        (instead(MEMBER_END, "--front", "/run/mesh/meshd.sock"), "an rpc-server on this node"),
        (instead(MEMBER_END, "--listen", "[::]:443"), "an address for a door"),
        (instead(MEMBER_END, "--listen", "[::]:9372"), "an address for a door"),
        (instead(MEMBER_END, "--listen", "192.0.2.1:9340"), "an address for a door"),
        (instead(MEMBER_END, "--admit", "*"), "a node's id"),
        (instead(MEMBER_END, "--admit", HOST.upper()), "a node's id"),
        (instead(MEMBER_END, "--admit", HOST + "a"), "a node's id"),
        (instead(MEMBER_END, "--term", "x"), "a number"),
        (instead(MEMBER_END, "--protocol", "8.0"), "three numbers"),
        (instead(MEMBER_END, "--tls", "/var/lib/mesh/identity"), "certificate"),
        (instead(MEMBER_END, "--tls", "/run/mesh/tls/../x"), "certificate"),
        (instead(MEMBER_END, "--status", "/run/mesh/meshd.sock"), "own socket"),
        (instead(MEMBER_END, "--status", "/run/mesh-guard/other/guard.sock"), "own socket"),
        (instead(HOST_END, "--local", f"0.0.0.0:9404={MEMBER}@10.0.0.2:9340"), "a way"),
        (instead(HOST_END, "--local", f"127.0.0.1:22={MEMBER}@10.0.0.2:9340"), "a way"),
        (instead(HOST_END, "--local", "127.0.0.1:9404=somebody@10.0.0.2:9340"), "a way"),
        (instead(HOST_END, "--local", f"127.0.0.1:9404={MEMBER}"), "a way"),
        (instead(HOST_END, "--local", f"127.0.0.1:9404={MEMBER}@/run/x"), "a way"),
        *((without(MEMBER_END, flag), "is missing") for flag in flags.GUARD_MEMBER),
        (without(without(HOST_END, "--local"), "--local"), "a way to a member is missing"),
        (without(HOST_END, "--tls"), "certificate is missing"),
        (replace(MEMBER_END, reads=("/var/lib/mesh/models/tiny.gguf",)), "reads no models"),
        (replace(MEMBER_END, environment=(("MESHD_TERM", "3"),)), "no variables"),
        (replace(MEMBER_END, gpu=GpuAccess.DRI), "no GPU"),
        (replace(LLAMA, kind=EngineKind.GUARD), "not how a guard"),
        (replace(MEMBER_END, kind=EngineKind.RPC), "not a program for a rpc"),
        # rpc-servers and llama-servers of splits.
        (replace(LENT_OUT, environment=(("LLAMA_CACHE", "/etc"),)), "folder of tensors"),
        (replace(LLAMA, environment=(("LLAMA_CACHE", str(SYSTEM.rpc_cache)),)), "LLAMA_CACHE"),
        (instead(RPC, "--port", "22"), "a port for an rpc-server"),
        (instead(RPC, "--port", "9340"), "a port for an rpc-server"),
        (with_flags("--rpc", "127.0.0.1:9372"), "on this node"),
        (with_flags("--rpc", "127.0.0.1:9337"), "on this node"),
        (with_flags("--override-tensor", ".*=CPU"), "a placement of tensors"),
        (with_flags("-ot", flags.OUTPUT_ON_CPU + ",x=CPU"), "a placement of tensors"),
    ],
)
def test_what_it_must_not_ask_for_is_refused_with_the_reason(spec: EngineSpec, reason: str) -> None:
    assert reason in why(spec)


def test_where_no_ports_are_for_splits_there_are_no_splits() -> None:
    closed = replace(POLICY, split_ports=frozenset())
    for spec in (MEMBER_END, HOST_END, LENT_OUT):
        assert refusals(spec, closed, seen(spec))


def test_the_door_is_where_root_lets_other_nodes_in() -> None:
    moved = replace(POLICY, peers=frozenset({"192.0.2.1:9338"}))
    assert "door" in "; ".join(refusals(MEMBER_END, moved, {}))
    there = instead(MEMBER_END, "--listen", "192.0.2.1:9340")
    assert refusals(there, moved, {}) == ()


def test_every_kind_of_value_of_a_split_is_judged() -> None:
    rules = POLICY.split_rules
    for kind in allow_split.KINDS:
        assert not allow_split.fits(kind, "", "x", rules)
    with pytest.raises(ValueError, match="nothing of a split"):
        allow_split.fits(flags.Value.TEXT, "", "x", rules)


_WORDS = [*HOST_END.argv[4:], *MEMBER_END.argv[4:], "--config", "--", "", "127.0.0.1:22", "::"]


@given(st.sampled_from([MEMBER_END, HOST_END]), st.lists(st.sampled_from(_WORDS), max_size=5))
def test_no_words_smuggle_another_port_or_folder(end: EngineSpec, words: list[str]) -> None:
    """Whatever passes sends to an rpc-server, listens on a door of splits, and knows one folder."""
    spec = with_flags(*words, spec=end)
    if refusals(spec, POLICY, {}):
        return
    for flag, value in zip(spec.argv, spec.argv[1:], strict=False):
        if flag == "--front":
            assert int(value.rpartition(":")[2]) in split_ports.servers(9340)
        if flag == "--listen":
            assert int(value.rpartition(":")[2]) in split_ports.doors(9340)
        if flag == "--tls":
            assert value == "/run/mesh/tls"


def test_the_ports_are_those_of_roots_configuration(tmp_path: Path) -> None:
    paths, uid = under(tmp_path), tmp_path.stat().st_uid
    paths.config.parent.mkdir()
    paths.config.write_text("mesh: {split_ports: 21000}\n")
    paths.config.chmod(0o644)
    trial = tmp_path / "trial.yaml"

    def ports() -> frozenset[int]:
        remembered = tmp_path / "allowed.json"
        return load_policy(paths, remembered=remembered, trial=trial, root=uid)[0].split_ports

    assert ports() == {21000}
    trial.write_text("mesh: {split_ports: 22000}\n")
    trial.chmod(0o644)
    assert ports() == {21000, 22000}
    trial.unlink()
    paths.config.write_text("mesh: [\n")
    assert ports() == {21000}, "the last good configuration counts"
