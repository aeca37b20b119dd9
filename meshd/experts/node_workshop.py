"""The workshop of a real node: its engine's tools, its folders, and who may fetch what it made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.errors import UserError
from meshd.experts import logits_file
from meshd.experts.bench import Bench
from meshd.experts.hold import Hold
from meshd.experts.imatrix import count_experts
from meshd.experts.logits_trial import try_logits
from meshd.experts.perplexity import measure, save_logits
from meshd.experts.shard_writer import shard_bytes, write_shard
from meshd.experts.texts import calibration_digest
from meshd.experts.work_tools import About, Tools
from meshd.experts.workshop import NodeWorkshop
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_facts
from meshd.paths import Paths
from meshd.seeding.store import disk_of
from meshd.shared_models import SharedExperts


def node_workshop(
    paths: Paths,
    *,
    quiet: Callable[[], bool],
    changed: Callable[[], None],
    share: Callable[[Mapping[str, SharedExperts]], None],
) -> NodeWorkshop:
    """Nothing is touched before something is wished. Parameters as in `NodeWorkshop`.

    :param quiet: whether no engine loads or has a request; asked in the event loop.
    """

    def build() -> EngineBuild:
        return describe(require(paths))

    tools = Tools(
        build=build,
        about=about,
        fingerprint=fingerprint,
        calibration=calibration_digest,
        count=count_experts,
        write=write_shard,
        shard_bytes=shard_bytes,
        save_logits=save_logits,
        try_logits=try_logits,
        measure=measure,
        logits_bytes=logits_file.logits_bytes,
        check_logits=logits_file.check,
        disk=disk_of,
        tls=paths.tls,
    )
    bench = Bench(paths, tools, Hold(quiet, time.monotonic))
    return NodeWorkshop(bench, changed=changed, share=share)


def about(files: tuple[str, ...]) -> About:
    """:raises UserError: the model cannot be read, or no shard can be made of it."""
    if not files:
        raise UserError("a model without files")
    facts = read_facts(Path(files[0]))
    if not facts.moe or facts.undividable:
        raise UserError(f"{files[0]}: {facts.undividable or 'has no routed experts'}")
    return About(
        tuple(
            facts.experts if layer.expert_bytes and not layer.prediction else 0
            for layer in facts.layers
        ),
        facts.vocabulary_size,
        facts.experts_used,
    )
