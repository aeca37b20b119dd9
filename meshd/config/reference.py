"""Writes etc/mesh.yaml and the table of keys in docs/configuration.md from the schema.

`python -m meshd.config.reference` after a change of mesh.schema.json; a test sees to it that all
three are in step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from meshd.config.schema import (
    INSTALLED_AT,
    Schema,
    expectation,
    is_list_change,
    published,
    resolved,
)
from meshd.config.show import scalar

BEGIN = "<!-- from mesh.schema.json, by `python -m meshd.config.reference` -->"
END = "<!-- end of what is generated -->"

_HEAD = f"""\
# yaml-language-server: $schema={INSTALLED_AT}
#
# What this node of the mesh should do. After a change:
#
#     meshd check                # lists all that is wrong, with line and column
#     systemctl reload meshd     # restarts only what the change touches
#
# A line such as `#role: auto` shows a default: delete the # to set another value.
# Files in mesh.d/*.yaml are laid over this one; docs/configuration.md says how.
# (Made from mesh.schema.json by `python -m meshd.config.reference`.)
"""
_WIDTH = 96


def mesh_yaml(schema: Schema) -> str:
    """The default mesh.yaml: the example models are active, all else is a commented default."""
    lines = [_HEAD]
    for key, section in schema["properties"].items():
        section = resolved(section)
        lines.append("")
        lines += _comment(section["description"], 0)
        lines.append(f"{key}:")
        if "properties" in section:
            lines += _keys(section, 1)
        else:
            for item in section["examples"][0]:
                lines += _item(item, resolved(section["anyOf"][0]["items"]))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def reference(schema: Schema) -> str:
    """Every key with its meaning, in Markdown."""
    return "\n".join(_sections(schema))


def with_reference(document: str, schema: Schema) -> str:
    """A document with the part between the markers made anew.

    :raises ValueError: the markers are not there.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{reference(schema)}\n{END}{after}"


def _keys(section: Schema, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, child in section["properties"].items():
        child = resolved(child)
        yield from _comment(child["description"], depth)
        if "properties" in child:
            yield f"{indent}{key}:"
            yield from _keys(child, depth + 1)
        else:
            yield f"{indent}#{key}: {_flow(child['default'])}"


def _item(item: dict[str, object], schema: Schema) -> Iterator[str]:
    lead = "  - "
    for key, child in schema["properties"].items():
        child = resolved(child)
        if key in item:
            yield from _comment(child["description"], 2 if lead.isspace() else 1)
            yield f"{lead}{key}: {_flow(item[key])}"
            lead = "    "
        else:
            yield from _comment(child["description"], 2)
            yield f"    #{key}: {_flow(_default(child))}"


def _default(schema: Schema) -> object:
    if "properties" in schema and "default" not in schema:
        return {key: _default(resolved(child)) for key, child in schema["properties"].items()}
    return schema["default"]


def _comment(text: str, depth: int) -> list[str]:
    indent = "  " * depth
    return [f"{indent}# {line}" for line in wrap(text, _WIDTH - len(indent) - 2)]


def _flow(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    return scalar(value)


def _sections(schema: Schema) -> Iterator[str]:
    for key, child in schema["properties"].items():
        child = resolved(child)
        items = _items_of(child)
        yield f"### `{key}`"
        yield ""
        yield child["description"]
        yield ""
        yield "| key | meaning | value | default | example |"
        yield "|---|---|---|---|---|"
        yield from _rows(items or child, f"{key}[]." if items else f"{key}.")
        yield ""


def _rows(section: Schema, prefix: str) -> Iterator[str]:
    required = section.get("required", ())
    for key, given in section["properties"].items():
        child = resolved(given)
        if "properties" in child:
            yield from _rows(child, f"{prefix}{key}.")
            continue
        default = f"`{_flow(child['default'])}`" if "default" in child else "none"
        default = "must be given" if key in required else default
        example = f"`{_flow(child['examples'][0])}`"
        cells = (f"`{prefix}{key}`", child["description"], _value(given), default, example)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        for branch in map(resolved, child.get("anyOf", ())):
            if "properties" in branch and not is_list_change(branch):
                yield from _rows(branch, f"{prefix}{key}.")


def _value(schema: Schema) -> str:
    """As `expectation`, less merge and replace, which the page explains once for all lists."""
    branches = [resolved(branch) for branch in schema.get("anyOf", ())]
    own = [expectation(one) for one in branches if not is_list_change(one)]
    text = " or ".join(own) or expectation(schema)
    return text.replace("<uuid>", "UUID").replace("<address>", "ADDRESS")


def _items_of(schema: Schema) -> Schema | None:
    branches = [resolved(branch) for branch in schema.get("anyOf", ())]
    items = next((branch["items"] for branch in branches if "items" in branch), None)
    return resolved(items) if items else None


def main() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    page = root / "docs/configuration.md"
    _write(root / "etc/mesh.yaml", mesh_yaml(published()))
    _write(page, with_reference(page.read_text("utf-8"), published()))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    main()
