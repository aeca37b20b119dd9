"""What a plain (unquoted) YAML scalar is, and which ones nobody should guess about.

YAML 1.1 (PyYAML, Ansible) and YAML 1.2 (editors, most newer programs) read some scalars
differently: ``no``, ``010``, ``12:30:00``, ``1e3``. Those become `Ambiguous`, which fits no type of
the schema, so that a person decides. Both specifications: https://yaml.org/type/ (1.1) and
https://yaml.org/spec/1.2.2/#1032-tag-resolution.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A scalar that is refused wherever it stands.

    :ivar text: as written.
    :ivar reading: completes "TEXT is ...".
    :ivar plainly: unmistakable spellings of what may have been meant, other than quoted text.
    """

    text: str
    reading: str
    plainly: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


ScalarValue = str | int | float | bool | None | Ambiguous

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]{1,64}\.[0-9]{0,64}|\.[0-9]{1,64})([eE][-+][0-9]{1,3})?")

# 1.1 has y and n as well, but neither PyYAML nor any other common reader follows it there.
_OLD_BOOL = re.compile(r"(?P<true>yes|on)|(?P<false>no|off)", re.IGNORECASE)
_OCTAL = re.compile(r"[-+]?0[0-7]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")
_OTHER_NUMBER = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_.]*)")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STR_TAG = "tag:yaml.org,2002:str"
_RESOLVER = yaml.resolver.Resolver()


def resolve(text: str) -> ScalarValue:
    """Read a plain scalar the way that YAML 1.1 and 1.2 agree on, or as `Ambiguous`."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        # 19 digits hold 2**63 - 1; Python refuses to parse more than 4300 of them.
        if len(text.lstrip("+-")) > 19 or abs(int(text)) > MAX_INTEGER:
            return Ambiguous(text, "too large a number")
        return int(text)
    if _FLOAT.fullmatch(text):
        return _float(text)
    return _doubtful(text) or text


def _float(text: str) -> float | Ambiguous:
    value = float(text)
    return (
        Ambiguous(text, "too large a number") if value in (float("inf"), -float("inf")) else value
    )


def _doubtful(text: str) -> Ambiguous | None:
    if old := _OLD_BOOL.fullmatch(text):
        value = "true" if old.group("true") else "false"
        return Ambiguous(text, f"{value} to some YAML programs and text to others", (value,))
    if _NOT_FINITE.fullmatch(text):
        return Ambiguous(text, "not a finite number")
    if len(text) > 64 or text == "<<":
        return None
    if _OCTAL.fullmatch(text):
        eight, ten = str(int(text, 8)), str(int(text, 10))
        if eight == ten:
            return Ambiguous(text, "a number in base 8 to some YAML programs", (ten,))
        return Ambiguous(text, f"{eight} to some YAML programs and {ten} to others", (ten, eight))
    if _BASE_60.fullmatch(text) and _yaml_1_1_tag(text) != _STR_TAG:
        return Ambiguous(text, "a number in base 60 to some YAML programs and text to others")
    if _EXPONENT.fullmatch(text):
        number = float(text)
        whole = abs(number) < MAX_INTEGER and number.is_integer()
        plain = (str(int(number)),) if whole else ()
        if not number.is_integer() and 1e-9 < abs(number) < 1e9:
            plain = (f"{number:.12f}".rstrip("0"),)
        return Ambiguous(text, "a number to some YAML programs and text to others", plain)
    if _OTHER_NUMBER.fullmatch(text) and _number_to_some(text):
        return Ambiguous(text, "a number to some YAML programs and text to others")
    if _yaml_1_1_tag(text) != _STR_TAG:
        return Ambiguous(text, "a date or a default mark to some YAML programs and text to others")
    return None


def _number_to_some(text: str) -> bool:
    in_1_2 = re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?|0o[0-7]+|0x[0-9a-fA-F]+", text) is not None
    return in_1_2 or _yaml_1_1_tag(text) != _STR_TAG


def _yaml_1_1_tag(text: str) -> str:
    return str(_RESOLVER.resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]
