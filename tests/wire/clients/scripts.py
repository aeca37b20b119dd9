"""Clients that run in a process of their own: what they are told, and what they say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.wire.clients.served import (
    CONTEXT,
    FROM_ELSEWHERE,
    SPENT_KEY,
    TINY,
    TOOLS,
    Served,
    wait_for,
)
from tests.wire.clients.wanted import (
    ATTEMPTS,
    CHAT_TOOLS,
    PERSON,
    PIXEL,
    QUESTION,
    RESPONSES_TOOLS,
    SILENCE,
)

RUN_S = 240.0
Answers = dict[str, dict[str, Any]]


def wanted(served: Served) -> str:
    """All that a script has to know, as JSON."""
    return json.dumps(
        {
            "base": served.base,
            "v1": served.v1,
            "question": QUESTION,
            "tools_model": TOOLS,
            "tools": CHAT_TOOLS,
            "responses_tools": RESPONSES_TOOLS,
            "schema": PERSON,
            "attempts": ATTEMPTS,
            "context": CONTEXT,
            "pixel": PIXEL,
            "silence": SILENCE,
            "spent": SPENT_KEY,
            "from_elsewhere": FROM_ELSEWHERE,
        }
    )


def answers(command: list[str | Path], served: Served) -> Answers:
    """What came of each question: its ``answer``, or what was ``raised`` and ``said``."""
    done = subprocess.run(
        [*command, wanted(served)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: Answers = json.loads(done.stdout.splitlines()[-1])
    return said


def freed_after_s(command: list[str | Path], served: Served) -> float:
    """Seconds from when the client has left its endless stream until its slot is free.

    :param command: a script that takes ``leave``, as `litellm_asks` does.
    """
    engine = served.engines[TINY]
    with subprocess.Popen(
        [*command, wanted(served), "leave"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == "begun\n"
            wait_for(lambda: engine.busy() == 1)
            process.stdin.write("leave\n")
            process.stdin.flush()
            assert process.stdout.readline() == "left\n"
            # It lives on, so that it is not its end that closes the connection.
            waited_s = wait_for(lambda: engine.busy() == 0)
            assert process.poll() is None
            return waited_s
        finally:
            process.kill()
