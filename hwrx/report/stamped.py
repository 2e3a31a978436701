"""Stages by the anatomy where a run has it, by the kernel's probes elsewhere; each journey says which.

The anatomy has one message of the commonest state, to the instruction, where nobody looks; probes have many messages,
and make each take longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hwrx import stages
from hwrx.anatomy import model
from hwrx.anatomy.model import Dissection, Stamp
from hwrx.errors import StoreError
from hwrx.report.journeys import Journey, Step, journeys_of
from hwrx.report.model import Row, Summary
from hwrx.timelines.perfetto import Exact

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


def anatomy_of(run: Run) -> list[Dissection]:
    """Return the messages that were taken apart; none if none were, or what was kept cannot be used."""
    if not (run.path / model.DOCUMENT).exists():
        return []
    try:
        return model.from_document(run.document(model.DOCUMENT))
    except StoreError:
        return []


def stage_journeys(summary: Summary) -> list[Journey]:
    """Return a journey for each row and direction that has one, in the order of the rows: see `Journey.source`."""
    probed: dict[tuple[object, ...], list[Journey]] = {}
    for journey in journeys_of(summary):
        probed.setdefault((journey.row.run, journey.row.key), []).append(journey)
    found = []
    for run in summary.runs:
        dissected = {one.label: one for one in anatomy_of(run)}
        labels = {row["trial"]: row["label"] for row in run.rows}
        for row in summary.of_run(run.path.name):
            one = dissected.get(labels[row.trials[0]]) if row.trials else None
            by_stamps = _journeys(run, row, one) if one is not None else []
            found += by_stamps or probed.get((row.run, row.key), [])
    return found


def sources_in_words(journeys: Sequence[Journey]) -> str:
    """Say what the stages of these journeys stand on."""
    if all(journey.source == "anatomy" for journey in journeys):
        return "Stages are the anatomy's: one message of the commonest state, to the instruction, where nobody looks."
    if all(journey.source == "probes" for journey in journeys):
        return "Stages are those that the kernel's probes stamped."
    exact = dict.fromkeys(journey.row.path for journey in journeys if journey.source == "anatomy")
    return f"Stages of {', '.join(exact)} are the anatomy's, to the instruction; of the others the kernel's probes'."


def _journeys(run: Run, row: Row, one: Dissection) -> list[Journey]:
    directions = dict.fromkeys(stamp.direction for stamp in one.stamps)
    made = {way: [_step(stamp) for stamp in one.stamps if stamp.direction == way] for way in directions}
    return [
        Journey(run=run, row=row, direction=way, messages=1, steps=steps, source="anatomy")
        for way, steps in made.items()
        if len(steps) > 2  # more than posted and delivered
    ]


def _step(stamp: Stamp) -> Step:
    stage = stages.BY_NAME[stamp.stage]
    actor = stamp.actor or stage.actor
    return Step(stage, actor, actor, 1, float(stamp.since), float(stamp.since), float("nan"))


def exact_messages(run: Run) -> list[Exact]:
    """Return a run's messages that were taken apart as timelines for other programs."""
    return [exact for one in anatomy_of(run) for exact in exact_of(one)]


def exact_of(one: Dissection) -> list[Exact]:
    """Return the two directions of a message, each by itself; those that have stages between posted and delivered."""
    found = []
    for direction in dict.fromkeys(stamp.direction for stamp in one.stamps):
        mine = [stamp for stamp in one.stamps if stamp.direction == direction]
        if len(mine) > 2:
            stamps = [(each.stage, each.actor or stages.BY_NAME[each.stage].actor, each.at) for each in mine]
            found.append(Exact(one.path, one.label, direction, stamps))
    return found
