"""The allow-list: a brain that was taken over asks for all kinds of things."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.paths import SYSTEM, under
from meshd.units import flags
from meshd.units.allow import Policy, Seen, named, refusals
from meshd.units.policy import load_policy, look
from meshd.units.spec import EngineKind, EngineSpec

_SERVER = "/usr/bin/llama-server"
_RPC = "/usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server"
_MODEL = "/var/lib/mesh/models/tiny.gguf"
_SOCKET = "/run/mesh-engine/tiny/llama.sock"

POLICY = Policy(
    SYSTEM,
    ("/usr/bin", "/usr/libexec/*/llama/bin", "/var/lib/mesh/engine", "/var/lib/mesh/engine/*"),
    ("/var/lib/mesh/models",),
    ("/home/ada/x.gguf", "/data/*.gguf"),
    peers=frozenset({"[::]:9338"}),
    split_ports=frozenset({9340}),
)
LLAMA = EngineSpec(
    EngineKind.LLAMA,
    "tiny",
    "tiny",
    (_SERVER, "--model", _MODEL, "--host", _SOCKET, "--ctx-size", "4096", "--fit", "off"),
    reads=(_MODEL,),
)
RPC = EngineSpec(EngineKind.RPC, "gpu0", "", (_RPC, "--host", "127.0.0.1", "--port", "9372", "-c"))


def seen(spec: EngineSpec, **other: Seen) -> dict[str, Seen]:
    """All that a spec names is there, and as it should be."""
    return {path: Seen(path, regular=True, roots_own=True) for path in named(spec)} | other


def why(spec: EngineSpec, **other: Seen) -> str:
    return "; ".join(refusals(spec, POLICY, seen(spec, **other)))


def with_flags(*words: str, spec: EngineSpec = LLAMA) -> EngineSpec:
    return replace(spec, argv=(*spec.argv, *words))


@pytest.mark.parametrize(
    "spec",
    [
        LLAMA,
        RPC,
        with_flags("--metrics", "--flash-attn", "--no-webui", "-fa", "on", "--seed", "-1"),
        with_flags("--rpc", "127.0.0.1:9404,127.0.0.1:9435", "-ts", "1,1", "-ngl", "all"),
        with_flags("--alias", "tiny, the small one", "-ot", flags.OUTPUT_ON_CPU),
        replace(LLAMA, environment=(("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2"),)),
        replace(LLAMA, environment=(("LD_LIBRARY_PATH", "/var/lib/mesh/engine/usr/lib/x"),)),
        replace(LLAMA, argv=("/var/lib/mesh/engine/usr/bin/llama-server", *LLAMA.argv[1:])),
        replace(LLAMA, reads=(_MODEL, "/home/ada/x.gguf", "/data/y.gguf")),
    ],
)
def test_what_meshd_really_asks_for_passes(spec: EngineSpec) -> None:
    assert why(spec) == ""


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(LLAMA, name="../tiny"), "name"),
        (replace(LLAMA, name=""), "name"),
        (replace(LLAMA, name="a/b"), "name"),
        (replace(LLAMA, name="Tiny"), "name"),
        (replace(LLAMA, name="x" * 64), "name"),
        (replace(LLAMA, name="tiny\n"), "name"),
        (replace(LLAMA, argv=()), "no program"),
        (replace(LLAMA, argv=("/bin/sh", "-c", "id")), "not in a folder of the engine"),
        (replace(LLAMA, argv=("/usr/bin/bash", *LLAMA.argv[1:])), "not a program"),
        (replace(LLAMA, argv=(_RPC, *LLAMA.argv[1:])), "not a program for a llama"),
        (replace(LLAMA, argv=("llama-server", *LLAMA.argv[1:])), "not in a folder"),
        (replace(LLAMA, argv=("/usr/bin/../../tmp/llama-server",)), "not in a folder"),
        (replace(LLAMA, argv=("/var/lib/mesh/engine/../llama-server",)), "not in a folder"),
        (replace(LLAMA, argv=("/tmp/llama-server", *LLAMA.argv[1:])), "not in a folder"),
        (with_flags("--log-file", "/var/lib/x"), "not a flag"),
        (with_flags("--slot-save-path", "/var/lib/mesh"), "not a flag"),
        (with_flags("--api-key-file", "/etc/shadow"), "not a flag"),
        (with_flags("--models-dir", "/"), "not a flag"),
        (with_flags("--path", "/etc"), "not a flag"),
        (with_flags("--tools", "all"), "not a flag"),
        (with_flags("--model-url", "http://example.com/x"), "not a flag"),
        (with_flags("--hf-repo", "a/b"), "not a flag"),
        (with_flags("positional"), "not a flag"),
        (with_flags("--ctx-size=5"), "not a flag"),
        (with_flags("--ctx-size"), "followed by nothing"),
        (with_flags("--ctx-size", "many"), "a number"),
        (with_flags("--alias", "--log-file"), "a text"),
        (with_flags("--split-mode", "a b"), "a word"),
        (with_flags("--host", "0.0.0.0"), "listen"),
        (with_flags("--host", "/run/mesh-engine/other/llama.sock"), "listen"),
        (with_flags("--host", "/run/mesh/meshd.sock"), "listen"),
        (with_flags("--rpc", "10.0.0.1:9404"), "on this node"),
        (with_flags("--rpc", "127.0.0.1:9404,evil:9404"), "on this node"),
        (with_flags("--lora", "/etc/shadow"), "a file to read"),
        (with_flags("--model-draft", "/var/lib/mesh/models/not-declared.gguf"), "a file to read"),
        (replace(LLAMA, argv=(_SERVER, "--model", _MODEL)), "--host is missing"),
        (with_flags("--host", "0.0.0.0", spec=RPC), "listen"),
        (with_flags("--model", _MODEL, spec=RPC), "not a flag"),
        (replace(LLAMA, reads=(_MODEL, "/etc/shadow")), "/etc/mesh allows"),
        (replace(LLAMA, reads=(_MODEL, "/data/sub/y.gguf")), "/etc/mesh allows"),
        (replace(LLAMA, reads=(_MODEL, "/var/lib/mesh/models/../keys/k")), "not a path"),
        (replace(LLAMA, reads=(_MODEL, "relative")), "not a path"),
        (replace(LLAMA, reads=(_MODEL, "/var/lib/mesh/models")), "/etc/mesh allows"),
        (replace(LLAMA, environment=(("LD_PRELOAD", "/tmp/x.so"),)), "LD_PRELOAD"),
        (replace(LLAMA, environment=(("LD_LIBRARY_PATH", "/tmp"),)), "libraries"),
        (replace(LLAMA, environment=(("LD_LIBRARY_PATH", "/usr/bin:"),)), "libraries"),
        (replace(LLAMA, environment=(("LLAMA_ARG_HOST", "0.0.0.0"),)), "LLAMA_ARG_HOST"),
        (replace(LLAMA, environment=(("CUDA_VISIBLE_DEVICES", "a b"),)), "not allowed"),
        (replace(LLAMA, model="a\nb"), "control characters"),
        (replace(LLAMA, memory_max_bytes=0), "no limit"),
        (replace(LLAMA, attempt=-1), "attempt -1 is none that is counted"),
        (replace(LLAMA, attempt=1_000_000), "none that is counted"),
        (with_flags(*["--metrics"] * 600), "too many"),
        (with_flags("--alias", "x" * 10_000), "more than 8192"),
    ],
)
def test_what_it_must_not_ask_for_is_refused_with_the_reason(spec: EngineSpec, reason: str) -> None:
    assert reason in why(spec)


def test_a_link_does_not_lead_out_of_the_model_folders() -> None:
    escaped = {_MODEL: Seen("/etc/shadow", regular=True, roots_own=True)}
    assert "/etc/mesh allows" in why(LLAMA, **escaped)


def test_a_link_does_not_lead_out_of_the_engines_folders() -> None:
    escaped = {_SERVER: Seen("/tmp/evil", regular=True, roots_own=True)}
    assert "/tmp/evil is not in a folder of the engine" in why(LLAMA, **escaped)


def test_a_program_that_others_could_replace_is_refused() -> None:
    assert "replaced by others" in why(LLAMA, **{_SERVER: Seen(_SERVER, regular=True)})


def test_what_is_not_there_is_refused() -> None:
    reasons = "; ".join(refusals(LLAMA, POLICY, {}))
    assert f"{_SERVER} is not there" in reasons
    assert f"{_MODEL} is not a file" in reasons


@given(
    st.lists(
        st.sampled_from([*sorted(flags.LLAMA), _MODEL, "on", "1", "-1", "--", "", "/etc/shadow"]),
        max_size=6,
    )
)
def test_no_flags_smuggle_another_file_or_address(words: list[str]) -> None:
    """Whatever passes names no file but the model, and listens on the one socket only."""
    spec = with_flags(*words)
    if not refusals(spec, POLICY, seen(spec)):
        pairs = zip(spec.argv, spec.argv[1:], strict=False)
        for flag, value in pairs:
            kind = flags.LLAMA.get(flag)
            if kind is flags.Value.HOST:
                assert value == _SOCKET
            if kind is flags.Value.FILE:
                assert value == _MODEL


def test_no_known_flag_writes_fetches_or_runs() -> None:
    forbidden = ("url", "hf", "docker", "key", "path", "dir", "tools", "mcp-servers", "ssl", "save")
    for flag in flags.LLAMA:
        if not flag.startswith("--no-"):
            assert not {*flag.strip("-").split("-")} & set(forbidden), flag


# The edge, on real files.


def engine(tmp_path: Path) -> EngineSpec:
    paths = under(tmp_path)
    program = paths.state / "engine/usr/bin/llama-server"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    model = tmp_path / "models/tiny.gguf"
    model.parent.mkdir()
    model.write_bytes(b"GGUF")
    socket = str(paths.engine_socket("tiny"))
    argv = (str(program), "--model", str(model), "--host", socket)
    return EngineSpec(EngineKind.LLAMA, "tiny", "tiny", argv, reads=(str(model),))


def configure(tmp_path: Path, text: str) -> Path:
    config = under(tmp_path).config
    config.parent.mkdir(exist_ok=True)
    config.write_text(text)
    config.chmod(0o644)
    return config


def check(tmp_path: Path, spec: EngineSpec) -> tuple[str, ...]:
    paths, uid = under(tmp_path), tmp_path.stat().st_uid
    policy, _ = load_policy(
        paths, remembered=tmp_path / "allowed.json", trial=tmp_path / "trial.yaml", root=uid
    )
    return refusals(spec, policy, look(spec, paths, root=uid))


@pytest.fixture
def spec(tmp_path: Path) -> EngineSpec:
    return engine(tmp_path)


def test_a_model_in_an_allowed_folder_passes(tmp_path: Path, spec: EngineSpec) -> None:
    configure(tmp_path, f"node:\n  model_dirs: [{tmp_path}/models]\n")
    assert check(tmp_path, spec) == ()


@pytest.mark.parametrize("source", ["tiny.gguf", "*.gguf"])
def test_a_models_own_source_passes(tmp_path: Path, spec: EngineSpec, source: str) -> None:
    configure(tmp_path, f"models:\n  - name: tiny\n    source: '{tmp_path}/models/{source}'\n")
    assert check(tmp_path, spec) == ()


def test_all_parts_of_a_split_model_pass(tmp_path: Path, spec: EngineSpec) -> None:
    parts = [tmp_path / f"models/big-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    configure(tmp_path, f"models:\n  - name: big\n    source: {parts[0]}\n")
    split = replace(spec, argv=(*spec.argv[:2], str(parts[0]), *spec.argv[3:]))
    assert check(tmp_path, replace(split, reads=tuple(map(str, parts)))) == ()
    assert check(tmp_path, replace(split, reads=(*map(str, parts), *spec.reads))) != ()


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, spec: EngineSpec) -> None:
    configure(tmp_path, f"node:\n  model_dirs: [{tmp_path}/models]\n")
    secret = tmp_path / "secret"
    secret.write_text("x")
    model = Path(spec.reads[0])
    model.unlink()
    model.symlink_to(secret)
    assert "/etc/mesh allows" in check(tmp_path, spec)[0]


def shard(tmp_path: Path, spec: EngineSpec, name: str = "key/model.gguf") -> EngineSpec:
    """An engine that reads what lies below the folder of shards under this name."""
    path = str(under(tmp_path).shards / name)
    return replace(spec, argv=(*spec.argv[:2], path, *spec.argv[3:]), reads=(path,))


def test_a_shard_passes_whatever_the_configuration_says(tmp_path: Path, spec: EngineSpec) -> None:
    configure(tmp_path, "")
    file = under(tmp_path).shards / "key/model.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    assert check(tmp_path, shard(tmp_path, spec)) == ()
    for name in ("../shards-2/model.gguf", "../experts/model.gguf", "../model.gguf"):
        other = (under(tmp_path).shards / name).resolve()
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"GGUF")
        reads = replace(
            spec, argv=(*spec.argv[:2], str(other), *spec.argv[3:]), reads=(str(other),)
        )
        assert "/etc/mesh allows" in check(tmp_path, reads)[0]


@pytest.mark.parametrize("what", ["key/model.gguf", "key", "."])
def test_no_link_leads_out_of_the_folder_of_shards(
    tmp_path: Path, spec: EngineSpec, what: str
) -> None:
    """Neither a file, nor a folder, nor the folder of shards itself, which is the brain's."""
    configure(tmp_path, "")
    secret = tmp_path / "secret/key/model.gguf"
    secret.parent.mkdir(parents=True)
    secret.write_text("x")
    link = under(tmp_path).shards / what
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "secret" / what)
    assert (under(tmp_path).shards / "key/model.gguf").read_text() == "x"
    assert "/etc/mesh allows" in check(tmp_path, shard(tmp_path, spec))[0]


