"""Each check: silent on a healthy node, and right about a sick one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from meshd import paths
from meshd.config.findings import Finding
from meshd.config.findings import Severity as FindingSeverity
from meshd.config.settings import Config, ConsoleSettings, ModelSettings, NodeSettings
from meshd.doctor import checks
from meshd.doctor.evidence import Disk, Evidence, Folder, Kernel, Listener, Process, Unit
from meshd.doctor.issue import Issue, Severity
from meshd.doctor.run import examine
from meshd.engine.build import Binary, EngineBuild
from meshd.engine.locate import REQUIRED
from meshd.gateway.routes import ModelState
from meshd.mesh.record import ShardStage
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Cpu, Gpu, Hardware, Ram, Vendor
from meshd.pipeline import Observation
from meshd.planner.plan import Code, Decision, Reason, Strategy
from meshd.planner.view import Candidate
from meshd.quality import Budget
from meshd.shard_line import ShardStatus
from meshd.status import ModelStatus, NodeStatus

GIB = 1024**3

FACTS = GgufFacts(
    files=("/m/tiny.gguf",),
    file_bytes=1,
    architecture="llama",
    name="tiny",
    quantisation="Q8_0",
    parameters=1,
    layers=(),
    embedding_length=1,
    heads=1,
    key_length=1,
    value_length=1,
    context_train=1,
    vocabulary_size=1,
    vocabulary_sha256="",
    embedding_bytes=1,
    output_bytes=1,
    tied_embeddings=True,
    other_bytes=0,
)
ENGINE = EngineBuild(
    origin="debian",
    root="/",
    build=11669,
    version="0.7.0",
    package="1:0.7.0+dfsg-2",
    ggml="0.27.0",
    rpc_protocol=(8, 0, 0),
    binaries=tuple(Binary(name, f"/usr/bin/{name}", "0" * 64) for name in REQUIRED),
    backends=("CPU", "RPC", "Vulkan"),
    help_text="",
)
CARD = Gpu("GPU-1", Vendor.NVIDIA, "RTX", "0000:01:00.0", 24 * GIB, 23 * GIB)
HARDWARE = Hardware("box", Cpu("cpu", "x86_64", 8, 16), Ram(64 * GIB, 60 * GIB), (CARD,))
OBSERVATION = Observation(HARDWARE, ENGINE, "", (Candidate("tiny", FACTS),))
CONFIG = Config(models=(ModelSettings("tiny", "tiny.gguf"),))
MODEL = ModelStatus(
    "tiny", ModelState.READY, "solo-gpu", "mesh-llama@tiny.service", 7, 0, 4096, 1, GIB, ""
)
STATUS = NodeStatus(
    "box", "auto", "serving", (), 3, "llama.cpp", ("127.0.0.1:9337",), "", (), (MODEL,)
)
HEALTHY = Evidence(
    paths=paths.SYSTEM,
    config=CONFIG,
    observation=OBSERVATION,
    status=STATUS,
    units=(
        Unit("mesh.target", active="active", sub="active", enabled="enabled"),
        Unit("meshd.service", active="active", sub="running", enabled="enabled"),
        Unit("mesh-gateway.socket", active="active", sub="running", enabled="enabled"),
        Unit("mesh-llama@tiny.service", active="active", sub="running"),
    ),
    systemd=257,
    listeners=(
        Listener("127.0.0.1", 9337, (Process(1, "/sbin/init"),)),
        Listener("127.0.0.1", 3131, (Process(7, "python /usr/bin/meshd run", "meshd.service"),)),
    ),
    disks=(Disk("/var/lib/mesh", "state", 100 * GIB, 50 * GIB),),
    folders=(Folder("/var/lib/mesh", "_meshd", 0o711), Folder("/run/mesh", "_meshd", 0o755)),
    kernel=Kernel(),
)


def issues(**changes: object) -> list[Issue]:
    return list(examine(replace(HEALTHY, **changes)))  # type: ignore[arg-type]


def the_issue(**changes: object) -> Issue:
    (issue,) = issues(**changes)
    return issue


def unit(name: str, **fields: object) -> tuple[Unit, ...]:
    others = tuple(one for one in HEALTHY.units if one.name != name)
    return (*others, Unit(name, **fields))  # type: ignore[arg-type]


def observed(**changes: object) -> Observation:
    return replace(OBSERVATION, **changes)  # type: ignore[arg-type]


def hardware(**changes: object) -> Observation:
    return observed(hardware=replace(HARDWARE, **changes))  # type: ignore[arg-type]


def engine(**changes: object) -> Observation:
    return observed(engine=replace(ENGINE, **changes))  # type: ignore[arg-type]


def test_a_healthy_node_has_no_issue() -> None:
    assert examine(HEALTHY) == ()


def test_every_check_is_run_and_has_its_own_file() -> None:
    files = {path.stem for path in Path(checks.__file__).parent.glob("*.py")} - {"__init__"}
    assert {check.__module__.rpartition(".")[2] for check in checks.ALL} == files
    assert len(checks.ALL) == len(files)


def test_the_documentation_names_every_issue() -> None:
    sources = "".join(path.read_text() for path in Path(checks.__file__).parent.glob("*.py"))
    ids = set(re.findall(r'Issue\(\s+f?"([a-z]+\.[a-z0-9-]+)', sources))
    assert len(ids) >= len(checks.ALL)
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    named = {name.partition(":")[0] for name in re.findall(r"`([a-z]+\.[a-z0-9:A-Z-]+)`", page)}
    assert ids == named


def test_errors_come_first() -> None:
    found = issues(kernel=Kernel(clock_synchronised=False), config=None)
    assert [one.severity for one in found] == [Severity.ERROR, Severity.WARNING]


def test_a_bad_configuration_is_shown_with_its_place() -> None:
    findings = tuple(
        Finding(FindingSeverity.ERROR, "/etc/mesh/mesh.yaml", line, 3, "unknown key `modles`")
        for line in range(1, 8)
    )
    issue = the_issue(config=None, findings=findings)
    assert (issue.id, issue.severity) == ("config.invalid", Severity.ERROR)
    assert issue.evidence[0].startswith("/etc/mesh/mesh.yaml:1:3: unknown key")
    assert issue.evidence[-1] == "and 2 more"
    assert "meshd check" in issue.mend


def test_no_models_is_a_note() -> None:
    issue = the_issue(config=Config())
    assert (issue.id, issue.severity) == ("config.no-models", Severity.NOTE)


def test_the_last_good_configuration_is_not_what_was_asked_for() -> None:
    degraded = ("degraded: the configuration is bad, running the last good one",)
    issue = the_issue(status=replace(STATUS, degraded=degraded))
    assert (issue.id, issue.evidence) == ("node.degraded", degraded)


def test_a_service_that_does_not_answer() -> None:
    assert the_issue(status=None).id == "node.no-answer"


def test_a_stopped_service_is_an_error_only_where_it_is_enabled() -> None:
    stopped = unit("meshd.service", active="inactive")
    issue = the_issue(status=None, units=stopped)
    assert (issue.id, issue.severity) == ("node.stopped", Severity.ERROR)
    assert "mesh.target is enabled" in issue.evidence
    issue = the_issue(status=None, units=(Unit("meshd.service"),), listeners=())
    assert issue.severity is Severity.NOTE
    assert issues(status=None, units=(), listeners=()) == []


@pytest.mark.parametrize(
    ("fields", "kind", "severity"),
    [
        ({"active": "failed", "sub": "failed", "result": "exit-code"}, "failed", Severity.ERROR),
        ({"active": "activating", "sub": "auto-restart"}, "restarting", Severity.ERROR),
        ({"active": "activating", "sub": "start", "restarts": 9}, "restarting", Severity.ERROR),
        ({"active": "active", "sub": "running", "restarts": 3}, "restarted", Severity.WARNING),
    ],
)
def test_units_that_do_not_stay_up(
    fields: dict[str, object], kind: str, severity: Severity
) -> None:
    issue = the_issue(units=unit("mesh-llama@tiny.service", **fields))
    assert issue.id == f"unit.{kind}:mesh-llama@tiny.service"
    assert issue.severity is severity
    assert "journalctl -u mesh-llama@tiny.service" in issue.mend


def test_units_of_others_are_not_our_business() -> None:
    assert issues(units=(*HEALTHY.units, Unit("llama-server.service", active="failed"))) == []


def test_no_engine() -> None:
    lacking = observed(engine=None, engine_problem="no llama-server on this machine")
    issue = the_issue(observation=lacking)
    assert (issue.id, issue.mend) == ("engine.missing", "meshd engine install")
    assert issue.evidence == ("no llama-server on this machine",)


def test_an_engine_without_all_its_programs() -> None:
    lacking = engine(binaries=ENGINE.binaries[:1])
    issue = the_issue(observation=lacking)
    assert issue.id == "engine.incomplete"
    assert len(issue.evidence) == len(REQUIRED) - 1


@pytest.mark.parametrize(
    ("origin", "mend"),
    [("debian", "apt install libggml0-backend-rpc"), ("root", "meshd engine install")],
)
def test_an_engine_without_rpc(origin: str, mend: str) -> None:
    issue = the_issue(observation=engine(backends=("CPU", "Vulkan"), origin=origin))
    assert (issue.id, issue.mend) == ("engine.no-rpc", mend)


def test_a_card_that_the_engine_cannot_use() -> None:
    issue = the_issue(observation=engine(backends=("CPU", "RPC")))
    assert issue.id == "gpu.no-backend:nvidia"
    assert "RTX (GPU-1)" in issue.evidence
    assert issue.mend == "apt install libggml0-backend-vulkan nvidia-vulkan-icd"
    assert issues(observation=engine(backends=("CPU", "RPC", "CUDA"))) == []


def test_a_card_that_is_not_to_be_used_needs_no_backend() -> None:
    radeon = Gpu("GPU-2", Vendor.AMD, "RX", "0000:02:00.0", GIB, GIB)
    both = replace(HARDWARE, gpus=(CARD, radeon))
    config = replace(CONFIG, node=NodeSettings(gpus=("GPU-2",)))
    build = replace(ENGINE, backends=("CPU", "RPC", "HIP"))
    found = issues(observation=observed(hardware=both, engine=build), config=config)
    assert found == []


def test_a_pinned_gpu_that_is_missing() -> None:
    config = replace(CONFIG, node=NodeSettings(gpus=("GPU-9",)))
    issue = the_issue(config=config)
    assert (issue.id, issue.severity) == ("gpu.pinned-missing", Severity.ERROR)
    assert "GPU-1: RTX" in issue.evidence


def test_gpu_problems_are_shown_with_their_way_out() -> None:
    problems = (
        "NVIDIA GPU at 0000:01:00.0 has its driver but NVML is missing: apt install libnvidia-ml1",
        "NVIDIA GPU 0 cannot be used: GPU is lost; see dmesg for Xid messages",
    )
    first, second = issues(observation=hardware(problems=problems))
    assert first.mend == "apt install libnvidia-ml1"
    assert second.mend.startswith("journalctl -k")
    assert first.evidence == problems[:1]


def test_a_model_that_is_not_there() -> None:
    missing = observed(candidates=(Candidate("tiny", None, problem="tiny.gguf: part 2 is gone"),))
    waiting = replace(STATUS, models=(replace(MODEL, state=ModelState.WAITING),))
    issue = the_issue(observation=missing, status=waiting)
    assert (issue.id, issue.severity) == ("model.unusable:tiny", Severity.ERROR)
    assert issue.evidence == ("source: tiny.gguf", "tiny.gguf: part 2 is gone")
    assert "/var/lib/mesh/models" in issue.mend


def test_a_model_that_waits_and_one_that_fails() -> None:
    waiting = replace(MODEL, state=ModelState.WAITING, detail="4 GiB short", reasons=("too big",))
    failing = replace(MODEL, name="big", state=ModelState.FAILED, detail="exit 1", restarts=4)
    first, second = issues(status=replace(STATUS, models=(waiting, failing)))
    assert (first.id, first.severity) == ("model.failed:big", Severity.ERROR)
    assert first.evidence[1] == "mesh-llama@tiny.service: 4 restarts"
    assert (second.id, second.evidence) == ("model.waits:tiny", ("4 GiB short", "too big"))


def test_a_model_that_would_not_fit_on_a_node_that_is_down() -> None:
    decision = Decision(
        "tiny",
        Strategy.WAIT,
        blockers=(Reason(Code.NO_MEMORY, "needs 40 GiB, 23 GiB are free"),),
        next_step="set context: 8192",
    )
    issue = the_issue(status=None, units=(), listeners=(), decisions=(decision,))
    assert issue.id == "model.waits:tiny"
    assert issue.mend == "set context: 8192"
    elsewhere = replace(decision, blockers=(Reason(Code.NO_MODEL, "not here"),))
    assert issues(status=None, units=(), listeners=(), decisions=(elsewhere,)) == []


@pytest.mark.parametrize(
    ("used_for", "free_mib", "severity"),
    [
        ("state", 10, Severity.ERROR),
        ("state", 300, Severity.WARNING),
        ("state", 600, None),
        ("models", 10, Severity.WARNING),
        ("models", 3000, None),
    ],
)
def test_disks(used_for: str, free_mib: int, severity: Severity | None) -> None:
    found = issues(disks=(Disk("/d", used_for, 100 * GIB, free_mib * 1024**2),))
    assert [one.severity for one in found] == ([severity] if severity else [])


MOE = replace(FACTS, architecture="qwen3moe", experts=16, experts_used=2, file_bytes=9 * GIB)
BOUNDED = ModelSettings(
    "tiny", "tiny.gguf", quality=Budget(min_top1=0.95), calibration=(("law", "/srv/law.txt"),)
)


def of_a_mixture(facts: GgufFacts = MOE, **changes: object) -> list[Issue]:
    """Of a node whose model may be served from shards."""
    seen = replace(OBSERVATION, candidates=(Candidate("tiny", facts),))
    return issues(**{"config": Config(models=(BOUNDED,)), "observation": seen} | changes)


def with_shard(stage: ShardStage, **fields: object) -> NodeStatus:
    shard = replace(ShardStatus("tiny", "box", True, stage), **fields)  # type: ignore[arg-type]
    return replace(STATUS, models=(replace(MODEL, shards=(shard,)),))


def test_a_node_that_can_make_shards_has_no_issue() -> None:
    assert of_a_mixture() == []
    assert of_a_mixture(status=with_shard(ShardStage.MAKING)) == []


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (FACTS, "llama: it is no mixture of experts"),
        (replace(MOE, undividable="its experts share a scale"), "qwen3moe: its experts share a"),
    ],
)
def test_bounds_of_a_model_that_cannot_be_divided_are_a_note(facts: GgufFacts, why: str) -> None:
    (issue,) = of_a_mixture(facts, unreadable=(("/srv/law.txt", "gone"),), disks=())
    assert (issue.id, issue.severity) == ("shard.impossible:tiny", Severity.NOTE)
    assert issue.evidence[1].startswith(why)


@pytest.mark.parametrize(
    ("origin", "mend"),
    [("debian", "apt install llama.cpp-tools-extra"), ("root", "meshd engine install")],
)
def test_an_engine_that_cannot_count_or_measure(origin: str, mend: str) -> None:
    some = tuple(one for one in ENGINE.binaries if one.name != "llama-imatrix")
    lacking = replace(
        OBSERVATION,
        engine=replace(ENGINE, binaries=some, origin=origin),  # type: ignore[arg-type]
        candidates=(Candidate("tiny", MOE),),
    )
    general, issue = of_a_mixture(observation=lacking)
    assert general.id == "engine.incomplete"
    assert (issue.id, issue.mend) == ("shard.no-tools:tiny", mend)
    assert issue.evidence == ("llama-imatrix: not there to count experts",)


def test_room_for_a_shard() -> None:
    full = (Disk("/var/lib/mesh", "state", 100 * GIB, 8 * GIB),)
    (issue,) = of_a_mixture(disks=full)
    assert (issue.id, issue.severity) == ("shard.no-room:tiny", Severity.WARNING)
    assert issue.evidence[0] == "/var/lib/mesh: 8.00 GiB free"
    assert of_a_mixture(disks=full, status=with_shard(ShardStage.READY)) == []
    assert of_a_mixture(disks=full, config=CONFIG) == [], "an exact model gets none"


def test_a_text_that_meshd_cannot_read() -> None:
    (issue,) = of_a_mixture(unreadable=(("/srv/law.txt", "No such file or directory"),))
    assert (issue.id, issue.severity) == ("shard.no-text:tiny:law", Severity.ERROR)
    assert issue.evidence == ("/srv/law.txt: No such file or directory",)
    assert of_a_mixture(unreadable=(("/srv/other.txt", "gone"),)) == []


def test_a_refused_shard_says_by_how_much() -> None:
    refused = with_shard(ShardStage.REFUSED, detail="top-1 agreement on code is 0.912, not 0.95")
    (issue,) = of_a_mixture(status=refused)
    assert issue.id == "shard.refused:tiny"
    assert issue.evidence == ("top-1 agreement on code is 0.912, not 0.95",)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"active": "active", "enabled": "enabled"}, 1),
        ({"active": "inactive", "enabled": "enabled"}, 1),
        ({"active": "active", "enabled": "disabled"}, 1),
        ({"active": "inactive", "enabled": "disabled"}, 0),
        ({"active": "inactive", "enabled": "masked", "load": "masked"}, 0),
    ],
)
def test_debians_service(fields: dict[str, object], count: int) -> None:
    found = issues(units=unit("llama-server.service", **fields))
    assert [one.id for one in found] == ["debian.llama-server"] * count


def test_a_port_that_another_service_holds() -> None:
    holder = Process(99, "/usr/bin/ollama serve", "ollama.service")
    issue = the_issue(listeners=(Listener("0.0.0.0", 9337, (holder,)),))
    assert (issue.id, issue.severity) == ("port.held:9337", Severity.ERROR)
    assert "pid 99: /usr/bin/ollama serve (ollama.service)" in issue.evidence
    assert issue.mend.startswith("systemctl disable --now ollama.service")


def test_a_port_that_a_process_holds() -> None:
    issue = the_issue(listeners=(Listener("127.0.0.1", 3131, (Process(99, "nc -l"),)),))
    assert issue.mend.startswith("kill 99 ")
    assert "console.listen" in issue.summary


def test_ports_that_do_not_clash() -> None:
    stranger = (Process(99, "nc -l"),)
    other_address = Listener("192.0.2.1", 9337, stranger)
    other_port = Listener("127.0.0.1", 9338, stranger)
    assert issues(listeners=(other_address, other_port)) == []
    console_off = replace(CONFIG, console=ConsoleSettings(enabled=False))
    assert issues(config=console_off, listeners=(Listener("0.0.0.0", 3131, stranger),)) == []


def test_a_process_that_cannot_be_seen_is_ours_only_if_we_run() -> None:
    hidden = (Listener("127.0.0.1", 9337),)
    assert issues(listeners=hidden) == []
    issue = the_issue(listeners=hidden, status=None, units=(), systemd=None)
    assert issue.mend.startswith("sudo meshd doctor")


def test_our_own_process_without_systemd() -> None:
    ours = (Listener("127.0.0.1", 9337, (Process(9, "/venv/bin/python /venv/bin/meshd run"),)),)
    assert issues(listeners=ours, status=None, units=(), systemd=None) == []


def test_systemd_too_old() -> None:
    issue = the_issue(systemd=252)
    assert (issue.id, issue.severity) == ("systemd.too-old", Severity.ERROR)
    issue = the_issue(systemd=252, units=(), listeners=())
    assert issue.severity is Severity.NOTE
    assert issues(systemd=253) == []


def test_control_groups() -> None:
    assert the_issue(kernel=Kernel(controllers=None)).id == "cgroup.version-1"
    assert the_issue(kernel=Kernel(controllers=frozenset({"cpu"}))).id == "cgroup.no-memory"
    unmanaged = Kernel(controllers=None)
    assert issues(kernel=unmanaged, systemd=None, units=(), listeners=()) == []


def test_folders() -> None:
    issue = the_issue(folders=(Folder("/var/lib/mesh", "_meshd", 0o777),))
    assert (issue.id, issue.mend) == ("folder.open:/var/lib/mesh", "chmod o-w /var/lib/mesh")
    issue = the_issue(folders=(Folder("/var/lib/mesh", "root", 0o711),))
    assert issue.id == "folder.owner:/var/lib/mesh"
    assert issues(folders=(Folder("/var/lib/mesh"),)) == []
    elsewhere = paths.under(Path("/tmp/x"))
    mine = (Folder("/tmp/x/state", "me", 0o755),)
    assert issues(paths=elsewhere, folders=mine) == []


def test_clock() -> None:
    assert the_issue(kernel=Kernel(clock_synchronised=False)).id == "clock.not-synchronised"
    assert issues(kernel=Kernel(clock_synchronised=None)) == []


def test_memory_policy() -> None:
    assert the_issue(kernel=Kernel(overcommit=2)).id == "memory.strict-overcommit"
    swapped = Kernel(swap_total_bytes=8 * GIB, swap_free_bytes=5 * GIB)
    issue = the_issue(kernel=swapped)
    assert issue.evidence == ("3.0 GiB of 8.0 GiB swap in use",)
    assert issues(kernel=Kernel(swap_total_bytes=8 * GIB, swap_free_bytes=7 * GIB)) == []


def test_every_issue_says_what_mends_it() -> None:
    sick = replace(
        HEALTHY,
        config=None,
        findings=(Finding(FindingSeverity.ERROR, "/etc/mesh/mesh.yaml", 1, 1, "bad"),),
        observation=observed(engine=None, engine_problem="none"),
        units=unit("mesh-rpc@a.service", active="failed"),
        systemd=250,
        kernel=Kernel(None, 2, 8 * GIB, 0, clock_synchronised=False),
        disks=(Disk("/d", "state", GIB, 0),),
    )
    found = examine(sick)
    assert len(found) >= 8
    assert all(one.mend and one.evidence and one.summary for one in found)
    assert len({one.id for one in found}) == len(found)
