"""What a summary says in words: the answer in one sentence, and the warnings."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hwrx.report.numbers import size_of_rows, time_words

if TYPE_CHECKING:
    from hwrx.modes import State
    from hwrx.report.model import Row
    from hwrx.runs.reading import Run
    from hwrx.stats import Estimate


def answer_words(rows: list[Row], baseline: str) -> str:
    """One sentence: the paths at the smallest size, against the baseline."""
    for pattern in ("pingpong", "stream", "paced"):
        sizes = sorted({row.size for row in rows if row.pattern == pattern and row.digests})
        if sizes:
            return _sentence([row for row in rows if row.pattern == pattern and row.size == sizes[0]], baseline)
    return "No trial was measured."


def at_words(rows: Sequence[Row]) -> str:
    """Begin a sentence about rows of one size: which it is, or up to which messages go that differ."""
    words = size_of_rows(*rows)
    return f"At sizes {words}" if words.startswith("up to") else f"At {words}"


def _sentence(rows: list[Row], baseline: str) -> str:
    rows = [row for row in rows if row.digests]
    if rows[0].pattern == "stream":
        return _rate_sentence(rows, baseline)
    if any(row.load is not None for row in rows):
        return _load_sentence(rows)
    bases = [row for row in rows if row.path == baseline and row.quantiles["p50"]]
    if not bases:
        return f"Too few messages of {size_of_rows(*rows)} were measured for a median."
    first = bases[0].swept
    if any(base.swept != first for base in bases):
        return _swept_sentence(rows, [row for row in rows if row.swept == first], baseline)
    waits = {row.wait for row in bases}
    parts = []
    for place, base in enumerate(bases):
        median = base.quantiles["p50"]
        assert median is not None
        manner = f", waiting by {base.wait}," if len(waits) > 1 else ""
        what = f"{_article(base.measures)} " if not place else ""
        parts.append(f"{what}over {base.label}{manner} takes {time_words(median.value)} at the median")
        # a row that waits as no baseline row does was held against the first
        parts += [
            _against(row, base)
            for row in rows
            if row.ratio is not None
            and row.swept == base.swept
            and row.run == base.run
            and (row.wait == base.wait or (row.wait not in waits and base is bases[0]))
        ]
    return f"{at_words(rows)}, {'; '.join(parts)}."


def _swept_sentence(rows: list[Row], first: list[Row], baseline: str) -> str:
    """The first of several conditions as if it were the only one, and where each path's tail is the longest."""
    worst: dict[str, tuple[float, str]] = {}
    for row in rows:
        tail = row.quantiles["p99"] or row.quantiles["p50"]
        if tail is not None and tail.value > worst.get(row.name, (0.0, ""))[0]:
            words = row.label.removeprefix(row.name).strip()
            worst[row.name] = tail.value, words or "nothing changed"
    tails = ", ".join(f"{time_words(value)} over {name} ({where})" for name, (value, where) in worst.items())
    return f"{_sentence(first, baseline).rstrip('.')}; the longest p99: {tails}."


def _against(row: Row, base: Row) -> str:
    assert row.ratio is not None
    manner = "" if row.wait == base.wait else f", waiting by {row.wait},"
    note = "" if row.measures == base.measures else f" for a {row.measures}"
    told = "" if row.ratio.low > 1 or row.ratio.high < 1 else ", not told apart from it"
    return f"{row.label}{manner} {row.ratio.value:.2f} times as long ({ratio_interval(row.ratio)}){note}{told}"


def _rate_sentence(rows: list[Row], baseline: str) -> str:
    rated = [row for row in rows if row.messages_per_s is not None]
    if not rated:
        reason = next((row.withheld["messages/s"] for row in rows if "messages/s" in row.withheld), "")
        return f"No stream has a rate: {reason}." if reason else "No stream delivered two messages."
    best = max(rated, key=lambda row: row.messages_per_s.value if row.messages_per_s else 0.0)
    assert best.messages_per_s is not None
    against = f", {best.ratio.value:.2f} times {baseline}'s ({ratio_interval(best.ratio)})" if best.ratio else ""
    rate = f"{best.messages_per_s.value:,.0f} messages of {size_of_rows(best)} a second"
    return f"{best.label} streams fastest: {rate}{against}."


def _load_sentence(rows: list[Row]) -> str:
    """What each path can do, and from which load on its tail is no longer that of an idle path."""
    curves: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.load or 0.0):
        if row.load is not None and row.rate is not None:
            curves.setdefault(row.curve, []).append(row)
    able, knees = [], []
    for name, of in curves.items():
        able.append(f"{name} keeps up with {of[0].rate / of[0].load:,.0f}")  # type: ignore[operator]
        tails = [(row.load or 0.0, row.quantiles["p99"]) for row in of]
        idle = tails[0][1]
        above = [load for load, p99 in tails if p99 is not None and idle is not None and p99.value > 2 * idle.value]
        if above:
            knees.append(f"{name} {100 * above[0]:.3g} %")
    lowest = min(of[0].load or 0.0 for of in curves.values())
    knee = f"; p99 of the response time is more than twice that at {100 * lowest:.3g} % load from "
    knee = knee + f"{', '.join(knees)} of that on" if knees else ""
    return f"{at_words(rows)}, {', '.join(able)} messages a second{knee}."


def _article(words: str) -> str:
    if words == "half round trip":
        return "half a round trip"
    return f"a {words}"


