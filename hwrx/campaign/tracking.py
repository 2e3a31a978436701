"""A history of runs: each setting's figure from run to run, and where it changed.

A history is of one experiment, setting, topology and clock on one machine and kernel: what else varies would be in its
figures. The setting is all of it, also what no run varies and no name says: if histories differ in that alone, it
stands behind their names. Of guest instructions the machine is any, as they are the same on all.

A figure that repeats to the digit changed where its digits did. Of all others Apache Otava says where (E-divisive means
with a t test, as in Fleming et al., "Hunter", ICPE 2023): hwrx has no statistics of its own for that. Otava's importers
and reporters bring forty packages, of which its analysis needs none but NumPy and SciPy, so that it is installed
without them: pip install --no-deps apache-otava.
"""

from __future__ import annotations

import collections
import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from msgspec import Struct

from hwrx.campaign.history import Change, History, Point, Track
from hwrx.errors import StoreError
from hwrx.paths import mixes
from hwrx.report.anatomies import moved_functions
from hwrx.report.headline import Headline, headline_of
from hwrx.report.model import Row
from hwrx.report.provenance import find_key, kernel_of, machine_of
from hwrx.report.published import open_published
from hwrx.report.reported import ReportedRun
from hwrx.runs.overrides import LISTED

INSTALL = "pip install --no-deps apache-otava"
CHANCE = 0.001  # p below which Otava takes a change for one: its own default
WINDOW = 50  # runs that it looks at together: its own default
FEWEST = 4  # runs of a history that is judged
NAMED = 5  # functions of a change


class Stats(Protocol):
    """What Otava says of a change point, as far as it is used."""

    mean_1: float
    mean_2: float
    pvalue: float


class Found(Protocol):
    """A change point of Otava's: the place of the first value after it."""

    index: int
    stats: Stats


class Key(Struct, frozen=True, kw_only=True):
    """What the runs of a history have in common. `given`: fields that its names do not say, each with its value."""

    experiment: str
    setting: str
    machine: str
    kernel: str  # "": several
    topology: str
    clock: str
    unit: str
    given: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All that is shown of it."""
        return self.experiment, self.setting, self.machine, self.kernel, self.topology, self.clock, self.unit


def read_track(paths: Iterable[Path], *, over: float, across_kernels: bool = False, hostnames: bool = False) -> Track:
    """Make the histories of runs.

    :param paths: run directories.
    :param over: share by which a figure has to change.
    :param across_kernels: put the runs on all kernels into one history.
    :param hostnames: keep the names of hosts and users.
    """
    runs: list[ReportedRun] = []
    left_out = []
    for path in paths:
        try:
            run = open_published(path, hostnames=hostnames)
        except StoreError as error:
            left_out.append(f"{path.name}: {Exception.__str__(error)}")
            continue
        if run.status == "complete":
            runs.append(run)
        else:
            left_out.append(f"{path.name}: its run is {run.status}")
    gathered: dict[Key, list[tuple[ReportedRun, Headline]]] = {}
    for run in sorted(runs, key=lambda run: str(run.manifest["started"])):
        for row in run.summary().rows:
            if (figure := headline_of(row)) is not None:
                gathered.setdefault(_key(run, row, figure, across_kernels), []).append((run, figure))
    analyse = find_otava()
    settings = _told_apart(gathered)
    return Track(
        histories=[_history(key, settings[key], of, over, analyse) for key, of in gathered.items()], left_out=left_out
    )


def runs_beneath(folder: Path) -> list[Path]:
    """Return the run directories beneath a folder, those of campaigns' cells among them.

    :raises StoreError: if there is none.
    """
    found = sorted(
        {file.parent for file in folder.rglob("manifest.json") if (file.parent / "experiment.toml").exists()}
    )
    if not found:
        raise StoreError(f"there is no run beneath {folder}", remedy="hwrx compare --runs FOLDER makes them there")
    return found


def find_otava() -> Callable[[Sequence[float], float], list[Found]] | None:
    """Return Apache Otava's analysis, None if it is not installed."""
    try:
        analysis = importlib.import_module("otava.analysis")
    except ImportError:
        return None

    def analyse(values: Sequence[float], over: float) -> list[Found]:
        found, _ = analysis.compute_change_points(
            list(values), window_len=WINDOW, max_pvalue=CHANCE, min_magnitude=over
        )
        return cast("list[Found]", found)

    return analyse


