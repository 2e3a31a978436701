"""Reading runs: what hwrx.store wrote, whole or partial, one trial in memory at a time."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from hwrx import experiment as experiments
from hwrx import store
from hwrx.errors import StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwrx.report.model import Summary

MANIFEST_KEYS = ("format", "status", "name", "topology", "clock", "started")


class TrialSamples(Struct, frozen=True):
    """The samples of one trial, in the order in which they were recorded. `service_ns` is of paced trials alone."""

    trial: int
    sequence: npt.NDArray[np.uint32]
    ns: npt.NDArray[np.int64]
    service_ns: npt.NDArray[np.int64] | None


class Run:
    """A run directory opened for reading. Get one with `hwrx.load(path)`.

    Nothing but the manifest and the list of trials is read before it is asked for.
    """

    def __init__(self, path: pathlib.Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"<hwrx run {self.path.name}: {self.status}, {len(self.rows)} trials>"

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.manifest["name"])

    @functools.cached_property
    def status(self) -> store.Status:
        """complete, interrupted, partial, or running. A run whose process is gone without ending it is partial."""
        status: store.Status = self.manifest["status"]
        if status == "running" and not _alive(self.manifest.get("process", {})):
            return "partial"
        return status

    @property
    def reason(self) -> str:
        """Why the run is not complete; empty where it is."""
        if self.status == "partial" and self.manifest["status"] == "running":
            return "the process that wrote it was killed"
        return str(self.manifest.get("reason", ""))

    @property
    def emulated(self) -> bool:
        """Whether the messages crossed a machine whose processor was emulated in software."""
        if "emulated" in self.manifest:
            return bool(self.manifest["emulated"])
        accelerators = [_find(self.manifest, "accelerator")]
        return any(value in ("tcg", "none", "software") for value in accelerators)

    @functools.cached_property
    def experiment(self) -> experiments.Experiment:
        """The experiment as it was run."""
        return experiments.load(self.path / "experiment.toml")

    @functools.cached_property
    def journal(self) -> list[dict[str, Any]]:
        """The trials as they were recorded, nested."""
        return store.journal(self.path)

    @functools.cached_property
    def trials(self) -> pa.Table:
        """One row a trial."""
        merged = self.path / "trials.parquet"
        if not merged.exists() or (self.path / "parts").exists():
            return store.trials_table(self.journal)
        return store.open_parquet(merged).read()

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """`trials` as dictionaries."""
        rows: list[dict[str, Any]] = self.trials.to_pylist()
        return rows

    @property
    def samples(self) -> pa.Table:
        """All samples as one Arrow table, about 30 bytes a message; `trial_samples` reads one trial alone."""
        tables = [file.read_row_group(group) for groups in self._groups.values() for file, group in groups]
        return pa.concat_tables(tables).unify_dictionaries() if tables else store.SAMPLES.empty_table()

    def trial_samples(self, trial: int) -> TrialSamples:
        """Read the samples of one trial."""
        groups = self._groups.get(trial, [])
        columns = ["sequence", "ns"]
        if any(row["trial"] == trial and row["pattern"] == "paced" for row in self.rows):
            columns.append("service_ns")
        try:
            tables = [file.read_row_group(group, columns=columns) for file, group in groups]
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"{self.path}: the samples of trial {trial} are damaged: {error}") from error
        if not tables:
            empty = np.empty(0, np.int64)
            return TrialSamples(trial, np.empty(0, np.uint32), empty, None)
        table = pa.concat_tables(tables)
        service = table["service_ns"] if "service_ns" in columns else None
        return TrialSamples(
            trial,
            table["sequence"].to_numpy(),
            table["ns"].to_numpy(),
            None if service is None or service.null_count else service.to_numpy(),
        )

    def each_trial(self) -> Iterator[tuple[dict[str, Any], TrialSamples]]:
        """Go through the trials that have samples, one in memory at a time."""
        for row in self.rows:
            if row["samples"]:
                yield row, self.trial_samples(row["trial"])

    def table(self, name: str) -> pa.Table | None:
        """Return another table of the run (`stages`, `copies`, `drops`), None where it has none of that name."""
        merged = self.path / f"{name}.parquet"
        files = [merged] if merged.exists() else []
        files += sorted((self.path / "parts").glob(f"{name}-*.parquet"))
        return pa.concat_tables([store.open_parquet(file).read() for file in files]) if files else None

    def summary(self) -> Summary:
        """Figures of merit of every path and setting, with intervals: what all reports are made from."""
        from hwrx.report.summary import summarise

        return summarise([self])

    def figure(self, name: str) -> Figure:
        """Draw one of the report's figures, for example "cdf"; UsageError names the ones that this run has."""
        from hwrx.report.figures import draw

        return draw(self.summary(), name)

    @functools.cached_property
    def _groups(self) -> dict[int, list[tuple[pq.ParquetFile, int]]]:
        """Where each trial's samples are: file and row group, merged or not yet."""
        merged = self.path / "samples.parquet"
        files = [merged] if merged.exists() else []
        files += sorted((self.path / "parts").glob("samples-*.parquet"))
        for path in files:
            names = store.open_parquet(path).schema_arrow.names
            if missing := [name for name in ("trial", "sequence", "ns") if name not in names]:
                raise StoreError(f"{path} lacks the columns {', '.join(missing)}")
        found: dict[int, list[tuple[pq.ParquetFile, int]]] = {}
        for file, group in store.kept_groups(files, {row["trial"] for row in self.rows}):
            found.setdefault(store.group_trial(file, group), []).append((file, group))
        return found


