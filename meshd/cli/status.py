"""`meshd status`: how this node is. Exit code 0 when all is served, 3 when not, 1 when not up."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.status import DeviceStatus, MeshStatus, ModelStatus, NodeStatus


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("status", help="show this node; exit 0 only when all is served")
    parser.add_argument("--wait", action="store_true", help="wait until no model is loading")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="for --wait")
    parser.add_argument("--json", action="store_true", help="print the status as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.cli.wait import until_settled
    from meshd.control import ControlClient

    client = ControlClient(arguments.paths.control_socket)
    if arguments.wait:
        status = asyncio.run(until_settled(client, arguments.timeout, progress=sys.stderr))
    else:
        status = asyncio.run(client.status())
    if arguments.json:
        print_json(status)
    else:
        print("\n".join(_lines(status)))
    return 0 if status.healthy else 3


def _lines(status: NodeStatus) -> Iterator[str]:
    from meshd.config.findings import printable
    from meshd.report import size
    from meshd.shard_line import progress

    yield f"{status.node} ({status.role}): {status.sentence}"
    if status.mesh is not None:
        yield f"mesh     {_mesh(status.mesh)}"
    yield f"engine   {status.engine}"
    for address in status.gateway:
        yield f"gateway  http://{address}/v1"
    if status.console:
        yield f"console  http://{status.console}/"
    for device in status.devices:
        yield (
            f"device   {device.id}  {device.name}, {size(device.free_bytes)} free of "
            f"{size(device.total_bytes)}{_speed(device)}"
        )
    for problem in status.problems:
        yield f"problem  {problem}"
    for model in status.models:
        yield f"model    {_model(model)}"
        if model.detail:
            yield f"         {model.detail}"
        for shard in model.shards:
            if shard.me and shard is not model.shard:
                yield f"         shard: {printable(progress(shard))}"
    for lent in status.lends:
        percent = f" {lent.progress:.0%}" if lent.stage == "seeding" else ""
        yield (
            f"lends    {lent.layers} layers of {lent.model} to {lent.host}, "
            f"{size(lent.size_bytes)}: {lent.stage}{percent}"
        )
        if lent.detail:
            yield f"         {lent.detail}"
    for unit in status.units:
        restarts = f", {unit.restarts} restarts" if unit.restarts else ""
        yield f"unit     {unit.unit}: {unit.state}{restarts}"
        if unit.detail:
            yield f"         {unit.detail}"


def _speed(device: DeviceStatus) -> str:
    if not device.bandwidth_bytes_s:
        return ""
    return f", reads {device.bandwidth_bytes_s / 1e9:.3g} GB/s, {device.flops_s / 1e12:.3g} TFLOPS"


def _model(model: ModelStatus) -> str:
    from meshd.report import size

    if model.strategy == "wait":
        return f"{model.name}: {model.state}"
    shape = f"context {model.context} x {model.slots} slots"
    if model.strategy == "elsewhere":
        return f"{model.name}: {model.state} on {', '.join(model.nodes)}{_loses(model)}, {shape}"
    shape += f", {size(model.memory_bytes)}"
    restarts = f", {model.restarts} restarts" if model.restarts else ""
    over = f" over {', '.join(model.over)}" if model.over else ""
    others = f", also on {', '.join(model.nodes)}" if model.nodes else ""
    progress = f" {model.progress:.0%}" if model.progress else ""
    return (
        f"{model.name}: {model.state}{progress}, {model.strategy}{_loses(model)}{over}, {shape}"
        f"{restarts}{others}"
    )


def _loses(model: ModelStatus) -> str:
    """What a model loses that is served from shards."""
    from meshd.config.findings import printable
    from meshd.shard_line import quality, shape

    if model.shard is not None:
        return f" ({shape(model.shard)})"
    serving = [one for one in model.shards if one.serves]
    lost = printable(quality(loss for one in serving for loss in one.measured))
    return f" from shards ({lost})" if serving and model.strategy == "elsewhere" else ""


def _mesh(mesh: MeshStatus) -> str:
    if mesh.problem:
        return mesh.problem
    nodes = "1 node" if mesh.nodes == 1 else f"{mesh.nodes} nodes"
    missed = f", {mesh.suspect} missed just now" if mesh.suspect else ""
    relays = ", relays for others" if mesh.core else ""
    return f"{mesh.id}, {nodes}{missed}; this is {mesh.node}{relays}"
