"""The arithmetic of a flood: bins to shares, counts to figures. Nothing here touches the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# enum actor of the programs, in their order
ACTORS = (
    "idle",
    "sender, user",
    "sender, system",
    "reader, user",
    "reader, system",
    "others, user",
    "others, system",
    "ksoftirqd",
    "softirq NET_RX",
    "other softirqs",
    "interrupts",
    "kernel workers",
    "kernel workers of one CPU",
)
# enum context of the programs
CONTEXTS = ("ksoftirqd", "interrupt", "task", "softirq")
CONTEXT_WORDS = {
    "ksoftirqd": "ksoftirqd, the thread for what was left over",
    "interrupt": "an interrupt raised it: at its exit",
    "task": "a task raised it (its own send, on this CPU): in the task's context",
    "softirq": "a softirq raised it, and it followed at once",
}
POLLERS = ("backlog", "device", "elsewhere")  # enum poller


def spread_time(ns: Int64s, whole: Int64s, width: int) -> Int64s:
    """Return whose each bin's time was: (CPUs, bins, actors) nanoseconds.

    `ns` are the pieces that do not fill a bin. `whole` are differences: +1 where an actor begins to have all of every
    bin, -1 where that ends. `width` is that of a bin in ns.
    """
    return np.asarray(ns + np.cumsum(whole, axis=1) * width, dtype=np.int64)


def close_account(time: Int64s, last: int, until: int, actor: int, start: int, width: int) -> None:
    """Give the time from the last event to the end to who has it then. `time` is one CPU's (bins, actors), changed.

    `last` and `until` are ns of the clock that `start`, the first bin's, is of.
    """
    first, end = (last - start) // width, (until - start) // width
    bins = len(time)
    for number in range(max(0, first), min(end, bins - 1) + 1):
        low = max(last, start + number * width)
        high = min(until, start + (number + 1) * width)
        if high > low:
            time[number, actor] += high - low


def coarser_bins(values: npt.NDArray[Any], most: int) -> tuple[npt.NDArray[Any], int]:
    """Add up neighbouring bins of the last but one axis, so that at most `most` are left; and say how many make one."""
    grouped = _grouped(values, most)
    return grouped.sum(axis=-2), grouped.shape[-2]


def most_of(values: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """As `coarser`, of what is not added up but whose highest counts (lengths of queues)."""
    return np.asarray(_grouped(values, most).max(axis=-2))


def _grouped(values: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """The bins in groups, as an axis of their own; the last group is filled up with zeros."""
    bins = values.shape[-2]
    together = max(1, -(-bins // most))
    widths = [(0, 0)] * values.ndim
    widths[-2] = (0, -bins % together)
    padded = np.pad(values, widths)
    return padded.reshape(*values.shape[:-2], -1, together, values.shape[-1])


def time_histogram(counts: Sequence[int] | Int64s) -> dict[int, int]:
    """Return value -> how often, of an array that counts by value; what never was is left out."""
    return {value: int(count) for value, count in enumerate(counts) if count}


def total_time(histogram: Mapping[int, int]) -> int:
    """The sum of all values: packets, where it says how many packets each poll brought."""
    return sum(value * count for value, count in histogram.items())


def mean_of(histogram: Mapping[int, int]) -> float:
    """The mean; 0 of nothing."""
    times = sum(histogram.values())
    return total_time(histogram) / times if times else 0.0


def quantile_of(histogram: Mapping[int, int], p: float) -> int:
    """The smallest value that at least the share `p` of all does not exceed; 0 of nothing."""
    times, so_far = sum(histogram.values()), 0
    for value in sorted(histogram):
        so_far += histogram[value]
        if so_far >= p * times:
            return value
    return 0


def jain_index(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all get the same, 1/n where one gets all (Jain, Chiu, Hawe 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def per_bin(times: Int64s, start: int, width: int, bins: int) -> Int64s:
    """How many of the times (0: never) fall into each bin."""
    known = times[times > 0]
    places = (known - start) // width
    places = places[(places >= 0) & (places < bins)]
    return np.bincount(places, minlength=bins).astype(np.int64)


def under_way(sent: Int64s, taken: Int64s, start: int, width: int, bins: int) -> Int64s:
    """How many messages that would be delivered were on their way at the end of each bin."""
    delivered = taken > 0
    came = np.cumsum(per_bin(sent[delivered], start, width, bins))
    return np.asarray(came - np.cumsum(per_bin(taken, start, width, bins)), dtype=np.int64)


def first_missing(sent: Int64s, taken: Int64s) -> int | None:
    """The number of the first message that was sent and never came; None where all came."""
    missing = np.flatnonzero((sent > 0) & (taken == 0))
    return int(missing[0]) if len(missing) else None


def socket_of(sequence: Int64s, batch: int, sockets: int) -> Int64s:
    """Which socket a message went to: a batch to each in turn."""
    return np.asarray(sequence // batch % sockets, dtype=np.int64)
