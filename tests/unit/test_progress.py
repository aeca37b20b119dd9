"""Whether an engine gets on, in made-up time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from meshd.progress import (
    SILENCE_S,
    Counts,
    Health,
    Reply,
    Sample,
    Track,
    Verdict,
    Work,
    after,
    allowance_s,
    begin,
    verdict,
)

# A model of 7e9 weights in 32 layers.
WORK = Work(token_flop=14e9, depth_flop=4 * 32 * 4096.0, batch=2048, weight_bytes=7 * 1024**3)
LOOK_S = 2.0


@dataclass
class Engine:
    """One that is looked at every 2 s; what it says, the test decides."""

    work: Work = WORK
    now_s: float = 100.0
    seen: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.track: Track = begin(self.now_s)

    def look(self, reply: Reply, counts: Counts | None = None, **more: float) -> Verdict:
        self.now_s += LOOK_S
        self.track = after(self.track, Sample(self.now_s, reply, counts, **more), self.work)
        self.seen.append(verdict(self.track, self.now_s, self.work))
        return self.seen[-1]

    def answers(self, counts: Counts | None = None, **more: float) -> Verdict:
        return self.look(Reply.READY, counts, **more)

    def after_s(self, again: Callable[[], Verdict], most_s: float = 7200) -> float:
        """How long it takes until it counts as lost."""
        began_s = self.now_s
        while self.now_s - began_s < most_s:
            if again().lost:
                return self.now_s - began_s
        return float("inf")


def reading(step: int, *, at_once: int = 2048) -> Counts:
    """A long prompt, `step` batches into it."""
    return Counts(1, step, step * at_once, 0, reading=1, depth=(step + 1) * at_once)


def test_an_engine_that_loads_and_answers_is_fine() -> None:
    engine = Engine()
    assert engine.look(Reply.ABSENT).health is Health.LOADING
    assert engine.look(Reply.LOADING).health is Health.LOADING
    assert engine.answers(Counts(0)).health is Health.FINE


@pytest.mark.parametrize("reply", [Reply.SILENT, Reply.ABSENT])
def test_a_ready_engine_that_says_nothing_more_is_hung_after_ten_seconds(reply: Reply) -> None:
    engine = Engine()
    engine.answers(Counts(0))
    assert SILENCE_S < engine.after_s(lambda: engine.look(reply)) <= SILENCE_S + 2 * LOOK_S
    assert engine.seen[-1].health is Health.HUNG
    assert "has not answered for" in engine.seen[-1].why


def test_single_misses_are_nothing() -> None:
    engine = Engine()
    for _ in range(50):
        engine.answers(Counts(0))
        engine.look(Reply.SILENT)
        engine.look(Reply.SILENT)
    assert all(one.health is Health.FINE for one in engine.seen)


def test_one_long_miss_is_not_enough() -> None:
    engine = Engine()
    engine.answers(Counts(0))
    engine.now_s += 11
    assert engine.look(Reply.SILENT).health is Health.FINE


def test_an_engine_that_loads_may_be_silent_for_longer() -> None:
    frozen, slow = Engine(), Engine()
    assert 30 < frozen.after_s(lambda: frozen.look(Reply.SILENT)) < 40
    # Before it listens at all, its driver may be at work.
    assert 300 < slow.after_s(lambda: slow.look(Reply.ABSENT)) < 310


def test_a_load_is_never_a_stall() -> None:
    engine = Engine()
    assert engine.after_s(lambda: engine.look(Reply.LOADING)) == float("inf")


def test_an_idle_engine_may_stand_still_for_ever() -> None:
    engine = Engine()
    assert engine.after_s(lambda: engine.answers(Counts(0, 500))) == float("inf")


def test_an_engine_that_generates_and_stops_is_stalled_after_ten_seconds() -> None:
    engine = Engine()
    for step in range(1, 20):
        engine.answers(Counts(1, step * 40, 12, step * 40, depth=step * 40))
    stuck = Counts(1, 760, 12, 760, depth=760)
    assert 10 <= engine.after_s(lambda: engine.answers(stuck)) <= 14
    assert engine.seen[-1].health is Health.STALLED
    assert "a request and computed nothing" in engine.seen[-1].why


def test_a_machine_that_takes_seconds_for_a_token_gets_its_time() -> None:
    engine = Engine()
    for step in range(1, 10):
        for _ in range(4):
            assert not engine.answers(Counts(1, step, 12, step, depth=step)).lost
    stuck = Counts(1, 9, 12, 9, depth=9)
    assert 30 <= engine.after_s(lambda: engine.answers(stuck)) <= 60


def test_a_huge_model_that_generates_for_the_first_time_gets_its_time() -> None:
    engine = Engine(replace(WORK, weight_bytes=40 * 1024**3))
    engine.answers(Counts(0, 1))
    assert 200 < engine.after_s(lambda: engine.answers(Counts(1, 1, 12, 1, depth=12))) < 230


def slow_prompt(engine: Engine, tokens: int, flops_s: float) -> float:
    """Read a prompt at that speed; the longest batch in seconds."""
    longest_s = 0.0
    for step in range(tokens // 2048):
        time_s = engine.work.flop(2048, (step + 1) * 2048) / flops_s
        longest_s = max(longest_s, time_s)
        for _ in range(max(1, round(time_s / LOOK_S))):
            engine.answers(reading(step))
    return longest_s


@pytest.mark.parametrize("flops_s", [1e10, 1e11, 1e12])
def test_a_prompt_of_100k_tokens_is_no_stall_on_any_machine(flops_s: float) -> None:
    engine = Engine()
    engine.answers(Counts(0))
    longest_s = slow_prompt(engine, 102_400, flops_s)
    assert not any(one.lost for one in engine.seen)
    # And it is still noticed when it stops, in a time that fits the machine.
    last = reading(102_400 // 2048)
    assert engine.after_s(lambda: engine.answers(last), 1e6) <= max(12, 8 * longest_s)


def test_attention_that_grows_with_depth_is_part_of_what_is_expected() -> None:
    work = replace(WORK, token_flop=24e6, depth_flop=4 * 12 * 256.0)
    engine = Engine(work)
    engine.answers(Counts(0))
    slow_prompt(engine, 20_480, 2e9)
    shallow_s = allowance_s(replace(engine.track, counts=reading(1)), work)
    deep_s = allowance_s(replace(engine.track, counts=reading(45)), work)
    assert deep_s > 5 * shallow_s


def test_a_prompt_after_much_that_was_generated_fast_is_judged_by_that() -> None:
    engine = Engine()
    for step in range(1, 20):
        engine.answers(Counts(1, step * 40, 12, step * 40, depth=step * 40))
    allowed_s = allowance_s(replace(engine.track, counts=reading(3)), WORK)
    unknown_s = allowance_s(replace(Engine().track, counts=reading(3)), WORK)
    assert allowed_s < unknown_s / 20


def test_a_short_prompt_says_nothing_against_the_machine() -> None:
    engine = Engine()
    engine.answers(Counts(0))
    slow_prompt(engine, 40_960, 1e12)
    proven = engine.track.flops_s
    for step in range(20, 60):
        engine.answers(Counts(1, step, 60 * step, 0, reading=1, depth=60 * step))
    assert engine.track.flops_s == proven


def test_what_was_predicted_counts_until_a_batch_was_seen() -> None:
    work = replace(WORK, batch_s=20.0)
    track = replace(begin(0), counts=Counts(1, 5, 0, 0, reading=1, depth=0))
    assert allowance_s(track, work) == 100
    seen = replace(track, flops_s=work.flop(2048, 0) / 4, proven=True)
    assert allowance_s(seen, work) == 20


def test_the_first_batch_of_a_process_has_a_minute() -> None:
    fast = replace(begin(0), flops_s=1e15, proven=True)
    assert allowance_s(replace(fast, counts=Counts(1, 0, reading=1)), WORK) == 60
    assert allowance_s(replace(fast, counts=Counts(1, 1, reading=1)), WORK) == 10


def test_to_doubt_takes_as_long_as_to_load() -> None:
    fast = replace(begin(0), counts=Counts(1, 1, reading=1), flops_s=1e15, proven=True)
    assert allowance_s(fast, replace(WORK, load_s=45)) == 45
    assert allowance_s(fast, replace(WORK, load_s=4500)) == 120


def test_an_engine_that_does_not_count_is_not_judged() -> None:
    engine = Engine()
    assert engine.after_s(lambda: engine.answers(None)) == float("inf")


def test_a_call_of_its_guard_that_is_far_too_old_is_a_stall() -> None:
    engine = Engine()
    assert not engine.answers(Counts(1, 1), call_s=19, call_allowance_s=5).lost
    late = engine.answers(Counts(1, 2), call_s=21, call_allowance_s=5)
    assert late.health is Health.STALLED
    assert "21 s old" in late.why


def test_a_brain_that_was_stopped_itself_blames_nobody() -> None:
    engine = Engine()
    engine.answers(Counts(1, 5, 12, 5, depth=17))
    engine.now_s += 300
    assert not engine.answers(Counts(1, 5, 12, 5, depth=17)).lost
    engine.now_s += 300
    for _ in range(3):
        assert not engine.look(Reply.SILENT).lost


def test_the_next_process_is_as_fast_as_the_last() -> None:
    engine = Engine()
    engine.answers(Counts(0))
    slow_prompt(engine, 20_480, 1e12)
    again = begin(1000, engine.track)
    assert (again.flops_s, again.ready, again.counts) == (engine.track.flops_s, False, None)