def test_a_state_folder_that_root_has_moved_keeps_its_shards(
    tmp_path: Path, spec: EngineSpec
) -> None:
    configure(tmp_path, "")
    state = under(tmp_path).state
    state.rename(tmp_path / "moved")
    state.symlink_to(tmp_path / "moved")
    file = under(tmp_path).shards / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    assert check(tmp_path, shard(tmp_path, spec, "model.gguf")) == ()


@pytest.mark.parametrize("what", ["usr/bin/llama-server", "usr/bin", "."])
def test_a_program_that_may_be_replaced_is_refused(
    tmp_path: Path, spec: EngineSpec, what: str
) -> None:
    configure(tmp_path, f"node:\n  model_dirs: [{tmp_path}/models]\n")
    (under(tmp_path).state / "engine" / what).chmod(0o777)
    assert "replaced by others" in check(tmp_path, spec)[0]


def test_transient_dropins_allow_nothing(tmp_path: Path, spec: EngineSpec) -> None:
    """They are the brain's to write."""
    configure(tmp_path, "node:\n  model_dirs: [/var/lib/mesh/models]\n")
    transient = under(tmp_path).transient_config
    transient.mkdir(parents=True)
    (transient / "x.yaml").write_text(f"node:\n  model_dirs: [{tmp_path}/models]\n")
    assert "/etc/mesh allows" in check(tmp_path, spec)[0]


