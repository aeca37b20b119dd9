"""What Prometheus may ask of one node's brain: its plan, its engines, and what its guards say.

Engines and guards are asked when somebody scrapes, each with a deadline and all at once, so that
nothing is kept and nothing runs while nobody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from meshd.gateway.routes import ModelState
from meshd.instance import instance_name
from meshd.mesh.record import ShardStage
from meshd.paths import Paths
from meshd.plan_error import Decoded, decoded, error_ratio
from meshd.status import ModelStatus, NodeStatus

_DEADLINE_S = 1.5
_ANSWER_MAX_BYTES = 512 * 1024
_KEPT_S = 1.0
_GUARDS_MOST = 64
_GUARD_SERIES_MOST = 4096
_ENGINES_MOST = 64


@dataclass(frozen=True, slots=True)
class Scraped:
    """:ivar engines: by model, what its engine has decoded. :ivar guards: text by instance."""

    engines: Mapping[str, Decoded]
    guards: Mapping[str, str]


class BrainMetrics:
    """:param status: as `Supervisor.status`. :param clock: monotonic seconds."""

    def __init__(
        self,
        paths: Paths,
        status: Callable[[], NodeStatus],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._status = status
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._last: tuple[float, Scraped] | None = None

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type.

        :param accept: of the scraper. :raises UserError: before the first pass.
        """
        async with self._one_at_a_time:
            status = self._status()
            scraped = await self._recent(status)
        registry = CollectorRegistry()
        registry.register(_Families(tuple(families(status, scraped))))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    async def _recent(self, status: NodeStatus) -> Scraped:
        # Of many who ask at once, those who waited get what the first one got.
        if self._last is None or self._clock() - self._last[0] >= _KEPT_S:
            scraped = await self._scrape(status)
            self._last = (self._clock(), scraped)
        return self._last[1]

    async def _scrape(self, status: NodeStatus) -> Scraped:
        engines = {
            model.name: self._paths.engine_socket(instance_name(model.name))
            for model in status.models[:_ENGINES_MOST]
            if model.pid is not None and model.state is ModelState.READY
        }
        guards = await asyncio.to_thread(_guards, self._paths.guards)
        texts = await asyncio.gather(*map(_ask, (*engines.values(), *guards.values())))
        said = dict(zip((*engines.values(), *guards.values()), texts, strict=True))
        found: dict[str, Decoded] = {}
        for model, socket in engines.items():
            with contextlib.suppress(ValueError):
                one = decoded(said[socket])
                if one is not None:
                    found[model] = one
        return Scraped(found, {name: said[socket] for name, socket in guards.items()})


def families(status: NodeStatus, scraped: Scraped) -> Iterator[Metric]:
    """All that is told, in Prometheus's terms."""
    yield _gauge("meshd_healthy", "1 when all that this node should serve is served.", (), [
        ((), float(status.healthy)),
    ])  # fmt: skip
    models = [model for model in status.models if model.strategy != "elsewhere"]
    yield _gauge(
        "meshd_model_state",
        "1 for the state that a model of this node is in.",
        ("model", "state"),
        [((model.name, str(model.state)), 1.0) for model in models],
    )
    yield _gauge(
        "meshd_model_restarts",
        "Restarts of a model's engine since it was last started on purpose.",
        ("model",),
        [((model.name,), float(model.restarts)) for model in models],
    )
    yield _gauge(
        "meshd_model_planned_bytes",
        "Memory on this node that a model was given.",
        ("model",),
        [((model.name,), float(model.memory_bytes)) for model in models],
    )
    yield _gauge(
        "meshd_model_load_progress",
        "How far a model's load is, 0 to 1; only while it loads.",
        ("model",),
        [((model.name,), model.progress) for model in models if model.state is ModelState.LOADING],
    )
    yield _gauge(
        "meshd_lease_progress",
        "How far this node's cache is for what it lends, 0 to 1.",
        ("model", "host"),
        [((lent.model, lent.host), lent.progress) for lent in status.lends],
    )
    yield from _shards(status)
    yield from _speeds(models, scraped.engines)
    yield from _devices(status)
    yield from _guard_families(scraped.guards)


