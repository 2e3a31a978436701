"""A run as a notebook shows it: the answer, its tables and warnings, as a piece of HTML without scripts.

It has no colours of its own: ink and lines are the notebook's, light or dark.
"""

from __future__ import annotations

from hwrx.report import answer
from hwrx.report.cells import Table
from hwrx.report.model import Summary
from hwrx.report.page import render_template
from hwrx.report.pattern_tables import pattern_tables

PATTERNS = {"latency": "pingpong", "throughput": "stream", "load": "paced"}  # a pattern's table of the report


def render_cell(summary: Summary) -> str:
    """Return what a notebook shows in the place of a run: for each pattern its answer, else its table.

    All words are escaped: a run may be somebody else's.
    """
    found = answer.answers_of(summary)
    shown: list[Table] = [answer.as_table(summary, each) for each in found]
    # as in a terminal: of counted instructions the answer has all
    told = {each.pattern for each in found if each.counted}
    shown += [table for table in pattern_tables(summary) if PATTERNS[table.name] not in told]
    notes = [note for each in found for note in each.notes]
    return render_template(
        "notebook.html",
        answer="; ".join(each.nothing for each in found if each.nothing) if found else summary.answer,
        tables=shown,
        notes=notes,
        warnings=summary.warnings,
        skipped=[] if found else summary.skipped,
        names=", ".join(run.path.name for run in summary.runs),
    )
