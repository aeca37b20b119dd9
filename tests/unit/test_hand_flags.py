"""The hand knows every flag that meshd may write, in every build's spelling."""

from __future__ import annotations

import pytest

from meshd.units import flags
from meshd.units.flags import Value
from meshd.units.intents import SPELLINGS, Intent

# They write files; meshd has words for them, but under the hand nobody may say them.
_REFUSED = {Intent.LOG_FILE, Intent.SLOT_SAVE_PATH}


def spelled(intent: Intent) -> set[tuple[str, bool]]:
    return {flag for spelling in SPELLINGS[intent] for flag in spelling.flags}


@pytest.mark.parametrize("intent", [intent for intent in Intent if intent not in _REFUSED])
def test_it_knows_each_spelling_and_what_follows(intent: Intent) -> None:
    for flag, valued in spelled(intent):
        kind = flags.LLAMA[flag]
        assert kind is Value.SWITCH or (kind is not Value.NONE) is valued, flag


@pytest.mark.parametrize("intent", sorted(_REFUSED))
def test_it_refuses_what_writes_files(intent: Intent) -> None:
    assert not {flag for flag, _ in spelled(intent)} & flags.LLAMA.keys()
