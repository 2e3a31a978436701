"""What a report says of a run, as data: a row for each setting of each path, what a byte costs, and all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from hwrx.modes import State
from hwrx.stats import LEVEL, Digest, Estimate, Floats

BASELINE = "udp"
SERIES = 120  # parts that a trial is shown in over time
KEPT_UP = 0.97  # of the rate offered must be answered by a path that keeps up with it


class Row(Struct, kw_only=True):
    """One path in one setting, over all repeats. Times are µs; of a ping-pong they are half a round trip.

    `digests` holds the trials that have figures in the order of their `repeats`, and so do `trials` (their numbers in
    the run's tables), `busy` and `series`; what they measure is the row's `measures`. `swept` has every field of the
    setting that tells the row from another of the same path, size, pattern and wait.
    """

    run: str
    path: str
    size: int
    pattern: str
    wait: str
    swept: dict[str, Any]
    measures: str
    digests: list[Digest]
    rates: list[float]  # messages a second of each trial that has such a figure
    service: list[Digest]
    repeats: list[int]
    trials: list[int]
    busy: list[float]  # guest instructions that any CPU executed for half a round trip, or for a message of a stream
    series: list[
        Floats
    ]  # each trial in the order of time: the medians of `SERIES` parts of it, and the largest of each
    failed: int
    samples: int
    quantiles: dict[str, Estimate | None]
    service_quantiles: dict[str, Estimate | None]
    messages_per_s: Estimate | None
    bytes_per_s: Estimate | None
    withheld: dict[str, str] = {}  # figures that cannot be had, each with the reason
    rate: float | None = None  # paced: messages a second that were meant to be sent
    load: float | None = None  # the same as a share of what the path can do, where the experiment asks for shares
    kept: float = math.nan  # paced: answers a second over messages a second that were due; the median trial
    ratio: Estimate | None = None  # to the baseline: of p50, or of messages/s of a stream
    cost: Estimate | None = None  # of `busy`: what the message costs, the waiting for a timer or an interrupt left out
    cost_ratio: Estimate | None = None  # to the baseline's
    cpu: dict[str, Estimate] = {}  # by actor, of both ends, a message: µs, or instructions if `counted`
    cpu_missing: dict[str, str] = {}  # actors that are not in `cpu`, and why
    cpu_counted: dict[str, float] = {}  # likewise, of the twin that was counted by actor
    counted: bool = False  # by a clock that counts a guest's instructions
    shift: list[tuple[float, Estimate]] = []  # the same at each decile and at p99: how the whole distribution moved
    tally: dict[str, int] = {}
    resident: int = 0
    effective: float = math.nan  # share of the samples that count, at p50; the worst trial's
    warmup: int = 0  # samples of a transient that remained; the worst trial's
    settled: bool = True
    converged: bool | None = None  # None: the experiment asked for no width of the interval
    setting: dict[str, Any] = {}  # all of it
    trial_label: str = ""  # what its trials are called in the run's tables, and their messages if they are taken apart
    level: float = LEVEL  # at which its intervals are made: higher if the experiment looked again and again
    states: list[State] = []  # that its messages were in, µs; of streams none
    groups: list[State] = []  # that its trials fall into (by p50, µs; of streams by messages a second), if they do

    @property
    def key(self) -> tuple[Any, ...]:
        """All that tells a row from every other: no figure and no picture takes two keys together."""
        return *self.line, self.size

    @property
    def line(self) -> tuple[Any, ...]:
        """The same without the size: what rows that differ in size alone have in common."""
        # what is offered at a share of the capacity is another rate at each size
        offered = self.rate if self.load is None else f"{self.load:g}"
        return self.run, self.pattern, self.path, self.wait, offered, tuple(sorted(self.swept.items()))

    @property
    def label(self) -> str:
        """Path, run where there are several, and what is swept: a row's name within one size, pattern and wait."""
        load = [f"at {100 * self.load:.3g} % load"] if self.load is not None else []
        return " ".join([self.curve, *load, *(f"{key} {v}" for key, v in self.swept.items() if key == "rate" and v)])

    @property
    def curve(self) -> str:
        """The same without the load or rate: the name of what has a row at each of them."""
        words = [swept_words(key, value) for key, value in self.swept.items() if key != "rate"]
        return " ".join([self.name, *filter(None, words)])

    @property
    def name(self) -> str:
        """Path, and run where there are several: its name in a table that has columns for all else."""
        return f"{self.path} {self.run}".strip()

    @property
    def saturated(self) -> bool:
        """Whether an open loop was offered more than the path answered: its times grow with the trial's length.

        That is: answers came at less than KEPT_UP of the rate at which messages were due. False of other patterns.
        """
        return self.kept < KEPT_UP

    @property
    def lost_share(self) -> float:
        """Messages that never came, of those that were expected: 0.0 … 1.0, all trials of the row together."""
        expected = self.tally.get("expected") or self.tally.get("posted") or 0
        return self.tally.get("lost", 0) / expected if expected else 0.0


class Change(Struct, frozen=True, kw_only=True):
    """One figure of both sides of a diff. `ratio` is the second over the first; `worse` is meant from the user's side.

    `chance`: how often two sides that do not differ are that far apart (p); `holm`: the same allowing for all figures
    of the diff. `exact` figures repeat to the digit: neither has a meaning for them. `grouped`: the figures of one side
    fall into groups, of which the means are compared. `sampled`: several runs of one side have the row, so that it is
    known how much two runs differ anyway. `key` is the row's whole setting: `row`, its name, depends on what else was
    swept in its run.
    """

    row: str
    figure: str
    before: float
    after: float
    ratio: Estimate
    told_apart: bool
    worse: bool
    chance: float = math.nan
    holm: float = math.nan
    exact: bool = False
    grouped: bool = False
    sampled: bool = False
    key: tuple[Any, ...] = ()

    @property
    def percent(self) -> float:
        """By how much it changed, in percent of the first: negative if the second is less."""
        return 100 * (self.ratio.value - 1)


class Cost(Struct, frozen=True, kw_only=True):
    """What a path's messages cost by their size: the line through p50 against size, fitted in each repeat alone.

    `byte` is its slope in ns (in virtual time: guest instructions) a byte one way, `message` where it begins, µs.
    """

    line: tuple[Any, ...]  # of the rows
    row: str
    wait: str
    sizes: list[int]
    byte: Estimate
    message: Estimate
    misfit: list[float]  # at each size, by how much p50 lies off the line, relative to the line: the median repeat

    @property
    def worst(self) -> tuple[int, float]:
        """The size that lies furthest off the line, and by how much."""
        return max(zip(self.sizes, self.misfit, strict=True), key=lambda pair: abs(pair[1]))


class Summary(Struct, kw_only=True):
    """What the runs say. `label` is the caption that each table and picture carries.

    `runs` are the `hwrx.runs.reading.Run`s that it was made of. `baseline`: the path that ratios are to. `answer`: one
    sentence. `warnings`: what spoils figures, a sentence each. `skipped`: what was asked for and not measured, and why.
    `costs`: of ping-pongs at four sizes or more.
    """

    runs: list[Any]
    rows: list[Row]
    baseline: str
    label: str
    answer: str
    warnings: list[str]
    skipped: list[tuple[str, str]]
    costs: list[Cost] = []

    def of(self, pattern: str) -> list[Row]:
        """The rows of one pattern that have samples, by size, then in the experiment's order of paths.

        :param pattern: pingpong, stream or paced
        """
        return [row for row in self.rows if row.pattern == pattern and row.digests]

    def of_run(self, name: str) -> list[Row]:
        """The rows of the run whose directory has this name. A report of one run leaves its rows unnamed."""
        return [row for row in self.rows if row.run in ("", name)]

    def swept(self, rows: Sequence[Row]) -> list[str]:
        """The swept fields that tell the rows of a table apart; the rate of an open loop has a column anyway."""
        return list(dict.fromkeys(key for row in rows for key in row.swept if key != "rate"))

    def sizes(self, pattern: str) -> list[int]:
        """The message sizes of a pattern, ascending."""
        return sorted({row.size for row in self.of(pattern)})


def swept_words(key: str, value: object) -> str:
    """A swept field's value where it stands alone: "8 senders", "loss 1%", "window 64"; empty where nothing is set."""
    if value is None or value == "":
        return ""
    if key in ("senders", "connections"):
        return f"{value} {key[:-1]}{'s' * (value != 1)}"
    if key == "copies_priced":
        return f"copies by the {value}"
    return str(value) if isinstance(value, str) else f"{key} {value}"


def name_of(p: float) -> str:
    """0.5 -> p50, 0.999 -> p99.9."""
    return f"p{100 * p:g}"


def scaled_estimate(estimate: Estimate, factor: float) -> Estimate:
    """The same in another unit."""
    return msgspec.structs.replace(
        estimate, value=estimate.value * factor, low=estimate.low * factor, high=estimate.high * factor
    )
