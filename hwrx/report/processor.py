"""Processor time of a row's messages, from what hwrx.paths.cputime put into the run's table of trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwrx import stats
from hwrx.paths.cputime import ACTORS, CHARGED
from hwrx.stats import Estimate

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

ONLY_COUNTED = ("softirq", "interrupt")  # actors that the counted twins alone tell apart
COUNTED_BELOW = f"{CHARGED}; the table of what was counted by actor tells them apart"


def by_actor(trial: dict[str, Any], ways: int) -> dict[str, float]:
    """A trial's processor time in ns for a message that came, by actor; empty if the run does not say.

    `ways`: how many messages a sample stands for, two if it is a round trip.
    """
    messages = ways * int(trial["samples"])
    found = {actor: trial.get(f"cpu_{actor}") for actor in ACTORS}
    return {actor: float(ns) / messages for actor, ns in found.items() if ns is not None and messages}


def busy_time(trials: Sequence[dict[str, float]]) -> list[float]:
    """What of each trial was not idle; nothing unless all trials tell."""
    return [found["busy"] for found in trials] if all("busy" in found for found in trials) else []


def missing_actors(trials: Sequence[dict[str, Any]], counting: Mapping[str, Any]) -> dict[str, str]:
    """Why actors have no time, in the words of the last trial that says.

    :param counting: what the run says of its counted twins (trace.counted): one that was to have some says for softirqs
        and interrupts what kept them from being counted, instead of asking for what was asked for.
    """
    said: dict[str, str] = {}
    for trial in trials:
        said |= json.loads(trial.get("cpu_missing") or "{}")
    failed = counting.get("failed", {})
    problem = counting.get("problem") or next((failed[n] for t in trials if (n := str(t["trial"])) in failed), "")
    if problem:
        reason = f"{CHARGED}, and what tells them apart could not count: {problem}"
        said |= {actor: reason for actor in ONLY_COUNTED if actor in said}
    return said


def by_trial(run: Run) -> dict[int, dict[str, float]]:
    """The ns a message of each trial's twin that was counted by actor; `busy` if all of the time was given out."""
    found: dict[int, dict[str, float]] = {}
    table = run.table("actors")
    for entry in [] if table is None else table.to_pylist():
        if entry["messages"]:
            found.setdefault(entry["trial"], {})[entry["actor"]] = entry["ns"] / entry["messages"]
    for actors in found.values():
        if "idle" in actors:
            actors["busy"] = sum(ns for actor, ns in actors.items() if actor not in ("idle", "housekeeping"))
    return found


def across_trials(trials: Sequence[dict[str, float]], factor: float, level: float) -> dict[str, Estimate]:
    """Estimate each actor's time that all trials tell, `factor` times as large."""
    actors = [actor for actor in ACTORS if trials and all(actor in found for found in trials)]
    return {actor: stats.mean_across([factor * found[actor] for found in trials], level) for actor in actors}
