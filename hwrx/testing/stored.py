"""Baselines of tests: the runs that a test made before, kept for each test, machine and kernel.

In `FOLDER/NAME/TEST/RUN-CONDITIONS/` are `baseline.json`, which says what it is of, and copies of the runs. Where time
is measured, figures are those of one machine; counted instructions are the same wherever the emulator is the same. What
was measured stands in the settings of each row, and `hwrx diff` matches those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hwrx.errors import StoreError, UsageError
from hwrx.host import disk, strict_json
from hwrx.report.provenance import find_key, kernel_of
from hwrx.report.reported import ReportedRun

FILE = "baseline.json"
LOCK = ".lock"  # in the folder of a test
FORMAT = 1
KEPT_RUNS = 10  # the newest ones
MACHINE = Path("/etc/machine-id")
DEFAULT = "default"
BOOTED = ("boot", "wire_mtu")  # of an experiment: what its guest was put up with, and no row's setting has


def conditions_of(run: ReportedRun) -> dict[str, str]:
    """Return under which conditions a run's figures are those of another one's: not what was measured."""
    manifest = run.manifest
    found = {"clock": str(manifest["clock"]), "topology": str(manifest["topology"]), "kernel": kernel_of(run)}
    guest = manifest.get("guest")
    if isinstance(guest, dict):
        found["emulator"] = f"QEMU {guest.get('qemu', '')} {guest.get('accelerator', '')}".strip()
    if manifest["clock"] != "icount":
        about = manifest.get("host") or manifest.get("machine")
        found["processor"] = str(find_key(about, "model") or "")
        found["machine"] = _machine()
    return found


def _machine() -> str:
    """Tell this machine from others, without its name."""
    try:
        return hashlib.sha256(b"hwrx" + MACHINE.read_bytes().strip()).hexdigest()[:12]
    except OSError:
        return "unknown"


class Shelf:
    """The baselines of one name, for one test."""

    def __init__(self, folder: Path, name: str, test: str) -> None:
        check_name(name)
        self.name = name
        self.test = test
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", test.rpartition("::")[2])[:60].strip("-.")
        self._folder = folder / name / f"{words}-{_digest(test)}"

    @property
    def anew(self) -> str:
        """What to type for a new baseline in the place of this one."""
        return self._anew(self._folder)

    def find_runs(self, number: int, run: ReportedRun) -> list[ReportedRun]:
        """Return the runs that the test's run of that number is held against.

        :raises UsageError: if there is no baseline, or only one of another kernel, machine, …; it says which
        :raises StoreError: if it is damaged
        """
        __tracebackhide__ = True  # pytest's: a test's traceback ends in the test
        conditions = conditions_of(run)
        place = self._place(number, conditions)
        if not (place / FILE).exists():
            raise self._none_for(number, conditions)
        names = self._read(place / FILE)["runs"]
        runs = [ReportedRun.open(place / str(name)) for name in names] if isinstance(names, list) else []
        if damage := [words for each in runs for words in each.damage]:
            raise StoreError(f"the baseline {place} is damaged: {damage[0]}", remedy=self._anew(place))
        if not runs:
            raise StoreError(f"the baseline {place} is damaged: it names no run", remedy=self._anew(place))
        return runs

    def add_run(self, number: int, run: ReportedRun) -> Path:
        """Add a run to the test's baseline; the newest KEPT_RUNS are kept. It is there whole or not at all.

        :return: the baseline's folder
        :raises StoreError: if it cannot be written, or what is there is damaged
        :raises UsageError: if the guest of the runs that are there was put up with other boot words or another MTU
        """
        conditions = conditions_of(run)
        place = self._place(number, conditions)
        with self._one_writer():
            self._add(number, run, place, conditions)
        return place

    @contextlib.contextmanager
    def _one_writer(self) -> Iterator[None]:
        """Wait until no other session adds a run to the baselines of this test."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _cannot_keep(self._folder, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in disk.WITHOUT_LOCKS:
                    raise _cannot_keep(self._folder, error) from error
            yield
        finally:
            os.close(descriptor)

    def _add(self, number: int, run: ReportedRun, place: Path, conditions: Mapping[str, str]) -> None:
        before: list[str] = []
        if (place / FILE).exists():
            names = self._read(place / FILE)["runs"]
            before = [str(name) for name in names] if isinstance(names, list) else []
        others = [name for name in before if name != run.path.name]
        if others:
            self._check_booted(place, ReportedRun.open(place / others[-1]), run)
        runs = [*others, run.path.name]
        kept = runs[-KEPT_RUNS:]
        content = {"format": FORMAT, "test": self.test, "number": number, "conditions": conditions, "runs": kept}
        try:
            place.mkdir(parents=True, exist_ok=True)
            part = place / f".{run.path.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(run.path, part)
            shutil.rmtree(place / run.path.name, ignore_errors=True)
            part.rename(place / run.path.name)
            disk.replace_file(place / FILE, strict_json.to_json(content, indent=1).encode() + b"\n")
        except OSError as error:
            raise _cannot_keep(place, error) from error
        for name in runs[:-KEPT_RUNS]:
            shutil.rmtree(place / name, ignore_errors=True)

    def _check_booted(self, place: Path, kept: ReportedRun, run: ReportedRun) -> None:
        """UsageError if two runs were booted differently: they may be compared, but are no sample of one thing."""
        there, here = ({field: getattr(each.experiment, field) for field in BOOTED} for each in (kept, run))
        if differ := [field for field in BOOTED if there[field] != here[field]]:
            words = "; ".join(f"{field} {_words(there[field])}, now {_words(here[field])}" for field in differ)
            raise UsageError(
                f"the baseline '{self.name}' of {self.test} is of runs in a guest that was put up otherwise: {words}",
                remedy=f"{self._anew(place)}; or keep it, and choose another name",
            )

    def _place(self, number: int, conditions: Mapping[str, str]) -> Path:
        return self._folder / f"{number}-{_digest(json.dumps(conditions, sort_keys=True))}"

    def _none_for(self, number: int, conditions: Mapping[str, str]) -> UsageError:
        """Say that there is no baseline, and how those differ that there are."""
        remedy = f"pytest --hwrx-save={self.name}" if self.name != DEFAULT else "pytest --hwrx-save"
        others = [
            conditions_there
            for file in sorted(self._folder.glob(f"{number}-*/{FILE}"))
            if isinstance(conditions_there := self._read(file).get("conditions"), dict)
        ]
        if not others:
            return UsageError(f"{self.test} has no baseline '{self.name}' yet", remedy=remedy)
        nearest = min(others, key=lambda other: len(_apart(other, conditions)))
        words = "; ".join(f"{key} {there}, here {here}" for key, there, here in _apart(nearest, conditions))
        return UsageError(
            f"the baseline '{self.name}' of {self.test} is not of what it is run on now: it is of {words}",
            remedy=f"{remedy} keeps one for this {_apart(nearest, conditions)[0][0]}, too",
        )

    def _read(self, file: Path) -> dict[str, object]:
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"the baseline {file} is damaged: {error}", remedy=self._anew(file.parent)) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT or "runs" not in found:
            raise StoreError(f"{file} is not a baseline of this version", remedy=self._anew(file.parent))
        return found

    def _anew(self, place: Path) -> str:
        return f"rm -r {place}, then pytest --hwrx-save={self.name}"


def _cannot_keep(place: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot keep the baseline in {place}: {disk.reason_of(error)}")


def _words(value: object) -> str:
    return (" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")) or "none"


def _apart(there: Mapping[str, str], here: Mapping[str, str]) -> Sequence[tuple[str, str, str]]:
    keys = dict.fromkeys((*there, *here))
    sides = [(key, str(there.get(key, "none")), str(here.get(key, "none"))) for key in keys]
    return [side for side in sides if side[1] != side[2]]


def check_name(name: str) -> None:
    """UsageError if it is not the name of a baseline: an option without its value takes the next word for it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UsageError(
            f"{name!r} is not a name for a baseline",
            remedy="--hwrx-save=NAME; without a name put the option last, behind the files of tests",
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