def _key(run: ReportedRun, row: Row, figure: Headline, across_kernels: bool) -> Key:
    manifest: Mapping[str, object] = run.manifest
    clock = str(manifest["clock"])
    return Key(
        experiment=" ".join([run.name, *run.experiment.boot]),
        setting=_setting_of(run, figure),
        machine=machine_of(run) if clock != "icount" else "any (instructions are counted)",
        kernel="" if across_kernels else kernel_of(run),
        topology=str(manifest["topology"]),
        clock=clock,
        unit=figure.unit,
        given=_given(run, row, clock),
    )


def _given(run: ReportedRun, row: Row, clock: str) -> tuple[tuple[str, str], ...]:
    """Return what a row's figures depend on, beyond what its name says."""
    named = {*LISTED, *row.swept, *(["rate"] if row.load is not None else [])}  # the rate of a share is each run's own
    fields = {field: value for field, value in row.setting.items() if field not in named}
    fields["wire_mtu"] = run.experiment.wire_mtu
    if clock != "icount":  # a guest that counts is the same on whatever CPU
        cpu = run.experiment.cpu
        fields |= {"cpu": cpu if isinstance(cpu, str) else ",".join(map(str, cpu)), "numa": run.experiment.numa}
    return tuple(sorted((field, str(value)) for field, value in fields.items()))


def _told_apart(keys: Iterable[Key]) -> dict[Key, str]:
    """Return what the setting of each history is called: with the fields by which those of one name differ."""
    alike: dict[tuple[str, ...], list[Key]] = collections.defaultdict(list)
    for key in keys:
        alike[key.names].append(key)
    found = {}
    for mine in alike.values():
        common = set.intersection(*(set(key.given) for key in mine))
        for key in mine:
            found[key] = " ".join([key.setting, *(f"{name}={value}" for name, value in key.given
                                                  if (name, value) not in common)])  # fmt: skip
    return found


def _setting_of(run: ReportedRun, figure: Headline) -> str:
    """Return what tells a setting from others in any run: of two mixes that have one name, by their weights."""
    label = figure.swept.get("mix")
    if not label:
        return figure.setting
    mixed = (str(trial["mix"]) for trial in run.rows if trial.get("mix"))
    words = next(words for words, known in mixes.tell_apart(mixed).items() if known == label)
    return figure.setting.replace(f"mix={label}", f"mix={mixes.own_label(words)}")


def _history(
    key: Key,
    setting: str,
    of: Sequence[tuple[ReportedRun, Headline]],
    over: float,
    analyse: Callable[[Sequence[float], float], list[Found]] | None,
) -> History:
    exact = all(figure.exact for _, figure in of)
    if not exact:  # costs, all of them: a state beside a cost would seem to have changed
        costs = [(run, figure.as_cost()) for run, figure in of]
        of = [(run, figure) for run, figure in costs if not figure.exact]
    values = [figure.value for _, figure in of]
    not_judged = ""
    changes: list[Change] = []
    if exact:
        for place, (old, new) in enumerate(itertools.pairwise(values), 1):
            if abs(new / old - 1) > over:
                changes.append(_change(of, place, old, new))
    elif len(values) < FEWEST:
        not_judged = f"{len(values)} runs are too few: {FEWEST} at the least"
    elif analyse is None:
        not_judged = f"Apache Otava is not installed ({INSTALL})"
    else:
        changes = [
            _change(of, int(each.index), float(each.stats.mean_1), float(each.stats.mean_2), float(each.stats.pvalue))
            for each in analyse(values, over)
        ]
    return History(
        experiment=key.experiment,
        setting=setting,
        machine=key.machine,
        kernel=key.kernel,
        topology=key.topology,
        clock=key.clock,
        unit=key.unit,
        exact=exact,
        points=[
            Point(
                run=run.path.name,
                started=str(run.manifest["started"]),
                kernel=kernel_of(run),
                hwrx=_commit_of(run.manifest),
                value=figure.value,
            )
            for run, figure in of
        ],
        changes=changes,
        not_judged=not_judged,
    )


def _commit_of(manifest: Mapping[str, object]) -> str:
    commit = find_key(manifest.get("host") or manifest.get("machine"), "commit")
    return str(commit.get("id") or "")[:12] if isinstance(commit, dict) else ""


def _change(
    of: Sequence[tuple[ReportedRun, Headline]], place: int, before: float, after: float, chance: float | None = None
) -> Change:
    (old, _), (new, figure) = of[place - 1], of[place]
    ratio = after / before
    return Change(
        run=new.path.name,
        place=place,
        before=before,
        after=after,
        ratio=ratio,
        worse=(ratio < 1) == figure.more_is_better,
        chance=chance,
        functions=[each for each in moved_functions([old], [new]) if each.setting == figure.label][:NAMED],
    )