def test_a_configuration_that_others_can_write_allows_nothing(
    tmp_path: Path, spec: EngineSpec
) -> None:
    configure(tmp_path, f"node:\n  model_dirs: [{tmp_path}/models]\n").chmod(0o666)
    assert "/etc/mesh allows" in check(tmp_path, spec)[0]


def test_while_the_configuration_is_bad_the_last_good_one_counts(
    tmp_path: Path, spec: EngineSpec
) -> None:
    configure(tmp_path, f"node:\n  model_dirs: [{tmp_path}/models]\n")
    assert check(tmp_path, spec) == ()
    configure(tmp_path, "node: [\n")
    assert check(tmp_path, spec) == ()
    uid = tmp_path.stat().st_uid
    _, warnings = load_policy(under(tmp_path), remembered=tmp_path / "allowed.json", root=uid)
    assert "configuration is bad" in warnings[0]


def test_what_root_tries_passes_while_it_is_tried(tmp_path: Path, spec: EngineSpec) -> None:
    configure(tmp_path, "")
    trial = tmp_path / "trial.yaml"
    trial.write_text(f"models: [{{name: tiny, source: {tmp_path}/models/tiny.gguf}}]\n")
    trial.chmod(0o644)
    assert check(tmp_path, spec) == ()
    trial.chmod(0o666)
    assert "/etc/mesh allows" in check(tmp_path, spec)[0], "not what anybody could have written"
    trial.unlink()
    assert "/etc/mesh allows" in check(tmp_path, spec)[0]


