"""The tables that a traced run keeps: their columns, and the rows that a twin brings."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hwrx import stages
from hwrx.control.messages import Traced
from hwrx.runs import streams
from hwrx.runs.trials import Trial
from hwrx.timelines import copies
from hwrx.timelines.actors import ACTORS
from hwrx.timelines.join import Timelines

OffOn = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

TEXT = pa.dictionary(pa.int8(), pa.string())
STAGES = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("path", TEXT, nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pattern", TEXT, nullable=False),
        pa.field("direction", TEXT, nullable=False),  # there: client to server; back
        pa.field("sequence", pa.uint32(), nullable=False),
        pa.field("name", pa.dictionary(pa.int16(), pa.string()), nullable=False),  # of the stage: what it is known by
        pa.field("at_ns", pa.int64(), nullable=False),  # CLOCK_MONOTONIC
        pa.field("ns", pa.int64(), nullable=False),  # since the stage before; adds up to the one-way time
        pa.field("actor", TEXT, nullable=False),  # who worked there, as the stamp found it
        pa.field("cpu", pa.int16()),  # null: the user's stamp
        pa.field("tid", pa.uint32()),
        pa.field("bytes", pa.uint32()),
    ]
)
COPIES = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("path", TEXT, nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pattern", TEXT, nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("side", TEXT, nullable=False),
        pa.field("actor", TEXT, nullable=False),
        pa.field("kind", TEXT, nullable=False),
        pa.field("times", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("per_byte", pa.float64(), nullable=False),
        pa.field("words", pa.string(), nullable=False),
    ]
)
TRACING = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("path", TEXT, nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pattern", TEXT, nullable=False),
        pa.field("direction", TEXT, nullable=False),
        pa.field("messages", pa.int32(), nullable=False),  # that were sampled
        pa.field("complete", pa.int32(), nullable=False),
        pa.field("missing", pa.string(), nullable=False),  # JSON: first missing stage to messages
        pa.field("disordered", pa.string(), nullable=False),
        pa.field("lost", pa.int64(), nullable=False),  # events, for want of room in the ring
        pa.field("missed", pa.string(), nullable=False),  # JSON: program to calls for which it was not run
        pa.field("delivered_bytes", pa.int64(), nullable=False),
        pa.field("sender_copies", pa.float64()),  # per byte delivered; null: nothing counted it
        pa.field("receiver_copies", pa.float64()),
        pa.field("sender_passes", pa.float64()),  # likewise: read over for a checksum or CRC
        pa.field("receiver_passes", pa.float64()),
        # a message, with tracing off and on: of a stream the time from one to the next
        pa.field("mean_off_ns", pa.float64()),
        pa.field("mean_on_ns", pa.float64()),
        pa.field("p50_off_ns", pa.float64()),  # not of a stream, whose messages come many at a time
        pa.field("p50_on_ns", pa.float64()),
        pa.field("p99_off_ns", pa.float64()),
        pa.field("p99_on_ns", pa.float64()),
    ]
)


def stage_rows(trial: Trial, direction: str, timelines: Timelines) -> pa.Table:
    """Return the stamps of complete messages, one row each, in the order of messages and stages."""
    intervals, present = timelines.intervals()
    stamps = timelines.stamps[timelines.complete]
    chosen = timelines.chosen[timelines.complete][present]
    row, column = np.nonzero(present)
    kernel = chosen >= 0
    events = timelines.events[np.where(kernel, chosen, 0)] if len(timelines.events) else None
    names = [stage.name for stage in timelines.stages]
    count = len(row)

    def of(field: str, kind: pa.DataType) -> pa.Array:
        if events is None:
            return pa.nulls(count, kind)
        return pa.array(events[field].astype(np.int64), mask=~kernel).cast(kind)

    setting = trial.setting
    return pa.table(
        [
            pa.array(np.full(count, trial.number, dtype=np.int32)),
            _same(setting.path, count),
            pa.array(np.full(count, setting.size, dtype=np.int32)),
            _same(setting.pattern, count),
            _same(direction, count),
            pa.array(timelines.sequence[timelines.complete][row].astype(np.uint32)),
            pa.DictionaryArray.from_arrays(pa.array(column.astype(np.int16)), pa.array(names)),
            pa.array(stamps[present]),
            pa.array(intervals[present]),
            _actors(timelines, chosen, column),
            of("cpu", pa.int16()),
            of("tid", pa.uint32()),
            of("bytes", pa.uint32()),
        ],
        schema=STAGES,
    )


def stage_numbers(table: pa.Table) -> npt.NDArray[np.int16]:
    """Return the place in today's catalogue of each row of a run's `stages`; 0 if the catalogue has no such name.

    A run knows stages by name alone: their places move when the catalogue grows.
    """
    names = table["name"].unify_dictionaries().combine_chunks()
    if isinstance(names, pa.ChunkedArray):  # of a table without rows
        return np.empty(0, np.int16)
    places = {stage.name: stage.number for stage in stages.STAGES}
    today = np.array([places.get(name, 0) for name in names.dictionary.to_pylist()], dtype=np.int16)
    return np.asarray(today[names.indices.to_numpy()], dtype=np.int16)


def _actors(timelines: Timelines, chosen: npt.NDArray[np.int64], column: npt.NDArray[np.intp]) -> pa.DictionaryArray:
    """Return who worked at each stamp. `chosen`: which event each is from, below 0 none; `column`: its stage."""
    words = list(dict.fromkeys((*ACTORS, *(stage.actor for stage in timelines.stages))))
    own = np.array([words.index(stage.actor) for stage in timelines.stages], dtype=np.int8)[column]
    if len(timelines.events):
        observed = timelines.events["context"][np.maximum(chosen, 0)].astype(np.int8)
        own = np.where(chosen >= 0, observed, own)
    return pa.DictionaryArray.from_arrays(pa.array(own), pa.array(words))


def copy_rows(trial: Trial, ledger: copies.Ledger) -> pa.Table:
    """Return the rows of a copy ledger."""
    setting = trial.setting
    rows = [
        {
            "trial": trial.number,
            "path": setting.path,
            "size": setting.size,
            "pattern": setting.pattern,
            "stage": row.stage,
            "side": row.side,
            "actor": row.actor,
            "kind": row.kind,
            "times": row.times,
            "bytes": row.bytes,
            "per_byte": row.per_byte,
            "words": row.words,
        }
        for row in ledger.rows
    ]
    return pa.Table.from_pylist(rows, schema=COPIES)


def tracing_row(
    trial: Trial, direction: str, timelines: Timelines, traced: Traced, ledger: copies.Ledger, pair: OffOn
) -> pa.Table:
    """Return the one row of a traced trial's direction. `pair`: the nanoseconds with tracing off and on."""
    setting = trial.setting
    off, on = pair
    stream = setting.pattern == "stream"
    return pa.Table.from_pylist(
        [
            {
                "trial": trial.number,
                "path": setting.path,
                "size": setting.size,
                "pattern": setting.pattern,
                "direction": direction,
                "messages": len(timelines.complete),
                "complete": int(timelines.complete.sum()),
                "missing": json.dumps(timelines.missing),
                "disordered": json.dumps(timelines.disordered),
                "lost": traced.lost,
                "missed": json.dumps(traced.missed),
                "delivered_bytes": ledger.delivered,
                "sender_copies": None if np.isnan(ledger.sender) else ledger.sender,
                "receiver_copies": None if np.isnan(ledger.receiver) else ledger.receiver,
                "sender_passes": None if np.isnan(ledger.sender_passes) else ledger.sender_passes,
                "receiver_passes": None if np.isnan(ledger.receiver_passes) else ledger.receiver_passes,
                "mean_off_ns": _mean(off, stream),
                "mean_on_ns": _mean(on, stream),
                "p50_off_ns": None if stream else _quantile(off, 0.5),
                "p50_on_ns": None if stream else _quantile(on, 0.5),
                "p99_off_ns": None if stream else _quantile(off, 0.99),
                "p99_on_ns": None if stream else _quantile(on, 0.99),
            }
        ],
        schema=TRACING,
    )


def _mean(ns: npt.NDArray[np.int64], stream: bool) -> float | None:
    """Return the mean time a message: of a stream by its rate over whole receiving calls. None if there is none."""
    if not stream:
        return float(ns.mean()) if len(ns) else None
    rate = streams.steady_rate(np.cumsum(ns), least_ns=0)
    return 1e9 / rate.value if isinstance(rate, streams.Rate) else None


def _quantile(ns: npt.NDArray[np.int64], p: float) -> float | None:
    """Return a quantile, None with fewer than ten samples beyond it."""
    return float(np.quantile(ns, p)) if len(ns) * (1 - p) >= 10 else None


def _same(word: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int8)), pa.array([word]))
