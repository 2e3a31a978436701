"""hwrx: how packets reach programs, and what each stage and copy on the way costs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwrx.report.reported import ReportedRun

from hwrx.version import __version__ as __version__


def load(path: str | os.PathLike[str]) -> ReportedRun:
    """Open a run directory: `run.samples`, `run.trials`, `run.summary()`, `run.figure("cdf")`.

    :param path: the directory, for example runs/latest; a partial run, and one of an older version, can be read, too
    :return: the run, its files checked; what is damaged of it is in `run.damage`, and nothing is written to it
    :raises StoreError: that says what is wrong with one that cannot be read
    """
    # an endpoint in an emulated guest imports hwrx and needs no Arrow
    from hwrx.report.reported import ReportedRun

    return ReportedRun.open(os.fspath(path))
