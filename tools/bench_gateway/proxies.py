"""The gateways that are measured, each as its documents say to run it before one upstream."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshd.engine import locate
from meshd.engine.describe import parse_version
from meshd.errors import UserError
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.table_file import write_table
from tools.bench_gateway import installs
from tools.bench_gateway.asked import MODEL
from tools.packages import MissingError

ROOT = Path(__file__).resolve().parents[2]

_SLOTS = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """:ivar folder: of the proxy's own. :ivar port: where it is to listen, on 127.0.0.1.

    :ivar spare: another free port, for those that insist. :ivar stub: the upstream's port.
    """

    folder: Path
    port: int
    spare: int
    stub: int
    stub_socket: Path


@dataclass(frozen=True, slots=True)
class Proxy:
    """:ivar command: empty for none at all. :ivar after: done once it has started.

    :ivar children: whether processes that it starts count as it. :ivar folder: where it runs.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[], None] | None = None
    children: bool = True
    folder: Path = ROOT


def direct(place: Place) -> Proxy:
    del place
    return Proxy("direct", ())


def meshd(place: Place) -> Proxy:
    """The working tree's gateway."""
    return _meshd(place, ROOT, _git("describe", "--always", "--dirty=+").strip())


def meshd_at(revision: str) -> Callable[[Place], Proxy]:
    """The gateway as it was committed then."""

    def proxy(place: Place) -> Proxy:
        tree = place.folder / "tree"
        tree.mkdir()
        archive = place.folder / "tree.tar"
        _git("archive", "--output", str(archive), revision, "meshd")
        subprocess.run(["tar", "-xf", archive, "-C", tree], check=True)
        return _meshd(place, tree, _git("describe", "--always", revision).strip())

    return proxy


def _meshd(place: Place, tree: Path, name: str) -> Proxy:
    """As its unit runs it: from a routing table, to an engine on a Unix socket."""
    # More slots than there are streams: waiting for one is not what is measured.
    # With weights, as real tables have them: every stream is kept so that it could go on elsewhere.
    target = Target(
        "local", str(place.stub_socket), ready=True, slots=_SLOTS, weights="of the bench"
    )
    routes = place.folder / "routes.json"
    route = Route(MODEL, ModelState.READY, (target,))
    write_table(routes, RoutingTable(generation=1, routes=(route,)))
    command = (sys.executable, "-m", "meshd.cli.main", "gateway", "--routes", str(routes))
    return Proxy(f"meshd {name}", (*command, "--listen", f"127.0.0.1:{place.port}"), folder=tree)


def smg(place: Place) -> Proxy:
    programs = installs.venv_with("smg", installs.SMG)
    command = (str(programs / "python"), str(programs / "smg"), "launch")
    return Proxy(
        installs.SMG.replace("==", " "),
        (
            *command,
            *("--worker-urls", f"http://127.0.0.1:{place.stub}"),
            *("--host", "127.0.0.1", "--port", str(place.port)),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.spare)),
            *("--policy", "round_robin", "--log-level", "warn"),
        ),
    )


def litellm(place: Place) -> Proxy:
    programs = installs.venv_with("litellm", installs.LITELLM, *installs.LITELLM_BESIDE)
    config = place.folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/{MODEL}\n"
        f"    api_base: http://127.0.0.1:{place.stub}/v1\n    api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
        # Without keys, as the others: its cheapest way.
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"
    )
    command = (str(programs / "python"), str(programs / "litellm"), "--config", str(config))
    return Proxy(
        installs.LITELLM.replace("[proxy]==", " "),
        (*command, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"),
        # It would ask the internet for prices first.
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
    )


def llama_router(place: Place) -> Proxy:
    """llama-server without a model starts one llama-server for each: here the stub in its place.

    It notes where its own program lies when it starts and runs that path for a model, so the stub
    is put there once it has started. Its children are not counted as it.
    """
    program = _llama_server()
    # The program finds its libraries relative to itself.
    tree = place.folder / "usr"
    programs = tree / "bin"
    programs.mkdir(parents=True)
    for beside in program.parent.parent.iterdir():
        if beside.name != "bin":
            (tree / beside.name).symlink_to(beside)
    for library in program.parent.glob("*.so"):
        (programs / library.name).symlink_to(library)
    copy = programs / "llama-server"
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    preset = place.folder / "models.ini"
    preset.write_text(f"[{MODEL}]\nmodel = {ROOT / 'share/models/tiny.gguf'}\n")

    def put_stub() -> None:
        copy.unlink()
        copy.write_text(
            f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools.bench_gateway.stub "$@"\n'
        )
        copy.chmod(0o755)

    return Proxy(
        f"llama-server {_llama_version(program)}, router",
        (
            *(str(copy), "--models-preset", str(preset)),
            *("--host", "127.0.0.1", "--port", str(place.port)),
        ),
        after=put_stub,
        children=False,
    )


def nginx(place: Place) -> Proxy:
    """The limit: one that neither reads nor chooses. To the Unix socket, as ours."""
    program = installs.nginx()
    config = place.folder / "nginx.conf"
    # As root it would give its workers another user.
    user = "user root;\n" if os.getuid() == 0 else ""
    config.write_text(
        f"""{user}daemon off;
worker_processes auto;
pid {place.folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  client_body_temp_path {place.folder}/body;
  proxy_temp_path {place.folder}/proxy;
  fastcgi_temp_path {place.folder}/fastcgi;
  uwsgi_temp_path {place.folder}/uwsgi;
  scgi_temp_path {place.folder}/scgi;
  upstream stub {{ server unix:{place.stub_socket}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{place.port} backlog=1024;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://stub;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""
    )
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    name = version.strip().rpartition(" ")[2].replace("/", " ")
    return Proxy(name, (str(program), "-p", str(place.folder), "-c", str(config)))


ALL: Mapping[str, Callable[[Place], Proxy]] = {
    "direct": direct,
    "meshd": meshd,
    "smg": smg,
    "litellm": litellm,
    "llama": llama_router,
    "nginx": nginx,
}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise MissingError(f"git {arguments[0]}: {done.stderr.strip()[:200]}")
    return done.stdout


def _llama_server() -> Path:
    try:
        program = locate.require().binary(locate.SERVER)
    except UserError as error:
        raise MissingError(str(error)) from None
    assert program is not None
    return program.resolve()


def _llama_version(program: Path) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return parse_version(done.stdout + done.stderr)[0]
