"""What the real clients are pointed at: a `meshd gateway` process before real llama-servers.

Nothing here is asynchronous, so that each client can bring its own way of waiting.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.table_file import write_table
from meshd.keys.edit import entry_text
from meshd.keys.key import ApiKey, digest
from meshd.keys.quota import Quota
from meshd.models.gguf_facts import read_facts
from meshd.own_record import capabilities
from tests.wire.clients import tool_template
from tests.wire.clients.breaking_engine import breaking_engine

REPOSITORY = Path(__file__).resolve().parents[3]
MODELS = REPOSITORY / "share/models"

TINY, TOOLS, EMBED, RANK = "tiny", "tools-of-tiny", "embed", "rank"
BREAKS = "breaks"
"""Its engine is gone in the middle of each stream."""
FAILED, LOADING = "failed", "loading"
SLOTS = 2
CONTEXT = 8192
"""Tokens of a slot: long enough that no endless answer ends by itself within a test."""
WAIT_S = 3.0
"""That a request waits for a model; comments begin after two seconds (`waiting_room`)."""

KEY = "sk-mesh-for-everything"
SPENT_KEY = "sk-mesh-for-one-request-a-day"
NARROW_KEY = "sk-mesh-for-another-model"
FROM_ELSEWHERE = {"X-Forwarded-For": "192.0.2.7"}
"""As a reverse proxy sends it: then this machine's clients need a key as well."""

# llama-server gives no slot more than the model was trained for, which is 1024 tokens.
_LONG = ("--override-kv", f"llama.context_length=int:{CONTEXT}")
_START_S = 60.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Engine:
    """:ivar path: its socket."""

    path: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        """:raises OSError: it does not answer, or not so."""
        connection = _UnixConnection(self.path)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status}")
        return json.loads(text)

    def healthy(self) -> bool:
        assert self.process.poll() is None, "llama-server ended"
        try:
            return bool(self.get("/health")["status"] == "ok")
        except OSError:
            return False

    def busy(self) -> int:
        """Slots that work."""
        return sum(slot["is_processing"] for slot in self.get("/slots"))


@dataclass
class Served:
    """:ivar base: URL of the gateway. :ivar table: that it follows."""

    base: str
    engines: dict[str, Engine]
    routes: Path
    table: RoutingTable

    @property
    def v1(self) -> str:
        return f"{self.base}/v1"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.base + path, timeout=5) as answer:
            return str(answer.read().decode())

    def metric(self, line: str) -> float:
        """The value of the exposition's line that begins so, 0 when there is none."""
        rows = [row for row in self.get("/metrics").splitlines() if row.startswith(line + " ")]
        return float(rows[0].rsplit(" ", 1)[1]) if rows else 0.0

    def tell(self, table: RoutingTable) -> None:
        """Let the gateway follow another table, and wait until it does."""
        self.table = replace(table, generation=self.table.generation + 1)
        write_table(self.routes, self.table)
        generation = self.table.generation
        wait_for(lambda: self.metric("meshd_gateway_table_generation") == generation)

    @contextmanager
    def loading(self, model: str) -> Iterator[Callable[[], None]]:
        """`TINY` under another name, that loads until what this gives is called."""
        before = self.table
        target = Target("local", str(self.engines[TINY].path), True, SLOTS)
        late = Route(model, ModelState.LOADING, (replace(target, ready=False),))
        ready = replace(late, state=ModelState.READY, targets=(target,))
        self.tell(replace(before, routes=(*before.routes, late)))
        try:
            yield lambda: self.tell(replace(before, routes=(*before.routes, ready)))
        finally:
            self.tell(before)


