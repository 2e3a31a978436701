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

A trial has the fields of its setting that its path reads; what both ends chose, once they were connected, is `chosen`.
Columns, units and meanings are in `hwrx.runs.schema`, and in the metadata of the Parquet files.

What is written carries its checksum (`hwrx.runs.seal`), begun with the run's own number: manifest and journal line by
line, Parquet files row group by row group, with page checksums inside and a copy of the footer. The manifest's `store`
has that number, the experiment again, the tables that the run ended with, and length and checksum of its log. What is
not as it was written is never read (`hwrx.runs.contents`): a damaged part costs that part, and is named.

What `ns` of a sample means depends on the trial's pattern:
    pingpong  the full round trip, as measured (reports halve it, except where the path is a round trip by nature)
    stream    time since the previous delivery; 0 for a trial's first row, which is no gap and is left out of statistics
    paced     response time, from the *intended* send to the answer; `service_ns` is the same from the actual send

Format 2 is the one with checksums. In format 1, which can still be read, `stages` has the places that its stages had in
the catalogue of then (`stage`) beside their names, and `late` is missing: a late answer had no sample.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import pathlib
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hwrx import paths
from hwrx.control.messages import Setting
from hwrx.errors import StoreError, UsageError
from hwrx.host import disk
from hwrx.paths import mixes
from hwrx.runs import experiment as experiments
from hwrx.runs import journal, planning, reading, schema, seal
from hwrx.runs.contents import Contents, run_key
from hwrx.runs.reading import Run
from hwrx.runs.schema import FORMAT, MANIFEST, SAMPLES, Status
from hwrx.runs.trials import Trial
from hwrx.version import __version__

if TYPE_CHECKING:
    from types import TracebackType


_RESERVE = 1 << 16  # bytes set aside so that a full disk still takes the last manifest


