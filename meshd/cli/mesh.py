"""`meshd mesh`: the mesh's secret, who this node is in it, who else is there, and throwing out."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.config.settings import MeshSettings
    from meshd.mesh.member_line import MemberLine
    from meshd.paths import Paths
    from meshd.shard_line import ShardStatus

_GROUP = "_meshd"


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("mesh", help="who is in the mesh; its secret; throwing a node out")
    actions = verb.add_subparsers(metavar="ACTION", required=True)
    members = actions.add_parser("members", help="list the nodes of the mesh")
    members.add_argument("--json", action="store_true", help="print them as JSON")
    members.set_defaults(run=_members)
    who = actions.add_parser("id", help="print the ids of this node and of its mesh")
    who.add_argument("--json", action="store_true", help="print them as JSON")
    who.set_defaults(run=_id)
    secret = actions.add_parser("secret", help="make a new secret, the start of a mesh")
    secret.add_argument(
        "--write", action="store_true", help="put it where mesh.yaml says, unless there is one"
    )
    secret.set_defaults(run=_secret)
    revoke = actions.add_parser("revoke", help="throw a node out of the mesh for good")
    revoke.add_argument("node", metavar="NODE", help="its id, the beginning of it, or its name")
    revoke.add_argument("--yes", action="store_true", help="do not ask")
    revoke.set_defaults(run=_revoke)


def _secret(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from meshd.config.load import load
    from meshd.mesh.secret import new_secret, write_secret

    if not arguments.write:
        print(new_secret())
        return 0
    path = Path(load(arguments.paths).config.mesh.secret)
    write_secret(path, new_secret(), group=_group())
    print(f"{path}: a new secret; copy it to every node of the mesh, then restart meshd there")
    return 0


def _group() -> int | None:
    """The gid of meshd's own group; None where it is not installed as a service."""
    import grp

    try:
        return grp.getgrnam(_GROUP).gr_gid
    except KeyError:
        return None


def _id(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.config.load import load

    paths: Paths = arguments.paths
    settings = load(paths).config.mesh
    node, mesh = _in_force(paths) or _as_at_the_next_start(paths, settings)
    if arguments.json:
        print_json({"node": node, "mesh": mesh, "name": settings.name})
        return 0
    print(f"node  {node}")
    print(f"mesh  {mesh} ({settings.name})" if mesh else f"mesh  none: no {settings.secret}")
    return 0


def _in_force(paths: Paths) -> tuple[str, str] | None:
    """The ids in the certificate of the meshd that runs, which may have its key from systemd."""
    from meshd.mesh.certificates import ids_in
    from meshd.mesh.tls import CERTIFICATE_FILE

    try:
        return ids_in((paths.run / "tls" / CERTIFICATE_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _as_at_the_next_start(paths: Paths, settings: MeshSettings) -> tuple[str, str]:
    """The ids by the files. No key is made here: as root we would make one that meshd cannot read.

    :raises UserError: there is no key yet, or a file cannot be used.
    """
    from pathlib import Path

    from meshd.mesh.admission import authority
    from meshd.mesh.identity import existing_identity
    from meshd.mesh.secret import read_secret

    identity = existing_identity(paths.state)
    if identity is None:
        raise UserError(
            f"{paths.state}: this node has no key yet", hint="its first start makes one"
        )
    secret = read_secret(Path(settings.secret))
    return identity.id, authority(secret, settings.name).mesh_id if secret else ""


def _members(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.control import ControlClient

    members = asyncio.run(ControlClient(arguments.paths.control_socket).members())
    if arguments.json:
        print_json(members)
    else:
        print("\n".join(table(members)))
    return 0


def table(members: Sequence[MemberLine]) -> Iterator[str]:
    """The members in columns. What other nodes say of themselves cannot steer the terminal."""
    from meshd.config.findings import printable

    head = ("NAME", "ID", "STATUS", "ROLE", "RTT", "ADDRESS", "MODELS")
    with_shards = any(member.shards for member in members)
    rows: list[tuple[str, ...]] = [(*head, "SHARDS") if with_shards else head]
    for member in sorted(members, key=lambda one: (not one.me, one.name, one.id)):
        rtt = "this node" if member.me else "-"
        if member.rtt_ms is not None:
            rtt = f"{member.rtt_ms:.1f} ms"
        cells: tuple[str, ...] = (
            member.name or "-",
            member.id,
            member.status,
            f"{member.role}, core" if member.core else member.role,
            rtt,
            member.addresses[0] if member.addresses else "-",
            " ".join(member.models) or "-",
        )
        if with_shards:
            cells = (*cells, "; ".join(map(_shard, member.shards)) or "-")
        rows.append(tuple(printable(cell) for cell in cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _shard(shard: ShardStatus) -> str:
    from meshd.shard_line import progress

    return f"{shard.model} {progress(shard)}"


def _revoke(arguments: argparse.Namespace) -> int:
    return asyncio.run(_revoke_one(arguments.paths, arguments.node, sure=arguments.yes))


async def _revoke_one(paths: Paths, text: str, *, sure: bool) -> int:
    from meshd.config.findings import printable
    from meshd.control import ControlClient
    from meshd.mesh.member_line import find

    client = ControlClient(paths.control_socket)
    member = find(await client.members(), text)
    if member.me:
        raise UserError(
            "this is the node itself",
            hint="to leave, remove its secret and restart meshd; to throw it out, ask another node",
        )
    who = f"{printable(member.name)} ({member.id})" if member.name else member.id
    if not sure and not _agreed(who):
        print("nothing was done")
        return 1
    await client.revoke(member.id)
    print(f"{who} is out: no node talks to it any more. Whoever has the secret can still join:")
    print("if that node was stolen, make a new secret on all others too.")
    return 0


def _agreed(who: str) -> bool:
    """:raises UserError: there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UserError(f"{who} would be out for good", hint="say so with --yes")
    print(f"{who} will be out of the mesh for good. Type yes: ", end="", flush=True)
    return sys.stdin.readline().strip().lower() == "yes"
