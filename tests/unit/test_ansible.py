"""The Ansible role: its own rules by reading it, Ansible's by its own tools where they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "ansible"
ROLE = FOLDER / "roles/mesh_node"
KEYWORDS = {
    "name", "when", "register", "loop", "loop_control", "notify", "vars", "block", "delegate_to",
    "become", "no_log", "run_once", "changed_when", "failed_when", "check_mode",
}  # fmt: skip


def content(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text())


def tasks(listed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in listed:
        yield task
        yield from tasks(task.get("block", []))


def all_tasks() -> list[dict[str, Any]]:
    files = [*sorted((ROLE / "tasks").glob("*.yml")), ROLE / "handlers/main.yml"]
    return [task for file in files for task in tasks(yaml.safe_load(file.read_text()))]


def module(task: dict[str, Any]) -> str:
    (name,) = set(task) - KEYWORDS or {"block"}
    return name


def notified(task: dict[str, Any]) -> list[str]:
    names = task.get("notify", [])
    return [names] if isinstance(names, str) else names


def test_every_variable_is_described_and_has_the_default_that_is_described() -> None:
    specs = content("meta/argument_specs.yml")["argument_specs"]
    described = {
        name: option for spec in specs.values() for name, option in spec["options"].items()
    }
    defaults = content("defaults/main.yml")
    assert all(name.startswith("mesh_node_") for name in described)
    required = {name for name, option in described.items() if option.get("required")}
    assert set(defaults) == set(described) - required
    assert {name: described[name]["default"] for name in defaults} == defaults


def test_modules_are_named_in_full() -> None:
    assert {module(task) for task in all_tasks() if "block" not in task} <= {
        f"ansible.builtin.{name}"
        for name in (
            "apt", "assert", "command", "copy", "file", "find", "import_tasks", "meta", "pip",
            "service_facts", "stat", "systemd_service", "tempfile", "template",
        )
    }  # fmt: skip


def test_a_changed_configuration_is_checked_and_reloaded_never_restarted() -> None:
    writers = [
        task
        for task in all_tasks()
        for arguments in [task.get(module(task))]
        if isinstance(arguments, dict) and arguments.get("dest") == "/etc/mesh/mesh.yaml"
    ]
    assert len(writers) == 2
    for task in writers:
        assert task[module(task)]["validate"] == "/usr/bin/meshd check %s"
        assert notified(task) == ["Reload meshd"]
    handlers = {task["name"]: task for task in content("handlers/main.yml")}
    assert handlers["Reload meshd"]["ansible.builtin.systemd_service"]["state"] == "reloaded"


def test_every_notified_handler_is_there() -> None:
    handlers = {task["name"] for task in content("handlers/main.yml")}
    assert {name for task in all_tasks() for name in notified(task)} == handlers


def test_the_example_inventory_gives_only_described_variables() -> None:
    specs = content("meta/argument_specs.yml")["argument_specs"]
    known = {name for spec in specs.values() for name in spec["options"]}
    inventory = yaml.safe_load((FOLDER / "inventory/lab.example.yml").read_text())
    group = inventory["mesh_nodes"]
    given = [group["vars"], *(host or {} for host in group["hosts"].values())]
    names = {name for values in given for name in values if name.startswith("mesh_")}
    assert names <= known


@pytest.mark.parametrize(
    "command",
    [
        ["ansible-playbook", "--syntax-check", "-i", "inventory/lab.example.yml", "site.yml"],
        ["ansible-playbook", "--syntax-check", "-i", "inventory/lab.example.yml", "reset.yml"],
        ["ansible-lint", "--offline", "--profile=production", "-q"],
    ],
    ids=["site", "reset", "lint"],
)
@pytest.mark.timeout(320)
def test_ansible_agrees(command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if shutil.which(command[0], path=path) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
