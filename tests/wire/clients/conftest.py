"""The gateway and the engines before which a client is tested, and the clients that are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.engine.locate import SERVER, Place
from tests.wire.clients.served import MODELS, REPOSITORY, Served, serving
from tools.packages import MissingError, node_with, venv_with

# Fixed, so that a run says which version it was; renewed by hand.
NODE_OPENAI = "openai@7.59.0"
LITELLM = "litellm==1.110.2"
INSTALL_S = 480.0
"""For each step. A test that may have to install has more time than that."""

_FOLDER = REPOSITORY / ".cache" / "clients"


@pytest.fixture(scope="module")
def served(engine: Place) -> Iterator[Served]:
    for name in ("tiny.gguf", "tiny-draft.gguf"):
        if not (MODELS / name).exists():
            pytest.skip(f"{MODELS / name} is not there")
    server = engine.binary(SERVER)
    assert server
    with serving(server) as there:
        yield there


@pytest.fixture(scope="session")
def litellm_python() -> Path:
    """A Python that has LiteLLM, which asks for so much that it gets an environment of its own."""
    try:
        return venv_with(_FOLDER / "litellm", LITELLM, deadline_s=INSTALL_S) / "python"
    except MissingError as error:
        pytest.skip(f"LiteLLM cannot be installed: {error}")


@pytest.fixture(scope="session")
def node_home() -> tuple[Path, Path]:
    """The node program, and a folder from which a script finds its `openai`."""
    folder = _FOLDER / "node"
    try:
        return node_with(folder, NODE_OPENAI, deadline_s=INSTALL_S / 2), folder
    except MissingError as error:
        pytest.skip(f"openai for Node cannot be installed: {error}")
