"""Reload: a bad file changes nothing, a good one only what it says."""

from __future__ import annotations

from tests.lab import mesh
from tests.lab.node import Node

Pids = tuple[int, int, dict[str, int]]


def pids(node: Node) -> Pids:
    return node.main_pid("meshd"), node.main_pid("mesh-gateway"), mesh.engine_pids(node)


def test_a_reload_returns_and_disturbs_nothing(served: Node) -> None:
    before = pids(served)
    served.systemctl("reload", "meshd", timeout_s=30)
    unit = served.unit("meshd")
    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    assert unit["ReloadResult"] == "success"
    assert pids(served) == before


def test_reloads_in_a_row_all_return(served: Node) -> None:
    for _ in range(3):
        served.systemctl("reload", "meshd", timeout_s=30)
    assert served.unit("meshd")["NRestarts"] == "0"


def test_a_bad_file_fails_the_reload_with_its_place_and_touches_nothing(served: Node) -> None:
    before = pids(served)
    served.write(mesh.CONFIG, mesh.config().replace("slots: 2", "slotz: 2"))
    done = served.systemctl("reload", "meshd", check=False, timeout_s=30)
    assert done.returncode != 0
    for said in (
        served.journal("-u", "meshd", lines=50),
        served.systemctl("status", "--lines=20", "meshd").stdout,
    ):
        assert f"{mesh.CONFIG}:2:" in said
        assert "slotz" in said
        assert "did you mean" in said
    unit = served.unit("meshd")
    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    assert unit["NRestarts"] == "0"
    assert pids(served) == before
    assert mesh.served(served)


def test_a_file_that_is_no_yaml_fails_the_reload(served: Node) -> None:
    before = pids(served)
    served.write(mesh.CONFIG, "models: [\n")
    assert served.systemctl("reload", "meshd", check=False, timeout_s=30).returncode != 0
    assert pids(served) == before


def test_a_changed_slot_count_restarts_only_that_engine(served: Node) -> None:
    meshd, gateway, engines = pids(served)
    served.write(mesh.CONFIG, mesh.config(slots=3))
    planned = served.run(["meshd", "plan"])
    assert planned.returncode == 2, "something would change"
    assert "mesh-llama@tiny.service" in planned.stdout
    assert "mesh-llama@small.service" not in planned.stdout
    served.systemctl("reload", "meshd", timeout_s=60)
    assert mesh.engine_pids(served)["tiny"] != engines["tiny"], "reload returns when it is done"
    mesh.settled(served)
    after = pids(served)
    assert (after[0], after[1], after[2]["small"]) == (meshd, gateway, engines["small"])
    assert mesh.model(served, "tiny")["slots"] == 3
    slots = served.http("/slots", url="http://x", unix="/run/mesh-engine/tiny/llama.sock")
    assert len(slots.json()) == 3
    assert mesh.served(served)


def test_a_changed_console_port_restarts_no_engine(served: Node) -> None:
    before = pids(served)
    served.write(mesh.CONFIG, mesh.config(console_port=3999))
    assert served.run(["meshd", "plan"]).returncode == 0, "no unit would change"
    served.systemctl("reload", "meshd", timeout_s=30)
    assert served.http("/", url="http://127.0.0.1:3999").status == 200
    assert served.http("/", url="http://127.0.0.1:3131").status == 0
    assert pids(served) == before


def test_a_removed_model_stops_only_its_engine(served: Node) -> None:
    meshd, gateway, engines = pids(served)
    served.write(mesh.CONFIG, mesh.config(models=("tiny",)))
    served.systemctl("reload", "meshd", timeout_s=60)
    assert not served.active(mesh.ENGINES["small"])
    after = pids(served)
    assert (after[0], after[1], after[2]["tiny"]) == (meshd, gateway, engines["tiny"])
    served.wait(lambda: mesh.chat(served, "small").status == 404, 10, "small to be unknown")
    left = served.run(["ls", "/run/systemd/system"], check=True).stdout
    assert "mesh-llama@small" not in left
    assert mesh.served(served)


def test_another_gateway_address_moves_the_socket_and_no_engine(served: Node) -> None:
    before = pids(served)
    more = 'gateway: {listen: ["127.0.0.1:9337", "127.0.0.1:9444"]}\n'
    served.write(mesh.CONFIG, mesh.config() + more)
    served.systemctl("reload", "meshd", timeout_s=60)
    assert served.run(["meshd", "status"]).returncode == 0
    for port in (9337, 9444):
        assert served.http("/v1/models", url=f"http://127.0.0.1:{port}").status == 200
    after = pids(served)
    assert (after[0], after[2]) == (before[0], before[2])

    served.write(mesh.CONFIG, mesh.config())
    served.systemctl("reload", "meshd", timeout_s=60)
    assert served.http("/v1/models", url="http://127.0.0.1:9444").status == 0
    assert served.http("/v1/models").status == 200
    assert pids(served)[2] == before[2]


def test_a_gateway_address_that_cannot_be_had_is_said_loudly(served: Node) -> None:
    before = pids(served)
    served.write(mesh.CONFIG, mesh.config() + 'gateway: {listen: ["192.0.2.1:9337"]}\n')
    served.systemctl("reload", "meshd", timeout_s=60)
    assert "192.0.2.1:9337" in served.unit("meshd")["StatusText"]
    assert served.run(["meshd", "status"]).returncode == 3
    assert served.http("/v1/models").status == 200, "the gateway stays where it was"
    assert pids(served)[2] == before[2]
