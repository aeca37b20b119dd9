"""Every way in which YAML surprises people ends in a clear error at the right place."""

import re
import sys
import textwrap

import pytest

from meshd.config.findings import ConfigError, Finding, Severity, SourceFile
from meshd.config.layers import parse_layers
from meshd.config.scalars import MAX_INTEGER, Ambiguous, resolve
from meshd.config.syntax import MAX_BYTES, decode


def errors(text: str | bytes) -> tuple[Finding, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    found = [one for one in caught.value.findings if one.severity is Severity.ERROR]
    assert found
    return tuple(found)


def parse(text: str | bytes):
    if isinstance(text, bytes):
        return parse_layers([decode("mesh.yaml", text)])
    return parse_layers([SourceFile("mesh.yaml", textwrap.dedent(text))])


def only(text: str | bytes) -> Finding:
    found = errors(text)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def test_duplicate_key_names_both_lines():
    found = only("console:\n  enabled: true\n  enabled: false\n")
    assert (found.line, found.column) == (3, 3)
    assert "second time" in found.message
    assert "line 2" in found.message


@pytest.mark.parametrize("word", ["no", "NO", "off", "Off", "yes", "Yes", "on", "ON"])
def test_yaml_1_1_booleans_are_not_taken_for_a_name(word):
    found = only(f"mesh:\n  name: {word}\n")
    assert (found.line, found.column) == (2, 9)
    assert found.hint == f'write "{word}" in quotes'


@pytest.mark.parametrize(("word", "plain"), [("no", "false"), ("off", "false"), ("yes", "true")])
def test_yaml_1_1_booleans_are_not_taken_for_booleans_either(word, plain):
    found = only(f"console: {{enabled: {word}}}")
    assert found.hint == f"write {plain}"


def test_quoted_words_are_text():
    assert parse('mesh: {name: "no"}').config.mesh.name == "no"
    assert parse("mesh: {name: '010'}").config.mesh.name == "010"


@pytest.mark.parametrize("word", ["true", "null-", "None", "y", "N", "08-b", "v1.2.3", "1.2.3"])
def test_what_both_versions_read_alike_is_taken(word):
    assert resolve(word) == (True if word == "true" else word)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("010", "write 10 or 8"), ("1e3", "write 1000"), ("01", "write 1")],
)
def test_odd_numbers_where_a_number_is_meant(text, hint):
    found = only(f"models:\n  - name: a\n    source: b\n    slots: {text}\n")
    assert (found.line, found.column) == (4, 12)
    assert found.hint == hint


@pytest.mark.parametrize(
    "text",
    [
        "010",
        "08",
        "12:30:00",
        "1:30",
        "1e3",
        "1.5e3",
        "0x1F",
        "0o17",
        "0b11",
        "1_000",
        "2024-01-01",
    ],
)
def test_odd_numbers_where_text_is_meant(text):
    found = only(f"models: [{{name: a, source: {text}}}]")
    assert found.hint == f'write "{text}" in quotes'


@pytest.mark.parametrize("text", ["12", "1.5", "true"])
def test_other_scalars_where_text_is_meant(text):
    found = only(f"mesh: {{name: {text}}}")
    assert f'write "{text}" in quotes' in found.hint


@pytest.mark.parametrize("text", [".nan", ".NaN", ".inf", "-.inf", "+.INF"])
def test_numbers_that_are_not_finite(text):
    assert "finite" in only(f"models: [{{name: a, source: b, slots: {text}}}]").message


@pytest.mark.parametrize("text", [str(MAX_INTEGER + 1), "-" + "9" * 40, "9" * 20_000, "1e999"])
def test_huge_numbers(text):
    found = only(f"models: [{{name: a, source: b, slots: {text}}}]")
    assert len(found.message) < 200


@pytest.mark.parametrize("text", ["1.0e+400", "9" * 70 + ".0"])
def test_huge_floats_do_not_become_infinite(text):
    value = resolve(text)
    assert isinstance(value, Ambiguous | str)


def test_integers_up_to_64_bits_are_numbers():
    assert resolve(str(MAX_INTEGER)) == MAX_INTEGER
    assert resolve("+7") == 7
    assert isinstance(resolve("9" * (sys.get_int_max_str_digits() + 1)), Ambiguous)


def test_alias_bomb():
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for upper, lower in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{upper}: &{upper} [{', '.join([f'*{lower}'] * 10)}]")
    found = only("\n".join(lines))
    assert "more than 20000 values" in found.message
    assert found.line == 4


def test_alias_in_itself():
    assert "inside the value it repeats" in only("a: &a [*a]").message
    assert "nothing is named" in only("a: *b").message


def test_aliases_cannot_build_a_deep_tree_from_shallow_ones():
    deep = "&a0 " + "[" * 12 + "]" * 12
    chain = "\n".join(f"k{i}: &a{i} [[[*a{i - 1}]]]" for i in range(1, 500))
    assert "levels deep" in only(f"k0: {deep}\n{chain}\n").message


def test_plain_aliases_work():
    text = "models:\n - {name: a, source: x, aliases: &l [p]}\n - {name: b, source: &s z}\n"
    assert parse(text + " - {name: c, source: *s}\n").config.models[2].source == "z"


