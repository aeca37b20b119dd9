"""The text of Zenoh's configuration, and the only place that knows its words. Pure.

Values as measured in the project's notes on membership; names from Zenoh's DEFAULT_CONFIG.json5.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePath

from meshd.config.settings import Preset
from meshd.mesh.bus import MESSAGE_MAX_BYTES

# A killed QUIC process says nothing: the lease is how long it takes to be missed.
_LEASE_MS = {Preset.LAN: 1800, Preset.WAN: 4000}
_KEEP_ALIVES = 4
OPEN_TIMEOUT_MS = 1500
# Who accepts can wait: it is the other that may have somebody else to turn to.
_ACCEPT_TIMEOUT_MS = 5000
# A client without a core is alone and hurries; a core goes on for ever after one that may be gone.
_RETRY_MOST_MS = {False: 1000, True: 2000}
_LARGEST_BYTES = 65_536

# What a revoked node may no longer do through us, in both directions.
_EVERYTHING = [
    "put",
    "delete",
    "declare_subscriber",
    "query",
    "reply",
    "declare_queryable",
    "liveliness_token",
    "liveliness_query",
    "declare_liveliness_subscriber",
]

SCOUTING_GROUP = "224.0.0.224:7446"

assert MESSAGE_MAX_BYTES < _LARGEST_BYTES


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One session to open.

    :ivar zid: of :func:`session_zid`. :ivar core: it relays for others, and listens.
    :ivar listen: endpoints of a core; a client has none.
    :ivar connect: endpoints; a client uses one of them, a core links to all.
    :ivar tls: folder with ``ca.pem``, ``cert.pem`` and ``key.pem``.
    :ivar revoked: ids of nodes that are carried no longer.
    :ivar answer_scouts: a core tells who asks on the LAN that it is there.
    :ivar open_timeout_ms: for a handshake with one node; more where machines are overloaded.
    """

    zid: str
    core: bool
    tls: PurePath
    preset: Preset = Preset.LAN
    listen: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    answer_scouts: bool = False
    open_timeout_ms: int = OPEN_TIMEOUT_MS


def config_text(plan: SessionPlan) -> str:
    """The configuration as JSON, which Zenoh reads."""
    config: dict[str, object] = {
        "mode": "router" if plan.core else "client",
        "id": plan.zid,
        "listen": {"endpoints": list(plan.listen), "exit_on_failure": True, "timeout_ms": 0},
        "connect": {
            "endpoints": list(plan.connect),
            "exit_on_failure": not plan.core,
            # A core goes on trying for ever, in the background; a client tries each one once.
            "timeout_ms": -1 if plan.core else 0,
            "retry": {
                "period_init_ms": 200,
                "period_max_ms": _RETRY_MOST_MS[plan.core],
                "period_increase_factor": 2,
            },
        },
        "scouting": {
            "delay": 0,
            # Nobody connects to what multicast finds; a core only answers.
            "multicast": {
                "enabled": plan.answer_scouts and plan.core,
                "address": SCOUTING_GROUP,
                "listen": {"router": True, "peer": False, "client": False},
                "autoconnect": {"router": [], "peer": [], "client": []},
            },
            # Cores that have one core in common link to each other.
            "gossip": {
                "enabled": True,
                "target": {"router": ["router"], "peer": []},
                "autoconnect": {"router": ["router"], "peer": []},
                # Only one of two dials, or every pair would have two links.
                "autoconnect_strategy": {"router": {"to_router": "greater-zid"}},
            },
        },
        "adminspace": {"enabled": False},
        "transport": {
            "shared_memory": {"enabled": False},
            "unicast": {
                "open_timeout": plan.open_timeout_ms,
                "accept_timeout": max(plan.open_timeout_ms, _ACCEPT_TIMEOUT_MS),
            },
            "link": {
                # Links over TCP and TLS stall detection: only QUIC.
                "protocols": ["quic"],
                "rx": {"max_message_size": _LARGEST_BYTES},
                "tx": {"lease": _LEASE_MS[plan.preset], "keep_alive": _KEEP_ALIVES},
                "tls": _tls(plan.tls),
            },
        },
    }
    if plan.revoked:
        config["access_control"] = _refusing(plan.revoked)
    return json.dumps(config)


def scout_text() -> str:
    """The configuration with which `zenoh.scout` asks who is on the LAN."""
    return json.dumps({"scouting": {"multicast": {"enabled": True, "address": SCOUTING_GROUP}}})


def quic_endpoint(host: str, port: int) -> str:
    """Zenoh's words for a place to connect to.

    An IPv6 address stands without brackets: with them Zenoh 1.10 takes it for an invalid name.
    """
    return f"quic/{host.strip('[]')}:{port}"


def listen_endpoint(host: str, port: int) -> str:
    """Zenoh's words for a place to listen on. :param host: an IP address."""
    return f"quic/[{host}]:{port}" if ":" in host else f"quic/{host}:{port}"


def session_zid(mesh: str, node: str, nonce: bytes) -> str:
    """Zenoh's id of a session: 16 bytes, of which five name the mesh and seven the node.

    So whoever is found on the LAN can be told from other meshes' nodes before anybody dials.

    :param nonce: three random bytes: a node may have two sessions for a moment.
    """
    return mesh_tag(mesh) + node_tag(node) + bytes(nonce[:3]).hex() + "1"


def mesh_tag(mesh: str) -> str:
    """How the ids of a mesh's sessions begin; never with a zero, which Zenoh would leave out."""
    return "a" + hashlib.sha256(b"meshd zid mesh\0" + mesh.encode()).hexdigest()[:10]


def node_tag(node: str) -> str:
    """What stands for the node in a session's id."""
    return hashlib.sha256(b"meshd zid node\0" + node.encode()).hexdigest()[:14]


def _tls(folder: PurePath) -> dict[str, object]:
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    return {
        "root_ca_certificate": str(folder / "ca.pem"),
        "listen_certificate": certificate,
        "listen_private_key": key,
        "connect_certificate": certificate,
        "connect_private_key": key,
        "enable_mtls": True,
        # A node is dialled by any of its addresses. Who answered is checked by its certificate's
        # name before anything is said to it (`zenoh_bus`).
        "verify_name_on_connect": False,
        "close_link_on_expiration": True,
    }


def _refusing(revoked: tuple[str, ...]) -> dict[str, object]:
    return {
        "enabled": True,
        "default_permission": "allow",
        "rules": [
            {
                "id": "nothing",
                "permission": "deny",
                "flows": ["ingress", "egress"],
                "messages": _EVERYTHING,
                "key_exprs": ["**"],
            }
        ],
        "subjects": [{"id": "revoked", "cert_common_names": sorted(revoked)}],
        "policies": [{"id": "revoked", "rules": ["nothing"], "subjects": ["revoked"]}],
    }
