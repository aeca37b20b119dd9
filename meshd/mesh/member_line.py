"""One node of the mesh as `meshd mesh members` shows it, and finding one by what a person types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshd.errors import UserError
from meshd.mesh.ids import is_id
from meshd.shard_line import ShardStatus

# Shorter ones are typed by mistake, or fit a name.
_LEAST_PREFIX = 4
_LIST = "meshd mesh members"


@dataclass(frozen=True, slots=True)
class MemberLine:
    """:ivar status: a `mesh.view.Status`, or ``revoked``. :ivar core: it relays for others.

    :ivar rtt_ms: median round trip from here; None when not measured, or for this node.
    :ivar models: names of those it serves now. :ivar me: it is the node that answers.
    :ivar shards: its shards of models, and those that it makes.
    """

    id: str
    name: str
    status: str
    role: str = "auto"
    core: bool = False
    addresses: tuple[str, ...] = ()
    rtt_ms: float | None = None
    models: tuple[str, ...] = ()
    me: bool = False
    shards: tuple[ShardStatus, ...] = ()


def find(members: Sequence[MemberLine], text: str) -> MemberLine:
    """The one node that `text` means: its id, the beginning of its id, or a name that one has.

    A whole id is taken even when nobody has it now: its node may only be away.

    :raises UserError: none fits, or more than one.
    """
    # Nobody gets in the way of an id by taking it for a name.
    exact = [member for member in members if member.id == text]
    fitting = exact or [member for member in members if member.name == text]
    if not fitting and len(text) >= _LEAST_PREFIX:
        fitting = [member for member in members if member.id.startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        ids = ", ".join(sorted(member.id for member in fitting)[:5])
        raise UserError(f"{text!r} means {len(fitting)} nodes: {ids}", hint="give the id")
    if is_id(text):
        return MemberLine(id=text, name="", status="")
    raise UserError(f"no node of the mesh has the name or id {text!r}", hint=_LIST)