def test_files_above_a_mebibyte():
    found = only(b"#" * (MAX_BYTES + 1))
    assert str(MAX_BYTES + 1) in found.message


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_wide_encodings(codec):
    found = only("mesh: {name: lab}\n".encode(codec))
    assert "UTF-" in found.message
    assert "iconv" in found.hint


def test_latin_1_is_named_at_its_place():
    found = only("mesh:\n  name: caf\xe9 # x\n".encode("latin-1"))
    assert (found.line, found.column) == (2, 12)
    assert "0xe9" in found.message
    assert "Latin-1" in found.hint


def test_nul_byte():
    found = only(b"mesh:\n  name: la\0b\n")
    assert (found.line, found.column) == (2, 11)
    assert "NUL" in found.message


def test_utf_8_byte_order_mark_is_accepted_at_the_start_only():
    assert parse(b"\xef\xbb\xbfmesh: {name: lab}").config.mesh.name == "lab"
    assert "joined" in only(b"mesh: {name: lab}\n\xef\xbb\xbfnode:\n").hint


@pytest.mark.parametrize("char", ["\x07", "\x1b", "\x7f", "\x80", "\ufffe", "\ud800"])
def test_characters_outside_yaml(char):
    found = only(f"mesh:\n  name: a{char}b\n")
    assert (found.line, found.column) == (2, 10)
    assert f"U+{ord(char):04X}" in found.message
    assert char not in str(found)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting(opening):
    assert "levels deep" in only(opening * 200_000).message


def test_other_line_ends():
    assert parse(b"mesh:\r\n  name: lab\r\n").config.mesh.name == "lab"
    found = only(b"mesh:\r\n  name: lab\r\n  nam: x\r\n")
    assert (found.line, found.column, found.source_line) == (3, 3, "  nam: x")


def test_tabs():
    found = only("mesh:\n\tname: lab\n")
    assert (found.line, found.column) == (2, 1)
    assert "tab" in found.message
    assert "spaces" in found.hint


def test_second_document():
    found = only("mesh:\n---\nnode:\n")
    assert found.line == 2
    assert "second YAML document" in found.message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "---\n...\n", "~\n"])
def test_an_empty_file_says_nothing(text):
    loaded = parse(text)
    assert loaded.config == parse_layers([]).config
    assert loaded.origins == {}


@pytest.mark.parametrize("text", ["- a\n", "hello\n", "12\n", "[]\n", '""\n'])
def test_top_level_that_is_not_a_mapping(text):
    found = only(text)
    assert "sections" in found.message
    assert found.line == 1


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system [id]", "!secret x", "!!str no", "!!binary aGk=", "! x"],
)
def test_tags(value):
    found = errors(f"mesh:\n  name: {value}\n")[0]
    assert "tags" in found.message
    assert (found.line, found.column) == (2, 9)


def test_merge_keys():
    found = only("mesh: &m {name: lab}\nconsole:\n  <<: *m\n")
    assert (found.line, found.column) == (3, 3)
    assert "merge keys" in found.message


@pytest.mark.parametrize(
    "key", ["1", "1.5", "true", "~", "no", "2024-01-01", "? [a]\n", "? {a: b}\n"]
)
def test_keys_that_are_not_text(key):
    assert "key" in only(f"{key}: x\n").message


def test_escape_sequences_do_not_reach_the_terminal():
    found = only('mesh: {name: "\\e[31mred\\x07"}')
    assert "\x1b" not in str(found)
    assert "\x07" not in str(found)


def test_a_line_break_does_not_slip_through_a_pattern():
    assert "mesh.name" in only('mesh: {name: "lab\\n"}').message


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("models: [{name: a, source: *.gguf}]", (1, 28), "alias"),
        ("gateway: {listen: [::1]:93}", (1, 20), "cannot begin like this"),
        ("mesh: {name: 'lab}\n", (1, 14), "never closed"),
        ("models: [1, 2\n", (1, 9), "not closed by ]"),
        ("mesh: {name: lab\n", (1, 7), "not closed by }"),
        ("mesh:\n    name: lab\n  x: y\n", (3, 3), "indentation"),
        ("mesh: name: lab\n", (1, 11), "second `: `"),
        ("mesh:\n  name:lab\n  x: y\n", (3, 4), "cannot begin here"),
        ("mesh: {name: @lab}\n", (1, 14), "begin with @"),
        ("models:\n  - name: a\n  source: b\n", (3, 3), "item beginning with `- `"),
    ],
)
def test_syntax_errors_in_words_that_help(text, place, words):
    found = only(text)
    assert words in found.message
    assert (found.line, found.column) == place


def test_what_a_finding_looks_like():
    found = only("node:\n  rols: serve\n")
    assert str(found) == (
        "mesh.yaml:2:3: unknown key \"rols\" (did you mean 'role'?)\n    rols: serve\n    ^"
    )


def test_a_caret_under_a_very_long_line_stays_near():
    found = only("node: {role: auto, " + " " * 3000 + "xyz: 1" + " " * 3000 + "}")
    lines = str(found).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < 200
    assert lines[1][lines[2].index("^")] == "x"


def test_very_many_findings_are_cut():
    text = "\n".join(f"key{i}: 1" for i in range(5000))
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert re.search(r"and \d+ more$", str(caught.value))
    assert len(str(caught.value)) < 50_000
