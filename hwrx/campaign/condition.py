"""What makes a kernel a bad one: a figure of one setting, held against that of the good kernel, or against a number.

udp@64 p50 > 1.05                   more than 1.05 times the good kernel's median
tcp@1400 stream rate < 0.9          less than nine tenths of its messages a second
rdma-send@64 > 36000 instructions   more than that, whatever the good kernel has
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from msgspec import Struct

from hwrx.control.messages import Pattern, Setting
from hwrx.errors import HwrxError, UsageError
from hwrx.report.headline import FIGURES, Headline

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
UNITS = ("x", "instructions", "us", "µs", "messages/s")  # x: times the good kernel's, as if there is none
_WORDS = re.compile(
    r"(?P<path>[a-z][a-z-]*)(?:@(?P<size>\d{1,9}))?"
    rf"(?:\s+(?P<pattern>{'|'.join(get_args(Pattern))}))?(?:\s+(?P<figure>{'|'.join(FIGURES)}))?"
    rf"\s*(?P<sign>[<>]=?)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>{'|'.join(UNITS)})?"
)


class NoFigureError(HwrxError):
    """A run has no figure that the condition asks for, so that nothing can be said of its kernel."""


class Condition(Struct, frozen=True, kw_only=True):
    """A figure and what it is held against. None: any, if there is one only."""

    text: str
    path: str
    size: int | None
    pattern: str | None
    figure: str
    sign: str
    number: float
    unit: str

    @property
    def relative(self) -> bool:
        """Whether it needs the good kernel's figure."""
        return self.unit == "x"

    def need_measured(self, settings: Iterable[Setting]) -> None:
        """See that settings have a figure for it, before anything boots.

        :raises UsageError: if none of them has.
        """
        there = {f"{each.path}@{each.size} {each.pattern}": each for each in settings}
        if not any(self._is_about(each) for each in there.values()):
            raise UsageError(
                f"'{self.text}' is about none of the experiment's settings: {', '.join([*there][:6])}",
                remedy="another PATH@SIZE in --test, or that one in the experiment (--paths, --size)",
            )

    def _is_about(self, one: Setting | Headline) -> bool:
        return one.path == self.path and self.size in (None, one.size) and self.pattern in (None, one.pattern)

    def value(self, figures: Sequence[Headline]) -> Headline:
        """Return the figures of the setting that it is about, which have the one that it asks for.

        :raises UsageError: if several settings have one, or it is in another unit.
        :raises NoFigureError: if none has.
        """
        found = [each for each in figures if self._is_about(each)]
        if len(found) > 1:
            raise UsageError(
                f"'{self.text}' is about several settings: {', '.join(each.setting for each in found[:4])}",
                remedy="name size and pattern, as in 'udp@64 pingpong p50 > 1.05', or leave settings out (--size)",
            )
        if not found or math.isnan(found[0].figure(self.figure)):
            there = ", ".join(each.setting for each in figures[:6]) or "nothing was measured"
            raise NoFigureError(f"the run has no figure for '{self.text}' (it has: {there})")
        own = self._unit(found[0])
        if not self.relative and own.replace("µ", "u") != self.unit.replace("µ", "u"):
            raise UsageError(f"'{self.text}': the figure is in {own}, not in {self.unit}")
        return found[0]

    def _unit(self, of: Headline) -> str:
        if self.figure == "headline":
            return of.unit
        if self.figure == "rate":
            return "messages/s"
        return "instructions" if of.unit == "instructions" else "µs"

    def values(self, of: Headline, good: Headline | None) -> tuple[float, float]:
        """Return the figure that it asks for of a kernel and of the good one, as they may be compared.

        The table's figure is a state of messages that repeat to the digit, and else what a message costs, which is
        always more: if only those of one kernel repeat, both are costs.

        :param good: the good kernel's figures; None if they are not known, and NaN is returned for it.
        :raises UsageError: if only one of them was measured by a clock that counts instructions.
        :raises NoFigureError: if the two are not of one kind, and cannot be made so.
        """
        if good is None:
            return of.figure(self.figure), math.nan
        if (of.unit == "instructions") != (good.unit == "instructions") or self._unit(of) != self._unit(good):
            raise UsageError(
                f"'{self.text}': {of.setting} is in {of.unit}, and of the good kernel in {good.unit}",
                remedy='measure both by one clock: clock = "icount" counts instructions',
            )
        if self.figure == "headline" and of.exact != good.exact:
            # a number that a state of the good kernel's was held against says nothing of a cost
            of, good = (of.as_cost(), good.as_cost()) if self.relative or of.exact else (of, good)
            if of.exact != good.exact:
                raise NoFigureError(
                    f"'{self.text}': messages of {of.setting} repeat to the digit on one of two kernels alone",
                    remedy="name a figure that both have, as in 'udp@64 p50 > 1.05'",
                )
        return of.figure(self.figure), good.figure(self.figure)

    def is_bad(self, of: Headline, good: Headline | None = None) -> bool:
        """Whether a kernel with these figures is a bad one; `good` are the good kernel's. It raises as `values`."""
        value, reference = self.values(of, good)
        return OPERATORS[self.sign](value / reference if self.relative else value, self.number)


def parse_condition(text: str) -> Condition:
    """Read a condition.

    :raises UsageError: if it is not a valid one.
    """
    found = _WORDS.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--test: '{text}' is not a valid condition",
            remedy="PATH@SIZE [PATTERN] [FIGURE] > NUMBER [UNIT], as in 'udp@64 p50 > 1.05', with FIGURE one of "
            f"{', '.join(FIGURES)} and UNIT one of {', '.join(UNITS)}",
        )
    return Condition(
        text=text.strip(),
        path=found["path"],
        size=None if found["size"] is None else int(found["size"]),
        pattern=found["pattern"],
        figure=found["figure"] or "headline",
        sign=found["sign"],
        number=float(found["number"]),
        unit=found["unit"] or "x",
    )