class Writer:
    """Writes one run. A context manager: an exception marks the run partial, Ctrl-C interrupted.

    Several threads may add to it. Every failure to write is a StoreError that names the file and the reason.
    """

    def __init__(self, path: pathlib.Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.recorded = 0
        self._parts = 0
        self._finished = False
        self._before = float(manifest.get("store", {}).get("elapsed_s", 0.0))  # of a run that goes on
        self._began = time.monotonic()
        self._lock = contextlib.ExitStack()  # of the directory, against other processes
        self._one = threading.RLock()  # one thread at a time writes

    @classmethod
    def create(
        cls,
        root: pathlib.Path | str,
        plan: planning.Plan | experiments.Experiment,
        manifest: Mapping[str, Any],
    ) -> Self:
        """Make a new run directory under `root` and point `latest` to it.

        The directory appears under its name only with manifest and experiment inside. `manifest` describes the
        environment; the keys that the store itself fills (`format`, `status`, …) must not be among it.
        """
        layout = plan if isinstance(plan, planning.Plan) else None
        experiment = experiments.with_seed(layout.experiment if layout else cast("experiments.Experiment", plan))
        text = experiments.dump_experiment(experiment)
        experiments.parse_experiment(text, source="the experiment")  # what could not be read again is not measured
        now = _now()
        own = {
            "format": FORMAT,
            "status": "running",
            "reason": "",
            "hwrx": __version__,
            "started": now.isoformat(),
            "ended": None,
            "process": disk.this_process(),
            "name": experiment.name,
            "question": experiment.question,
            "seed": experiment.seed,
            "trials_planned": len(layout.trials) if layout else None,
            "skipped": msgspec.to_builtins(layout.skipped) if layout else [],
            "store": {"id": uuid.uuid4().hex, "experiment": text},
        }
        # what the testbed says that it put up counts more than what was asked for (--device makes it "hosts")
        asked = {"topology": experiment.topology, "clock": experiment.clock}
        if taken := own.keys() & manifest.keys():
            raise ValueError(f"the store fills these itself: {', '.join(sorted(taken))}")
        root = pathlib.Path(root)
        with disk.guarded_writes(root):
            root.mkdir(parents=True, exist_ok=True)
            hidden = root / f".{now:%Y%m%dT%H%M%SZ}-{experiment.name}.{os.getpid()}"
            hidden.mkdir()
            writer = cls(hidden, {**own, **asked, **manifest})
            try:
                writer._lock.enter_context(disk.locked_directory(hidden))
                (hidden / "parts").mkdir()
                (hidden / ".reserve").write_bytes(b"\0" * _RESERVE)
                writer._write_manifest()
                disk.replace_file(hidden / "experiment.toml", text.encode())
                (hidden / journal.FILE).touch()
                (hidden / "log.txt").touch()
                writer.path = _settle(hidden, root / f"{now:%Y%m%dT%H%M%SZ}-{experiment.name}")
            except BaseException:
                writer._lock.close()
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            if problem := _point(root / "latest", writer.path.name):
                writer.log(problem)
        return writer

    @classmethod
    def resume(cls, path: pathlib.Path | str, manifest: Mapping[str, Any] = {}) -> tuple[Self, planning.Plan]:
        """Go on with a run that did not end; return the writer and a plan of the trials that are still to run.

        Trials that failed run again. `manifest` is what the environment is now; where it differs from what the run
        began with, it is kept beside it as `resumed`.
        """
        _check_resumable(run := reading.load_run(path))
        with contextlib.ExitStack() as lock:
            lock.enter_context(disk.locked_directory(run.path))
            _check_resumable(run := reading.load_run(run.path))  # it may have gone on meanwhile
            writer = cls(run.path, {**run.manifest, "store": dict(run.contents.store)})
            writer._lock = lock.pop_all()
        try:
            with disk.guarded_writes(run.path):
                return writer, writer._go_on(run, manifest)
        except BaseException:
            writer._lock.close()
            raise

    def _go_on(self, run: Run, manifest: Mapping[str, Any]) -> planning.Plan:
        """Make the directory ready for what is still to run; return the plan of that."""
        kept = {row["trial"] for row in run.rows if row["status"] == "ok"}
        # what only trials.parquet has runs again: it will be written anew from the journal
        lines = [line for line in run.contents.journal.lines if line["trial"] in kept]
        kept = {line["trial"] for line in lines}
        labels = {row["trial"]: row["label"] for row in run.rows}
        left_out = {skip["label"] for skip in run.manifest["skipped"]}
        plan = planning.plan_run(run.experiment, _refuse(left_out, run.experiment))
        plan = planning.repeat_plan(plan, max([run.experiment.repeats, *(row["repeat"] + 1 for row in run.rows)]))
        wrong = [t.label for t in plan.trials if t.number in labels and labels[t.number] != t.label]
        if wrong:
            raise StoreError(f"run {run.path}: its trials are not those of its experiment.toml (first: {wrong[0]})")
        (self.path / "parts").mkdir(exist_ok=True)
        key = run_key(self.manifest, journal.FILE) or ""
        disk.replace_file(self.path / journal.FILE, b"".join(seal.sealed_line(line, key) + b"\n" for line in lines))
        (self.path / ".reserve").write_bytes(b"\0" * _RESERVE)
        self.recorded = len(lines)
        self._parts = run.contents.last_part()
        changed = {k: v for k, v in manifest.items() if k in run.manifest and run.manifest[k] != v}
        self.manifest["status"] = "running"
        self.manifest["trials_planned"] = len(plan.trials)
        self.manifest["process"] = disk.this_process()
        self.manifest["resumed"] = [
            *self.manifest.get("resumed", []),
            {"at": _now().isoformat(), "changed": changed, "damage": run.damage},
        ]
        self._write_manifest()
        left = [trial for trial in plan.trials if trial.number not in kept]
        self.log("".join(f"damaged: {words}\n" for words in run.damage))
        self.log(f"resumed: {len(kept)} trials are there, {len(left)} to go")
        return msgspec.structs.replace(plan, trials=left)

    def add_trial(
        self,
        trial: Trial,
        *,
        status: str,
        error: str = "",
        tally: Mapping[str, int] | None = None,
        sequence: npt.NDArray[np.uint32] | None = None,
        ns: npt.NDArray[np.int64] | None = None,
        service_ns: npt.NDArray[np.int64] | None = None,
        late: npt.NDArray[np.bool_] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a trial that ended: its samples first, then its line in the journal.

        `status` is "ok" or "failed"; a failed trial may have samples. The arrays are as long as each other; `late` None
        says that no answer was late.
        """
        count = 0 if ns is None else len(ns)
        with self._one, disk.guarded_writes(self.path):
            part = self._parts + 1
            if count:
                self._add_part(
                    "samples", _samples(trial, self.manifest.get("seed"), sequence, ns, service_ns, late), trial.number
                )
            line = {
                "trial": trial.number,
                "repeat": trial.repeat,
                "label": trial.label,
                "setting": msgspec.to_builtins(paths.settings_read(trial.setting)),
                "status": status,
                "error": error,
                "ended": _now().isoformat(),
                "samples": count,
                "part": part,
                "tally": dict(tally or {}),
                "extra": msgspec.to_builtins(dict(extra or {})),
            }
            key = run_key(self.manifest, journal.FILE) or ""
            disk.append_line(self.path / journal.FILE, seal.sealed_line(line, key) + b"\n")
            self.recorded += 1

    def add_table(self, name: str, table: pa.Table) -> None:
        """Append rows to another table of the run (`stages`, `copies`, `drops`); all parts have one schema."""
        if name in ("samples", "trials") or not name.isidentifier():
            raise ValueError(f"'{name}' is no name for an extra table")
        if table.num_rows:
            trials = set(table["trial"].to_pylist()) if "trial" in table.column_names else set()
            with self._one, disk.guarded_writes(self.path):
                self._add_part(name, table, trials.pop() if len(trials) == 1 else None)

    def add_document(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON document of the run, with its checksum, in the place of the one before."""
        with self._one, disk.guarded_writes(self.path):
            disk.replace_file(self.path / name, seal.sealed_document(content, run_key(self.manifest, name) or ""))
            noted = self.manifest["store"].setdefault("documents", [])
            if name not in noted:
                noted.append(name)
                self._write_manifest()

    def expect(self, trials: int) -> None:
        """Say how many trials the run is to have, where that was not known when it began."""
        self.note(trials_planned=trials)

    def note(self, **values: object) -> None:
        """Put more into the manifest, for example what was found when the machines came up."""
        with self._one, disk.guarded_writes(self.path):
            self.manifest.update(values)
            self._write_manifest()

    def log(self, text: str) -> None:
        """Append lines to log.txt, each with the time."""
        stamp = f"{_now():%H:%M:%S}"
        lines = "".join(f"{stamp} {line}\n" for line in text.splitlines())
        with self._one, disk.guarded_writes(self.path):
            disk.append_line(self.path / "log.txt", lines.encode(errors="backslashreplace"))

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
        self.manifest["store"]["elapsed_s"] = round(self.elapsed_seconds(), 3)
        with self._lock, disk.guarded_writes(self.path):
            try:
                self._merge()
            except (OSError, StoreError) as error:
                words = disk.reason_of(error) if isinstance(error, OSError) else str(error)
                self.manifest.update(status="partial", reason=words)
                raise
            finally:
                (self.path / ".reserve").unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    log = (self.path / "log.txt").read_bytes()
                    self.manifest["store"]["log"] = {"bytes": len(log), "crc32": zlib.crc32(log)}
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

    def elapsed_seconds(self) -> float:
        """Return how long the run has taken, by a clock that nobody sets; without what a killed part of it took."""
        return self._before + time.monotonic() - self._began

    def lines(self) -> list[dict[str, Any]]:
        """The journal of the trials so far."""
        return journal.read_journal(self.path, run_key(self.manifest, journal.FILE)).lines

    # --- inside ----------------------------------------------------------------------------------------------------

    def _add_part(self, name: str, table: pa.Table, trial: int | None) -> None:
        number = self._parts + 1
        stem = f"{name}-{number:06d}"
        key = run_key(self.manifest, stem) or ""
        with disk.replacing_file(self.path / "parts" / f"{stem}.parquet") as file:
            described = schema.describe_schema(name, table.schema)
            seal.write_parquet(file, described, [(number, trial, table.cast(described))], key)
        self._parts = number

    def _merge(self) -> None:
        found = Contents(self.path, self.manifest)
        for words in found.damage:
            self.log(f"damaged: {words}")
        tables = {name: kept for name, kept in found.tables.items() if kept or name == "samples"}
        for name, kept in tables.items():
            first = kept[0][0].schema if kept else SAMPLES
            described = schema.describe_schema(name, first)
            one_by_one = ((group.part, group.trial, reader.read(group).cast(described)) for reader, group in kept)
            with disk.replacing_file(self.path / f"{name}.parquet") as file:
                seal.write_parquet(file, described, one_by_one, run_key(self.manifest, name) or "")
        trials = journal.trials_table(found.journal.lines)
        described = schema.describe_schema("trials", trials.schema)
        with disk.replacing_file(self.path / "trials.parquet") as file:
            key = run_key(self.manifest, "trials") or ""
            seal.write_parquet(file, described, [(0, None, trials.cast(described))], key)
        self.manifest["store"]["tables"] = sorted([*tables, "trials"])

    def _write_manifest(self) -> None:
        disk.replace_file(self.path / MANIFEST, seal.sealed_document(self.manifest, MANIFEST))


# --- inside --------------------------------------------------------------------------------------------------------


def _samples(
    trial: Trial,
    seed: int | None,
    sequence: npt.NDArray[np.uint32] | None,
    ns: npt.NDArray[np.int64] | None,
    service_ns: npt.NDArray[np.int64] | None,
    late: npt.NDArray[np.bool_] | None,
) -> pa.Table:
    if sequence is None or ns is None or len(sequence) != len(ns):
        raise ValueError("sequence and ns must be as long as each other")
    if service_ns is not None and len(service_ns) != len(ns):
        raise ValueError("service_ns must be as long as ns")
    if late is not None and len(late) != len(ns):
        raise ValueError("late must be as long as ns")
    count = len(ns)
    zeros = pa.array(np.zeros(count, np.int8))
    setting = trial.setting
    sizes = np.full(count, setting.size, np.uint32)
    if setting.mix:
        fetched = paths.find_path(setting.path).full_rtt
        sizes = mixes.sizes_of(setting, trial.repeat, seed, sequence, fetched=fetched)
    columns = [
        pa.array(np.full(count, trial.number, np.int32)),
        pa.DictionaryArray.from_arrays(zeros, [trial.setting.path]),
        pa.array(sizes.astype(np.int32)),
        pa.DictionaryArray.from_arrays(zeros, [trial.setting.pattern]),
        pa.array(sequence, pa.uint32()),
        pa.array(ns, pa.int64()),
        pa.nulls(count, pa.int64()) if service_ns is None else pa.array(service_ns, pa.int64()),
        pa.array(np.zeros(count, np.bool_) if late is None else late, pa.bool_()),
    ]
    return pa.Table.from_arrays(columns, schema=SAMPLES)


def _check_resumable(run: Run) -> None:
    if run.manifest["format"] < FORMAT:
        raise StoreError(
            f"run {run.path} was begun by hwrx {run.manifest.get('hwrx', '?')}, whose format can be read only",
            remedy=f"run it anew: hwrx compare {run.path / 'experiment.toml'}",
        )
    if run.status == "complete" and not run.contents.lost:
        raise StoreError(f"run {run.path} is complete: there is nothing to resume")
    if run.status == "running":
        raise disk.is_locked(run.path, run.manifest["process"]["pid"])


def _refuse(labels: set[str], experiment: experiments.Experiment) -> Callable[[Setting], None]:
    def check(setting: Setting) -> None:
        if planning.label_of(setting, experiment) in labels:
            raise UsageError("skipped when the run began")

    return check


def _settle(hidden: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Give the directory its name, with a number behind where a run of this second has it."""
    for number in range(1, 1000):
        name = target if number == 1 else target.with_name(f"{target.name}-{number}")
        if not name.exists():
            try:
                return hidden.rename(name)
            except OSError as error:  # another run took the name meanwhile
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    raise StoreError(f"{target}: a thousand runs of this name began in this second")


def _point(link: pathlib.Path, name: str) -> str:
    """Let `latest` point to the run, in one step; return why it does not. Something else of that name stays."""
    if link.exists() and not link.is_symlink():
        return f"{link.name} is something else, and stays: it does not point to this run"
    fresh = link.with_name(f".latest.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        fresh.replace(link)
    except OSError as error:  # of file systems without links it is EPERM, EOPNOTSUPP, ENOSYS
        return f"{link.name} does not point to this run: no symbolic link can be made here ({disk.reason_of(error)})"
    return ""


def _sentence(error: BaseException) -> str:
    return "interrupted by the user" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
