"""How many repeats are enough: until the intervals are as narrow as the experiment asks, or its budget ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hwrx.report.summary import summarise_runs
from hwrx.runs import planning, reading
from hwrx.runs.trials import Trial

if TYPE_CHECKING:
    from hwrx.runs.store import Writer


def repeat_blocks(layout: planning.Plan, writer: Writer) -> Iterator[list[Trial]]:
    """Yield one more repeat of every setting at a time, while the experiment's `until` asks for it.

    To be asked again when the trials that were yielded are written. It ends with the first repeat (the third or a later
    one) after which every row's interval is narrow enough, at the most repeats, or before a repeat that would not fit
    into the budget; what did not converge is logged. Stopping at the first narrow interval favours those that are
    narrow by chance; stats.SEQUENTIAL makes up for it.
    """
    until = layout.experiment.until
    if until is None:
        return
    began = time.monotonic()
    repeats = max([layout.experiment.repeats, *(line["repeat"] + 1 for line in writer.lines())])
    slowest = 0.0
    while wide := unconverged_rows(writer):
        if repeats >= until.repeats:
            writer.log(f"did not converge in {repeats} repeats: {', '.join(wide)}")
            return
        budget = layout.experiment.budget
        if budget is not None and writer.elapsed_seconds() + slowest > budget:
            writer.log(f"did not converge within {budget:g} s: {', '.join(wide)}")
            return
        repeats += 1
        longer = planning.repeat_plan(layout, repeats).trials
        writer.expect(len(longer))
        start = time.monotonic()
        yield [trial for trial in longer if trial.repeat == repeats - 1]
        slowest = max(slowest, time.monotonic() - start)
    writer.log(f"converged after {repeats} repeats, {time.monotonic() - began:.0f} s beyond the first ones")


def unconverged_rows(writer: Writer) -> list[str]:
    """Name the rows of a run in progress whose interval is too wide. Failed rows cannot converge and do not count."""
    summary = summarise_runs([reading.load_run(writer.path)])
    return [f"{row.label} {row.size} B {row.pattern}" for row in summary.rows if row.converged is False]
