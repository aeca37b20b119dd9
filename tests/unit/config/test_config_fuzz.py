"""Whatever stands in a file: a configuration or a ConfigError, in bounded time, nothing else."""

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.config.findings import ConfigError, SourceFile
from meshd.config.layers import Loaded, parse_layers
from meshd.config.reference import mesh_yaml
from meshd.config.schema import published
from meshd.config.show import as_yaml
from meshd.config.syntax import MAX_BYTES, decode

SHIPPED = mesh_yaml(published()).encode()
CHANGES = ["merge", "replace"]

KEYS = st.sampled_from(sorted(set(re.findall(r"[a-z_]+(?=:)", SHIPPED.decode()))) + CHANGES)
WORDS = ["auto", "serve", "/srv", "a", "b", "tiny.gguf", "exact", "fair", "true", "false", "''"]
NUMBERS = ["1", "4", "1.5", "512MiB", "0B", "127.0.0.1:9337", "'[::1]:1'", "0.0.0.0:3131"]
ODD = ["no", "010", "1e3", "12:30", ".nan", "~", "<<", "!x", "&a", "*a", "9999999999999999999999"]
SCALARS = st.sampled_from([*WORDS, *NUMBERS, *ODD])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | SCALARS, inner, max_size=5),
    max_leaves=25,
)
MODELS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abc")},
        optional={
            "source": st.sampled_from(["x.gguf", "'*.gguf'", "../x", "/x"]),
            "slots": st.integers(0, 300) | st.just("auto"),
            "aliases": st.lists(st.sampled_from("abcd")) | st.just({"merge": ["p"]}),
            "replicas": st.fixed_dictionaries({}, optional={"min": st.integers(1, 3)}),
        },
    ),
    max_size=3,
)
LAYERS = st.fixed_dictionaries(
    {},
    optional={
        "models": MODELS | st.fixed_dictionaries({"merge": MODELS}),
        "gateway": st.fixed_dictionaries(
            {"listen": st.lists(st.sampled_from(["127.0.0.1:1", "'[::]:1'", "127.0.0.1:3131"]))}
        ),
        "node": TREES,
    },
)


def flow(tree: object) -> str:
    """A tree as YAML in flow style, its scalars as they are: nothing is quoted for safety."""
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{key}: {flow(value)}' for key, value in tree.items())}}}"
    if isinstance(tree, list):
        return f"[{', '.join(map(flow, tree))}]"
    return str(tree)


def outcome(*files: SourceFile | bytes) -> Loaded | ConfigError:
    try:
        layers = [
            file if isinstance(file, SourceFile) else decode(f"{index}.yaml", file)
            for index, file in enumerate(files)
        ]
        return parse_layers(layers)
    except ConfigError as error:
        return error


def survives(*files: SourceFile | bytes) -> Loaded | None:
    result = outcome(*files)
    if isinstance(result, Loaded):
        return result
    assert result.findings
    assert str(result).encode("utf-8", "replace")
    for one in result.findings:
        assert "\n" not in one.message
        assert one.line >= 0
    return None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    survives(data)


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from("abk01:-,[]{}&*!|>'\"%@`?#~.<= \n\t\r\ufeff\x85\u2028"),
        max_size=80,
    )
)
def test_text_of_yaml_indicators(text):
    survives(text.encode())


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=100))
def test_arbitrary_text_in_memory(text):
    survives(SourceFile("m.yaml", text))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_shipped_file_with_bytes_changed(data):
    text = bytearray(SHIPPED)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = at + data.draw(st.integers(0, 20))
        text[at:end] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"\n", b"\t", b": ", b"#"])
        )
    survives(bytes(text))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TREES | LAYERS, min_size=1, max_size=3))
def test_trees_of_the_schema_s_words(layers):
    loaded = survives(*(flow(layer).encode() for layer in layers))
    if loaded:
        again = parse_layers([SourceFile("again.yaml", as_yaml(loaded))])
        assert again.config == loaded.config


LINES = {
    "keys": "key{i}: 1\n",
    "items": "- {i}\n",
    "models": "- {{name: m{i}, source: x}}\n",
    "nested": "{i}: [",
    "quotes": "a{i}: '",
    "anchors": "k{i}: &a{i} [*a{i}]\n",
    "long": "x",
    "tabs": "\t",
    "explicit": "? ",
    "flow": "[a: b, ",
    "colons": ": ",
    "comments": "#{i}\n",
    "documents": "---\n",
    "duplicates": "mesh: \n",
}


@pytest.mark.parametrize("kind", LINES)
def test_a_full_mebibyte_is_done_in_bounded_time(kind):
    piece = LINES[kind]
    parts, size = [b"models:\n"] if kind == "models" else [], 8
    for i in range(MAX_BYTES):
        part = piece.format(i=i).encode()
        size += len(part)
        if size > MAX_BYTES:
            break
        parts.append(part)
    start = time.process_time()
    survives(b"".join(parts))
    assert time.process_time() - start < 10
