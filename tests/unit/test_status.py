from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.routes import ModelState
from meshd.planner.plan import Code, Decision, DeviceUse, Plan, Reason, Strategy
from meshd.report import Change, PlanReport, lines, size
from meshd.status import (
    UnitStatus,
    model_status,
    routing_table,
    sentence,
    split_units,
    with_trouble,
)
from meshd.units.spec import EngineKind, EngineState, EngineStatus
from tests.unit.worlds import GIB, MIB, facts, node

SERVED = Decision("m", Strategy.SOLO_CPU, "box", 4096, 2, memory=(DeviceUse("ram", 3, 2, 1),))
WAITS = Decision(
    "m",
    Strategy.WAIT,
    "box",
    blockers=(Reason(Code.NO_MEMORY, "needs 9 GiB"),),
    next_step="free memory",
)
ENGINE = EngineStatus(EngineKind.LLAMA, "m", EngineState.RUNNING, "text", 42)


def test_ready_only_when_the_process_lives_and_answers() -> None:
    assert model_status(SERVED, ENGINE, answers=True).state is ModelState.READY
    assert model_status(SERVED, ENGINE, answers=False).state is ModelState.LOADING
    assert model_status(SERVED, None, answers=False).state is ModelState.LOADING
    for state in (EngineState.STARTING, EngineState.STOPPING, EngineState.STOPPED):
        found = model_status(SERVED, replace(ENGINE, state=state), answers=True)
        assert found.state is ModelState.LOADING


def test_a_crashing_engine_is_failed_with_its_last_words() -> None:
    broken = replace(ENGINE, state=EngineState.BACKOFF, detail="exit code 1: out of memory")
    found = model_status(SERVED, broken, answers=True)
    assert (found.state, found.detail) == (ModelState.FAILED, "exit code 1: out of memory")


def test_what_is_wrong_with_an_engine_that_runs_is_said() -> None:
    loading = model_status(SERVED, ENGINE, answers=False)
    ready = model_status(SERVED, ENGINE, answers=True)
    hung = with_trouble(loading, failed="", trouble="it does not answer", progress=0.3)
    assert (hung.state, hung.detail, hung.progress) == (
        ModelState.LOADING,
        "it does not answer",
        0.0,
    )
    gone = with_trouble(loading, failed="hung 4 times", trouble="", progress=0.3)
    assert (gone.state, gone.progress) == (ModelState.FAILED, 0.0)
    assert gone.detail == "hung 4 times; it is tried again later"
    half = with_trouble(loading, failed="", trouble="", progress=0.5)
    assert (half.state, half.detail, half.progress) == (ModelState.LOADING, "loading", 0.5)
    assert with_trouble(ready, failed="", trouble="", progress=0.5) == ready


def test_a_waiting_model_says_why_and_what_to_do() -> None:
    found = model_status(WAITS, None, answers=False)
    assert found.state is ModelState.WAITING
    assert found.detail == "needs 9 GiB. free memory"


def test_the_sentence_names_what_works_and_what_does_not() -> None:
    ready = model_status(replace(SERVED, model="a"), ENGINE, answers=True)
    waiting = model_status(replace(WAITS, model="b"), None, answers=False)
    assert sentence((ready, waiting), ()) == "serving 1 of 2 models (a); waiting: b"
    assert sentence((), ()) == "no models in the configuration"
    assert sentence((ready,), ("degraded: x",)).startswith("degraded: x; serving 1 of 1")


def test_a_long_list_is_cut() -> None:
    many = tuple(
        model_status(replace(SERVED, model=f"m{i}"), ENGINE, answers=True) for i in range(9)
    )
    assert sentence(many, ()) == "serving 9 of 9 models (m0, m1, m2, m3 and 5 more)"


def test_rpc_servers_and_guards_are_listed_with_how_they_are() -> None:
    rpc = EngineStatus(EngineKind.RPC, "big.a", EngineState.BACKOFF, "t", None, 2, "signal: ABRT")
    gone = EngineStatus(EngineKind.GUARD, "old", EngineState.STOPPED, "t")
    guard = EngineStatus(EngineKind.GUARD, "big.a", EngineState.RUNNING, "t", 7)
    assert split_units((rpc, ENGINE, gone, guard)) == (
        UnitStatus("mesh-guard@big.a.service", "running"),
        UnitStatus("mesh-rpc@big.a.service", "backoff", 2, "signal: ABRT"),
    )


def table(decision: Decision, *, answers: bool) -> object:
    status = model_status(decision, ENGINE if decision.served else None, answers=answers)
    return routing_table(
        Plan((decision,)),
        node(models={"m": facts()}),
        (status,),
        aliases={"m": ("mm",)},
        qualities={"m": "exact"},
        sockets={"m": "/run/m.sock"},
        max_body_bytes=MIB,
        generation=3,
    ).routes[0]


def test_a_route_is_ready_with_its_model() -> None:
    ready, loading = table(SERVED, answers=True), table(SERVED, answers=False)
    assert [target.ready for target in ready.targets] == [True]  # type: ignore[attr-defined]
    assert [target.ready for target in loading.targets] == [False]  # type: ignore[attr-defined]
    assert ready.aliases == ("mm",)  # type: ignore[attr-defined]
    assert ready.capabilities == ("chat", "completion")  # type: ignore[attr-defined]


def test_a_waiting_model_has_a_route_without_targets() -> None:
    route = table(WAITS, answers=False)
    assert route.targets == ()  # type: ignore[attr-defined]
    assert "needs 9 GiB" in route.detail  # type: ignore[attr-defined]


def test_a_report_says_signs_sums_and_reasons() -> None:
    report = PlanReport(
        (SERVED, WAITS),
        (
            Change("stop", "mesh-llama@x.service", "no longer wanted", 0),
            Change("start", "mesh-llama@m.service", "new", 5 * GIB),
            Change("restart", "mesh-llama@n.service", "settings changed", GIB),
        ),
    )
    text = "\n".join(lines(report))
    assert "- stop    mesh-llama@x.service" in text
    assert "+ start   mesh-llama@m.service  (new, reads 5.0 GiB)" in text
    assert "1 to start, 1 to restart, 1 to stop; 6.0 GiB to load." in text
    assert "m: waits" in text
    assert "needs 9 GiB [not-enough-memory]" in text
    assert "next: free memory" in text


def test_a_report_without_changes_says_so() -> None:
    assert list(lines(PlanReport((SERVED,), ())))[-1] == "Nothing would change."


@given(st.integers(0, 2**50))
def test_sizes_read_back_within_rounding(size_bytes: int) -> None:
    number, unit = size(size_bytes).split()
    factor = {"MiB": MIB, "GiB": GIB}[unit]
    assert abs(float(number) * factor - size_bytes) <= factor / 2 * (1 if unit == "MiB" else 0.11)
