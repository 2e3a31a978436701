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

    def value(self, figures: Sequence[Headline]) -> float:
        """Return the figure that it asks for.

        :raises UsageError: if several settings have one.
        :raises NoFigureError: if none has.
        """
        found = [each for each in figures if self._is_about(each)]
        if len(found) > 1:
            raise UsageError(
                f"'{self.text}' is about several settings: {', '.join(each.setting for each in found[:4])}",
                remedy="name size and pattern, as in 'udp@64 pingpong p50 > 1.05', or leave settings out (--size)",
            )
        value = found[0].figure(self.figure) if found else math.nan
        if math.isnan(value):
            there = ", ".join(each.setting for each in figures[:6]) or "nothing was measured"
            raise NoFigureError(f"the run has no figure for '{self.text}' (it has: {there})")
        if not self.relative and found[0].unit.replace("µ", "u") != self.unit.replace("µ", "u"):
            own = "messages/s" if self.figure == "rate" else found[0].unit
            if own.replace("µ", "u") != self.unit.replace("µ", "u"):
                raise UsageError(f"'{self.text}': the figure is in {own}, not in {self.unit}")
        return value

    def is_bad(self, value: float, reference: float = math.nan) -> bool:
        """Whether a kernel with this figure is a bad one; `reference` is the good kernel's."""
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
