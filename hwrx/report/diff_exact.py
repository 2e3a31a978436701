"""Figures that repeat to the digit, held against each other: state by state, equal or different by so much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from hwrx.modes import EXACT_APART, State
from hwrx.report.model import Change, Row
from hwrx.stats import Estimate

MEDIAN = 0.5 + 1e-9  # of the messages: of two states with half of them each, the slower one is meant


def exact_changes(before: Sequence[Row], after: Sequence[Row], name: str) -> list[Change] | None:
    """The changes of a setting's exact states from some runs to others; None if its times do not repeat.

    A state's figure is the lowest common one of each run. If runs of one side disagree, figures of the other must lie
    beyond all of them to be different. How many messages are in a state is not compared, but one: where the second
    side's median lies in a state that is slower than all of the first side's, it is worse, held against the slowest.
    """
    if not all(row.states and all(state.exact for state in row.states) for row in (*before, *after)):
        return None
    sides = [_merged([state for row in rows for state in row.states]) for rows in (before, after)]
    pairs = _pairs(*sides)
    changes = []
    slowest = sides[0][-1]
    for place, (old, new) in enumerate(pairs):
        figure = "exact µs" if len(pairs) == 1 else f"state {place + 1} of {len(pairs)}, exact µs"
        if old is None and new is not None and _has_median(new, after) and new[0].value > slowest[-1].value:
            changes.append(_change(name, f"{figure} (on one side only; against the slowest state)", slowest, new))
        elif old is None or new is None:
            there = old or new
            assert there is not None
            changes.append(_change(name, f"{figure} (on one side only)", old, new))
        else:
            changes.append(_change(name, figure, old, new))
    return changes


def _change(name: str, figure: str, old: list[State] | None, new: list[State] | None) -> Change:
    values = [[state.value for state in side] if side else [math.nan] for side in (old, new)]
    before, after = (min(side) for side in values)
    ratio = after / before
    apart = max(values[0]) < min(values[1]) or max(values[1]) < min(values[0])
    return Change(
        row=name,
        figure=figure,
        before=before,
        after=after,
        ratio=Estimate(value=ratio, low=math.nan, high=math.nan, trials=min(map(len, values))),
        told_apart=apart or math.isnan(ratio),
        worse=apart and ratio > 1,
        exact=True,
    )


def _has_median(states: list[State], rows: Sequence[Row]) -> bool:
    """Whether the median of each row lies in one of the states. A state of few messages comes and goes by chance."""
    return all(_median_state(row.states) in states for row in rows)


def _median_state(states: Sequence[State]) -> State:
    """The first state, ascending, with which half of the messages are reached."""
    ascending = sorted(states, key=lambda state: state.value)
    reached = itertools.accumulate(state.share for state in ascending)
    return next((state for state, share in zip(ascending, reached, strict=True) if share >= MEDIAN), ascending[-1])


def _merged(states: list[State]) -> list[list[State]]:
    """The states of several runs, those that are one together, ascending."""
    groups: list[list[State]] = []
    for state in sorted(states, key=lambda state: state.value):
        if groups and state.value <= groups[-1][-1].value * (1 + EXACT_APART):
            groups[-1].append(state)
        else:
            groups.append([state])
    return groups


def _pairs(old: list[list[State]], new: list[list[State]]) -> list[tuple[list[State] | None, list[State] | None]]:
    """Which state of one side is which of the other: in order if there are as many, else the nearest ones."""
    if len(old) == len(new):
        return list(zip(old, new, strict=True))
    fewer, more = sorted((old, new), key=len)
    taken: dict[int, list[State]] = {}
    for group in fewer:
        free = [place for place in range(len(more)) if place not in taken]
        nearest = min(free, key=lambda place: abs(math.log(more[place][0].value / group[0].value)))
        taken[nearest] = group
    pairs: list[tuple[list[State] | None, list[State] | None]] = [
        (taken.get(place), group) for place, group in enumerate(more)
    ]
    return pairs if fewer is old else [(other, mine) for mine, other in pairs]
