"""The table that the gateway serves files by."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.gateway.model_table import MAX_BYTES, SharedModel, read_models, write_models
from meshd.paths import under
from meshd.shared_models import SharedExperts, SharedModels, share_models

A = "0123456789abcdef"


def test_what_the_brain_shares_the_gateway_reads(tmp_path: Path) -> None:
    paths = under(tmp_path)
    paths.run.mkdir(parents=True)
    share_models(paths, {A: ("/m/one.gguf", "/m/two.gguf")})
    (model,) = read_models(paths.shared_models).values()
    assert model.files == ("/m/one.gguf", "/m/two.gguf")
    assert model.manifest == str(paths.rpc_cache / f"manifests/{A}.json")


def test_what_was_found_out_of_experts_is_shared_beside_the_weights(tmp_path: Path) -> None:
    paths = under(tmp_path)
    shared = SharedModels(paths)
    found = {A: SharedExperts("/r.json", {"ab" * 32: "/l"}), "f" * 16: SharedExperts("/x.json")}
    shared.experts(found)  # before there is a place for the table
    paths.run.mkdir(parents=True)
    shared.experts(found)
    assert read_models(paths.shared_models) == {}  # nothing of a model that is not held
    shared.held({A: ("/m/one.gguf",)})
    (model,) = read_models(paths.shared_models).values()
    assert (model.files, model.ranking, model.logits) == (
        ("/m/one.gguf",), "/r.json", {"ab" * 32: "/l"},
    )  # fmt: skip
    shared.experts({})
    (model,) = read_models(paths.shared_models).values()
    assert (model.files, model.ranking, model.logits) == (("/m/one.gguf",), "", {})


def test_the_table_of_another_version_of_meshd_is_read(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_bytes(b'{"%s":{"files":["/m"],"of_tomorrow":[1]}}' % A.encode())
    assert read_models(path) == {A: SharedModel(("/m",))}


def test_a_folder_that_is_not_there_ends_nothing(tmp_path: Path) -> None:
    share_models(under(tmp_path), {A: ("/m/one.gguf",)})
    assert read_models(under(tmp_path).shared_models) == {}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"a":{"files":"x"}}', b"[" * 10_000])
def test_a_table_that_is_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "models.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=str(path)):
        read_models(path)


def test_a_table_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    write_models(path, {A: SharedModel(("x" * MAX_BYTES,))})
    with pytest.raises(ValueError, match="larger"):
        read_models(path)
