"""The schema, the dataclasses, the shipped file and the documentation say the same."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from meshd.config import meaning, settings
from meshd.config.build import to_data
from meshd.config.findings import SourceFile
from meshd.config.layers import parse_layers
from meshd.config.reference import mesh_yaml, with_reference
from meshd.config.schema import is_list_change, published, resolved, validator
from meshd.config.settings import Config, ModelSettings
from meshd.config.shape_words import WORDS
from meshd.config.sizes import format_size, parse_size
from meshd.experts.texts import SHIPPED
from meshd.quality import Budget

ROOT = Path(__file__).parents[3]
ANNOTATIONS = {"$schema", "$id", "$ref", "$defs", "title", "description", "default", "examples"}
STRUCTURE = {"properties", "items"}


def schemas(schema, path=""):
    """Every subschema with its path."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for group in ("properties", "$defs"):
        for key, sub in schema.get(group, {}).items():
            yield from schemas(sub, f"{path}/{key}")
    for index, sub in enumerate(schema.get("anyOf", ())):
        yield from schemas(sub, f"{path}|{index}")
    yield from schemas(schema.get("items"), f"{path}[]")
    yield from schemas(schema.get("additionalProperties"), f"{path}/*")
    yield from schemas(schema.get("propertyNames"), f"{path}/?")


def keys(schema, path=""):
    """Every key that a file can have."""
    for name, sub in resolved(schema).get("properties", {}).items():
        yield f"{path}.{name}", sub
        yield from keys(sub, f"{path}.{name}")
        for branch in resolved(sub).get("anyOf", ()):
            if not is_list_change(branch):
                yield from keys(branch, f"{path}.{name}")


BOUNDS = {f"models[].quality.{field.name}" for field in dataclasses.fields(Budget)}
WITHOUT_DEFAULT = {"models[].name", "models[].source", *BOUNDS}
ALL_KEYS = [*keys(published()), *keys(published()["$defs"]["modelKeys"], "models[]")]


def test_it_is_a_valid_schema():
    Draft202012Validator.check_schema(published())
    assert published()["$schema"] == Draft202012Validator.META_SCHEMA["$schema"]


def test_every_keyword_has_words_for_people():
    used = {key for _, schema in schemas(published()) for key in schema}
    assert used - ANNOTATIONS - STRUCTURE <= set(WORDS)


def test_unknown_keys_are_refused_everywhere():
    for path, schema in schemas(published()):
        if "object" in schema.get("type", ()):
            # Where people choose the names, there are rules for names.
            known = "propertyNames" not in schema
            assert (schema.get("additionalProperties") is False) is known, path


@pytest.mark.parametrize(("path", "schema"), ALL_KEYS, ids=[path for path, _ in ALL_KEYS])
def test_every_key_is_explained(path, schema):
    assert schema["title"]
    assert schema["description"].endswith(".")
    if "properties" not in resolved(schema):
        assert schema["examples"]
        assert "default" in schema or path in WITHOUT_DEFAULT
    check = validator().evolve(schema={**schema, "$defs": published()["$defs"]})
    for value in [
        *schema.get("examples", ()),
        *([schema["default"]] if "default" in schema else ()),
    ]:
        assert check.is_valid(value), value


def test_the_schema_s_defaults_are_the_built_in_ones():
    model = {"name": "a", "source": "b"}
    data = to_data(dataclasses.replace(Config(), models=(ModelSettings(**model),)))
    (data["models[]"],) = data.pop("models")
    for path, schema in ALL_KEYS:
        if "default" in schema and path != ".models":
            value = data
            for step in path.strip(".").split("."):
                value = value[step]
            assert value == schema["default"], path
    assert Config().models == ()


