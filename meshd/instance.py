"""Names of unit instances. Pure."""

from __future__ import annotations

import hashlib
import re

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_HOST_CHARACTERS = 8


def instance_name(model: str) -> str:
    """The unit instance for a model: its own name where systemd and sockets can bear it, else a
    readable part of it and a hash, so that two models never meet.
    """
    if _NAME.fullmatch(model):
        return model
    readable = re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip("-._")[:24]
    digest = hashlib.sha256(model.encode()).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else digest


def lent_name(model: str, host: str) -> str:
    """The instance of what a node lends to the split of a model on another node.

    A model that this node runs itself has `instance_name`, which has no such end: node ids are
    longer than what is taken of them, and a name that ends alike is a lent one's only by chance.

    :param host: its node id.
    """
    return f"{instance_name(model)}.{host[:_HOST_CHARACTERS]}"