def load(path: pathlib.Path | str) -> Run:
    """Open a run directory; StoreError says what is wrong with one that cannot be read."""
    directory = pathlib.Path(path)
    if not directory.exists():
        hint = "" if directory.name != "latest" else " (no run has been made here)"
        raise StoreError(
            f"there is no run {directory}{hint}", remedy="hwrx compare makes one; runs/latest is the newest"
        )
    directory = directory.resolve()
    file = directory / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{directory} is not a run directory: it has no manifest.json") from None
    except (ValueError, OSError) as error:
        raise StoreError(f"{file} is damaged: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise StoreError(f"{file} is not the manifest of a run")
    if manifest["format"] > store.FORMAT:
        raise StoreError(
            f"{directory} was written by a newer hwrx ({manifest.get('hwrx', '?')}, format {manifest['format']}; "
            f"this one reads up to {store.FORMAT})",
            remedy="read it with that version of hwrx",
        )
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise StoreError(f"{file} is damaged: it lacks {', '.join(missing)}")
    run = Run(directory, manifest)
    if not (directory / "trials.jsonl").exists() and not (directory / "trials.parquet").exists():
        raise StoreError(f"{directory} is damaged: it has neither trials.parquet nor trials.jsonl")
    wanted = ("trial", "repeat", "label", "status", "samples", "path", "pattern", "size", "wait")
    if run.rows and (missing := [key for key in wanted if key not in run.rows[0]]):
        raise StoreError(f"{directory}: trials.parquet lacks the columns {', '.join(missing)}")
    if lost := [row["label"] for row in run.rows if row["samples"] and row["trial"] not in run._groups]:
        raise StoreError(f"{directory} is damaged: the samples of {len(lost)} trials are missing (first: {lost[0]})")
    return run


def _alive(process: dict[str, Any]) -> bool:
    """Whether the writer still runs; of another host's process nothing is known, and it is taken as gone."""
    if process.get("host") != socket.gethostname() or not isinstance(process.get("pid"), int):
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _find(tree: Any, key: str) -> Any:
    """Return the first value of `key` anywhere in nested dictionaries."""
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    return next((found for value in tree.values() if (found := _find(value, key)) is not None), None)