def test_every_field_has_a_key():
    yaml_name = {
        "vram_bytes": "vram",
        "ram_bytes": "ram",
        "max_body_bytes": "max_body",
        "half_life_s": "half_life",
        "dwell_s": "dwell",
        "wait_s": "wait",
    }

    def fields(cls):
        for field in dataclasses.fields(cls):
            yield yaml_name.get(field.name, field.name)
            sub = getattr(settings, str(field.type), None)
            if dataclasses.is_dataclass(sub):
                yield from fields(sub)

    known = {path.rsplit(".", 1)[-1] for path, _ in ALL_KEYS} - {"merge", "replace"}
    assert {*fields(Config), *fields(ModelSettings)} == known


def test_the_shipped_file_is_in_step():
    assert (ROOT / "etc/mesh.yaml").read_text() == mesh_yaml(published()), (
        "run: python -m meshd.config.reference"
    )


def test_the_documentation_is_in_step():
    text = (ROOT / "docs/configuration.md").read_text()
    assert text == with_reference(text, published()), "run: python -m meshd.config.reference"
    for path, _ in ALL_KEYS:
        assert path.strip(".") in text, path


def test_the_shipped_file_serves_tiny_and_nothing_else_differs_from_the_defaults():
    loaded = parse_layers([SourceFile("mesh.yaml", mesh_yaml(published()))])
    assert loaded.findings == ()
    (model,) = loaded.config.models
    assert model == ModelSettings(name="tiny", source="tiny.gguf")
    assert dataclasses.replace(loaded.config, models=()) == Config()


def test_every_commented_default_of_the_shipped_file_is_what_it_says():
    text = mesh_yaml(published())
    uncommented = re.sub(r"^( *)#(\w+: )", r"\1\2", text, flags=re.MULTILINE)
    assert uncommented.count("#") < text.count("#") - 10
    shipped = parse_layers([SourceFile("mesh.yaml", text)])
    every = parse_layers([SourceFile("mesh.yaml", uncommented)])
    assert every.config == shipped.config
    assert every.findings == ()
    leaves = {path for path, schema in ALL_KEYS if "properties" not in resolved(schema)} - BOUNDS
    set_here = {re.sub(r"\[.*?\]", "[]", path) for path in every.origins}
    assert {path.strip(".") for path in leaves if "merge" not in path} - {".models"} <= set_here


def test_every_single_commented_default_can_be_uncommented_alone():
    text = mesh_yaml(published())
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if re.match(r" *#\w+: ", line)]
    assert len(places) > 10
    for place in places:
        one = [line.replace("#", "", 1) if i == place else line for i, line in enumerate(lines)]
        assert parse_layers([SourceFile("m", "\n".join(one))]).findings == ()


def test_an_editor_that_reads_only_the_schema_agrees():
    data = yaml.safe_load(mesh_yaml(published()))
    assert list(Draft202012Validator(published()).iter_errors(data)) == []


def test_the_drop_in_shown_in_the_documentation_works():
    page = (ROOT / "docs/configuration.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    loaded = parse_layers(
        [SourceFile("mesh.yaml", mesh_yaml(published())), SourceFile("10.yaml", example)]
    )
    assert [model.name for model in loaded.config.models] == ["tiny", "big"]
    assert loaded.config.models[0].slots == 4
    assert loaded.config.gateway.listen == ("127.0.0.1:8080",)


def test_the_kinds_of_text_that_are_shipped_are_those_that_check_knows():
    assert meaning._SHIPPED_KINDS == SHIPPED


def test_the_modeline_is_the_first_line():
    assert mesh_yaml(published()).startswith("# yaml-language-server: $schema=/usr/share/")


def test_the_schema_is_plain_json_with_stable_form():
    text = (ROOT / "meshd/config/mesh.schema.json").read_text()
    assert json.loads(text) == published()


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512MiB", 536870912), ("2GB", 2 * 10**9), ("1.5GiB", 1610612736), ("0B", 0), ("7kB", 7000)],
)
def test_sizes(text, size_bytes):
    assert parse_size(text) == size_bytes
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["", "512", "MiB", "-1MiB", "1mib", "1 MiB", "1e3MiB", "٣MiB"])
def test_not_sizes(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
