"""What a run directory holds, as far as it is what was written: trials, row groups of each table, and what is lost.

A damaged part costs that part only. Whatever is read from a run goes through here, also what is merged.
"""

from __future__ import annotations

import collections
import functools
import pathlib
import zlib
from typing import Any

import msgspec
import pyarrow as pa

from hwrx.errors import StoreError
from hwrx.runs import journal, schema, seal
from hwrx.runs.journal import Journal, trials_table
from hwrx.runs.overrides import setting_of
from hwrx.runs.seal import Group, Reader

Kept = list[tuple[Reader, Group]]

NEEDED: dict[str, type] = {
    "trial": int, "repeat": int, "label": str, "status": str, "samples": int, "path": str, "pattern": str, "size": int,
    "wait": str,
}  # fmt: skip
SAMPLE_COLUMNS = frozenset({"trial", "path", "size", "pattern", "sequence", "ns", "service_ns"})
NAMED = 5  # trials that a sentence about a loss names


def run_key(manifest: dict[str, Any], name: str) -> str | None:
    """Return the key that a file of the run is sealed with; None for a run of format 1, which has no seals."""
    return None if manifest["format"] == 1 else f"{manifest['store']['id']}/{name}"


class Contents:
    """The checked contents of a run directory; StoreError if nothing can be had of it.

    `damage` has a sentence for each file of which something is not as it was written; `lost` the trials whose samples
    cannot be had.
    """

    def __init__(self, folder: pathlib.Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.damage: list[str] = []
        self.store: dict[str, Any] = {} if manifest["format"] == 1 else manifest["store"]
        self.journal = self._journal()
        self.trials = self._trials()
        self._rows = self._checked_rows()
        self.tables = {name: self._select(name) for name in self._names()}
        self.lost = self._lost()
        self._check_parts()
        self._check_texts()

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a trial; one whose samples are lost has the status "damaged", and no samples."""
        gone = {"status": "damaged", "error": "its samples are damaged or missing", "samples": 0}
        return [row | gone if row["trial"] in self.lost else row for row in self._rows]

    def read(self, name: str, trial: int | None = None, columns: list[str] | None = None) -> list[pa.Table]:
        """Read the row groups of a table (of one trial alone), in the order in which they were written."""
        kept = self.tables.get(name, [])
        return [reader.read(group, columns) for reader, group in kept if trial is None or group.trial == trial]

    def last_part(self) -> int:
        """Return the highest number of a part that the run ever had, as far as it can be known."""
        found = [group.part for kept in self.tables.values() for _, group in kept]
        found += [_number(part) for part in self._parts()]
        return max([0, *found, *(int(line["part"]) for line in self.journal.lines)])

    # --- trials ----------------------------------------------------------------------------------------------------

    def _journal(self) -> Journal:
        try:
            found = journal.read_journal(self.folder, run_key(self.manifest, journal.FILE))
        except StoreError as error:
            if not (self.folder / "trials.parquet").exists():
                raise
            self.damage.append(f"{journal.FILE} cannot be used: {str(error).splitlines()[0]}")
            return Journal([], [])
        if found.damaged:
            lines = ", ".join(map(str, found.damaged[:NAMED])) + (", …" if len(found.damaged) > NAMED else "")
            self.damage.append(
                f"{journal.FILE}: {len(found.damaged)} of {len(found.lines) + len(found.damaged)} lines are damaged "
                f"(lines {lines}); what trials.parquet does not have of them is lost"
            )
        return found

    def _trials(self) -> pa.Table:
        """One row a trial: as merged, if the run ended so; else by the journal."""
        merged = self._merged_trials()
        if merged is not None and not (self.folder / "parts").exists():
            return merged
        table = trials_table(self.journal.lines)
        if merged is None or not self.journal.damaged:
            return table
        known = {line["trial"] for line in self.journal.lines}
        more = merged.filter(pa.array([trial not in known for trial in merged["trial"].to_pylist()], pa.bool_()))
        return pa.concat_tables([table, more], promote_options="permissive") if more.num_rows else table

    def _merged_trials(self) -> pa.Table | None:
        path = self.folder / "trials.parquet"
        if not path.exists():
            if "trials" in self.store.get("tables", []):
                self.damage.append(f"{path.name} is missing")
            return None
        try:
            reader = Reader(path, run_key(self.manifest, "trials"))
            tables = [reader.read(group) for group in reader.groups]
            if reader.lost:
                raise seal.damaged_error(path, "its rows are not what was written")
        except StoreError as error:
            self.damage.append(f"{_first(error)}; its rows are taken from {journal.FILE}")
            if not self.journal.lines:
                raise
            return None
        if reader.repaired:
            self.damage.append(f"{path.name}: its footer is damaged, and was read from its copy")
        return pa.concat_tables(tables) if tables else trials_table([])

    def _checked_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.trials.to_pylist()
        if rows and (missing := [key for key in NEEDED if key not in rows[0]]):
            raise StoreError(f"{self.folder}: trials.parquet lacks the columns {', '.join(missing)}")
        for row in rows:
            if wrong := [key for key, kind in NEEDED.items() if not isinstance(row[key], kind)]:
                raise StoreError(f"{self.folder} is damaged: a trial has no valid {', '.join(wrong)}")
            try:
                setting_of(row)
            except msgspec.ValidationError as error:
                raise StoreError(f"{self.folder} is damaged: the setting of trial {row['trial']}: {error}") from None
        if self.manifest["format"] == 1:
            self._check_numbers(rows)
        if not rows and self.journal.damaged:
            raise StoreError(f"{self.folder} is damaged: no line of {journal.FILE} is whole")
        return rows

    def _check_numbers(self, rows: list[dict[str, Any]]) -> None:
        """What was written without checksums may have any type; what is counted with is a number, or nothing."""
        for row in rows:
            for name, value in row.items():
                if schema.column_of("trials", name)[0] and not isinstance(value, int | float | None):
                    raise StoreError(f"{self.folder} is damaged: {name} of trial {row['trial']} is {value!r}")

    # --- tables ----------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        """The tables that the run has or should have, but for `trials`."""
        parts = {part.name.rpartition("-")[0] for part in self._parts()}
        found = {file.stem for file in self.folder.glob("*.parquet")} if self.manifest["format"] == 1 else set()
        return sorted({"samples", *self.store.get("tables", []), *parts, *found} - {"trials"})

    def _parts(self) -> list[pathlib.Path]:
        return sorted((self.folder / "parts").glob("*-??????.parquet"))

    def _select(self, name: str) -> Kept:
        """Return the row groups of a table that count, in the order in which they were written.

        Not counted is what the journal does not know (the run was killed between samples and journal), what a later
        try of the trial has replaced, and what is merged already. A trial of which a group is lost has none at all.
        """
        good: Kept = []
        lost: list[Group] = []
        merged_parts: set[int] = set()
        merged = self.folder / f"{name}.parquet"
        for path in [merged, *(part for part in self._parts() if part.name.rpartition("-")[0] == name)]:
            if path is merged and not merged.exists():
                if name in self.store.get("tables", []):
                    self.damage.append(f"{merged.name} is missing")
                continue
            number = 0 if path is merged else _number(path)
            if number in merged_parts:
                continue
            try:
                reader = Reader(path, run_key(self.manifest, path.stem))
            except StoreError as error:
                self.damage.append(_first(error))
                continue
            if reader.repaired:
                self.damage.append(f"{path.name}: its footer is damaged, and was read from its copy")
            good += [(reader, group if group.part else _of_part(group, number)) for group in reader.groups]
            lost += [group if group.part else _of_part(group, number) for group in reader.lost]
            if path is merged:
                merged_parts = {group.part for _, group in good} - {0}
        return self._counting(name, good, lost)

    def _counting(self, name: str, good: Kept, lost: list[Group]) -> Kept:
        since: dict[int | None, int] = {row["trial"]: row.get("part") or 0 for row in self._rows}
        if self.manifest["format"] == 1 and name == "samples":
            self._check_columns(good)
            for _, group in good:  # the last try counts
                if group.trial in since:
                    since[group.trial] = max(since[group.trial], group.part)

        def counts(group: Group) -> bool:
            if group.trial is None or (self.manifest["format"] == 1 and name != "samples"):
                return True
            return group.trial in since and (group.part == 0 or group.part >= since[group.trial])

        have = {group.part for _, group in good if group.part}
        gone = [group for group in lost if counts(group) and (not group.part or group.part not in have)]
        trials = {group.trial for group in gone}
        if gone and name != "samples":
            whole = sum(group.trial is None for group in gone)
            words = [_trials_in_words({trial: "" for trial in trials if trial is not None})] if trials - {None} else []
            words += [f"{whole} pieces"] if whole else []
            self.damage.append(f"{name}.parquet: lost is what it had of {' and '.join(words)}")
        kept = [pair for pair in good if counts(pair[1]) and (pair[1].trial is None or pair[1].trial not in trials)]
        return sorted(kept, key=lambda pair: pair[1].part)

    def _check_columns(self, good: Kept) -> None:
        for reader, _ in good:
            names = set(reader.schema.names)
            if missing := SAMPLE_COLUMNS - names:
                raise StoreError(f"{reader.path} lacks the columns {', '.join(sorted(missing))}")
            if more := names - SAMPLE_COLUMNS - {"late"}:
                raise StoreError(f"{reader.path} has columns of another table: {', '.join(sorted(more))}")

    def _lost(self) -> set[int]:
        have: collections.Counter[int | None] = collections.Counter()
        for _, group in self.tables["samples"]:
            have[group.trial] += group.rows
        lost = {row["trial"]: row["label"] for row in self._rows if row["samples"] != have[row["trial"]]}
        measured = sum(bool(row["samples"]) for row in self._rows)
        if lost:
            words = f"the samples of {len(lost)} of {measured} trials are damaged or missing: {_trials_in_words(lost)}"
            if len(lost) == measured:
                reasons = "".join(f"; {line}" for line in self.damage[:1])
                raise StoreError(f"{self.folder} is damaged: {words}{reasons}", remedy=seal.REMEDY)
            self.damage.append(words)
        return set(lost)

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    # --- the rest --------------------------------------------------------------------------------------------------

    def _check_parts(self) -> None:
        """Of a run that was never merged the parts are numbered without a gap."""
        if self.manifest["format"] == 1 or (self.folder / "samples.parquet").exists():
            return
        numbers = {_number(part) for part in self._parts()}
        if missing := sorted(set(range(1, max(numbers, default=0))) - numbers):
            self.damage.append(f"parts/: {len(missing)} parts are missing (the first: {missing[0]})")

    def _check_texts(self) -> None:
        self.damage += [f"{name} is missing" for name in self.store.get("documents", []) if not self._has(name)]
        if (experiment := self.store.get("experiment")) is not None:
            path = self.folder / "experiment.toml"
            if not path.exists() or path.read_bytes() != experiment.encode():
                self.damage.append("experiment.toml is not what was written; the experiment is taken from the manifest")
        if (log := self.store.get("log")) is not None:
            path = self.folder / "log.txt"
            content = path.read_bytes()[: log["bytes"]] if path.exists() else b""
            if zlib.crc32(content) != log["crc32"]:
                self.damage.append("log.txt is not what was written")


def _number(part: pathlib.Path) -> int:
    digits = part.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _of_part(group: Group, part: int) -> Group:
    return Group(group.number, part, group.trial, group.rows)


def _first(error: StoreError) -> str:
    return str(error).splitlines()[0]


def _trials_in_words(trials: dict[int, str]) -> str:
    named = [f"trial {number} {label}".rstrip() for number, label in sorted(trials.items())[:NAMED]]
    return ", ".join(named) + (f" and {len(trials) - NAMED} more" if len(trials) > NAMED else "")
