"""The gateway as a child of the brain: what is wrong with it is said."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from meshd.errors import UserError
from meshd.gateway.child import GatewayChild
from meshd.paths import under
from tests.wire.gateway_harness import until


async def said(child: GatewayChild, address: str) -> str:
    """What is wrong with a gateway that should listen there, as each pass of the brain asks."""
    try:
        await child.listen((address,))
    except UserError as error:
        return str(error)
    return ""


async def until_said(child: GatewayChild, address: str, *, trouble: bool) -> str:
    async with asyncio.timeout(60):
        while bool(words := await said(child, address)) is not trouble:
            await asyncio.sleep(0.05)
    return words


async def test_a_port_that_is_taken_is_said_and_healed(tmp_path: Path) -> None:
    paths = under(tmp_path)
    paths.run.mkdir(parents=True)
    child = GatewayChild(paths)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            address = f"127.0.0.1:{port}"
            assert address in await until_said(child, address, trouble=True)
        await until_said(child, address, trouble=False)

        # It lives; on a busy machine it may yet need a moment before it listens.
        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return False
            writer.close()
            await writer.wait_closed()
            return True

        await until(answers, 30, pause_s=0.05)
    finally:
        await child.close()


async def test_what_cannot_be_started_does_not_end_the_brain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    child = GatewayChild(under(tmp_path))
    try:
        words = await until_said(child, "127.0.0.1:1", trouble=True)
        assert "cannot be started" in words
        # And again, with the first attempt's end long behind.
        assert await said(child, "127.0.0.1:1")
    finally:
        await child.close()
