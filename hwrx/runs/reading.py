"""Reading runs: what hwrx.runs.store wrote, whole or partial, one trial in memory at a time."""

from __future__ import annotations

import datetime
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Meta, Struct

from hwrx.errors import StoreError, UsageError
from hwrx.host import disk
from hwrx.host.outside import clean_tree
from hwrx.runs import experiment as experiments
from hwrx.runs import journal, schema, seal
from hwrx.runs.contents import Contents, run_key
from hwrx.runs.trials import Skipped

MANIFEST_KEYS = ("format", "status", "name", "topology", "clock", "started", "process", "skipped", "trials_planned")


class TrialSamples(Struct, frozen=True):
    """The samples of one trial, in the order in which they were recorded.

    `ns`: what it means is in hwrx.runs.store. `service_ns` is of paced trials alone. `late`: which came after the
    path's patience had ended. `size`: bytes of each message, of trials whose messages differ.
    """

    trial: int
    sequence: npt.NDArray[np.uint32]
    ns: npt.NDArray[np.int64]
    service_ns: npt.NDArray[np.int64] | None
    late: npt.NDArray[np.bool_]
    size: npt.NDArray[np.int32] | None = None


class Log(Struct, frozen=True):
    """How much of the log is the run's, and its checksum."""

    bytes: Annotated[int, Meta(ge=0)]
    crc32: int


class Kept(Struct, frozen=True):
    """What the store notes for itself. Tables are names of files, and of nothing else."""

    id: str
    experiment: str | None = None
    tables: list[Annotated[str, Meta(pattern=r"^[a-z][a-z_]{0,63}$")]] = []
    documents: list[Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]] = []
    log: Log | None = None


class Manifest(Struct, frozen=True):
    """What a manifest must have, whatever else it has."""

    format: int
    status: schema.Status
    name: str
    topology: str
    clock: str
    started: str
    process: dict[str, Any]
    skipped: list[Skipped]
    trials_planned: int | None
    reason: str = ""
    question: str = ""
    seed: int | None = None
    warnings: list[str] = []
    command: list[str] = []
    asked: dict[str, Any] = {}
    tracing: dict[str, Any] = {}
    resumed: list[dict[str, Any]] = []
    store: Kept | None = None  # of format 2


