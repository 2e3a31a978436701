"""The run directory: what one run of an experiment measured, written so that being killed loses at most one trial.

    runs/20260131T120000Z-first/
      manifest.json     status, environment, versions, command; written first, and again at the end
      experiment.toml   as run, with the seed
      trials.jsonl      the journal: one line a trial, appended when its samples are safe
      parts/            one Parquet file a trial and table, each renamed into place when whole; gone when merged
      samples.parquet   one row a message, one or more row groups a trial
      trials.parquet    one row a trial: setting, status, counts, processor time, resident memory
      log.txt
    runs/latest -> the newest of them

What `ns` of a sample means depends on the trial's pattern:
    pingpong  the full round trip, as measured (reports halve it, except where the path is a round trip by nature)
    stream    time since the previous delivery; 0 for a trial's first row, which is no gap and is left out of statistics
    paced     response time, from the *intended* send to the answer; `service_ns` is the same from the actual send
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hwrx import __version__, disk
from hwrx import experiment as experiments
from hwrx.errors import StoreError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from hwrx.runs import Run

FORMAT = 1
Status = Literal["running", "complete", "partial", "interrupted"]

SAMPLES = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("path", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pattern", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("sequence", pa.uint32(), nullable=False),
        pa.field("ns", pa.int64(), nullable=False),
        pa.field("service_ns", pa.int64()),
    ]
)
ROWS_A_GROUP = 1 << 20
_RESERVE = 1 << 16  # bytes set aside so that a full disk still takes the last manifest


class Writer:
    """Writes one run. A context manager: an exception marks the run partial, Ctrl-C interrupted.

    Not for several threads. Every failure to write is a StoreError that names the file and the reason.
    """

    def __init__(self, path: pathlib.Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.recorded = 0
        self._parts = 0
        self._finished = False

    @classmethod
    def create(
        cls,
        root: pathlib.Path | str,
        plan: experiments.Plan | experiments.Experiment,
        manifest: Mapping[str, Any],
    ) -> Self:
        """Make a new run directory under `root` and point `latest` to it.

        The directory appears under its name only with manifest and experiment inside. `manifest` describes the
        environment; the keys that the store itself fills (`format`, `status`, …) must not be among it.
        """
        layout = plan if isinstance(plan, experiments.Plan) else None
        experiment = experiments.with_seed(layout.experiment if layout else cast("experiments.Experiment", plan))
        now = _now()
        own = {
            "format": FORMAT,
            "status": "running",
            "reason": "",
            "hwrx": __version__,
            "started": now.isoformat(),
            "ended": None,
            "process": {"pid": os.getpid(), "host": socket.gethostname()},
            "name": experiment.name,
            "question": experiment.question,
            "seed": experiment.seed,
            "trials_planned": len(layout.trials) if layout else None,
            "skipped": msgspec.to_builtins(layout.skipped) if layout else [],
        }
        # what the testbed says that it put up counts more than what was asked for (--device makes it "hosts")
        asked = {"topology": experiment.topology, "clock": experiment.clock}
        if taken := own.keys() & manifest.keys():
            raise ValueError(f"the store fills these itself: {', '.join(sorted(taken))}")
        root = pathlib.Path(root)
        with disk.guarded(root):
            root.mkdir(parents=True, exist_ok=True)
            hidden = root / f".{now:%Y%m%dT%H%M%SZ}-{experiment.name}.{os.getpid()}"
            hidden.mkdir()
            writer = cls(hidden, {**own, **asked, **manifest})
            try:
                (hidden / "parts").mkdir()
                (hidden / ".reserve").write_bytes(b"\0" * _RESERVE)
                writer._write_manifest()
                disk.replace(hidden / "experiment.toml", experiments.dumps(experiment).encode())
                (hidden / "trials.jsonl").touch()
                (hidden / "log.txt").touch()
                writer.path = _settle(hidden, root / f"{now:%Y%m%dT%H%M%SZ}-{experiment.name}")
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            _point(root / "latest", writer.path.name)
        return writer

    @classmethod
    def resume(cls, path: pathlib.Path | str, manifest: Mapping[str, Any] = {}) -> tuple[Self, experiments.Plan]:
        """Go on with a run that did not end; return the writer and a plan of the trials that are still to run.

        Trials that failed run again. `manifest` is what the environment is now; where it differs from what the run
        began with, it is kept beside it as `resumed`.
        """
        from hwrx import runs

        run = runs.load(path)
        if run.status == "complete":
            raise StoreError(f"run {run.path} is complete: there is nothing to resume")
        if run.status == "running":
            raise StoreError(
                f"run {run.path} is still being written by process {run.manifest['process']['pid']}",
                remedy="wait for it, or stop it",
            )
        kept = {row["trial"] for row in run.rows if row["status"] == "ok"}
        labels = {row["trial"]: row["label"] for row in run.rows}
        left_out = {skip["label"] for skip in run.manifest["skipped"]}
        plan = experiments.plan(run.experiment, _refuse(left_out, run.experiment))
        plan = experiments.repeated(plan, max([run.experiment.repeats, *(row["repeat"] + 1 for row in run.rows)]))
        wrong = [t.label for t in plan.trials if t.number in labels and labels[t.number] != t.label]
        if wrong:
            raise StoreError(f"run {run.path}: its trials are not those of its experiment.toml (first: {wrong[0]})")
        writer = cls(run.path, dict(run.manifest))
        with disk.guarded(run.path):
            (run.path / "parts").mkdir(exist_ok=True)
            journal = [json.dumps(line) for line in run.journal if line["status"] == "ok"]
            disk.replace(run.path / "trials.jsonl", "".join(f"{line}\n" for line in journal).encode())
            (run.path / ".reserve").write_bytes(b"\0" * _RESERVE)
            writer.recorded = len(journal)
            writer._parts = max((int(part.stem[-6:]) for part in (run.path / "parts").glob("*.parquet")), default=0)
            changed = {k: v for k, v in manifest.items() if k in run.manifest and run.manifest[k] != v}
            writer.manifest["status"] = "running"
            writer.manifest["trials_planned"] = len(plan.trials)
            writer.manifest["process"] = {"pid": os.getpid(), "host": socket.gethostname()}
            writer.manifest.setdefault("resumed", []).append({"at": _now().isoformat(), "changed": changed})
            writer._write_manifest()
        left = [trial for trial in plan.trials if trial.number not in kept]
        writer.log(f"resumed: {len(kept)} trials are there, {len(left)} to go")
        return writer, msgspec.structs.replace(plan, trials=left)

    def add_trial(
        self,
        trial: experiments.Trial,
        *,
        status: str,
        error: str = "",
        tally: Mapping[str, int] | None = None,
        sequence: npt.NDArray[np.uint32] | None = None,
        ns: npt.NDArray[np.int64] | None = None,
        service_ns: npt.NDArray[np.int64] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a trial that ended: its samples first, then its line in the journal.

        `status` is "ok" or "failed"; a failed trial may have samples. The arrays are as long as each other.
        """
        count = 0 if ns is None else len(ns)
        with disk.guarded(self.path):
            if count:
                self._add_part("samples", _samples(trial, sequence, ns, service_ns))
            line = {
                "trial": trial.number,
                "repeat": trial.repeat,
                "label": trial.label,
                "setting": msgspec.to_builtins(trial.setting),
                "status": status,
                "error": error,
                "ended": _now().isoformat(),
                "samples": count,
                "tally": dict(tally or {}),
                "extra": msgspec.to_builtins(dict(extra or {})),
            }
            disk.append(self.path / "trials.jsonl", json.dumps(line).encode() + b"\n")
        self.recorded += 1

    def add_table(self, name: str, table: pa.Table) -> None:
        """Append rows to another table of the run (`stages`, `copies`, `drops`); all parts have one schema."""
        if name in ("samples", "trials") or not name.isidentifier():
            raise ValueError(f"'{name}' is no name for an extra table")
        if table.num_rows:
            with disk.guarded(self.path):
                self._add_part(name, table)

    def expect(self, trials: int) -> None:
        """Say how many trials the run is to have, where that was not known when it began."""
        self.note(trials_planned=trials)

    def note(self, **values: Any) -> None:
        """Put more into the manifest, for example what was found when the machines came up."""
        self.manifest.update(values)
        with disk.guarded(self.path):
            self._write_manifest()

    def log(self, text: str) -> None:
        """Append lines to log.txt, each with the time."""
        stamp = f"{_now():%H:%M:%S}"
        with disk.guarded(self.path):
            disk.append(self.path / "log.txt", "".join(f"{stamp} {line}\n" for line in text.splitlines()).encode())

    def finish(self, status: Status = "complete", reason: str = "") -> None:
        """Merge the parts, write trials.parquet and the final manifest. A second call does nothing.

        A run with fewer trials than planned is never "complete". When the disk is full the parts stay as they are,
        the manifest says so, and the StoreError is raised.
        """
        if self._finished:
            return
        self._finished = True
        planned = self.manifest["trials_planned"]
        if status == "complete" and planned is not None and self.recorded < planned:
            status, reason = "partial", reason or f"{self.recorded} of {planned} trials were run"
        self.manifest.update(status=status, reason=reason, ended=_now().isoformat())
        with disk.guarded(self.path):
            try:
                self._merge()
            except (OSError, StoreError) as error:
                words = disk.reason(error) if isinstance(error, OSError) else str(error)
                self.manifest.update(status="partial", reason=words)
                raise
            finally:
                (self.path / ".reserve").unlink(missing_ok=True)
                self._write_manifest()
            shutil.rmtree(self.path / "parts", ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "partial"
        with contextlib.suppress(StoreError):  # the error that is on its way says more
            self.finish(status, _sentence(error))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _add_part(self, name: str, table: pa.Table) -> None:
        self._parts += 1
        target = self.path / "parts" / f"{name}-{self._parts:06d}.parquet"
        with disk.replacing(target) as file:
            pq.write_table(table, file, **_encoding(table.schema))

    def _merge(self) -> None:
        names = {part.name.rpartition("-")[0] for part in (self.path / "parts").glob("*.parquet")}
        known = {line["trial"] for line in journal(self.path)}
        for name in sorted(names | {"samples"}):
            target = self.path / f"{name}.parquet"
            parts = sorted((self.path / "parts").glob(f"{name}-*.parquet"))
            before = [target] if target.exists() else []
            schema = SAMPLES if name == "samples" else pq.read_schema(parts[0])
            with disk.replacing(target) as file, pq.ParquetWriter(file, schema, **_encoding(schema)) as merged:
                for source, group in kept_groups([*before, *parts], known if name == "samples" else None):
                    merged.write_table(source.read_row_group(group).cast(schema))
        with disk.replacing(self.path / "trials.parquet") as file:
            pq.write_table(trials_table(journal(self.path)), file, compression="zstd")

    def _write_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False, default=str)
        disk.replace(self.path / "manifest.json", text.encode() + b"\n")


