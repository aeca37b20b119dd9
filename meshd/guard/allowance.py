"""How long a call may take before it is taken for lost. Pure: numbers in, a sentence out.

Silence is measured from the last byte that moved, so nothing that still moves is ever lost. What a
call may take beyond that follows from the work that it waits for: a token of decoding sends some
kilobytes of activations, a micro-batch of a prompt megabytes, and the time grows with both. Once
work of a size was answered, several times the longest that it took is allowed; larger work than
was ever answered is given what the planner expects of a full micro-batch, or what the largest known
suggests, whichever is more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Work as small as some that was answered: detection in 5 s is what a stream needs.
FLOOR_S = 3.0
# While a model loads nobody's stream waits, and a disk or an allocation may take its time; so may a
# first computation, which compiles a GPU's programs.
LOADING_FLOOR_S = 15.0
# Bytes that an rpc-server stores, hashes or reads from its cache in a second, at the very least:
# a laptop's disk under load.
LOADING_BYTES_S = 20_000_000
# Another process on the machine, a garbage collection, a GPU that clocks up.
_MARGIN = 6.0
# Work beyond what was seen: its time is only guessed.
_GUESS_MARGIN = 4.0
_CLASSES = 48
_NEAR = 3
# So that one bad moment does not make the watch slow for ever: a fiftieth less with each answer.
_FADE = 0.98


@dataclass(frozen=True, slots=True)
class Work:
    """What has been asked for since the last answer.

    :ivar graphs: computations that may not be done yet.
    :ivar moved_bytes: of tensors that were sent, for each computation.
    :ivar stored_bytes: of memory that the server has to get, clear, or fill by itself.
    :ivar computed: the connection has answered a computation before.
    """

    graphs: int = 0
    moved_bytes: int = 0
    stored_bytes: int = 0
    computed: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """What this connection's answered computations took.

    :ivar ubatch_s: what the planner expects of a full micro-batch of a prompt, here.
    :ivar longest_s: by size of the work, in powers of two of its bytes; 0 where none was answered.
    :ivar computed: a computation was answered on this connection.
    """

    ubatch_s: float
    longest_s: tuple[float, ...] = (0.0,) * _CLASSES
    computed: bool = False

    def anew(self) -> Pace:
        """For the next connection to the same server: it loads before it computes."""
        return replace(self, computed=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """:ivar since_s: when the last byte moved, on the caller's clock; None when nothing waits."""

    since_s: float | None
    work: Work = Work()


IDLE = Waiting(None)


def allowance_s(work: Work, pace: Pace) -> float:
    """Seconds without a byte after which this work is taken for lost."""
    floor = FLOOR_S if work.computed else LOADING_FLOOR_S
    if not work.graphs:
        return floor + (work.moved_bytes + work.stored_bytes) / LOADING_BYTES_S
    size = _size(work)
    storing_s = work.stored_bytes / LOADING_BYTES_S
    known = max(pace.longest_s[: size + 1])
    # What is much larger tells nothing: it may have been weights that were sent before a first
    # computation of one token.
    near = max(pace.longest_s[size : size + _NEAR])
    if near:
        # More than one computation for one answer: each may be as long as the longest.
        return max(floor, _MARGIN * max(known, near) * work.graphs) + storing_s
    largest = max((at for at, time in enumerate(pace.longest_s[:size]) if time), default=size)
    guess = max(pace.ubatch_s, known * 2.0 ** (size - largest))
    return floor + _GUESS_MARGIN * guess * work.graphs + storing_s


def learned(pace: Pace, work: Work, seconds: float) -> Pace:
    """After work was answered. :param seconds: between its last byte and the answer's first."""
    if not work.graphs:
        return pace
    size = _size(work)
    known = pace.longest_s[size]
    each = max(seconds / work.graphs, 1e-6)
    longest = max(each, known * _FADE)
    if pace.computed and known and longest * _MARGIN < FLOOR_S and known * _MARGIN < FLOOR_S:
        return pace  # the floor is what counts: nothing to remember, for a token of every stream
    times = (*pace.longest_s[:size], longest, *pace.longest_s[size + 1 :])
    return replace(pace, longest_s=times, computed=True)


def lost(waiting: Waiting, pace: Pace, now_s: float) -> str:
    """Why this connection has to be given up, "" while it may go on."""
    if waiting.since_s is None:
        return ""
    silent_s, allowed_s = now_s - waiting.since_s, allowance_s(waiting.work, pace)
    if silent_s <= allowed_s:
        return ""
    work = waiting.work
    what = f"{work.graphs} computations on {work.moved_bytes / 1000:.0f} kB each"
    return f"no byte for {silent_s:.1f} s, {allowed_s:.1f} s are allowed for {what}"


def _size(work: Work) -> int:
    return min(work.moved_bytes.bit_length(), _CLASSES - 1)