class Run:
    """A run directory opened for reading. Get one with `hwrx.load(path)`.

    All that is in its files has been checked; what is read is as it was written.
    """

    def __init__(self, path: pathlib.Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self._whole = manifest
        # What the store keeps for itself says nothing about what was measured. A run may be somebody else's, so that
        # its words are cleaned before they are shown, or used in any other way
        self.manifest = clean_tree({key: value for key, value in manifest.items() if key != "store"})

    @classmethod
    def open(cls, path: pathlib.Path | str) -> Self:
        """Open a run directory and check its files.

        :param path: the directory; a symbolic link (runs/latest) is followed once, now
        :return: the run. What is damaged of one that can be read is in `damage`
        :raises StoreError: if there is none, or it cannot be read: damaged, or written by a newer hwrx
        """
        directory = pathlib.Path(path)
        if not directory.exists():
            hint = "" if directory.name != "latest" else " (no run has been made here)"
            raise StoreError(
                f"there is no run {directory}{hint}", remedy="hwrx compare makes one; runs/latest is the newest"
            )
        directory = directory.resolve()
        run = cls(directory, _manifest(directory))
        if not (directory / journal.FILE).exists() and not (directory / "trials.parquet").exists():
            raise StoreError(f"{directory} is damaged: it has neither trials.parquet nor {journal.FILE}")
        try:
            _ = run.contents
        except seal.UNREADABLE as error:  # a folder in the place of a file; what no store would have written and sealed
            raise seal.damaged_error(directory, error) from None
        return run

    def __repr__(self) -> str:
        return f"<hwrx run {self.path.name}: {self.status}, {len(self.rows)} trials>"

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.manifest["name"])

    @functools.cached_property
    def status(self) -> schema.Status:
        """complete, interrupted, partial, or running, as it was when it was first asked for.

        A run whose process is gone without having ended it is partial, whatever its manifest says.
        """
        status: schema.Status = self.manifest["status"]
        if status == "running" and not disk.still_runs(self.manifest["process"]):
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
        """Whether the messages crossed a machine whose processor was emulated in software.

        Its wall-clock times are not those of any hardware. Runs that do not say so themselves are asked for the
        accelerator of their guest.
        """
        if "emulated" in self.manifest:
            return bool(self.manifest["emulated"])
        accelerators = [_find(self.manifest, "accelerator")]
        return any(value in ("tcg", "none", "software") for value in accelerators)

    @functools.cached_property
    def contents(self) -> Contents:
        """The directory's files, checked."""
        return Contents(self.path, self._whole)

    @property
    def damage(self) -> list[str]:
        """What of the run is not as it was written, a sentence each; empty if all is."""
        return self.contents.damage

    @functools.cached_property
    def experiment(self) -> experiments.Experiment:
        """The experiment as it was run.

        :raises StoreError: if what the run keeps of it is damaged
        """
        file = self.path / "experiment.toml"
        try:
            if self._whole["format"] == 1:
                return experiments.load_experiment(file)
            kept = self.contents.store.get("experiment")
            if not isinstance(kept, str):
                raise StoreError(f"{self.path} is damaged: its manifest does not keep the experiment")
            return experiments.parse_experiment(kept, source=str(file), name=file.stem)
        except UsageError as error:
            raise StoreError(f"{self.path} is damaged: {error}") from None

    @property
    def experiment_text(self) -> str:
        """The experiment's file, as it stands in the directory.

        :raises StoreError: if it cannot be read
        """
        file = self.path / "experiment.toml"
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise seal.damaged_error(file, error) from None

    @property
    def journal(self) -> list[dict[str, Any]]:
        """The trials as they were recorded, nested: a dictionary each, in the order in which they ended."""
        return self.contents.journal.lines

    @property
    def trials(self) -> pa.Table:
        """One row a trial, as it was recorded: its setting and its counts are columns.

        An Arrow table in the order in which the trials ended. `columns` has units and meanings.
        """
        return self.contents.trials

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`trials` as dictionaries. A trial whose samples are lost has the status "damaged" and no samples."""
        return self._rows

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return [clean_tree(row) for row in self.contents.rows]

    @property
    def samples(self) -> pa.Table:
        """All samples as one Arrow table, about 30 bytes a message; `trial_samples` reads one trial alone.

        Columns are those of `hwrx.runs.schema.SAMPLES`: trial, sequence number, ns, service_ns (paced trials), late.
        Runs of format 1 get the column `late`, all false. Empty if the run has no samples.
        """
        tables = [_with_late(table) for table in self.contents.read("samples")]
        return pa.concat_tables(tables).unify_dictionaries() if tables else schema.SAMPLES.empty_table()

    def trial_samples(self, trial: int) -> TrialSamples:
        """Read the samples of one trial.

        :param trial: its number, as in `rows`
        :return: arrays of one length, in the order of recording; empty if it has no samples. They are the caller's
        :raises StoreError: if they are damaged or missing
        """
        columns = ["sequence", "ns", "late"]
        row = next((row for row in self.rows if row["trial"] == trial), {})
        columns += ["service_ns"] if row.get("pattern") == "paced" else []
        columns += ["size"] if row.get("mix") else []
        if trial in self.contents.lost:
            raise StoreError(f"{self.path}: the samples of trial {trial} are damaged or missing")
        tables = [_with_late(table) for table in self.contents.read("samples", trial, columns)]
        if not tables:
            empty = np.empty(0, np.int64)
            return TrialSamples(trial, np.empty(0, np.uint32), empty, None, np.empty(0, np.bool_))
        table = pa.concat_tables(tables)
        service = table["service_ns"] if "service_ns" in columns else None
        return TrialSamples(
            trial,
            table["sequence"].to_numpy(),
            table["ns"].to_numpy(),
            None if service is None or service.null_count else service.to_numpy(),
            table["late"].to_numpy(),
            table["size"].to_numpy() if "size" in columns else None,
        )

    def each_trial(self) -> Iterator[tuple[dict[str, Any], TrialSamples]]:
        """Go through the trials that have samples, one in memory at a time.

        :return: pairs of the trial's row and its samples, in the order of `rows`
        :raises StoreError: at the trial whose samples are damaged or missing
        """
        for row in self.rows:
            if row["samples"]:
                yield row, self.trial_samples(row["trial"])

    def table(self, name: str) -> pa.Table | None:
        """Return another table of the run (`stages`, `copies`, `drops`), None if it has none of that name.

        :return: an Arrow table, all parts of it together
        :raises StoreError: if its parts do not fit together, which is damage
        """
        tables = self.contents.read(name)
        try:
            return pa.concat_tables(tables) if tables else None
        except pa.ArrowException as error:
            raise seal.damaged_error(self.path / f"{name}.parquet", error) from None

    def columns(self) -> list[schema.Column]:
        """Return every column of the run's tables: type, unit, meaning.

        Of what the run has: the tables in alphabetical order, in each the columns in the order of the file.
        """
        kept = {name: tables[0][0].schema for name, tables in self.contents.tables.items() if tables}
        kept["trials"] = self.trials.schema
        return [column for name in sorted(kept) for column in schema.columns_of(name, kept[name])]

    def document(self, name: str) -> dict[str, Any]:
        """Return a JSON document of the run.

        :param name: of the file in the run's directory
        :raises StoreError: if it is missing, or not as it was written
        """
        file = self.path / name
        try:
            text = file.read_bytes()
            key = run_key(self._whole, name)
            found = json.loads(text) if key is None else seal.opened_document(text, key)
        except (OSError, ValueError, RecursionError) as error:
            raise seal.damaged_error(file, error) from None
        if not isinstance(found, dict):
            raise seal.damaged_error(file, "it is not what this run wrote there")
        return dict(clean_tree(found))


def load_run(path: pathlib.Path | str) -> Run:
    """Open a run directory; see Run.open."""
    return Run.open(path)


def _manifest(directory: pathlib.Path) -> dict[str, Any]:
    file = directory / schema.MANIFEST
    try:
        text = file.read_bytes()
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{directory} is not a run directory: it has no manifest.json") from None
    except (ValueError, OSError, RecursionError) as error:
        raise seal.damaged_error(file, error) from None
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int or manifest["format"] < 1:
        raise StoreError(f"{file} is not the manifest of a run")
    if seal.is_sealed(text) or manifest["format"] == schema.FORMAT:
        sealed = seal.opened_document(text, schema.MANIFEST)
        if sealed is None:
            raise seal.damaged_error(file, "it is not what was written")
        manifest = sealed
    if manifest["format"] > schema.FORMAT:
        raise StoreError(
            f"{directory} was written by a newer hwrx ({manifest.get('hwrx', '?')}, format {manifest['format']}; "
            f"this one reads up to {schema.FORMAT})",
            remedy="read it with that version of hwrx",
        )
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise StoreError(f"{file} is damaged: it lacks {', '.join(missing)}")
    try:
        msgspec.convert(manifest, Manifest)
        datetime.datetime.fromisoformat(manifest["started"])
    except ValueError as error:
        raise seal.damaged_error(file, error) from None
    return dict(manifest)


def _with_late(table: pa.Table) -> pa.Table:
    """Format 1 has no column `late`: a late answer had no sample."""
    if "late" in table.column_names:
        return table
    return table.append_column("late", pa.array(np.zeros(table.num_rows, np.bool_)))


def _find(tree: object, key: str) -> object:
    """Return the first value of `key` anywhere in nested dictionaries."""
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    return next((found for value in tree.values() if (found := _find(value, key)) is not None), None)
