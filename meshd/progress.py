"""Whether an engine gets on: from what is seen of it now and again to a verdict. Pure.

A llama-server can hang behind a healthy `/health`: it answers from a thread of its own while the
one that computes waits for ever. So an engine that has requests must also be seen to compute. What
a batch may take is worked out from what this engine has shown so far: a long prompt on a slow
machine is no stall, however long it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

SILENCE_S = 10.0
"""An engine that answered before and says nothing for so long is taken for hung."""

_MISSES = 3
# While it loads, the machine may be busy with nothing else.
_SILENCE_LOADING_S = 30.0
# A driver that wakes its cards up may take minutes before the engine so much as listens.
_DEAF_LOADING_S = 300.0

_ALLOWANCE_LEAST_S = 10.0
# The first batches of a process compile kernels, and read weights that were not needed so far.
_FIRST_ALLOWANCE_S = 60.0
_ALLOWANCE_FACTOR = 5.0
# To kill an engine costs a load: so long a doubt may last, too.
_LOAD_MOST_S = 120.0
# Where nothing was measured: a processor of no great age.
_GUESSED_FLOPS_S = 4e9
_GUESSED_BYTES_S = 1e9
_PROVEN_SHARE = 0.5
_FORGETS = 0.1
# The guard hangs up by itself; only one that hangs too lets a call grow much older than it allows.
_CALL_FACTOR = 2.0
# Who did not look for so long was itself stopped, and perhaps the engine with it.
_GAP_S = 15.0


class Health(StrEnum):
    """STALLED: it answers, and computes nothing. HUNG: it does not answer."""

    LOADING = "loading"
    FINE = "fine"
    STALLED = "stalled"
    HUNG = "hung"


class Reply(StrEnum):
    """What `/health` said. SILENT: it took the connection, no more. ABSENT: nobody was there."""

    READY = "ready"
    LOADING = "loading"
    SILENT = "silent"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Counts:
    """How far an engine is. Any difference is progress.

    :ivar busy: requests that it computes. :ivar decodes: batches since its start.
    :ivar prompt_tokens: read so far of the prompts of those requests; ``generated`` likewise.
    :ivar reading: requests whose prompt is not read to its end.
    :ivar depth: tokens in the longest context among them.
    """

    busy: int
    decodes: int = 0
    prompt_tokens: int = 0
    generated: int = 0
    reading: int = 0
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. :ivar at_s: monotonic. :ivar counts: None where it does not say.

    :ivar call_s: age of the oldest call that a guard of its waits for, and what that guard allows.
    """

    at_s: float
    reply: Reply
    counts: Counts | None = None
    call_s: float = 0.0
    call_allowance_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a model asks of its machine.

    :ivar token_flop: operations for a token; ``depth_flop`` more of them for each token before it.
    :ivar batch: tokens of a prompt that are counted at once.
    :ivar weight_bytes: read for each batch.
    :ivar load_s: how long the engine takes to start, 0 when not known.
    :ivar batch_s: predicted for a full batch without any depth, 0 when it was not.
    """

    token_flop: float = 0.0
    depth_flop: float = 0.0
    batch: int = 2048
    weight_bytes: int = 0
    load_s: float = 0.0
    batch_s: float = 0.0

    def flop(self, tokens: int, depth: int) -> float:
        return tokens * (self.token_flop + depth * self.depth_flop)


@dataclass(frozen=True, slots=True)
class Verdict:
    """:ivar since_s: monotonic, of the last sign of life or progress. :ivar why: one sentence."""

    health: Health
    since_s: float
    why: str = ""

    @property
    def lost(self) -> bool:
        """Whether only another process can help."""
        return self.health in (Health.STALLED, Health.HUNG)


@dataclass(frozen=True, slots=True)
class Track:
    """What is remembered of one process.

    :ivar spoke_s: when it last answered, ready or not; ``moved_s`` when it last got on or had
        nothing to do.
    :ivar seen_s: when it was last looked at. :ivar ready: it was, once.
    :ivar misses: looks without an answer since it spoke.
    :ivar flops_s: what it has shown to do with a prompt; ``proven`` once that was a whole batch.
    :ivar step_s: what one batch of generated tokens took at most, lately.
    """

    began_s: float
    spoke_s: float
    moved_s: float
    ready: bool = False
    seen_s: float = 0.0
    reply: Reply = Reply.ABSENT
    misses: int = 0
    counts: Counts | None = None
    flops_s: float = 0.0
    proven: bool = False
    step_s: float = 0.0
    call_s: float = 0.0
    call_allowance_s: float = 0.0


def begin(at_s: float, before: Track | None = None) -> Track:
    """:param before: of an earlier process of the same engine: as fast as it was."""
    fresh = Track(at_s, at_s, at_s, seen_s=at_s)
    if before is None:
        return fresh
    return replace(fresh, flops_s=before.flops_s, proven=before.proven, step_s=before.step_s)


def after(track: Track, sample: Sample, work: Work) -> Track:
    """What is known with one look more."""
    gap_s = sample.at_s - track.seen_s
    track = replace(track, seen_s=sample.at_s)
    if gap_s > _GAP_S:
        track = replace(track, spoke_s=track.spoke_s + gap_s, moved_s=track.moved_s + gap_s)
    if sample.reply in (Reply.SILENT, Reply.ABSENT):
        return replace(track, reply=sample.reply, misses=track.misses + 1)
    spoke = replace(
        track,
        reply=sample.reply,
        spoke_s=sample.at_s,
        misses=0,
        ready=track.ready or sample.reply is Reply.READY,
        call_s=sample.call_s,
        call_allowance_s=sample.call_allowance_s,
    )
    counts = sample.counts
    if counts is None:
        # Nothing is known of what it does: to be patient is all that is left.
        return replace(spoke, counts=None, moved_s=sample.at_s)
    before = track.counts
    if before is None or not counts.busy or not before.busy:
        return replace(spoke, counts=counts, moved_s=sample.at_s)
    if counts == before:
        return spoke
    learned = _learned(spoke, before, counts, sample.at_s - track.moved_s, work)
    return replace(learned, counts=counts, moved_s=sample.at_s)


def _learned(track: Track, before: Counts, now: Counts, time_s: float, work: Work) -> Track:
    """:param time_s: in which it came from one to the other."""
    batches = now.decodes - before.decodes
    if time_s <= 0 or batches <= 0:
        return track
    tokens = now.prompt_tokens - before.prompt_tokens
    if tokens >= work.batch * _PROVEN_SHARE:
        flops_s = work.flop(tokens, before.depth) / time_s
        if track.proven and flops_s > track.flops_s:
            flops_s = track.flops_s + (flops_s - track.flops_s) * _FORGETS
        return replace(track, flops_s=flops_s, proven=True)
    if before.reading or now.reading:
        return track
    step_s = max(time_s / batches, track.step_s * (1 - _FORGETS))
    # A prompt's tokens are computed together, at least as fast as single ones.
    at_least = work.flop(now.busy, now.depth) * batches / time_s
    flops_s = track.flops_s if track.proven else max(track.flops_s, at_least)
    return replace(track, step_s=step_s, flops_s=flops_s)


def allowance_s(track: Track, work: Work) -> float:
    """How long the batch that is being computed may take."""
    counts = track.counts
    if counts is None or not counts.busy:
        return _ALLOWANCE_LEAST_S
    if counts.reading:
        whole = work.flop(work.batch, counts.depth)
        if work.batch_s and not track.proven:
            bare = work.flop(work.batch, 0)
            expected_s = work.batch_s * (whole / bare if bare else 1.0)
        else:
            expected_s = whole / max(track.flops_s, _GUESSED_FLOPS_S if not track.proven else 1.0)
    else:
        expected_s = track.step_s or work.weight_bytes / _GUESSED_BYTES_S
    return max(
        _ALLOWANCE_LEAST_S if counts.decodes else _FIRST_ALLOWANCE_S,
        _ALLOWANCE_FACTOR * expected_s,
        min(work.load_s, _LOAD_MOST_S),
    )


def verdict(track: Track, now_s: float, work: Work) -> Verdict:
    """How the engine is, by all that was seen."""
    silent_s = now_s - track.spoke_s
    if track.reply is Reply.ABSENT or track.reply is Reply.SILENT:
        return _unanswered(track, silent_s)
    if track.reply is Reply.LOADING:
        return Verdict(Health.LOADING, track.began_s)
    if track.call_s > _CALL_FACTOR * track.call_allowance_s + SILENCE_S:
        why = f"a call to another node of its split is {track.call_s:.0f} s old"
        return Verdict(Health.STALLED, now_s - track.call_s, why)
    counts = track.counts
    still_s = now_s - track.moved_s
    if counts is not None and counts.busy and still_s > allowance_s(track, work):
        requests = "a request" if counts.busy == 1 else f"{counts.busy} requests"
        why = f"it has {requests} and computed nothing for {still_s:.0f} s"
        return Verdict(Health.STALLED, track.moved_s, why)
    return Verdict(Health.FINE, track.moved_s)


def _unanswered(track: Track, silent_s: float) -> Verdict:
    if track.ready:
        allowed_s = SILENCE_S
    else:
        deaf = track.reply is Reply.ABSENT
        allowed_s = _DEAF_LOADING_S if deaf else _SILENCE_LOADING_S
    if track.misses >= _MISSES and silent_s > allowed_s:
        why = f"it has not answered for {silent_s:.0f} s"
        return Verdict(Health.HUNG, track.spoke_s, why)
    if not track.ready:
        return Verdict(Health.LOADING, track.began_s)
    return Verdict(Health.FINE, track.moved_s)
