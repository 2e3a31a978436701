"""Of traced runs: every message's stages, as rows of the report.

Reads the table `stages` of run directories. What was traced stands under the row of the report whose trial it is the
twin of, each direction by itself: so nothing is taken together that was measured under another setting, nor the way to
a crowded server with the way back. Means add up to the mean one-way time, by construction; medians need not.

If a run's messages were taken apart, their stages stand on that instead (`stage_journeys`): one message of the
commonest state, to the instruction, where nobody looks; probes have many messages, and make each take longer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import paths, stages
from hwrx.anatomy import model
from hwrx.anatomy.model import Dissection, Stamp
from hwrx.errors import StoreError
from hwrx.report.model import Row, Summary
from hwrx.stats import BEYOND
from hwrx.timelines.actors import actor_column, shares_in_words
from hwrx.timelines.exact import Exact
from hwrx.timelines.tables import stage_numbers

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


class Step(Struct, frozen=True):
    """One stage of a journey: nanoseconds since the stage before."""

    stage: stages.Stage
    actor: str  # who worked there, as observed; the most frequent
    actors: str  # all of them in words, with shares if there are several
    count: int
    mean: float  # over all messages, also those that skipped the stage
    p50: float  # over those that passed it
    p99: float  # NaN with fewer than ten samples beyond it


class Journey(Struct, frozen=True, kw_only=True):
    """All stages of a row's messages in one direction. `messages`: timelines that were complete."""

    run: Any
    row: Row
    direction: str  # there: from client to server; back
    messages: int
    steps: list[Step]
    source: Literal["anatomy", "probes"] = "probes"  # what the stages stand on: see `stage_journeys`

    @property
    def whole(self) -> float:
        """The mean one-way time, nanoseconds."""
        return sum(step.mean for step in self.steps)

    @property
    def unit(self) -> tuple[str, float]:
        """Unit and factor: of a guest that counts instructions, a nanosecond is one."""
        return ("instructions", 1.0) if self.run.manifest.get("clock") == "icount" else ("µs", 1e-3)

    def step(self, name: str) -> Step | None:
        """The step that ends at a stage; None where no message passed it."""
        return next((step for step in self.steps if step.stage.name == name), None)


def journeys_of(summary: Summary) -> list[Journey]:
    """Return every traced row's journey, in the order of the rows, the way there before the way back."""
    found = []
    for run in summary.runs:
        by_trial = _intervals(run)
        if not by_trial:
            continue
        for row in summary.of_run(run.path.name):
            for direction in ("there", "back"):
                parts = [by_trial[trial, direction] for trial in row.trials if (trial, direction) in by_trial]
                if parts:
                    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
                    found.append(_journey(run, row, direction, *columns))
    return found


Intervals = tuple[npt.NDArray[np.int16], npt.NDArray[np.int64], npt.NDArray[Any]]
# what a run of another version stamped, whose catalogue had stages that today's has not
UNKNOWN = stages.Stage(
    "(not in the catalogue)", "a stage of another version of hwrx", "receiver", "kernel", frozenset()
)


@functools.lru_cache(maxsize=4)
def _intervals(run: Run) -> dict[tuple[int, str], Intervals]:
    """By trial and direction: stages' numbers, beside each the nanoseconds since the one before, and who worked."""
    table = run.table("stages")
    if table is None or not table.num_rows:
        return {}
    trial = table["trial"].to_numpy()
    direction = np.asarray(table["direction"].cast("string").to_pylist(), dtype=object)
    number, ns, actor = stage_numbers(table), table["ns"].to_numpy(), actor_column(table)
    found = {}
    for which in np.unique(trial):
        of_trial = trial == which
        for way in ("there", "back"):
            mine = of_trial & (direction == way)
            if mine.any():
                found[int(which), way] = (number[mine], ns[mine], actor[mine])
    return found


def _journey(
    run: Run,
    row: Row,
    direction: str,
    number: npt.NDArray[np.int16],
    ns: npt.NDArray[np.int64],
    actor: npt.NDArray[Any],
) -> Journey:
    messages = int((number == stages.BY_NAME["posted"].number).sum())
    steps = []
    for stage in (*paths.stage_chain(row.path), UNKNOWN):
        values = ns[number == stage.number]
        if len(values):
            tail = float(np.quantile(values, 0.99)) if len(values) * 0.01 >= BEYOND else float("nan")
            names, counts = np.unique(actor[number == stage.number], return_counts=True)
            most = str(names[np.argmax(counts)])
            words = shares_in_words(dict(zip(map(str, names), counts.tolist(), strict=True)))
            mean = float(values.sum()) / messages
            steps.append(Step(stage, most, words, len(values), mean, float(np.median(values)), tail))
    return Journey(run=run, row=row, direction=direction, messages=messages, steps=steps)


# --- by the anatomy where a run has it ------------------------------------------------------------------------------


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
