"""A history of runs: each setting's figure from run to run, and where it changed.

A history is of one experiment, setting, topology and clock on one machine and kernel: what else varies would be in its
figures. Of guest instructions the machine is any, as they are the same on all.

A figure that repeats to the digit changed where its digits did. Of all others Apache Otava says where (E-divisive means
with a t test, as in Fleming et al., "Hunter", ICPE 2023): hwrx has no statistics of its own for that. Otava's importers
and reporters bring forty packages, of which its analysis needs none but NumPy and SciPy, so that it is installed
without them: pip install --no-deps apache-otava.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from hwrx.campaign.history import Change, History, Point, Track
from hwrx.errors import StoreError
from hwrx.paths import mixes
from hwrx.report.anatomies import moved_functions
from hwrx.report.headline import Headline, headlines_of
from hwrx.report.provenance import find_key, kernel_of
from hwrx.report.published import open_published
from hwrx.report.reported import ReportedRun

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
    gathered: dict[tuple[str, ...], list[tuple[ReportedRun, Headline]]] = {}
    for run in sorted(runs, key=lambda run: str(run.manifest["started"])):
        for figure in headlines_of(run.summary()):
            gathered.setdefault(_key(run, figure, across_kernels), []).append((run, figure))
    analyse = find_otava()
    return Track(histories=[_history(key, of, over, analyse) for key, of in gathered.items()], left_out=left_out)


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


def _key(run: ReportedRun, figure: Headline, across_kernels: bool) -> tuple[str, ...]:
    manifest: Mapping[str, object] = run.manifest
    clock = str(manifest["clock"])
    return (
        " ".join([run.name, *run.experiment.boot]),
        _setting_of(run, figure),
        _machine_of(manifest) if clock != "icount" else "any (instructions are counted)",
        "" if across_kernels else kernel_of(run),
        str(manifest["topology"]),
        clock,
        figure.unit,
    )


def _setting_of(run: ReportedRun, figure: Headline) -> str:
    """Return what tells a setting from others in any run: of two mixes that have one name, by their weights."""
    label = figure.swept.get("mix")
    if not label:
        return figure.setting
    mixed = (str(trial["mix"]) for trial in run.rows if trial.get("mix"))
    words = next(words for words, known in mixes.tell_apart(mixed).items() if known == label)
    return figure.setting.replace(f"mix={label}", f"mix={mixes.own_label(words)}")


def _machine_of(manifest: Mapping[str, object]) -> str:
    """Return what tells one machine from another without its name: its processor, and whether the guest is emulated."""
    model = find_key(manifest.get("host") or manifest.get("machine"), "model")
    return f"{model or 'unknown'}{', an emulated guest' if manifest.get('emulated') else ''}"


def _history(
    key: tuple[str, ...],
    of: Sequence[tuple[ReportedRun, Headline]],
    over: float,
    analyse: Callable[[Sequence[float], float], list[Found]] | None,
) -> History:
    experiment, setting, machine, kernel, topology, clock, unit = key
    exact = all(figure.exact for _, figure in of)
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
        experiment=experiment,
        setting=setting,
        machine=machine,
        kernel=kernel,
        topology=topology,
        clock=clock,
        unit=unit,
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
    if isinstance(commit, dict):
        commit = find_key(commit, "hwrx") or find_key(commit, "commit")
    return str(commit or "")[:12]


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
