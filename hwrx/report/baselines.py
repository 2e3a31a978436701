"""Named baselines: runs that later ones are held against, remembered for this machine and user.

A baseline is a file `NAME.json` in `$XDG_STATE_HOME/hwrx/baselines` (~/.local/state/hwrx/baselines) with the absolute
paths of its runs. The runs stay where they are: a baseline is as long-lived as they.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence

from hwrx.errors import StoreError, UsageError
from hwrx.host import disk, strict_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def baselines_folder() -> pathlib.Path:
    """Where baselines are kept; it need not exist."""
    state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    return pathlib.Path(state) / "hwrx" / "baselines"


def save_baseline(name: str, runs: Sequence[pathlib.Path]) -> pathlib.Path:
    """Remember `runs` by a name, instead of what it stood for before.

    :return: the file that says so
    :raises UsageError: if the name is not a valid one
    :raises StoreError: if the file cannot be written
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name of a baseline", remedy="letters, digits, '.', '_' and '-', at most 64"
        )
    file = _file(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"runs": [str(run.resolve()) for run in runs]}
        disk.replace_file(file, strict_json.to_json(content, indent=1).encode() + b"\n")
    except OSError as error:
        raise StoreError(
            f"cannot keep the baseline in {file.parent}: {disk.reason_of(error)}",
            remedy="set XDG_STATE_HOME to a folder",
        ) from error
    return file


def find_baseline(name: str) -> list[pathlib.Path] | None:
    """The runs of a baseline, None if there is none of that name.

    :raises StoreError: if its file is damaged, or a run is no longer where it was
    """
    if not NAME.fullmatch(name):
        return None
    file = _file(name)
    try:
        content = json.loads(file.read_bytes())
        runs = [pathlib.Path(run) for run in content["runs"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"the baseline {file} is damaged: {error}", remedy=f"hwrx diff --save-baseline {name} RUN…"
        ) from None
    if gone := [str(run) for run in runs if not run.is_dir()]:
        raise StoreError(
            f"{len(gone)} of the {len(runs)} runs of the baseline {name} are gone (first: {gone[0]})",
            remedy=f"put them back, or hwrx diff --save-baseline {name} RUN…",
        )
    return runs


def baseline_names() -> list[str]:
    """The names that have a baseline, in alphabetical order."""
    return sorted(file.stem for file in baselines_folder().glob("*.json") if NAME.fullmatch(file.stem))


def _file(name: str) -> pathlib.Path:
    return baselines_folder() / f"{name}.json"