def test_the_folders_above_an_engine_root_need_not_be_roots(
    tmp_path: Path, spec: EngineSpec
) -> None:
    """/var/lib/mesh is _meshd's, /var/lib/mesh/engine is root's."""
    configure(tmp_path, f"node:\n  model_dirs: [{tmp_path}/models]\n")
    os.chmod(under(tmp_path).state, 0o777)  # noqa: PTH101
    assert check(tmp_path, spec) == ()


def test_libraries_that_others_could_replace_are_not_loaded() -> None:
    # The engine's root lies in a folder of the brain's, which can put another in its place.
    folder = "/var/lib/mesh/engine/lib"
    spec = replace(LLAMA, environment=(("LD_LIBRARY_PATH", folder),))
    assert "replaced by others" in why(spec, **{folder: Seen(folder)})
    linked = {folder: Seen("/tmp/evil", roots_own=True)}
    assert "not a folder of the engine" in why(spec, **linked)


def test_library_folders_are_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "state/engine/lib"
    folder.mkdir(parents=True)
    spec = replace(LLAMA, environment=(("LD_LIBRARY_PATH", str(folder)),))
    mine = os.getuid()
    assert look(spec, under(tmp_path), root=mine)[str(folder)].roots_own
    folder.chmod(0o777)
    assert not look(spec, under(tmp_path), root=mine)[str(folder)].roots_own
