"""The trials of a run by the settings that they are of: what a report has a row for, and a flow between hosts."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from hwrx.paths import mixes
from hwrx.runs.overrides import LISTED, SETTING_FIELDS, setting_of
from hwrx.runs.planning import used_capacity

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

# fields of Setting that tell two rows of a table apart where they differ, besides those that always do
TELLING = tuple(name for name in SETTING_FIELDS if name not in LISTED)


class Group(Struct, frozen=True, kw_only=True):
    """The trials of one path in one setting, over all repeats; `swept` as in Row."""

    path: str
    size: int
    pattern: str
    wait: str
    load: float | None
    swept: dict[str, Any]
    trials: list[dict[str, Any]]


def group_trials(run: Run) -> list[Group]:
    """Return the trials of a run by all that tells two rows apart, in the order in which their first were run."""
    trials: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    # a field that a path's own table sets tells nothing apart: it is the same for all rows of that path
    swept = [field for field in TELLING if _varies(run.rows, field)]
    # of a mix the size is that of the longest message, so its name stands beside it in any case
    swept += ["mix"] if "mix" not in swept and any(trial.get("mix") for trial in run.rows) else []
    if run.experiment.load:  # the rates of a share are each path's own; the share is what its rows have in common
        swept = [field for field in swept if field != "rate"]
    labels = mixes.tell_apart(str(trial.get("mix") or "") for trial in run.rows)
    for trial in run.rows:
        values = tuple(labels.get(str(trial["mix"]), "") if field == "mix" else _asked(trial, field) for field in swept)
        key = trial["path"], trial["size"], trial["pattern"], trial["wait"], _load(run, trial), values
        trials[key].append(trial)
    return [
        Group(
            path=path,
            size=size,
            pattern=pattern,
            wait=wait,
            load=load,
            swept=dict(zip(swept, values, strict=True)),
            trials=of_key,
        )
        for (path, size, pattern, wait, load, values), of_key in trials.items()
    ]


def _load(run: Run, trial: dict[str, Any]) -> float | None:
    """The share of its path's capacity that a trial of an experiment with `load` was sent at."""
    if not run.experiment.load or not trial.get("rate"):
        return None
    capacity = used_capacity(setting_of(trial), run.experiment)
    return round(trial["rate"] / capacity, 4) if capacity else None


def is_outcome(trial: Mapping[str, object], field: str) -> bool:
    """Whether a field of a trial's setting is what came of it: how many messages one with a duration had."""
    return field == "messages" and trial.get("duration") is not None


def _asked(trial: Mapping[str, object], field: str) -> object:
    return None if is_outcome(trial, field) else trial.get(field)


def _varies(trials: list[dict[str, Any]], field: str) -> bool:
    groups: dict[tuple[Any, ...], set[Any]] = collections.defaultdict(set)
    for trial in trials:
        groups[trial["path"], trial["size"], trial["pattern"], trial["wait"]].add(_asked(trial, field))
    return any(len(values) > 1 for values in groups.values())