# --- what reader and writer share ----------------------------------------------------------------------------------


def journal(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read a run's journal. A last line without its end was being written when the run was killed, and is left out.

    Where a trial stands there twice (a failed one that ran again), the later line counts.
    """
    lines: dict[int, dict[str, Any]] = {}
    with (path / "trials.jsonl").open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                lines[entry["trial"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}/trials.jsonl is damaged in line {number}: {error}") from None
    return list(lines.values())


def trials_table(lines: list[dict[str, Any]]) -> pa.Table:
    """One row a trial: setting and counts as columns, and of `extra` what is numbers all through; else JSON text."""
    rows = []
    for line in lines:
        row = {key: line[key] for key in ("trial", "repeat", "label", "status", "error", "ended", "samples")}
        row.update(line["setting"])
        row.update(line["tally"])
        for key, value in line["extra"].items():
            row.update(_flat(key, value))
        rows.append(row)
    columns: dict[str, list[Any]] = {key: [] for row in rows for key in row}
    for key in columns:
        columns[key] = [row.get(key) for row in rows]
    return pa.table(columns) if rows else pa.table({"trial": pa.array([], pa.int64())})


def kept_groups(files: list[pathlib.Path], known: set[int] | None) -> list[tuple[pq.ParquetFile, int]]:
    """Return the row groups that count, as file and number, in the order of the files.

    Left out are samples of a trial that the journal does not `know` (the run was killed between the two), and those of
    a trial that stands again in a later file (it failed, and ran again). None: every group counts.
    """
    groups: list[tuple[pq.ParquetFile, int, int]] = []
    last: dict[int, pq.ParquetFile] = {}
    for path in files:
        file = open_parquet(path)
        for group in range(file.num_row_groups):
            trial = group_trial(file, group) if known is not None else -1
            groups.append((file, group, trial))
            last[trial] = file
    return [(f, group) for f, group, trial in groups if known is None or (trial in known and last[trial] is f)]


def open_parquet(path: pathlib.Path) -> pq.ParquetFile:
    """Open a table of a run; StoreError where it is damaged."""
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} is damaged: {error}", remedy="take the run from a copy, or run it again") from None


def group_trial(file: pq.ParquetFile, group: int) -> int:
    """Return the one trial whose samples are in a row group."""
    statistics = file.metadata.row_group(group).column(0).statistics
    if statistics is None or not statistics.has_min_max or statistics.min != statistics.max:
        raise StoreError("samples.parquet: a row group that is not of one trial: not written by hwrx")
    return int(statistics.min)


def load(path: pathlib.Path | str) -> Run:
    """Open a run directory for reading; see hwrx.runs.Run."""
    from hwrx import runs

    return runs.load(path)


# --- inside --------------------------------------------------------------------------------------------------------


def _samples(
    trial: experiments.Trial,
    sequence: npt.NDArray[np.uint32] | None,
    ns: npt.NDArray[np.int64] | None,
    service_ns: npt.NDArray[np.int64] | None,
) -> pa.Table:
    if sequence is None or ns is None or len(sequence) != len(ns):
        raise ValueError("sequence and ns must be as long as each other")
    if service_ns is not None and len(service_ns) != len(ns):
        raise ValueError("service_ns must be as long as ns")
    count = len(ns)
    zeros = pa.array(np.zeros(count, np.int8))
    columns = [
        pa.array(np.full(count, trial.number, np.int32)),
        pa.DictionaryArray.from_arrays(zeros, [trial.setting.path]),
        pa.array(np.full(count, trial.setting.size, np.int32)),
        pa.DictionaryArray.from_arrays(zeros, [trial.setting.pattern]),
        pa.array(sequence, pa.uint32()),
        pa.array(ns, pa.int64()),
        pa.nulls(count, pa.int64()) if service_ns is None else pa.array(service_ns, pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=SAMPLES)


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Parquet options: integers that change are stored as differences (2.3 bytes a row where plain takes 2.8)."""
    changing = [
        field.name
        for field in schema
        if pa.types.is_integer(field.type) and (field.name in ("sequence", "at") or field.name.endswith("ns"))
    ]
    named = [field.name for field in schema if field.name not in changing]
    return {
        "compression": "zstd",
        "use_dictionary": named,
        "column_encoding": dict.fromkeys(changing, "DELTA_BINARY_PACKED"),
    } | ({} if named else {"use_dictionary": False})


def _flat(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool | int | float | str) or value is None:
        return {key: value}
    if key != "chosen" and isinstance(value, dict) and _numbers(value):  # what a path chose has no fixed columns
        return {name: number for inner, item in value.items() for name, number in _flat(f"{key}_{inner}", item).items()}
    return {key: json.dumps(value, ensure_ascii=False)}


def _numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_numbers(item) for item in value.values())
    return isinstance(value, int | float)


def _refuse(labels: set[str], experiment: experiments.Experiment) -> Any:
    def check(setting: Any) -> None:
        if experiments.label_of(setting, experiment) in labels:
            raise UsageError("skipped when the run began")

    return check


def _settle(hidden: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Give the directory its name, with a number behind where a run of this second has it."""
    for number in range(1, 1000):
        name = target if number == 1 else target.with_name(f"{target.name}-{number}")
        if not name.exists():
            return hidden.rename(name)
    raise StoreError(f"{target}: a thousand runs of this name began in this second")


def _point(link: pathlib.Path, name: str) -> None:
    """Let `latest` point to the run, in one step. Something else of that name stays."""
    if link.exists() and not link.is_symlink():
        return
    fresh = link.with_name(f".latest.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)


def _sentence(error: BaseException) -> str:
    return "interrupted by the user" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
