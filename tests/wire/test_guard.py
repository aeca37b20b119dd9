"""A real llama-server and a real rpc-server, with both guards between them."""

from __future__ import annotations

from pathlib import Path

from meshd.engine.locate import Place
from tests.wire.guard_harness import guard_metrics, guarded

PROMPT = "The quick brown fox jumps over the lazy dog. In other words,"


async def test_a_split_says_through_its_guards_what_it_says_without(
    engine: Place, tmp_path: Path
) -> None:
    async with guarded(engine, tmp_path) as up:
        split = up.split
        async with split.llama() as llama:
            await split.healthy(llama)
            guarded_text = await split.complete(PROMPT)
            peer = await split.wait_host(lambda peer: peer.calls > 20, "calls to be counted")
            metrics = await guard_metrics(tmp_path / "host.sock")
        assert (peer.protocol, peer.connections, peer.problem) == ("8.0.0", 1, "")
        assert peer.bytes_to_member > 1_000_000
        assert f'meshd_guard_call_seconds_count{{call="get_tensor",peer="{split.member.id}"}}' in (
            metrics
        )
        await split.wait_member(lambda peer: not peer.connections, "the connection to end")
        async with split.llama(rpc=split.front) as llama:
            await split.healthy(llama)
            assert await split.complete(PROMPT) == guarded_text
        assert not up.rpc.ended
