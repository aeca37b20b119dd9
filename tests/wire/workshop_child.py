"""A workshop that makes one shard and says how far it is, until it is killed or done:
``python -m tests.wire.workshop_child ROOT MODEL KEPT TEXT_BYTES``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from meshd.experts.node_workshop import node_workshop
from meshd.experts.ranking import Ranking, Selection
from meshd.experts.shard_key import shard_key
from meshd.experts.texts import texts_of
from meshd.experts.wish import RankingWish, Shard, ShardWish, Text, WorkState
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_facts
from meshd.paths import under


def best(ranking: Ranking, kept: int) -> Selection:
    return tuple(tuple(sorted(order[:kept])) for order in ranking.orders)


def short(path: str, size_bytes: int, folder: Path) -> str:
    """The beginning of a text, for what is to be over soon."""
    found = folder / Path(path).name
    if not found.exists():
        found.write_bytes(Path(path).read_bytes()[:size_bytes].rpartition(b"\n")[0])
    return str(found)


async def work(root: Path, model: Path, kept: int, text_bytes: int) -> Shard:
    paths = under(root)
    content = fingerprint([model])
    files = read_facts(model).files
    texts = tuple(
        Text(one.domain, short(one.ranks, text_bytes, root), short(one.measures, text_bytes, root))
        for one in texts_of((), root)
    )
    news = asyncio.Event()
    workshop = node_workshop(paths, quiet=lambda: True, changed=news.set, share=lambda _: None)
    wish = RankingWish(content, "mix", files, texts, True)
    workshop.want((wish,), ())
    said: Mapping[str, WorkState] = {}
    try:
        while True:
            await news.wait()
            news.clear()
            states = dict(workshop.states())
            for key, state in states.items():
                if said.get(key) != state:
                    print(key, state.stage, round(state.progress, 2), state.detail, flush=True)
            said = states
            ranking = workshop.rankings().get(content)
            if ranking is None:
                continue
            selection = best(ranking, kept)
            key = shard_key(content, ranking.digest, selection)
            if key in workshop.shards() and content in workshop.logits():
                return workshop.shards()[key]
            workshop.want(
                (wish,), (ShardWish(key, content, "mix", files, ranking, selection, texts),)
            )
    finally:
        await workshop.close()


def main() -> None:
    root, model, kept, text_bytes = sys.argv[1:]
    shard = asyncio.run(work(Path(root), Path(model), int(kept), int(text_bytes)))
    print(msgspec.json.encode(shard).decode(), flush=True)


if __name__ == "__main__":
    main()
