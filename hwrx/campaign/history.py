"""A history of runs as data: what `hwrx.campaign.tracking` makes, and a page and a table show."""

from __future__ import annotations

from msgspec import Struct

from hwrx.report.moved import Moved


class Point(Struct, frozen=True, kw_only=True):
    """A run's figure. `hwrx`: the commit that measured it, if the run says so."""

    run: str
    started: str
    kernel: str
    hwrx: str
    value: float


class Change(Struct, frozen=True, kw_only=True):
    """A change point: the run after it, and the figure before and after. `chance`: None of one to the digit."""

    run: str
    place: int  # of its point
    before: float
    after: float
    ratio: float
    worse: bool
    chance: float | None = None
    functions: list[Moved] = []


class History(Struct, frozen=True, kw_only=True):
    """One setting's figure over runs, oldest first. `not_judged`: why nothing is said of its changes.

    Behind the name of `setting` stand fields with their values if other histories differ from it in those alone.
    """

    experiment: str
    setting: str
    machine: str
    kernel: str  # "": several
    topology: str
    clock: str
    unit: str
    exact: bool
    points: list[Point]
    changes: list[Change]
    not_judged: str = ""


class Track(Struct, frozen=True, kw_only=True):
    """All histories. `left_out`: directories that hold no run that can be read, and why."""

    histories: list[History]
    left_out: list[str]
