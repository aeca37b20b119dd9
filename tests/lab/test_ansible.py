"""The Ansible role on a machine that has Debian's packages and nothing of meshd's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import mesh
from tests.lab import node as lab

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = ".cache/lab/ansible"
ANSIBLE = REPOSITORY / FOLDER
OPTIONS = "--python-version 3.14 --only-binary=:all:"
GET = f"pip install {OPTIONS} --target {FOLDER} ansible-core"
INVENTORY = """\
mesh_nodes:
  hosts:
    localhost:
      ansible_connection: local
      ansible_python_interpreter: /usr/bin/python3
"""
BUILD = """
PYTHONPATH=/usr/lib/meshd-build /usr/lib/meshd/bin/pip wheel --quiet --no-deps --no-index \
    --no-build-isolation --wheel-dir /root/wheel /root/source
"""
PLAY_TIMEOUT_S = 400


@pytest.fixture(scope="module")
def machine(lowerdir: str, scratch: Path) -> Iterator[lab.Node]:
    """The lab root without its topmost layer, which is meshd itself."""
    if not (ANSIBLE / "ansible").is_dir():
        pytest.skip(f"needs Ansible for the node's Python: {GET}")
    without_meshd = lowerdir.partition(":")[2]
    arguments = (
        "--private-network",
        f"--bind-ro={ANSIBLE}:/opt/ansible",
        f"--bind-ro={REPOSITORY / 'ansible'}:/opt/playbooks",
        f"--bind-ro={REPOSITORY}:/opt/source",
    )
    with lab.booted("ansible", without_meshd, scratch, arguments=arguments) as node:
        node.write("/root/hosts.yml", INVENTORY)
        copy = "mkdir /root/source && cd /opt/source && cp -r pyproject.toml README.md LICENSE"
        folders = "$(for f in meshd systemd etc share; do [ -e $f ] && echo $f; done)"
        node.run(
            ["sh", "-euc", f"{copy} {folders} /root/source/ && {BUILD}"], timeout_s=200, check=True
        )
        yield node


def play(node: lab.Node, book: str, **variables: object) -> dict[str, int]:
    """Run a playbook on the node itself; its recap."""
    wheel = node.run(["sh", "-c", "ls /root/wheel/meshd-*.whl"], check=True).stdout.strip()
    given = {
        "mesh_node_source": wheel,
        # There is no network: what the packages and the index would give is already there.
        "mesh_node_packages": [],
        "mesh_node_install_engine": False,
        "mesh_node_pip_extra_args": "--no-index",
        **variables,
    }
    command = ["env", "-C", "/opt/playbooks", "python3", "/opt/ansible/bin/ansible-playbook"]
    done = node.run(
        [*command, "-i", "/root/hosts.yml", book, "-e", json.dumps(given)],
        env={"PYTHONPATH": "/opt/ansible", "ANSIBLE_NOCOLOR": "1"},
        timeout_s=PLAY_TIMEOUT_S,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("localhost ")]
    assert lines, done.stdout + done.stderr
    pairs = (field.split("=") for field in lines[-1].partition(":")[2].split())
    recap = {name: int(count) for name, count in pairs}
    recap["rc"] = done.returncode
    return recap


@pytest.mark.timeout(3 * PLAY_TIMEOUT_S)
def test_a_playbook_makes_a_node_and_then_changes_nothing(machine: lab.Node) -> None:
    config = {"models": [{"name": "tiny", "source": "tiny.gguf", "context": 1024, "slots": 1}]}
    first = play(machine, "site.yml", mesh_node_config=config)
    assert (first["rc"], first["failed"]) == (0, 0)
    assert first["changed"] > 5
    mesh.settled(machine, "tiny", timeout_s=120)
    assert mesh.served(machine)
    pids = (machine.main_pid("meshd.service"), machine.main_pid("mesh-llama@tiny.service"))
    second = play(machine, "site.yml", mesh_node_config=config)
    assert (second["rc"], second["changed"]) == (0, 0)
    assert pids == (machine.main_pid("meshd.service"), machine.main_pid("mesh-llama@tiny.service"))


@pytest.mark.timeout(3 * PLAY_TIMEOUT_S)
def test_a_bad_configuration_never_gets_there_and_a_good_one_is_reloaded(
    machine: lab.Node,
) -> None:
    before = machine.read(mesh.CONFIG)
    bad = play(machine, "site.yml", mesh_node_config={"modles": []})
    assert bad["rc"] != 0
    assert bad["failed"] == 1
    assert machine.read(mesh.CONFIG) == before
    pid = machine.main_pid("meshd.service")
    model = {"name": "tiny", "source": "tiny.gguf", "context": 1024, "slots": 1}
    config = {"models": [model], "console": {"listen": "127.0.0.1:3132"}}
    good = play(machine, "site.yml", mesh_node_config=config)
    assert (good["rc"], good["changed"]) == (0, 2)  # the file, and the reload
    assert machine.main_pid("meshd.service") == pid


@pytest.mark.timeout(2 * PLAY_TIMEOUT_S)
def test_the_reset_leaves_nothing(machine: lab.Node) -> None:
    recap = play(machine, "reset.yml", mesh_node_purge=True)
    assert (recap["rc"], recap["failed"]) == (0, 0)
    left = machine.run(
        ["sh", "-c", "ls -d /usr/bin/meshd /usr/lib/meshd /etc/mesh /var/lib/mesh /run/mesh*"]
    )
    assert left.stdout == ""
    units = machine.systemctl("list-units", "--all", "--plain", "--no-legend", "mesh*").stdout
    assert "running" not in units
