"""Timelines for Perfetto's viewer (ui.perfetto.dev opens them): one track a CPU and actor, an arrow along a message.

Written in the trace-event JSON that the viewer reads. A stage's slice begins at its stamp and ends at the next stage's;
it stands on the track of the CPU and actor that the stage ran on. Times are microseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import itertools
import pathlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import stages
from hwrx.errors import UsageError
from hwrx.host import strict_json
from hwrx.timelines.actors import ACTORS as OBSERVED
from hwrx.timelines.actors import actor_column
from hwrx.timelines.exact import Exact
from hwrx.timelines.tables import stage_numbers

if TYPE_CHECKING:
    import pyarrow as pa

    from hwrx.runs.reading import Run

ACTORS = (*OBSERVED[1:], "kernel", "hard IRQ", "device", OBSERVED[0])
MOST = 200  # messages of one trial and direction; many more make the viewer slow


class Timeline(Struct, frozen=True):
    """A message: for each stage its number, who worked, nanoseconds (or instructions), and the CPU (NaN: not known)."""

    about: dict[str, Any]
    number: npt.NDArray[np.int64]
    actor: npt.NDArray[np.object_]
    at: npt.NDArray[np.int64]
    cpu: npt.NDArray[np.float64]


def export_timelines(run: Run, path: pathlib.Path, messages: int = MOST, exact: Sequence[Exact] = ()) -> int:
    """Write the run's timelines to `path`; return how many messages they are of. Each slice says what it stands on.

    :param messages: of a trial and direction, at most
    :param exact: what stands in the place of the messages that probes stamped in trials of the same setting
    :raises UsageError: if the run was not traced, and there is nothing exact.
    """
    table = run.table("stages")
    if (table is None or not table.num_rows) and not exact:
        raise UsageError(f"run {run.path} has no timelines", remedy="run the experiment with --trace or --anatomy")
    labels = {each.label for each in exact}
    told = {row["trial"] for row in run.rows if row["label"] in labels} if exact else set()
    probed = _probed(table, told, messages) if table is not None and table.num_rows else iter(())
    written = 0
    seen: set[tuple[int, str]] = set()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        for written, timeline in enumerate(itertools.chain(_exactly(exact), probed), 1):
            for place, event in enumerate(_message(timeline, written)):
                seen.add((event["pid"], ACTORS[event["tid"]]))
                file.write(("" if written == 1 and not place else ",\n") + strict_json.to_json(event))
        for event in _names(seen):
            file.write(",\n" + strict_json.to_json(event))
        file.write("\n]}\n")
    return written


def _exactly(exact: Sequence[Exact]) -> Iterator[Timeline]:
    """Yield these messages one behind the other; they ran on the one CPU of a guest that counts instructions."""
    start = 0
    for each in exact:
        names, actors, at = zip(*each.stamps, strict=True)
        yield Timeline(
            {"path": each.path, "setting": each.label, "direction": each.direction, "stands on": "the anatomy"},
            np.array([stages.BY_NAME[name].number for name in names]),
            np.array(actors, dtype=object),
            start + np.array(at),
            np.zeros(len(at)),
        )
        start += at[-1]


def _probed(table: pa.Table, told: Collection[int], messages: int) -> Iterator[Timeline]:
    """Yield the messages that probes have stamped, but for those of trials that are told already."""
    number = stage_numbers(table)
    table = table.filter(number > 0)  # what the catalogue does not know it can neither name nor place
    number = number[number > 0]
    trial, sequence, at = (table[name].to_numpy() for name in ("trial", "sequence", "at_ns"))
    actor = actor_column(table)
    cpu = table["cpu"].to_numpy()  # float with NaN where the stamp is the user's
    direction = np.asarray(table["direction"].cast("string").to_pylist(), dtype=object)
    name = np.asarray(table["path"].cast("string").to_pylist(), dtype=object)
    # a message is a run of rows that begins with `posted`
    begins = np.flatnonzero(number == stages.BY_NAME["posted"].number)
    ends = np.append(begins[1:], table.num_rows)
    taken: Counter[tuple[int, str]] = Counter()
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        group = (int(trial[begin]), str(direction[begin]))
        if group[0] in told or taken[group] >= messages:
            continue
        taken[group] += 1
        rows = slice(begin, end)
        about = {"path": str(name[begin]), "trial": group[0], "direction": group[1]}
        about |= {"sequence": int(sequence[begin]), "stands on": "probes"}
        yield Timeline(about, number[rows].astype(np.int64), actor[rows], at[rows], cpu[rows])


def _message(timeline: Timeline, flow: int) -> Iterator[dict[str, Any]]:
    """Yield the slices of one message, and the arrow through them."""
    number, cpu, at, about = timeline.number, timeline.cpu, timeline.at, timeline.about
    # user space knows no CPU: its stamps stand where the kernel met the thread next, or last
    known = np.flatnonzero(~np.isnan(cpu.astype(float)))
    nearest = known[np.clip(np.searchsorted(known, np.arange(len(cpu))), 0, len(known) - 1)] if len(known) else None
    for place in range(len(number) - 1):
        stage = stages.STAGES[int(number[place]) - 1]
        on = 0 if nearest is None else int(cpu[nearest[place]])
        track = {"pid": on, "tid": ACTORS.index(timeline.actor[place])}
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
