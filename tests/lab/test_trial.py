"""`meshd try` and `meshd rollback`: ways back that do not depend on remembering anything."""

from __future__ import annotations

import subprocess

from tests.lab import mesh
from tests.lab.node import Node

CANDIDATE = "/root/candidate.yaml"
REVERTED = 3


def begin(node: Node, timeout_s: int) -> subprocess.Popen[str]:
    """Put a third slot on trial; returns when it is applied."""
    node.write(CANDIDATE, mesh.config(slots=3))
    trial = node.start(["meshd", "try", CANDIDATE, f"--timeout={timeout_s}"])
    assert trial.stdout is not None
    assert "tiny" in trial.stdout.readline(), "a sentence on how it went"
    assert "--keep" in trial.stdout.readline(), "how to keep it"
    return trial


def test_a_trial_that_nobody_keeps_is_undone(served: Node) -> None:
    before = mesh.engine_pids(served)
    with begin(served, 4) as trial:
        assert trial.wait(60) == REVERTED
        assert trial.stdout is not None
        assert "reverted" in trial.stdout.read()
    served.wait(lambda: mesh.model(served, "tiny").get("slots") == 2, 30, "the old slot count")
    mesh.settled(served)
    after = mesh.engine_pids(served)
    assert after["tiny"] != before["tiny"], "the trial was never applied"
    assert after["small"] == before["small"]
    assert served.read(mesh.CONFIG) == mesh.config()
    assert mesh.served(served)


def test_a_trial_is_undone_even_if_its_command_dies(served: Node) -> None:
    with begin(served, 5):
        found = served.run(["pgrep", "-f", "meshd try"], check=True).stdout.split()
        served.run(["kill", "-9", *found], check=True)
    served.wait(lambda: mesh.model(served, "tiny").get("slots") == 2, 60, "the old slot count")
    mesh.settled(served)


def test_a_trial_that_is_kept_stays(served: Node) -> None:
    with begin(served, 600) as trial:
        assert mesh.model(served, "tiny")["slots"] == 3
        served.run(["meshd", "try", "--keep"], check=True)
        assert trial.wait(30) == 0
    assert served.read(mesh.CONFIG) == mesh.config(slots=3)
    mesh.settled(served)
    assert mesh.model(served, "tiny")["slots"] == 3
    served.systemctl("restart", "meshd", timeout_s=60)
    mesh.settled(served)
    assert mesh.model(served, "tiny")["slots"] == 3


def test_a_bad_candidate_is_refused_at_once(served: Node) -> None:
    served.write(CANDIDATE, mesh.config().replace("slots", "slotz"))
    pids = mesh.engine_pids(served)
    done = served.run(["meshd", "try", CANDIDATE, "--timeout=5"])
    assert done.returncode == 1
    assert "slotz" in done.stderr
    assert "Traceback" not in done.stderr
    assert mesh.engine_pids(served) == pids


def test_rollback_brings_the_last_good_configuration_back(served: Node) -> None:
    served.write(mesh.CONFIG, mesh.config(slots=4))
    served.systemctl("reload", "meshd", timeout_s=60)
    mesh.settled(served)
    served.wait(
        lambda: len(served.run(["meshd", "rollback", "--list"]).stdout.splitlines()) >= 2,
        20,
        "a second good generation",
        every_s=0.5,
    )
    served.run(["meshd", "rollback"], check=True, timeout_s=60)
    assert served.read(mesh.CONFIG) != mesh.config(slots=4)
    mesh.settled(served)
    assert mesh.model(served, "tiny")["slots"] != 4
    assert mesh.served(served)


def test_rollback_mends_a_bad_file(served: Node) -> None:
    pids = mesh.engine_pids(served)
    served.write(mesh.CONFIG, "models: [\n")
    served.run(["meshd", "rollback"], check=True, timeout_s=60)
    assert served.run(["meshd", "check"]).returncode == 0
    mesh.settled(served)
    assert mesh.engine_pids(served) == pids


def test_a_trial_may_name_a_model_that_the_configuration_does_not(served: Node) -> None:
    served.run(["cp", "/usr/share/meshd/models/tiny-draft.gguf", "/srv/elsewhere.gguf"], check=True)
    more = "  - {name: other, source: /srv/elsewhere.gguf, context: 512, slots: 1}\nnode:"
    served.write(CANDIDATE, mesh.config().replace("node:", more))
    with served.start(["meshd", "try", CANDIDATE, "--timeout=60"]) as trial:
        served.wait(
            lambda: mesh.model(served, "other").get("state") == "ready", 60, "the new model"
        )
        served.run(["meshd", "try", "--revert"], check=True)
        assert trial.wait(30) == REVERTED
    served.wait(lambda: mesh.model(served, "other") == {}, 30, "it to be gone")
    assert served.run(["ls", "/run/mesh-apply/trial.yaml"]).returncode != 0
    mesh.settled(served)
