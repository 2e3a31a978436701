"""The run directory of floods, and how a flood crosses from a guest to its host."""

from __future__ import annotations

import base64
import io
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct

from hwrx import paths
from hwrx.errors import StoreError
from hwrx.flood import words
from hwrx.flood.model import Flood, Spec
from hwrx.flood.scene import Made, setting_of
from hwrx.probes import account
from hwrx.runs import reading, store
from hwrx.runs.experiment import Experiment
from hwrx.runs.planning import Plan
from hwrx.runs.trials import Trial

FILE = "floods.json"


class Crossing(Struct):
    """A flood and its messages' times (compressed arrays, base64), as one line of JSON."""

    flood: Flood
    times: str


class Kept(Struct):
    """What FILE holds."""

    floods: list[Flood]


def pack_flood(flood: Flood, sent: account.Int64s, taken: account.Int64s) -> bytes:
    """Return the line that `unpack` reads."""
    buffer = io.BytesIO()
    # differences of neighbours are small numbers, and those compress
    np.savez_compressed(buffer, sent=np.diff(sent, prepend=0), taken=np.diff(taken, prepend=0))
    return msgspec.json.encode(Crossing(flood, base64.b64encode(buffer.getvalue()).decode()))


def unpack_flood(line: bytes) -> Made:
    """Return the flood and when its messages were sent and taken."""
    crossing = msgspec.json.decode(line, type=Crossing)
    with np.load(io.BytesIO(base64.b64decode(crossing.times))) as arrays:
        return Made(crossing.flood, np.cumsum(arrays["sent"]), np.cumsum(arrays["taken"]))


def create_run(root: pathlib.Path, specs: Sequence[Spec], manifest: Mapping[str, Any]) -> store.Writer:
    """Make the run directory of floods that are to come."""
    first = specs[0]
    experiment = Experiment(
        name="flood",
        question="What happens when more arrives than is taken?",
        topology=first.topology or paths.default_topology(first.path),
        paths=(first.path,),
        sizes=(first.size,),
        patterns=("stream",),
        repeats=1,
        setting={"messages": first.wants},
    )
    trials = [
        Trial(number=number, repeat=0, setting=setting_of(spec), label=words.label_of(spec))
        for number, spec in enumerate(specs)
    ]
    plan = Plan(experiment=experiment, settings=[trial.setting for trial in trials], trials=trials, skipped=[])
    return store.Writer.create(root, plan, {**manifest, "kind": "flood", "command": sys.argv})


def add_flood(writer: store.Writer, number: int, flood: Flood, sent: account.Int64s, taken: account.Int64s) -> None:
    """Record one flood: each message's times, and what was found of it."""
    sequence = np.arange(len(sent))
    writer.add_table(
        "arrivals",
        pa.table({
            "flood": pa.array(np.full(len(sent), number), pa.int32()),
            "sequence": pa.array(sequence, pa.uint32()),
            "socket": pa.array(account.socket_of(sequence, flood.spec.together, flood.spec.sockets), pa.int16()),
            "sent_ns": pa.array(sent, pa.int64()),
            "taken_ns": pa.array(taken, pa.int64(), mask=taken == 0),
        }),
    )  # fmt: skip
    writer.add_table("timeline", _timeline(number, flood))
    trial = Trial(number=number, repeat=0, setting=setting_of(flood.spec), label=words.label_of(flood.spec))
    tally = {"posted": flood.sent, "delivered": flood.delivered, "lost": flood.loss.lost, **flood.reader}
    writer.add_trial(trial, status="ok", tally=tally, extra={"unexplained": flood.loss.unexplained})


def _timeline(number: int, flood: Flood) -> pa.Table:
    """One row a bin and series."""
    line = flood.timeline
    series: dict[str, list[int]] = {name: getattr(line, name) for name in ("sent", "taken", "lost", "under_way")}
    for name in ("polled", "interrupts", "backlog", "queues"):
        series.update({f"{name} {key}": values for key, values in getattr(line, name).items()})
    for cpu, actors in line.cpu.items():
        series.update({f"ns of CPU {cpu}: {actor}": values for actor, values in actors.items()})
    names, bins, values = [], [], []
    for name, each in series.items():
        names += [name] * len(each)
        bins += [place * line.width_ns for place in range(len(each))]
        values += each
    return pa.table({
        "flood": pa.array([number] * len(values), pa.int32()),
        "series": pa.array(names).dictionary_encode(),
        "from_ns": pa.array(bins, pa.int64()),
        "value": pa.array(values, pa.int64()),
    })  # fmt: skip


def finish_run(writer: store.Writer, floods: Sequence[Flood]) -> None:
    """Write FILE, from which the report is made."""
    writer.add_document(FILE, msgspec.to_builtins(Kept(list(floods))))


def need_floods(path: pathlib.Path) -> None:
    """Refuse a directory that is not a run of floods.

    :raises StoreError: if it holds none
    """
    if not (path / FILE).exists():
        raise StoreError(
            f"{path} holds no flood", remedy="give a path (udp, tcp, …) to make one, or a run directory that has one"
        )


def load_floods(path: pathlib.Path, run: reading.Run | None = None) -> list[Flood]:
    """Read a run's floods; StoreError says what is wrong. `run`: the directory, if it is open already."""
    need_floods(path)
    try:
        return msgspec.convert((run or reading.load_run(path)).document(FILE), Kept, str_keys=True).floods
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path / FILE} is damaged: {error}") from None
