"""How one build of llama-server spells its flags, read from its own ``--help``. Pure.

Format of the help: `common_arg::to_string` in upstream's common/arg.cpp. An option starts in the
first column with all its names, then a hint at its value; its description starts in column 40, or
on the next line where the names are long.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from meshd.errors import UserError
from meshd.units.intents import SPELLINGS, VALUE, Intent, Spelling

_DESCRIPTION_COLUMN = 40
_NAME = re.compile(r"(-{1,2}[A-Za-z][\w.-]*)(,\s+)?")
_REMOVED = "the argument has been removed"


class UnknownFlag(UserError):  # noqa: N818 - it reads as what it is, beside UserError
    """A flag that this build does not have. :ivar flag: the flag or the intent."""

    def __init__(self, flag: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.flag = flag


@dataclass(frozen=True, slots=True)
class Flag:
    """One wish in our own terms.

    :ivar value: ``on`` and ``off`` for switches.
    :ivar optional: leave it out where the build has no way to say it.
    """

    intent: Intent
    value: str = "on"
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a build. :ivar values: how many words follow it.

    :ivar choices: the only values that it takes; empty when the help does not say.
    :ivar removed: why it is refused, though the help still lists it; "" when it works.
    """

    names: tuple[str, ...]
    values: int
    choices: tuple[str, ...]
    description: str
    removed: str = ""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The flags of one build. :ivar build: how to call it in messages."""

    build: str
    options: Mapping[str, Option] = field(repr=False)

    @classmethod
    def from_help(cls, help_text: str, *, build: str = "this llama-server") -> Dialect:
        """Read the options out of ``llama-server --help``.

        :raises UserError: when the text holds none; then it is no help text of llama-server.
        """
        options = _read(help_text)
        if "--model" not in options:
            raise UserError(
                f"{build}: its --help lists no --model flag", hint="meshd engine show --json"
            )
        return cls(build, options)

    def render(self, flags: Iterable[Flag]) -> tuple[str, ...]:
        """The words for the command line, in the order of the wishes.

        :raises UnknownFlag: for a wish that this build cannot be told, unless it is optional.
        :raises UserError: for a value that the flag does not take.
        """
        words: list[str] = []
        for flag in flags:
            spelling = self._spelling(flag)
            if spelling is not None:
                words.extend(word.replace(VALUE, flag.value) for word in spelling.words)
            elif not flag.optional:
                raise self._unsayable(flag)
        self.check(words)
        return tuple(words)

    def says(self, flag: Flag) -> bool:
        """Whether this build can be told so, or does so anyway."""
        return self._spelling(flag) is not None

    def check(self, words: Sequence[str]) -> None:
        """Check flags as they stand on a command line, such as a person's own.

        :raises UnknownFlag: for a flag that the build does not have or refuses.
        :raises UserError: for a value that is missing, stray, or not among the choices.
        """
        place = 0
        while place < len(words):
            word = words[place]
            option = self._option(word)
            values = words[place + 1 : place + 1 + option.values]
            if len(values) < option.values:
                raise UserError(f"{word}: {self.build} wants a value after it", hint=_first(option))
            if option.choices and values and values[0] not in option.choices:
                raise UserError(
                    f"{word} {values[0]}: not a value that {self.build} takes",
                    hint=f"one of {', '.join(option.choices)}",
                )
            place += 1 + option.values

    def _option(self, word: str) -> Option:
        option = self.options.get(word)
        if option is not None and not option.removed:
            return option
        if option is not None:
            raise UnknownFlag(
                word, f"{word}: removed from {self.build}", hint=option.removed or _first(option)
            )
        if not word.startswith("-"):
            raise UserError(
                f"{word!r}: a stray word on the command line of {self.build}",
                hint="flags start with - and the one before takes no value",
            )
        name = word.partition("=")[0]
        if name in self.options:
            raise UserError(f"{word}: {self.build} wants a space, not =", hint=f"{name} VALUE")
        near = difflib.get_close_matches(word, self.options, n=1)
        raise UnknownFlag(
            word,
            f"{word}: unknown to {self.build}",
            hint=f"did you mean {near[0]}?" if near else "meshd engine show --json lists its flags",
        )

    def _spelling(self, flag: Flag) -> Spelling | None:
        fitting = (
            spelling
            for spelling in SPELLINGS[flag.intent]
            if spelling.when in (None, flag.value) and self._has(spelling)
        )
        return next(fitting, None)

    def _has(self, spelling: Spelling) -> bool:
        for name, with_value in spelling.flags:
            option = self.options.get(name)
            if option is None or option.removed or bool(option.values) != with_value:
                return False
            if spelling.described and spelling.described not in option.description:
                return False
        return True

    def _unsayable(self, flag: Flag) -> UnknownFlag:
        known = dict.fromkeys(
            name for spelling in SPELLINGS[flag.intent] for name, _ in spelling.flags
        )
        return UnknownFlag(
            flag.intent,
            f"{flag.intent}={flag.value}: {self.build} has no flag for it"
            f" (looked for {', '.join(known) or 'none'})",
            hint="use another engine (meshd engine install), or leave this setting out",
        )


# Every pass of the loop renders anew, nearly always for the one build of this node.
@lru_cache(maxsize=4)
def _read(help_text: str) -> Mapping[str, Option]:
    options = {name: option for option in _options(help_text) for name in option.names}
    return MappingProxyType(options)


def _options(help_text: str) -> Iterable[Option]:
    head, description = "", []
    for line in (*help_text.splitlines(), "-----"):
        if not line.startswith("-"):
            description.append(line.strip())
            continue
        if head:
            yield _parse(head, description)
        head, description = ("", []) if line.startswith("-----") else (line, [])


def _parse(head: str, description: list[str]) -> Option:
    names: list[str] = []
    end = 0
    while found := _NAME.match(head, end):
        names.append(found.group(1))
        end = found.end()
        if not found.group(2):
            break
    hint = _hint(head, end)
    described = head[:_DESCRIPTION_COLUMN].endswith(" ") and not (hint and _meet(end))
    rest = head[_DESCRIPTION_COLUMN:] if described else ""
    text = " ".join(part for part in (rest.strip(), *description) if part)
    removed = text.partition(_REMOVED)[2].lstrip(". ").partition(" (env")[0]
    return Option(
        names=tuple(names),
        values=_count(hint),
        choices=_choices(hint),
        description=text,
        removed=(removed or "there is no other") if _REMOVED in text else "",
    )


def _hint(head: str, end: int) -> str:
    # One space parts the names from the hint, except where the description happens to start there;
    # then a lone placeholder is a hint all the same, and the description on the next line.
    if _meet(end) and not re.fullmatch(r" [A-Z][A-Z0-9_]*", head[end:]):
        return ""
    if not re.match(r" \S", head[end:]):
        return ""
    return re.split(r"\s{2,}", head[end:].strip(), maxsplit=1)[0]


def _meet(end: int) -> bool:
    """Whether names that end there leave one space before the description's column."""
    return end + 1 == _DESCRIPTION_COLUMN


def _count(hint: str) -> int:
    if not hint:
        return 0
    # Only plain placeholders stand for several words: START END, TARGET DRAFT.
    return len(hint.split()) if re.fullmatch(r"[A-Z]+( [A-Z]+)+", hint) else 1


def _choices(hint: str) -> tuple[str, ...]:
    found = re.fullmatch(r"[\[{<]([\w+-]+(?:[|,][\w+-]+)+)[\]}>]", hint)
    return tuple(re.split(r"[|,]", found.group(1))) if found else ()


def _first(option: Option) -> str:
    return option.description.split(". ")[0][:120]
