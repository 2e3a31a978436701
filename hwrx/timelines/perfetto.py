"""Timelines for Perfetto's viewer (ui.perfetto.dev opens them): one track a CPU and actor, an arrow along a message.

Written in the trace-event JSON that the viewer reads. A stage's slice begins at its stamp and ends at the next stage's;
it stands on the track of the CPU and actor that the stage ran on. Times are microseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hwrx import stages
from hwrx.errors import UsageError
from hwrx.host import strict_json
from hwrx.timelines.actors import ACTORS as OBSERVED
from hwrx.timelines.actors import actor_column
from hwrx.timelines.tables import stage_numbers

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

ACTORS = (*OBSERVED[1:], "kernel", "hard IRQ", "device", OBSERVED[0])
MOST = 200  # messages of one trial and direction; many more make the viewer slow


def export_timelines(run: Run, path: pathlib.Path, messages: int = MOST) -> int:
    """Write the run's timelines to `path`; return how many messages they are of. UsageError where it was not traced."""
    table = run.table("stages")
    if table is None or not table.num_rows:
        raise UsageError(f"run {run.path} has no timelines", remedy="run the experiment with --trace")
    number = stage_numbers(table)
    table = table.filter(number > 0)  # what the catalogue does not know it can neither name nor place
    values = {name: table[name].to_numpy() for name in ("trial", "sequence", "at_ns")} | {"stage": number[number > 0]}
    actor = actor_column(table)
    cpu = table["cpu"].to_numpy()  # float with NaN where the stamp is the user's
    direction = np.asarray(table["direction"].cast("string").to_pylist(), dtype=object)
    name = np.asarray(table["path"].cast("string").to_pylist(), dtype=object)
    # a message is a run of rows that begins with `posted`
    begins = np.flatnonzero(values["stage"] == stages.BY_NAME["posted"].number)
    ends = np.append(begins[1:], table.num_rows)
    taken: dict[tuple[int, str], int] = {}
    written = 0
    seen: set[tuple[int, str]] = set()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        first = True
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            group = (int(values["trial"][begin]), str(direction[begin]))
            if taken.setdefault(group, 0) >= messages:
                continue
            taken[group] += 1
            written += 1
            rows = slice(begin, end)
            about = {
                "path": str(name[begin]),
                "trial": group[0],
                "direction": group[1],
                "sequence": int(values["sequence"][begin]),
            }
            for event in _message(values["stage"][rows], actor[rows], values["at_ns"][rows], cpu[rows], about, written):
                seen.add((event["pid"], ACTORS[event["tid"]]))
                file.write(("" if first else ",\n") + strict_json.to_json(event))
                first = False
        for event in _names(seen):
            file.write(",\n" + strict_json.to_json(event))
        file.write("\n]}\n")
    return written


def _message(
    number: npt.NDArray[np.int64],
    actor: npt.NDArray[np.object_],
    at: npt.NDArray[np.int64],
    cpu: npt.NDArray[np.float64],
    about: dict[str, Any],
    flow: int,
) -> Iterator[dict[str, Any]]:
    """Yield the slices of one message, and the arrow through them."""
    # user space knows no CPU: its stamps stand where the kernel met the thread next, or last
    known = np.flatnonzero(~np.isnan(cpu.astype(float)))
    nearest = known[np.clip(np.searchsorted(known, np.arange(len(cpu))), 0, len(known) - 1)] if len(known) else None
    for place in range(len(number) - 1):
        stage = stages.STAGES[int(number[place]) - 1]
        on = 0 if nearest is None else int(cpu[nearest[place]])
        track = {"pid": on, "tid": ACTORS.index(actor[place])}
        start = int(at[place]) / 1000
        yield {
            "ph": "X",
            "name": stage.name,
            "cat": about["path"],
            "ts": start,
            "dur": max(int(at[place + 1]) - int(at[place]), 1) / 1000,
            "args": {**about, "sentence": stage.sentence},
            **track,
        }
        kind = "s" if place == 0 else "f" if place == len(number) - 2 else "t"
        yield {"ph": kind, "name": "message", "cat": "flow", "id": flow, "ts": start, "bp": "e", **track}


def _names(seen: set[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    for cpu in sorted({cpu for cpu, _ in seen}):
        yield {"ph": "M", "name": "process_name", "pid": cpu, "args": {"name": f"CPU {cpu}"}}
    for cpu, actor in sorted(seen):
        yield {"ph": "M", "name": "thread_name", "pid": cpu, "tid": ACTORS.index(actor), "args": {"name": actor}}
