"""Boot: with a good file, with a bad one, and with a bad one and nothing to fall back on."""

from __future__ import annotations

from tests.lab import mesh
from tests.lab.node import Node

BAD = "models:\n  - {name: tiny, sauce: tiny.gguf}\n"


def test_a_reboot_brings_everything_back(node: Node) -> None:
    node.systemctl("enable", "mesh.target")
    mesh.start(node)
    node.reboot()
    mesh.settled(node)
    assert mesh.served(node)
    assert node.systemctl("is-system-running").stdout.strip() == "running"


def test_a_bad_file_at_boot_starts_the_last_good_generation_loudly(node: Node) -> None:
    node.systemctl("enable", "mesh.target")
    mesh.start(node, mesh.config(slots=3))
    node.wait(lambda: saved_generations(node), 10, "the good generation to be kept")
    node.write(mesh.CONFIG, BAD)
    node.reboot()
    mesh.settled(node, "tiny", "small")
    assert mesh.served(node)
    assert mesh.model(node, "tiny")["slots"] == 3
    sentence = node.unit("meshd")["StatusText"]
    assert "degraded" in sentence
    assert f"{mesh.CONFIG}:2:" in sentence
    shown = node.run(["meshd", "status"])
    assert shown.returncode == 3
    assert "degraded" in shown.stdout
    errors = node.journal("-u", "meshd", "--priority=err")
    assert "sauce" in errors
    assert node.read(mesh.CONFIG) == BAD, "a person's file is not ours to mend"

    node.write(mesh.CONFIG, mesh.config())
    node.systemctl("reload", "meshd")
    mesh.settled(node)
    assert node.run(["meshd", "status"]).returncode == 0


def test_a_bad_file_on_a_new_machine_says_where_it_is_bad(node: Node) -> None:
    node.write(mesh.CONFIG, BAD)
    done = node.systemctl("start", "meshd", check=False, timeout_s=60)
    assert done.returncode != 0
    said = node.journal("-u", "meshd")
    assert f"{mesh.CONFIG}:2:" in said
    assert "Traceback" not in said
    node.write(mesh.CONFIG, mesh.config())
    node.systemctl("start", "mesh.target", timeout_s=60)
    mesh.settled(node)


def saved_generations(node: Node) -> list[str]:
    return node.run(["ls", "/var/lib/mesh/generations"]).stdout.split()
