"""The join: events to messages, messages to timelines, timelines to intervals.

Events carry the sequence number that stands in the payload, the trial, and a flow that tells the two directions apart.
A timeline starts when user space posts a message and ends when user space has it at the other end; both stamps are the
loop's own, of the same clock. All of it is NumPy over whole arrays.

Some probes know a stage only afterwards or by nesting (a doorbell, a wake-up, a softirq); they are matched in the
kernel. Here it only happens that a *conditional* stage stamped out of order is dropped: it belonged to another message.
An unconditional stage out of order is an error that is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hwrx import paths
from hwrx.stages import Stage
from hwrx.timelines.actors import actor_of_event

Int64s = npt.NDArray[np.int64]
Events = npt.NDArray[Any]


@dataclass
class Ends:
    """The user's stamps of one direction: int64 nanoseconds by message, from sequence number `first` on; 0: none."""

    posted: Int64s
    delivered: Int64s
    first: int = 0
    # by stage: what the receiving endpoint itself has stamped on the way
    own: Mapping[str, Int64s] = field(default_factory=dict)


@dataclass
class Timelines:
    """The joined timelines of one direction.

    `stamps`: messages x stages, nanoseconds, 0 where absent; the first column is `posted`, the last `delivered`.
    `chosen`: which of `events` each stamp is from, -1 where it is the user's or absent.
    `complete`: which messages have every stage that they must have. `missing`: by first missing stage, how many
    messages. `disordered`: by stage, how many stamps lay before the stage in front of them (those messages are not
    complete). `dropped`: by conditional stage, how many stamps were of another message.
    """

    stages: list[Stage]
    sequence: npt.NDArray[np.uint64]
    stamps: Int64s
    events: Events
    chosen: Int64s
    complete: npt.NDArray[np.bool_]
    missing: dict[str, int] = field(default_factory=dict)
    disordered: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Complete messages over all that both ends of user space have seen."""
        return float(self.complete.mean()) if len(self.complete) else 0.0

    def intervals(self) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """Nanoseconds from the stage before, for complete messages, and which of them are there.

        Both are messages x stages. An absent stage has the interval 0 and the mark False, its time is part of the next
        one's: so each row adds up to `delivered` - `posted` to the nanosecond. The first column is all 0.
        """
        stamps = self.stamps[self.complete]
        present = stamps > 0
        filled = np.maximum.accumulate(stamps, axis=1)
        return np.diff(filled, axis=1, prepend=filled[:, :1]), present

    def actor(self, row: int, column: int) -> str:
        """Who worked at a stamp (row of all messages, column), as observed; an endpoint's own stamp is its own work."""
        chosen = int(self.chosen[row, column])
        return actor_of_event(self.stages[column], None if chosen < 0 else int(self.events["context"][chosen]))

    def one_way(self) -> Int64s:
        """Nanoseconds from posted to delivered, for complete messages."""
        stamps = self.stamps[self.complete]
        return stamps[:, -1] - stamps[:, 0]


def find_flows(events: Events) -> list[int]:
    """Return the flows in the events, busiest first; 0 (not known) is none."""
    values, counts = np.unique(events["flow"][events["flow"] != 0], return_counts=True)
    return [int(flow) for flow in values[np.argsort(-counts, kind="stable")]]


def flow_of(events: Events, ends: Ends) -> int:
    """Find the flow whose stamps lie between a direction's posted and delivered; 0 where none fits more than half."""
    best, fit = 0, 0.5
    for flow in find_flows(events):
        mine = events[events["flow"] == flow]
        index, inside = _index(mine, ends)
        if not len(index):
            continue
        ns = mine["ns"][inside].astype(np.int64)
        known = (ends.posted[index] > 0) & (ends.delivered[index] > 0)
        between = (ns >= ends.posted[index]) & (ns <= ends.delivered[index])
        good = float(between[known].mean()) * len(np.unique(index)) / len(ends.posted) if known.any() else 0.0
        if good > fit * _sampled(events, ends):
            best, fit = flow, good / _sampled(events, ends)
    return best


def _sampled(events: Events, ends: Ends) -> float:
    """Return the share of the messages that any event speaks of."""
    index, _ = _index(events, ends)
    return max(len(np.unique(index)) / max(len(ends.posted), 1), 1e-9)


def _index(events: Events, ends: Ends) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """Return the rows of `ends` that events belong to, and which events belong to any."""
    at = events["sequence"].astype(np.int64) - ends.first
    inside = (at >= 0) & (at < len(ends.posted))
    return at[inside], inside


