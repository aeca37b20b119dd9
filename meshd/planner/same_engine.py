"""Whether two nodes may share a split: the same build, told before anything connects. Pure.

Two builds can shake hands and then run different operations, as ggml's protocol counts changes of
its operation numbers as patches and does not compare those (llama.cpp #20259). So all has to be
equal: package, build number and the whole protocol triple.
"""

from __future__ import annotations

from meshd.mesh.record import EngineRecord, NodeRecord


def engines_differ(one: NodeRecord, other: NodeRecord) -> str:
    """Why not, with what to upgrade; empty when they are the same."""
    first, second = one.engine, other.engine
    if first is None or second is None:
        lacks = one if first is None else other
        return f"{_name(lacks)} has no engine: meshd engine install"
    if first.rpc_protocol is None or second.rpc_protocol is None:
        lacks = one if first.rpc_protocol is None else other
        return f"{_name(lacks)} has no rpc-server: meshd engine install"
    if _key(first) == _key(second):
        return ""
    older = one if _age(first) < _age(second) else other
    return (
        f"{_name(one)} has {_words(first)}, {_name(other)} {_words(second)}: "
        f"upgrade the engine on {_name(older)}"
    )


def _key(engine: EngineRecord) -> tuple[object, ...]:
    return (engine.version, engine.package, engine.build, engine.rpc_protocol)


def _age(engine: EngineRecord) -> tuple[int, tuple[int, int, int], str, str]:
    return (engine.build or 0, engine.rpc_protocol or (0, 0, 0), engine.version, engine.package)


def _words(engine: EngineRecord) -> str:
    build = f" (b{engine.build})" if engine.build else ""
    package = f", package {engine.package}" if engine.package else ""
    protocol = ".".join(map(str, engine.rpc_protocol or ()))
    return f"llama.cpp {engine.version}{build}{package}, RPC {protocol}"


def _name(record: NodeRecord) -> str:
    return record.name or record.id
