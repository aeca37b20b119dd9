from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.units.dialect import Dialect, Flag, UnknownFlag
from meshd.units.intents import SPELLINGS, Intent

HELP = Path(__file__).parent / "help"

# Printed by the builds themselves; the newest is Debian's package, the others were built from
# upstream's source at that version or commit (August 2025) without the RPC backend.
BUILDS = ("llama-server-0.7.0", "llama-server-0.5.0", "llama-server-4227c9be")

WISHES = (
    Flag(Intent.MODEL, "/models/tiny.gguf"),
    Flag(Intent.ALIAS, "tiny"),
    Flag(Intent.HOST, "/run/e/llama.sock"),
    Flag(Intent.PORT, "8000"),
    Flag(Intent.CONTEXT, "4096"),
    Flag(Intent.SLOTS, "2"),
    Flag(Intent.GPU_LAYERS, "all"),
    Flag(Intent.DEVICES, "CUDA0,CUDA1"),
    Flag(Intent.TENSOR_SPLIT, "3,1"),
    Flag(Intent.LOAD_MODE, "none"),
    Flag(Intent.FIT, "off"),
    Flag(Intent.FLASH_ATTENTION, "on"),
    Flag(Intent.KV_TYPE_K, "q8_0"),
    Flag(Intent.CACHE_RAM, "0"),
    Flag(Intent.METRICS),
    Flag(Intent.SLOTS_ENDPOINT),
    Flag(Intent.UI, "off"),
    Flag(Intent.JINJA),
    Flag(Intent.DRAFT_MODEL, "/models/draft.gguf"),
    Flag(Intent.DRAFT_MAX, "8"),
    Flag(Intent.DRAFT_GPU_LAYERS, "all"),
    Flag(Intent.SPECULATION, "draft-simple"),
    Flag(Intent.SSE_PING, "15", optional=True),
    Flag(Intent.LOG_COLORS, "off"),
    Flag(Intent.LOG_TIMESTAMPS),
    Flag(Intent.OFFLINE),
)

NEWER = (
    "--model /models/tiny.gguf --alias tiny --host /run/e/llama.sock --port 8000 --ctx-size 4096 "
    "--parallel 2 --n-gpu-layers all --device CUDA0,CUDA1 --tensor-split 3,1 --load-mode none "
    "--fit off --flash-attn on --cache-type-k q8_0 --cache-ram 0 --metrics --slots --no-ui "
    "--jinja --spec-draft-model /models/draft.gguf --spec-draft-n-max 8 --spec-draft-ngl all "
    "--spec-type draft-simple --sse-ping-interval 15 --log-colors off --log-timestamps --offline"
)
GOLDEN = {
    "llama-server-0.7.0": NEWER,
    "llama-server-0.5.0": NEWER,
    "llama-server-4227c9be": (
        "--model /models/tiny.gguf --alias tiny --host /run/e/llama.sock --port 8000 "
        "--ctx-size 4096 --parallel 2 --n-gpu-layers 999 --device CUDA0,CUDA1 --tensor-split 3,1 "
        "--no-mmap --flash-attn --cache-type-k q8_0 --metrics --slots --no-webui --jinja "
        "--model-draft /models/draft.gguf --draft-max 8 --gpu-layers-draft 999 "
        "--log-timestamps --offline"
    ),
}


def help_text(build: str) -> str:
    return (HELP / f"{build}.txt").read_text()


@functools.cache
def dialect(build: str) -> Dialect:
    return Dialect.from_help(help_text(build), build=build)


def without(text: str, flag: str) -> str:
    """The help text of a build that has lost one option."""
    blocks = re.split(r"(?m)^(?=-)", text)
    kept = [block for block in blocks if flag not in re.split(r"\s{2,}", block, maxsplit=1)[0]]
    assert len(kept) == len(blocks) - 1
    return "".join(kept)


@pytest.mark.parametrize("build", BUILDS)
def test_golden_render(build: str) -> None:
    assert " ".join(dialect(build).render(WISHES)) == GOLDEN[build]


