"""The ports of split models: one run of them, divided by who listens.

>>> [list(ports)[0] for ports in (doors(9340), servers(9340), ways(9340))]
[9340, 9372, 9404]
"""

from __future__ import annotations

_EACH = 32
COUNT = 3 * _EACH


def doors(first: int) -> range:
    """TCP, reached by other nodes: a guard in front of an rpc-server. :param first: of all."""
    return range(first, first + _EACH)


def servers(first: int) -> range:
    """Loopback: rpc-servers."""
    return range(first + _EACH, first + 2 * _EACH)


def ways(first: int) -> range:
    """Loopback: local ends, where a llama-server connects to, one for each member."""
    return range(first + 2 * _EACH, first + COUNT)