def wait_for(condition: Callable[[], bool], deadline_s: float = 10.0) -> float:
    """Seconds until it held. :raises AssertionError: it never did."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < deadline_s, "the condition did not come true in time"
        time.sleep(0.005)
    return time.monotonic() - start_s


@contextmanager
def serving(llama_server: Path) -> Iterator[Served]:
    """The gateway and its engines, ready."""
    # Not a folder of pytest's: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mesh") as name, ExitStack() as stack:
        folder = Path(name)
        template = folder / "tools.jinja"
        template.write_text(tool_template.TEMPLATE)
        talks = ("--ctx-size", str(CONTEXT * SLOTS), "--parallel", str(SLOTS), *_LONG)
        small = ("--ctx-size", "1024", "--parallel", "1")
        tools = ("--chat-template-file", str(template), *tool_template.FLAGS)
        flags = {
            TINY: ("tiny", talks),
            TOOLS: ("tiny", (*talks, *tools)),
            EMBED: ("tiny-draft", (*small, "--embeddings", "--pooling", "mean")),
            RANK: ("tiny-draft", (*small, "--reranking")),
        }
        engines = {
            model: stack.enter_context(_llama(llama_server, folder / f"{model}.sock", model, *more))
            for model, more in flags.items()
        }
        for engine in engines.values():
            wait_for(engine.healthy, _START_S)
        broken = folder / f"{BREAKS}.sock"
        stack.enter_context(breaking_engine(broken, engines[TINY].path))
        table = RoutingTable(
            generation=1, routes=(*_routes(engines, broken),), front=Front(wait_s=WAIT_S)
        )
        routes = folder / "routes.json"
        write_table(routes, table)
        keys = folder / "keys"
        keys.mkdir()
        (keys / "keys.yaml").write_text(_keys())
        base = stack.enter_context(_gateway(folder, routes, keys))
        served = Served(base, engines, routes, table)
        wait_for(lambda: _up(served), _START_S)
        yield served


def _routes(engines: dict[str, Engine], broken: Path) -> Iterator[Route]:
    tiny = capabilities(read_facts(MODELS / "tiny.gguf"))
    known = {
        TINY: (tiny, CONTEXT, ("gpt-4o", "claude-sonnet-4")),
        TOOLS: ((*tiny, "tools"), CONTEXT, ()),
        EMBED: (("embeddings",), 1024, ("text-embedding-3-small",)),
        RANK: (("rerank",), 1024, ()),
    }
    for model, (good_for, context, aliases) in known.items():
        slots = SLOTS if context == CONTEXT else 1
        target = Target("local", str(engines[model].path), True, slots, context=context)
        yield Route(
            model, ModelState.READY, (target,), aliases, context, "exact", good_for, 1_700_000_000
        )
    target = Target("local", str(broken), True, SLOTS)
    yield Route(BREAKS, ModelState.READY, (target,), capabilities=tiny)
    yield Route(FAILED, ModelState.FAILED, capabilities=tiny, detail="its file is cut off")
    yield Route(LOADING, ModelState.LOADING, capabilities=tiny, detail="40 % read")


def _keys() -> str:
    lines = [
        entry_text(ApiKey("all", digest(KEY))),
        entry_text(ApiKey("spent", digest(SPENT_KEY), rate=Quota(1, 86400.0))),
        entry_text(ApiKey("narrow", digest(NARROW_KEY)), models=(EMBED,)),
    ]
    return lines[0] + "".join(text.removeprefix("keys:\n") for text in lines[1:])


@contextmanager
def _llama(
    server: Path, path: Path, alias: str, model: str, flags: tuple[str, ...]
) -> Iterator[Engine]:
    command = [
        server, "--model", MODELS / f"{model}.gguf", "--host", path, "--alias", alias, *flags,
        "--fit", "off", "--threads", "1", "--cache-ram", "0", "--no-ui", "--slots",
    ]  # fmt: skip
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    with _ended(process):
        yield Engine(path, process)


@contextmanager
def _gateway(folder: Path, routes: Path, keys: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "-m", "meshd.cli.main", "gateway", "--routes", routes]
    command += ["--listen", address, "--keys", keys, "--drain", "0.5"]
    state = folder / "state"
    state.mkdir()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "STATE_DIRECTORY": str(state)},
        stdin=subprocess.DEVNULL,
    )
    with _ended(process):
        yield f"http://{address}"


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _up(served: Served) -> bool:
    try:
        return bool(json.loads(served.get("/readyz"))["status"] == "ready")
    except OSError:
        return False