@pytest.mark.parametrize("build", BUILDS)
def test_every_flag_in_the_help_is_read(build: str) -> None:
    text = help_text(build)
    heads = re.findall(r"(?m)^-[a-zA-Z-].*$", text)
    names = set(re.findall(r"(?:^|, +)(-{1,2}[a-zA-Z][\w.-]*)", "\n".join(heads), re.MULTILINE))
    known = dialect(build).options
    # Descriptions may name flags after a comma; those are flags all the same.
    assert names <= set(known)
    # Upstream names the environment variable of an option only with the option.
    settable = {
        name: option for name, option in known.items() if "(env: LLAMA_ARG" in option.description
    }
    assert text.count("(env: LLAMA_ARG") == len({id(option) for option in settable.values()})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("--ctx-size", 1),
        ("-c", 1),
        ("--metrics", 0),
        ("--no-models-autoload", 0),  # its names end right before the description's column
        ("--chat-template-file", 1),  # a hint beyond the column
        ("--override-tensor", 1),  # a hint with spaces in it
        ("--control-vector-layer-range", 2),
    ],
)
def test_how_many_values_follow(name: str, values: int) -> None:
    assert dialect("llama-server-0.7.0").options[name].values == values


def test_a_hint_that_begins_in_the_descriptions_column() -> None:
    text = """
--model FNAME                           model path to load
--save-all-logits, --kl-divergence-base FNAME
                                        set logits file
--models-autoload, --no-models-autoload automatically load models
"""
    options = Dialect.from_help(text).options
    base = options["--kl-divergence-base"]
    assert (base.values, base.description) == (1, "set logits file")
    autoload = options["--no-models-autoload"]
    assert (autoload.values, autoload.description) == (0, "automatically load models")


def test_a_flag_that_was_removed_is_refused_with_upstreams_advice() -> None:
    with pytest.raises(UnknownFlag, match=r"--draft-max: removed .*use --spec-draft-n-max"):
        dialect("llama-server-0.7.0").check(("--draft-max", "8"))


def test_a_build_that_lost_a_flag() -> None:
    lost = Dialect.from_help(
        without(help_text("llama-server-0.7.0"), "--sse-ping-interval"), build="lost"
    )
    words = lost.render(WISHES)
    assert "--sse-ping-interval" not in words
    assert " ".join(words) == NEWER.replace("--sse-ping-interval 15 ", "")
    with pytest.raises(UnknownFlag) as caught:
        lost.render((Flag(Intent.SSE_PING, "15"),))
    assert "sse-ping" in str(caught.value)
    assert "lost" in str(caught.value)
    assert caught.value.hint


def test_what_a_build_cannot_be_told_is_an_error() -> None:
    old = dialect("llama-server-4227c9be")
    for flag in (Flag(Intent.FIT, "on"), Flag(Intent.LOAD_MODE, "dio"), Flag(Intent.RPC, "a:1")):
        assert not old.says(flag)
        with pytest.raises(UnknownFlag, match=flag.intent):
            old.render((flag,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ctx-sise", "1"), "unknown.*--ctx-size"),
        (("--ctx-size",), "wants a value"),
        (("--metrics", "on"), "stray word"),
        (("--split-mode", "diagonal"), "none, layer, row"),
        (("--ctx-size=1",), "space"),
        (("",), "stray word"),
    ],
)
def test_flags_of_a_persons_own_are_checked(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dialect("llama-server-0.7.0").check(words)


def test_something_else_than_a_help_text_is_refused() -> None:
    with pytest.raises(UserError, match="no --model"):
        Dialect.from_help("error: unknown argument --help\n", build="x")


@given(st.text())
def test_no_text_crashes_the_reader(text: str) -> None:
    read = Dialect.from_help("-m,    --model FNAME                    model path to load\n" + text)
    assert read.options["--model"].values == 1


@pytest.mark.parametrize("build", BUILDS)
@given(
    wishes=st.lists(
        st.builds(Flag, st.sampled_from(Intent), st.sampled_from(["on", "off", "all", "7", "auto"]))
    )
)
def test_a_render_is_always_what_the_build_takes(build: str, wishes: list[Flag]) -> None:
    known = dialect(build)
    try:
        words = known.render(wishes)
    except UserError:
        return
    known.check(words)


def test_every_intent_can_be_spelled_in_the_newest_build() -> None:
    # Stored help texts come from machines without an RPC backend or with one; Debian's has it.
    known = dialect("llama-server-0.7.0")
    spelled = {
        intent
        for intent, spellings in SPELLINGS.items()
        if any(
            spelling.words and all(name in known.options for name, _ in spelling.flags)
            for spelling in spellings
        )
    }
    assert spelled == set(Intent)
