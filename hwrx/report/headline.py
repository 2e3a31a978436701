"""One figure for each setting of a run: what a table over many runs has room for.

Of messages that repeat to the digit it is the lowest state that is common: guest instructions, the same in every run on
one kernel. If the processor stood still in them, as it does while a NIC holds an interrupt back, that would be in the
figure; then, and if they do not repeat, it is what a message costs, which a run knows to a percent. By the wall clock
it is what the run's own table stands on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs

from hwrx.report.model import Row
from hwrx.report.numbers import size_words

if TYPE_CHECKING:
    from hwrx.report.model import Summary

Unit = Literal["instructions", "µs", "messages/s"]
FIGURES = ("headline", "p50", "p90", "p99", "cost", "rate")  # that a test may ask for


class Headline(Struct, frozen=True, kw_only=True):
    """A setting's figure. `exact`: it repeats to the digit. `more`: its other figures, by name.

    `load`: the share of what its path can do, if the experiment asks for shares: the rates are then each run's own.
    `label`: what the run calls its trials, and their messages if they are taken apart.
    Times in `more` (p50, p90, p99, cost) are in instructions if `unit` is, else in µs; `rate` is messages a second.
    """

    path: str
    size: int  # bytes
    pattern: str
    wait: str
    load: float | None = None
    swept: dict[str, Any]
    unit: Unit
    value: float
    exact: bool
    more: dict[str, float] = {}
    label: str = ""

    @property
    def setting(self) -> str:
        """What the figure is of, in words."""
        return " ".join([self.path, size_words(self.size), self.pattern, self.wait, *self.varied])

    @property
    def varied(self) -> list[str]:
        """What tells it from others of its path, size, pattern and wait, in words."""
        load = [] if self.load is None else [f"load={self.load:g}"]
        return [*load, *(f"{key}={value}" for key, value in self.swept.items())]

    def figure(self, name: str) -> float:
        """Return one of FIGURES, NaN if the run has no such figure of this setting."""
        return self.value if name == "headline" else self.more.get(name, math.nan)

    def as_cost(self) -> Headline:
        """Return it as what a message costs, to stand beside figures that do not repeat; as it is if it has no cost."""
        if self.unit != "instructions" or not self.exact or "cost" not in self.more:
            return self
        return structs.replace(self, value=self.more["cost"], exact=False)

    @property
    def more_is_better(self) -> bool:
        """Whether a larger figure is the better one."""
        return self.unit == "messages/s"


def headlines_of(summary: Summary) -> list[Headline]:
    """Return a figure for each row of a summary that has one, in its order."""
    return [found for row in summary.rows if (found := headline_of(row)) is not None]


def headline_of(row: Row) -> Headline | None:
    """Return the figure of a row, None if it has none."""
    scale = 1000.0 if row.counted else 1.0  # an instruction is a nanosecond of the guest's clock
    more = {
        name: round(scale * of.value, 6) for name, of in row.quantiles.items() if of is not None and name in FIGURES
    }
    if row.cost is not None and "cost" not in row.withheld:
        more["cost"] = row.cost.value  # in instructions as it is
    if row.messages_per_s is not None:
        more["rate"] = row.messages_per_s.value
    unit: Unit = "instructions" if row.counted else "µs"
    lowest = round(scale * min((state.value for state in row.states), default=math.nan), 6)
    # what a message costs holds the interruptions of all; a state that takes longer than that has waited
    exact = bool(row.states) and all(state.exact for state in row.states) and not lowest > more.get("cost", math.inf)
    if exact:
        value = lowest
    elif row.pattern == "stream" and not row.counted:
        unit, value = "messages/s", more.get("rate", math.nan)
    else:
        value = more.get("cost", more.get("p50", math.nan)) if row.counted else more.get("p50", math.nan)
    if math.isnan(value):
        return None
    return Headline(
        path=row.path, size=row.size, pattern=row.pattern, wait=row.wait, load=row.load, swept=row.swept,
        unit=unit, value=value, exact=exact, more=more, label=row.trial_label,
    )  # fmt: skip
