"""A node opens its gateway to others with the first API key, and closes it with the last."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.test_whole_node import Node, until

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.write(
        f"models: []\ngateway: {{listen: ['0.0.0.0:{made.gateway}']}}\n"
        f"console: {{listen: '127.0.0.1:{made.console}'}}\n"
    )
    made.start()
    try:
        yield made
    finally:
        assert made.stop() == 0


def connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def test_a_key_opens_the_door_and_the_last_one_closes_it(node: Node) -> None:
    """127.0.0.2 stands for another address: a socket on 127.0.0.1 does not take it."""
    until(lambda: connects("127.0.0.1", node.gateway))
    assert not connects("127.0.0.2", node.gateway)
    until(lambda: "stays closed" in node.meshd("status").stdout)
    made = node.meshd("keys", "add", "alice")
    assert "this is the first key" in made.stderr
    until(lambda: connects("127.0.0.2", node.gateway))
    until(lambda: connects("127.0.0.1", node.gateway))
    until(lambda: "stays closed" not in node.meshd("status").stdout)
    assert "that was the last key" in node.meshd("keys", "remove", "alice").stdout
    until(lambda: not connects("127.0.0.2", node.gateway))
    until(lambda: connects("127.0.0.1", node.gateway))