def join_events(
    events: Events,
    ends: Ends,
    path: str,
    *,
    available: Sequence[Stage] | None = None,
    flow: int | None = None,
    modulo: int = 0,
    every: int = 1,
) -> Timelines:
    """Join a trial's events with one direction's user stamps.

    `available`: the stages that had a probe (None: all that occur in the events); a stage that had none is no column.
    `flow`: the direction's flow, found where None. `modulo`: the payload carries the sequence number only modulo this
    (READ from buffers filled beforehand). Only messages that the events sample are rows; where the kernel stamps
    nothing at all, each `every`-th message is one.
    """
    if modulo:
        events = unwrap_numbers(events, ends, modulo)
    flow = flow_of(events, ends) if flow is None else flow
    chain = paths.stage_chain(path)
    if available is None:
        seen = set(np.unique(events["stage"]).tolist())
        columns = [s for s in chain if s.number in seen or s.name in {"posted", "delivered"} | ends.own.keys()]
    else:
        names = {stage.name for stage in available} | {"posted", "delivered"} | ends.own.keys()
        columns = [stage for stage in chain if stage.name in names]
    mine = events[events["flow"] == flow] if flow else events[:0]
    index, inside = _index(mine, ends)
    mine = mine[inside]

    stamps = np.zeros((len(ends.posted), len(columns)), dtype=np.int64)
    picked = np.full(stamps.shape, -1, dtype=np.int64)
    stamps[:, 0], stamps[:, -1] = ends.posted, ends.delivered
    ns = mine["ns"].astype(np.int64)
    # of several stamps the one assigned last stays: sorted downwards that is the first in time, upwards the last
    upwards = np.argsort(ns, kind="stable")
    for column, stage in enumerate(columns[1:-1], 1):
        if stage.name in ends.own:
            stamps[:, column] = ends.own[stage.name]
            continue
        chosen = upwards[mine["stage"][upwards] == stage.number]
        if stage.last:
            # retransmissions and READ's repeats may stamp after the delivery; what counts is the last before it
            chosen = chosen[
                ns[chosen]
                <= np.where(ends.delivered[index[chosen]] > 0, ends.delivered[index[chosen]], np.iinfo(np.int64).max)
            ]
        else:
            chosen = chosen[::-1]
        stamps[index[chosen], column] = ns[chosen]
        picked[index[chosen], column] = chosen

    rows = np.zeros(len(ends.posted), dtype=bool)
    if paths.probed_in_kernel(path):
        rows[index] = True
    else:
        rows[-ends.first % every :: every] = True
    rows &= (ends.posted > 0) & (ends.delivered > 0)
    which = np.flatnonzero(rows)
    sequence = (which + ends.first).astype(np.uint64)
    return _judge(Timelines(columns, sequence, stamps[which], mine, picked[which], np.zeros(0, dtype=bool)), path)


def unwrap_numbers(events: Events, ends: Ends, modulo: int) -> Events:
    """Give events whose sequence number is known only modulo `modulo` that of the last message posted by then.

    At most `modulo` messages are outstanding at any time, so there is one such message; where none was posted yet the
    event is left out.
    """
    posted = np.where(ends.posted > 0, ends.posted, np.iinfo(np.int64).max)
    latest = np.searchsorted(posted, events["ns"].astype(np.int64), side="right") - 1 + ends.first
    real = latest - (latest - events["sequence"].astype(np.int64)) % modulo
    result = events[(real >= ends.first) & (latest >= ends.first)].copy()
    result["sequence"] = real[(real >= ends.first) & (latest >= ends.first)]
    return result


def _judge(timelines: Timelines, path: str) -> Timelines:
    """Drop conditional stamps of other messages, and find which messages are complete, which not and why."""
    columns, stamps = timelines.stages, timelines.stamps
    way = paths.way_of(path)
    must = np.array([not stage.conditional(way) for stage in columns])
    # what an unconditional stage sets as the earliest and latest time that the stages between may have
    fixed = np.where(must[None, :], stamps, 0)
    floor = np.maximum.accumulate(fixed, axis=1)
    ceiling = np.where(fixed > 0, fixed, np.iinfo(np.int64).max)
    ceiling = np.minimum.accumulate(ceiling[:, ::-1], axis=1)[:, ::-1]
    late = fixed < floor  # an unconditional stamp before one that should precede it
    for column, stage in enumerate(columns):
        here = stamps[:, column]
        if must[column]:
            if wrong := int(((here > 0) & late[:, column]).sum()):
                timelines.disordered[stage.name] = wrong
            continue
        outside = (here > 0) & ((here < floor[:, column]) | (here > ceiling[:, column]))
        if column:
            # conditional stages among themselves: each at or after the nearest one in front that stayed
            outside |= (here > 0) & (here < stamps[:, :column].max(axis=1))
        stamps[outside, column] = 0
        timelines.chosen[outside, column] = -1
        if outside.any():
            timelines.dropped[stage.name] = int(outside.sum())
    there = (stamps > 0) | ~must[None, :]
    timelines.complete = there.all(axis=1) & ~((fixed > 0) & late).any(axis=1)
    first = np.argmin(there, axis=1)[~there.all(axis=1)]
    for number, count in zip(*np.unique(first, return_counts=True), strict=True):
        timelines.missing[columns[number].name] = int(count)
    return timelines


@dataclass
class Interval:
    """One row of the table: nanoseconds since the stage before, over the messages that passed the stage."""

    stage: Stage
    count: int
    mean: float
    p50: float
    p99: float
    share: float  # of the mean one-way time


def timeline_table(timelines: Timelines) -> list[Interval]:
    """Summarise the intervals. Means (over all complete messages) add up to the mean one-way time; medians need not."""
    intervals, present = timelines.intervals()
    whole = float(timelines.one_way().mean()) if len(intervals) else 0.0
    rows = []
    for column, stage in enumerate(timelines.stages):
        values = intervals[present[:, column], column]
        if column and len(values) == 0 and stage.unless:
            continue
        mean = float(intervals[:, column].mean()) if len(intervals) else float("nan")
        p50, p99 = np.quantile(values, (0.5, 0.99)) if len(values) else (float("nan"), float("nan"))
        # the median's rule: no quantile with fewer than ten samples beyond it
        p99 = p99 if len(values) >= 1000 else float("nan")
        rows.append(Interval(stage, len(values), mean, float(p50), float(p99), mean / whole if whole else 0.0))
    return rows
