"""What is quoted is read back the same, by the rules of systemd.syntax(7), written here anew."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshd.units.quoting import command, plain, quote

_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "s": " ",
    "\\": "\\",
    '"': '"',
    "'": "'",
}


def split_words(value: str) -> list[bytes]:
    """A value as systemd splits it: joined lines, quotes, C escapes, then specifiers."""
    value = re.sub(r"\\\n", " ", value)
    assert "\n" not in value, "the value ends at the end of its line"
    words: list[bytes] = []
    position = 0
    while True:
        while position < len(value) and value[position] in " \t":
            position += 1
        if position == len(value):
            return [re.sub(rb"%%", b"%", word) for word in words]
        word = bytearray()
        quoted = ""
        while position < len(value) and (quoted or value[position] not in " \t"):
            character = value[position]
            position += 1
            if character == "\\":
                code = value[position]
                position += 1
                if code == "x":
                    word.append(int(value[position : position + 2], 16))
                    position += 2
                else:
                    word += _ESCAPES[code].encode()
            elif quoted:
                if character == quoted:
                    quoted = ""
                else:
                    word += character.encode()
            elif character in "'\"":
                quoted = character
            else:
                word += character.encode()
        assert not quoted, "a quote is left open"
        assert not re.search(rb"(?<!%)(%%)*%(?!%)", bytes(word)), "a specifier would be expanded"
        words.append(bytes(word))


_BYTES = st.binary(max_size=20).map(
    lambda b: b.replace(b"\0", b"").decode(errors="surrogateescape")
)
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
_NASTY = st.text(alphabet="\\\"'%$ \n\t;#{}:=-ax0\r\x85\u2028", max_size=12)
WORDS = st.one_of(_TEXT, _BYTES, _NASTY)


@given(st.lists(WORDS, min_size=1, max_size=12))
@example(["--a", "\\", "%", "%%", "-b", ""])
@example(["#x", "-x", ";", "--y=\n#"])
@example(["\\x41", "\\n", "trailing\\"])
def test_words_come_back_as_they_were(words: list[str]) -> None:
    expected = [word.encode(errors="surrogateescape") for word in words]
    assert split_words(command(words)) == expected
    assert split_words(" ".join(map(quote, words))) == expected


@given(st.lists(WORDS, min_size=1, max_size=12))
def test_no_line_of_a_command_reads_as_a_comment(words: list[str]) -> None:
    """Comment lines inside a continuation are dropped, see systemd.syntax(7)."""
    assert not any(line.lstrip()[:1] in ("#", ";") for line in command(words).split("\n")[1:])


@given(_TEXT)
def test_plain_text_stays_on_its_line(text: str) -> None:
    line = plain(text)
    assert line.isprintable()
    assert re.sub("%%", "", line).count("%") == 0


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote("a\0b")