def ratio_interval(ratio: Estimate) -> str:
    """95 % interval in words, or why there is none."""
    if ratio.split:
        return "repeats fall into groups, no interval"
    return "one trial, no interval" if math.isnan(ratio.low) else f"95 % interval {ratio.low:.2f}–{ratio.high:.2f}"


def states_words(states: Sequence[State]) -> str:
    """The shares and the figures of states, times in µs: "59 % 11.8255 µs, 41 % 13.0575 µs"."""
    return ", ".join(f"{100 * state.share:.2g} % {state.value:.6g} µs" for state in states)


def _groups_words(row: Row) -> str:
    trials = len(row.digests)
    unit = "a second" if row.pattern == "stream" else "µs"
    return ", ".join(f"{round(group.share * trials)} × {group.value:,.4g} {unit}" for group in row.groups)


def of_run(run: Run) -> list[str]:
    """What spoils a whole run."""
    warnings = []
    if run.status != "complete":
        warnings.append(f"run {run.path.name} is {run.status}: {run.reason}; figures stand on what was measured")
    warnings += [f"run {run.path.name} is damaged: {loss}" for loss in run.damage]
    failed = [trial for trial in run.rows if trial["status"] == "failed"]
    for trial in failed[:5]:
        error = str(trial["error"]).splitlines()[0] if trial["error"] else "no reason was given"
        warnings.append(f"trial {trial['trial']} ({trial['label']}) failed: {error}")
    if len(failed) > 5:
        warnings.append(f"{len(failed) - 5} more trials failed; trials.parquet has the reasons")
    if run.emulated and run.manifest["clock"] == "wall":
        warnings.append(
            "the machine was emulated in software: its times are not those of any hardware, and move by a factor of "
            "two on a busy host; only ratios within this run mean something"
        )
    if problem := run.manifest.get("tracing", {}).get("problem"):
        why, _, remedy = str(problem).partition("remedy: ")
        why = why.strip().splitlines()[0]
        remedy = remedy or "log.txt has more"
        warnings.append(f"NOT TRACED, though it was asked for: no stages and copies are told. {why}; {remedy}")
    for words in run.manifest.get("warnings", []):
        warnings.append(str(words))
    return warnings


def of_rows(rows: list[Row]) -> list[str]:
    """What is wrong with rows, one line a kind: the rows that have it, the worst first."""
    found: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
    for row in rows:
        name = f"{row.label} {size_of_rows(row)} {row.pattern}"
        for count, words in _FAULTS.items():
            if share := row.tally.get(count, 0):
                found[f"messages {words}"].append((share, f"{name} {share:,}"))
        trial = max((digest.count for digest in row.digests), default=0)
        if row.saturated:
            # a queue that grows to the end of the trial has no transient and no independent samples
            words = "more was offered than the path answered: the response times are those of a queue that grows as "
            words += "long as the trial, so that only the answered rate means something"
            found[words].append((row.rate or 0.0, name))
            continue
        if not row.settled:
            found["a trial did not settle; take more warm-up, or look for what drifts"].append((trial, name))
        elif trial and row.warmup > max(50, 0.05 * trial):
            words = "samples that are still warm-up stand at a trial's beginning; raise 'warmup'"
            found[words].append((row.warmup, f"{name} {row.warmup:,}"))
        for figure, reason in row.withheld.items():
            if (
                row.pattern == "stream" and row.counted and row.cost is not None and figure != "cost"
            ):  # what was asked for is known
                reason = "it moved, or was taken over too little, and its reason is below; what a message costs stands"
            found[f"{figure} withheld: {reason}"].append((1.0, name))
        if row.groups:
            words = "the repeats fall into groups, so that their mean is the figure of none, and no interval can be had"
            found[words].append((len(row.groups), f"{name} ({_groups_words(row)})"))
        if len(row.states) > 1:
            words = "messages went in several ways, each with times of its own, and the median is of the more frequent"
            found[words].append((1 - max(state.share for state in row.states), f"{name} ({states_words(row.states)})"))
        if len(row.digests) == 1:
            words = "one repeat says nothing of what differs between repeats, and has no interval; raise 'repeats'"
            found[words].append((1.0, name))
        if row.converged is False:
            words = "DID NOT CONVERGE: the 95 % interval is wider than the experiment asked; raise 'budget' or "
            found[words + "'until.repeats'"].append((1.0, name))
        if row.effective < 0.1 and row.pattern != "stream":
            words = "neighbouring samples are alike, so that they say as much as fewer independent ones would (each "
            words += "repeat's figure moves by more, which is what the intervals are made from)"
            found[words].append((1 - row.effective, f"{name} {row.effective * trial:,.0f} of {trial:,}"))
    lines = []
    for words, of in found.items():
        of.sort(key=lambda pair: -pair[0])
        more = f" and {len(of) - 3} more" if len(of) > 3 else ""
        lines.append(f"{words}: {', '.join(name for _, name in of[:3])}{more}")
    return lines


_FAULTS = {
    "lost": "were lost",
    "late": "were answered after the client's patience, and are among the samples with their times",
    "slides": "would not have waited but for a credit of our own flow control that got lost (one wait each)",
    "sent_late": "were sent more than 100 µs behind their time though there was room: the sender itself was late",
    "unchecked": "that were only to be checked were lost",
    "duplicated": "came twice",
    "reordered": "came out of order",
    "corrupt": "were CORRUPT",
    "wrong_size": "had the wrong size",
}
