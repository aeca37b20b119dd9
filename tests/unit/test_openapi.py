"""The OpenAPI document is one, and in step with the gateway's routes, errors and prose."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource

from meshd.gateway.app import make_app
from meshd.gateway.choice import Refusal, Refused
from meshd.gateway.openai_error import refused
from meshd.gateway.openapi.document import document, encoded
from meshd.gateway.openapi.known_errors import BETWEEN_NODES, KNOWN_ERRORS
from meshd.gateway.routes import ModelState, Route, RoutingTable

REPOSITORY = Path(__file__).resolve().parents[2]
GATEWAY = REPOSITORY / "meshd/gateway"
KNOWN = {(error.status, error.code) for error in KNOWN_ERRORS}
CODES = {code for _, code in KNOWN} | BETWEEN_NODES
DOCUMENT = document()

Found = tuple[int | None, str | None]
"""A status and a code in the source; None for what is no constant, or not there."""


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert json.loads(encoded()) == DOCUMENT


def test_it_has_the_gateways_routes_and_no_others() -> None:
    parts: list[Any] = [None] * 5  # only handlers use them
    routed = {
        (route.method.lower(), route.resource.canonical)
        for route in make_app(*parts).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    written = {
        (method, path)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert written == routed


def test_every_error_in_the_source_is_described() -> None:
    sources = [path.read_text() for path in GATEWAY.rglob("*.py")]
    names = {name: text for source in sources for name, text in names_in(source)}
    found = {one for source in sources for one in errors_in(source, names)}
    assert not {one for one in found if not described(*one)}
    dynamic = {f"model_{state.value}" for state in ModelState} | {"model_not_ready"}
    assert CODES - {code for _, code in found} <= dynamic


def described(status: int | None, code: str | None) -> bool:
    if code is None:
        return status is None  # somebody else's error, with a status of theirs
    if status is None:
        return code in CODES
    return (status, code) in KNOWN or code in BETWEEN_NODES


def test_the_reader_of_the_source_sees_errors() -> None:
    source = """
raise Refuse(ApiError(418, "short and stout", code="teapot"))
unavailable("later", "busy", 3)
BadBodyError("no", code="bad")
ApiError(419, "without a code")
ApiError(error.status, error.reason)
ApiError(420, "x", code=code if known else "else")
status, kind, code = 421, None, "many"
BY_NAME = "named"
unavailable("later", BY_NAME, 3)
"""
    assert set(errors_in(source, dict(names_in(source)))) == {
        (503, "named"),
        (418, "teapot"), (503, "busy"), (400, "bad"), (419, None), (None, None), (420, "else"),
        (None, "many"),
    }  # fmt: skip


def names_in(source: str) -> Iterator[tuple[str, str]]:
    """The module's constants that are strings."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    yield target.id, node.value.value


def errors_in(source: str, names: Mapping[str, str]) -> Iterator[Found]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from ((None, code) for code in _assigned(target, node.value, names))
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name == "unavailable":
            yield from ((503, code) for code in _constants(node.args[1], names))
        elif name in ("ApiError", "BadBodyError"):
            status = 400
            if name == "ApiError":
                first = node.args[0]
                status = first.value if isinstance(first, ast.Constant) else None
            given = [word.value for word in node.keywords if word.arg == "code"] + node.args[4:5]
            if not given:
                yield status, None
            yield from ((status, code) for value in given for code in _constants(value, names))


def _assigned(target: ast.expr, value: ast.expr, names: Mapping[str, str]) -> Iterator[str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=True):
            yield from _assigned(one, its, names)
    elif isinstance(target, ast.Name) and target.id == "code":
        yield from _constants(value, names)


def _constants(value: ast.expr, names: Mapping[str, str]) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from (*_constants(value.body, names), *_constants(value.orelse, names))
    elif isinstance(value, ast.Name) and value.id in names:
        yield names[value.id]
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value


@pytest.mark.parametrize("reason", Refusal)
@pytest.mark.parametrize("state", ModelState)
def test_every_refusal_is_described(reason: Refusal, state: ModelState) -> None:
    for route in (Route("m", state), None):
        error = refused(Refused(reason, route), "m", RoutingTable())
        assert (error.status, error.code) in KNOWN


def test_no_error_is_described_twice() -> None:
    assert len(KNOWN) == len(KNOWN_ERRORS)


def test_examples_have_the_shape_that_is_described() -> None:
    root = Resource.opaque(DOCUMENT)
    registry: Registry[Any] = Registry().with_resource("urn:document", root)
    seen = set()
    for name, response in DOCUMENT["components"]["responses"].items():
        content = response["content"]["application/json"]
        place = f"urn:document#/components/responses/{name}/content/application~1json/schema"
        check = Draft202012Validator({"$ref": place}, registry=registry)
        for code, example in content["examples"].items():
            check.validate(example["value"])
            assert example["value"]["error"]["code"] == code
            seen.add(code)
    here = {error.code for error in KNOWN_ERRORS if error.scope != "nowhere"}
    assert seen == here


def test_nothing_in_it_is_unused() -> None:
    text = encoded().decode()
    for kind, parts in DOCUMENT["components"].items():
        for name in parts:
            used = f'"#/components/{kind}/{name}"' in text
            assert used or kind == "securitySchemes", f"{kind}/{name} is not referred to"


def test_the_prose_has_every_error_in_the_row_of_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \|([^|]*)\|", (REPOSITORY / "docs/api.md").read_text(), re.M)
    written = {
        (int(status), code) for status, codes in rows for code in re.findall("`(.*?)`", codes)
    }
    assert written == KNOWN
