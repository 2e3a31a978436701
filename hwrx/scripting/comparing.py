"""`hwrx.compare`: what the command `hwrx compare` does, as a call that returns the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwrx.campaign import measuring
from hwrx.control.guest_boot import BOOT_FIELDS
from hwrx.errors import TrialError, UsageError
from hwrx.host import tools
from hwrx.report.published import open_published
from hwrx.report.reported import ReportedRun
from hwrx.runs import testbed
from hwrx.runs.experiment import Experiment, described_experiment
from hwrx.runs.overrides import LISTED
from hwrx.runs.testbed import Wanted
from hwrx.scripting.progress import Listener, Listening

StrPath = str | os.PathLike[str]


def compare_paths(
    experiment: StrPath | None,
    *,
    runs: StrPath,
    progress: Listener | None,
    log: StrPath | None,
    here: bool,
    devices: tuple[str, ...] | list[str],
    peer: str | None,
    peer_device: str | None,
    peer_address: str | None,
    address: str | None,
    hostnames: bool,
    options: Mapping[str, object],
) -> ReportedRun:
    """Run an experiment and return its run: see `hwrx.compare`, which calls it."""
    wanted = Wanted(
        here=here,
        devices=tuple(devices),
        peer=peer,
        peer_device=peer_device,
        peer_address=peer_address,
        address=address,
        log=None if log is None else Path(log),
    )
    more: dict[str, object] = {"topology": "hosts"} if wanted.explicit else {}
    described = describe_comparison(experiment, {**more, **options})
    return run_comparison(described, wanted, runs=runs, progress=progress, hostnames=hostnames)


def describe_comparison(file: StrPath | None, options: Mapping[str, object]) -> Experiment:
    """Return the experiment that a call describes: of a file, of keywords, or of a file with keywords over it.

    :raises UsageError: if a keyword is none, or has a value that it cannot have
    """
    for field, several in LISTED.items():
        if field in options and not isinstance(options[field], Mapping):  # a table of that name is one of a file
            raise UsageError(f"'{field}' is given as a list: {several}", remedy=f"{several}=[{options[field]!r}]")
    content: dict[str, Any] = dict(options)
    for field in ("paths", "sizes", "patterns", "waits", *BOOT_FIELDS):
        value = content.get(field)
        if isinstance(value, str | int):  # a list of one, as the command line has it
            content[field] = [value]
    return described_experiment(None if file is None else Path(file), content)


def run_comparison(
    experiment: Experiment,
    wanted: Wanted,
    *,
    runs: StrPath,
    progress: Listener | None,
    hostnames: bool,
    open_bed: measuring.BedOpener = testbed.opened_bed,
) -> ReportedRun:
    """Plan and measure an experiment as the command does, and open the run.

    :raises TrialError: if trials failed; the run is there, and named
    """
    tools.widen_path()
    listening = Listening(progress)
    layout = measuring.settle_plan(experiment, wanted, listening.stage)
    outcome, directory = measuring.measure_plan(layout, wanted, Path(runs), progress=listening, open_bed=open_bed)
    if outcome.failed:
        raise TrialError(
            f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}",
            remedy=f"each failure stands in {directory / 'log.txt'}; hwrx.load({str(directory)!r}) has the others",
        )
    return open_published(directory, hostnames=hostnames)