def _shards(status: NodeStatus) -> Iterator[Metric]:
    """Of this node: the one that serves, and the one that is being made."""
    serving = [model.shard for model in status.models if model.shard is not None]
    for name, words, field in (
        ("top1", "Tokens for which the shard that serves agrees with the whole model.", "top1"),
        ("perplexity_ratio", "Its perplexity by the whole model's.", "perplexity_ratio"),
        ("kl", "Its divergence from the whole model, in nats.", "kl"),
    ):
        yield _gauge(f"meshd_shard_{name}", f"{words} By kind of text.", ("model", "domain"), [
            ((one.model, measured.domain), float(getattr(measured, field)))
            for one in serving for measured in one.measured
        ])  # fmt: skip
    yield _gauge(
        "meshd_shard_mass",
        "What of the routing the shard that serves keeps.",
        ("model",),
        [((one.model,), one.mass) for one in serving],
    )
    own = (one for model in status.models for one in model.shards if one.me)
    under_way = {one.model: one for one in own if one.stage != ShardStage.READY}
    yield _gauge(
        "meshd_shard_progress",
        "How far a stage of this node's next shard is, 0 to 1.",
        ("model", "stage"),
        [((one.model, one.stage), one.progress) for one in under_way.values()],
    )


def _speeds(models: list[ModelStatus], engines: Mapping[str, Decoded]) -> Iterator[Metric]:
    predicted = {model.name: model.tokens_s for model in models if model.tokens_s > 0}
    actual = {name: one.tokens_s for name, one in engines.items() if one.tokens_s > 0}
    errors = {
        name: error
        for name, tokens_s in predicted.items()
        if (error := error_ratio(tokens_s, actual.get(name, 0.0))) is not None
    }
    for name, words, found in (
        ("plan_tokens_per_second", "Predicted decode speed of one request.", predicted),
        ("decode_tokens_per_second", "Decode speed of a request since the engine began.", actual),
        ("plan_error_ratio", "Actual over predicted decode speed, less 1.", errors),
    ):
        samples = [((model,), value) for model, value in sorted(found.items())]
        yield _gauge(f"meshd_{name}", words, ("model",), samples)


def _devices(status: NodeStatus) -> Iterator[Metric]:
    for name, words, field in (
        ("memory_bytes", "Memory of a device, RAM among them.", "total_bytes"),
        ("memory_free_bytes", "What of it is free.", "free_bytes"),
        ("bandwidth_bytes_per_second", "What a decoding engine reads.", "bandwidth_bytes_s"),
        ("flops", "Operations a second of an engine with a prompt.", "flops_s"),
    ):
        samples = [((one.id,), float(getattr(one, field))) for one in status.devices]
        # What was not measured is no speed of zero.
        measured = [sample for sample in samples if sample[1] or "memory" in name]
        yield _gauge(f"meshd_device_{name}", words, ("device",), measured)


def _gauge(
    name: str,
    words: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _guard_families(guards: Mapping[str, str]) -> Iterator[Metric]:
    """What each guard counts, with its instance as a label; what is not of guards is left out."""
    merged: dict[str, Metric] = {}
    room = _GUARD_SERIES_MOST
    for instance, text in sorted(guards.items()):
        # A text that ends in the middle of a line or is none at all is told as far as it goes.
        with contextlib.suppress(ValueError, LookupError):
            for family in text_string_to_metric_families(text):
                if not family.name.startswith("meshd_"):
                    continue
                known = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples[:room]:
                    labels = {**sample.labels, "guard": instance}
                    known.add_sample(sample.name, labels, sample.value)
                    room -= 1
    yield from merged.values()


class _Families(Collector):
    def __init__(self, found: tuple[Metric, ...]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _guards(folder: Path) -> dict[str, Path]:
    """Sockets by instance."""
    found = sorted(folder.glob("*/guard.sock"))[:_GUARDS_MOST]
    return {socket.parent.name: socket for socket in found}


async def _ask(socket: Path) -> str:
    """`/metrics` behind a socket; "" where nobody answers in time, or too much."""
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    connector = aiohttp.UnixConnector(path=str(socket), force_close=True)
    data = bytearray()
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://local/metrics") as response,
        ):
            if response.status != 200:
                return ""
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > _ANSWER_MAX_BYTES:
                    return ""
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    return data.decode("utf-8", "replace")
