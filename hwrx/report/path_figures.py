"""What a run found of one path in one setting, for programs: `run["udp", 64].p50`.

Each figure is the one that the run's report has of that row. What could not be had raises UnavailableError with the
reason; nothing is None or nan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from hwrx import stats
from hwrx.errors import UnavailableError, UsageError
from hwrx.report import ledgers
from hwrx.report.journeys import anatomy_of
from hwrx.report.model import Row, Summary, name_of, scaled_estimate
from hwrx.report.numbers import number_text, size_of_rows
from hwrx.stats import BEYOND, Estimate, Floats

if TYPE_CHECKING:
    from hwrx.anatomy.model import Dissection
    from hwrx.runs.reading import Run

TELLING = ("pattern", "wait", "run", "load", "rate")  # of a row, besides the fields of its setting
NS = 1000.0  # a row's times are µs; of a guest that counts instructions a ns is one


class Copies(Struct, frozen=True, kw_only=True):
    """How often CPUs copy each byte of payload, on the sender's side and on the receiver's.

    `counted_by`: "probes" of the kernel (a traced run), or "addresses" (a run with anatomy that was not traced).
    """

    sender: float
    receiver: float
    counted_by: str

    @property
    def total(self) -> float:
        """Of both sides together."""
        return self.sender + self.receiver

    def __str__(self) -> str:
        return "+".join(f"{value:.0f}" if abs(value - round(value)) < 0.02 else f"{value:.1f}" for value in self._both)

    @property
    def _both(self) -> tuple[float, float]:
        return self.sender, self.receiver


class PathFigures:
    """The figures of one path in one setting, over all repeats of a run. Get one with `run["udp", 64]`.

    Times are in `unit`: ns, or guest instructions if the run counts them (its clock's, the waiting for timers and
    interrupts included; `cost` has none of that). They are of what `measures` says: of a ping-pong half a round trip.
    An `hwrx.Baseline` can be held against it: `run["udp", 64] <= 1.02 * baseline`.

    :ivar row: the row of the report that it is
    """

    def __init__(self, summary: Summary, row: Row) -> None:
        self.row = row
        self._summary = summary

    def __repr__(self) -> str:
        try:
            found = self.figure
        except UnavailableError:
            return f"<{self.name}: no figure>"
        ends = "" if math.isnan(found.low) else f" ({number_text(found.low)} to {number_text(found.high)})"
        return f"<{self.name}: {number_text(found.value)} {self.figure_unit}{ends}>"

    @property
    def name(self) -> str:
        """The path and all that tells it from the run's other rows, in words."""
        return " ".join([self.row.label, size_of_rows(self.row), self.row.pattern, self.row.wait])

    @property
    def label(self) -> str:
        """The same as the run's trials and its anatomy have it."""
        return next(str(trial["label"]) for trial in self.run.rows if trial["trial"] in self.row.trials)

    @property
    def run(self) -> Run:
        """The run that it is of."""
        found: Run = next(run for run in self._summary.runs if self.row.run in ("", run.path.name))
        return found

    @property
    def unit(self) -> str:
        """What times are in: "ns", or "instructions"."""
        return "instructions" if self.row.counted else "ns"

    @property
    def measures(self) -> str:
        """What a time is of: "half round trip", "FULL round trip", "response time from the intended send", …"""
        return self.row.measures

    @property
    def figure(self) -> Estimate:
        """The main figure with its interval: p50 in `unit`; of a stream messages a second.

        :raises UnavailableError: if it is withheld
        """
        return self._rate() if self.row.pattern == "stream" else self.quantile(0.5)

    @property
    def figure_unit(self) -> str:
        """What `figure` is in: `unit`, or of a stream "messages/s"."""
        return "messages/s" if self.row.pattern == "stream" else self.unit

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval of `figure`, across the repeats.

        :raises UnavailableError: if there is none: one repeat alone, or repeats that fall into groups
        """
        found = self.figure
        if math.isnan(found.low):
            why = "its repeats fall into groups" if found.split else "there is one repeat"
            raise self._lacks("interval", why, "more repeats" if not found.split else "")
        return found.low, found.high

    def quantile(self, p: float) -> Estimate:
        """Return a quantile with its interval across the repeats.

        :param p: 0.5 is the median
        :return: in `unit`
        :raises UsageError: if `p` is not between 0 and 1
        :raises UnavailableError: if fewer than ten samples of a repeat lie beyond it, or the row is a stream's
        """
        if not stats.GRID[0] <= p <= stats.GRID[-1]:
            raise UsageError(f"there is no quantile at {p}", remedy="give one between 0 and 1: 0.99 is p99")
        if self.row.pattern == "stream":
            why = "the gaps between a stream's deliveries are what batching makes them"
            raise self._lacks(name_of(p), why, "its rate is its figure")
        self._need_samples(name_of(p))
        known = self.row.quantiles.get(name_of(p)) or stats.quantile_across(self.row.digests, p, self.row.level)
        if known is None:
            fewest = min(digest.count for digest in self.row.digests)
            why = f"fewer than {BEYOND} of {fewest} messages of a repeat lie beyond it"
            raise self._lacks(name_of(p), why, "more messages")
        return scaled_estimate(known, NS)

    @property
    def p50(self) -> float:
        """The median, in `unit`. See `quantile`."""
        return self.quantile(0.5).value

    @property
    def p90(self) -> float:
        """The quantile at 0.9, in `unit`. See `quantile`."""
        return self.quantile(0.9).value

    @property
    def p99(self) -> float:
        """The quantile at 0.99, in `unit`. See `quantile`."""
        return self.quantile(0.99).value

    @property
    def p999(self) -> float:
        """The quantile at 0.999, in `unit`. See `quantile`."""
        return self.quantile(0.999).value

    @property
    def rate(self) -> float:
        """Messages a second: of a stream delivered, of an open loop answered.

        :raises UnavailableError: if the rate did not hold still, or too little was sent
        """
        return self._rate().value

    @property
    def cost(self) -> Estimate:
        """Guest instructions that any CPU executed for half a round trip, or for a message of a stream.

        :raises UnavailableError: if the run did not count instructions, or the stream was never steady
        """
        self._need_samples("cost")
        if "cost" in self.row.withheld:
            raise self._lacks("cost", self.row.withheld["cost"])
        if self.row.cost is None:
            raise self._lacks("cost", "the run counted no instructions", 'clock="icount"')
        return self.row.cost

    @property
    def copies(self) -> Copies:
        """How often CPUs copy each byte, as the report's table tells it: by probes, else by the anatomy's addresses.

        :raises UnavailableError: if neither looked, or a side could not be counted
        """
        found = ledgers.bytes_handled(self._summary).get(self.row.key)
        if found is not None:
            sender, receiver = found.copied
            if sender is None or receiver is None:
                side = "sender" if sender is None else "receiver"
                raise self._lacks("copies", f"nothing counted those of the {side}'s side")
            return Copies(sender=sender, receiver=receiver, counted_by="probes")
        one = self._dissected()
        if one is None or one.copies is None:
            raise self._lacks("copies", "nothing counted them", "trace=True, or anatomy=True in a guest that counts")
        return Copies(sender=one.copies.sender, receiver=one.copies.receiver, counted_by="addresses")

    @property
    def anatomy(self) -> Dissection:
        """A message of it, taken apart: `parts` by function, `layers`, `states`, `copies` by physical address.

        :raises UnavailableError: if the run took no messages of this setting apart
        """
        found = self._dissected()
        if found is None:
            raise self._lacks("anatomy", "no message of it was taken apart", 'anatomy=True, with clock="icount"')
        return found

    @property
    def samples(self) -> Floats:
        """Each message's time in `unit`, of what `measures` says: repeat after repeat, in the order of recording.

        :return: an array of its own, shape (messages of all repeats,)
        :raises StoreError: if samples are damaged
        """
        half = 0.5 if self.row.measures == "half round trip" else 1.0
        parts = [self.run.trial_samples(trial).ns * half for trial in self.row.trials]
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def tally(self) -> dict[str, int]:
        """What became of messages, all repeats together: delivered, lost, duplicated, reordered, corrupt, late, …"""
        return dict(self.row.tally)

    def _rate(self) -> Estimate:
        self._need_samples("rate")
        if self.row.messages_per_s is None:
            raise self._lacks("rate", self.row.withheld.get("messages/s", "too little was sent"))
        return self.row.messages_per_s

    def _need_samples(self, figure: str) -> None:
        if not self.row.digests:
            raise self._lacks(
                figure, f"none of its {self.row.failed} trials was measured", "the run's log.txt says why"
            )

    def _dissected(self) -> Dissection | None:
        labels = {trial["trial"]: trial["label"] for trial in self.run.rows}
        mine = {labels[trial] for trial in self.row.trials}
        return next((one for one in anatomy_of(self.run) if one.label in mine), None)

    def _lacks(self, figure: str, why: str, remedy: str = "") -> UnavailableError:
        return UnavailableError(f"{self.name} has no {figure}: {why}", remedy=remedy)


def find_row(rows: Sequence[Row], path: str, size: int | None, which: dict[str, object]) -> Row:
    """Return the one row of a path that is meant.

    :param size: in bytes; None: the only one that there is
    :param which: the pattern, the wait, or any field of the setting
    :raises UsageError: if there is none, or several; it names those that there are
    """
    if size is not None:
        which = {"size": size, **which}
    known = {*TELLING, "size", *(field for row in rows for field in row.setting)}
    if unknown := [field for field in which if field not in known]:
        raise UsageError(f"no row has a '{unknown[0]}'", remedy=f"choose of: {', '.join(sorted(known))}")
    of_path = [row for row in rows if row.path == path]
    found = [row for row in of_path if all(_value_of(row, field) == value for field, value in which.items())]
    if len(found) == 1:
        return found[0]
    asked = ", ".join([repr(path), *(f"{field}={value!r}" for field, value in which.items())])
    if not found:
        there = of_path or rows
        raise UsageError(f"the run has no {asked}", remedy=f"it has {_names(there)}")
    raise UsageError(f"{len(found)} rows of the run are {asked}", remedy=f"say which: {_differences(found)}")


def _value_of(row: Row, field: str) -> object:
    if field in ("size", *TELLING):
        return getattr(row, field)
    return row.swept.get(field, row.setting.get(field))


def _names(rows: Iterable[Row], most: int = 12) -> str:
    """What rows there are, as keys of the run."""
    names = list(dict.fromkeys(f"{row.path!r}, {row.size}, pattern={row.pattern!r}" for row in rows))
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _differences(rows: Sequence[Row]) -> str:
    """The fields in which rows differ, with the values that there are."""
    fields = dict.fromkeys(field for row in rows for field in ("size", *TELLING, *row.swept))
    values = {field: list(dict.fromkeys(_value_of(row, field) for row in rows)) for field in fields}
    apart = [(field, of) for field, of in values.items() if len(of) > 1]
    return "; ".join(f"{field}={' or '.join(map(repr, of))}" for field, of in apart)
