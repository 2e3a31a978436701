"""The rate of a stream: over whole receiving calls while it is steady, or withheld with what would help.

A sender that is faster than the receiver fills the buffers between them first, and what they hold is drained when it
has stopped; one receiving call may bring thousands of messages. Dividing messages by the time from the first to the
last says neither what the path can do nor the same for streams of two lengths.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Int64s = npt.NDArray[np.int64]

CALLS = 20  # receiving calls that a rate is taken over: the last one may be cut short, which is then 5 % at most
STEADY_NS = 100_000_000  # that a rate is taken over, of a clock that other load and the scheduler are part of
STEADY_INSTRUCTIONS = 2_000_000  # of a clock that counts instructions


UNSTEADY = 0.02  # standard error of a trial's rate above which it is none


class Rate(Struct, frozen=True, kw_only=True):
    """Messages a second of one stream: `messages` in `ns`, brought by `calls` receiving calls after the first one."""

    value: float
    messages: int
    calls: int
    ns: int


class Withheld(Struct, frozen=True):
    """A figure that cannot be had, and the reason with what would help.

    `moved`: there were calls and time enough, but the rate of the trial's parts differs. What a message costs is then
    known all the same, for it does not depend on how fast they came.
    """

    reason: str
    moved: bool = False


def steady_rate(
    delivered: Int64s,
    *,
    begin: int | None = None,
    end: int | None = None,
    least_ns: int = STEADY_NS,
    duration: float | None = None,
) -> Rate | Withheld:
    """Return the rate of a stream, messages a second, over whole receiving calls while it was steady.

    `delivered`: ns, ascending; the messages of one call share the time at which it returned. `begin` and `end` bound
    the part in which the stream was steady (`hwrx.runs.collecting.steady_part`); None: it was from the first call on,
    or to the last. The messages of the first call were under way before it began, so they do not count: what came after
    it is divided by the time that it took. Withheld where calls or time are too few, or the rate of its parts differs
    so much that their mean says little. `duration`: seconds, if a time ended the trial and no number of messages.
    """
    if not len(delivered):
        return Withheld("no message was delivered")
    inside = (delivered >= (delivered[0] if begin is None else begin)) & (
        delivered <= (delivered[-1] if end is None else end)
    )
    at, messages = np.unique(delivered[inside], return_counts=True)
    count = int(messages[1:].sum())
    calls, span = max(len(at) - 1, 0), int(at[-1] - at[0]) if len(at) else 0
    if calls >= CALLS and span >= least_ns:
        error = _rate_error(at, messages)
        if error > UNSTEADY:
            quiet = "stop what else runs, or " if least_ns == STEADY_NS else ""  # counted instructions: nothing does
            return Withheld(
                f"it moved within the trial, so that its mean is known to ±{2 * error:.0%} only: {quiet}"
                f"{_longer(len(delivered), max(2.0, (error / UNSTEADY) ** 2), duration)}",
                moved=True,
            )
        return Rate(value=count / span * 1e9, messages=count, calls=calls, ns=span)
    # what was not steady stays what it is, however many messages there are
    idle = len(delivered) - count
    factor = max(CALLS / calls if calls else 0.0, least_ns / span if span else 0.0)
    wanted = idle + 1.25 * factor * count if count and span else 4.0 * len(delivered)
    need = _longer(len(delivered), wanted / len(delivered), duration)
    if not count:
        return Withheld(f"all {len(delivered):,} messages were under way, or in one call, at once: {need}")
    if calls < CALLS:
        return Withheld(f"{calls} receiving calls brought what came while the stream was steady, {CALLS} must: {need}")
    return Withheld(f"the stream was steady for {span / 1e6:.3g} ms, a rate needs {least_ns / 1e6:g}: {need}")


def _rate_error(at: Int64s, messages: npt.NDArray[np.intp]) -> float:
    """Standard error of a stream's rate, relative to it, from those of up to ten parts of equal length.

    `at` is when each call returned, `messages` how many it brought; 0 if the calls are too few to be parted.
    """
    parts = min(10, len(at) // 10)
    if parts < 4:
        return 0.0
    edges = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], parts + 1), side="right") - 1)
    rates = np.diff(np.cumsum(messages)[edges]) / np.diff(at[edges])
    return float(rates.std(ddof=1) / rates.mean() / math.sqrt(len(rates))) if len(rates) > 1 else math.inf


def _longer(messages: int, factor: float, duration: float | None) -> str:
    """Say what to raise so that a trial is `factor` times as long: what had ended it, its messages or its duration."""
    if duration is None:
        return f"raise 'messages' to {_round_up(messages * factor):,} or more"
    return f"raise 'duration' to {math.ceil(duration * factor * 10) / 10:g} s or more"


def _round_up(count: float) -> int:
    """Round up to one significant digit."""
    unit = int(10 ** int(math.log10(count)))
    return math.ceil(count / unit) * unit


def stream_length(size: int, *, clock: str, topology: str) -> int:
    """How many messages of `size` bytes a stream has if nobody says: enough for a rate.

    By the wall clock it is to last a tenth of a second and more, whose number of messages depends on the machine; a
    guest that counts instructions needs no such time, and one that is emulated is slow.
    """
    if clock == "icount":
        most, volume = 20_000, 1 << 26
    elif topology in ("here", "netns", "hosts"):
        most, volume = 500_000, 1 << 31
    else:
        most, volume = 50_000, 1 << 28
    return max(min(most, volume // size), 64)
