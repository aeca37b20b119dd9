"""What is known of an installed engine: frozen facts, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Binary:
    """One executable of the engine. :ivar sha256: of the file's content, lower-case hex."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """One engine on this node.

    :ivar origin: ``system`` (found installed), ``debian`` (packages that we installed) or ``root``
        (unpacked into an engine root of its own).
    :ivar root: the engine root, or ``/``.
    :ivar build: upstream's build number (b11669 is 11669), None where the binary does not say.
    :ivar version: e.g. ``0.7.0``; ``package`` the Debian version, e.g. ``1:0.7.0+dfsg-2``.
    :ivar rpc_protocol: the triple that rpc-server announces; patch counts (design, RPC rules).
    :ivar backends: names of the ggml backends that load, e.g. ``CPU``, ``RPC``, ``Vulkan``.
    :ivar help_text: `llama-server --help` in full: the flags' dialect is read from it.
    """

    origin: str
    root: str
    build: int | None
    version: str
    package: str
    ggml: str
    rpc_protocol: tuple[int, int, int] | None
    binaries: tuple[Binary, ...]
    backends: tuple[str, ...]
    help_text: str

    def binary(self, name: str) -> Binary | None:
        return next((binary for binary in self.binaries if binary.name == name), None)

    @property
    def rpc_server(self) -> Binary | None:
        return self.binary("ggml-rpc-server")
