"""Runs held against runs: what changed around them, and what changed in the figures beyond chance.

A run is the unit. Its repeats share a boot, a placement and an hour, and differ by less than two runs do; so figures of
several runs a side are compared (Welch's t test on the logarithms), and their repeats only if there is one run on
either side, which is said. Guest instructions are compared to the digit, state by state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs, to_builtins

from hwrx import stats
from hwrx.errors import UsageError
from hwrx.host import strict_json
from hwrx.report.anatomies import moved_functions
from hwrx.report.diff_exact import exact_changes
from hwrx.report.model import Change, Row, name_of
from hwrx.report.moved import Moved
from hwrx.report.numbers import size_of_rows
from hwrx.report.provenance import flat_changes, kernel_of

if TYPE_CHECKING:
    from hwrx.report.reported import ReportedRun

# what differs between any two runs, and says nothing
VOLATILE = ("started", "ended", "process", "seed", "reason", "resumed", "command", "clock_cost_ns", "question",
            "capacity", "boot_s", "warnings")  # fmt: skip
# of a trial, no part of what its messages do
LENGTHS = ("messages", "duration", "warmup", "cooldown", "limit", "patience")
CHANCE = 0.05

Side = Sequence[Row]  # a setting's rows in the runs of one side


class Diff(Struct, frozen=True, kw_only=True):
    """What changed from the runs `a` to the runs `b`.

    `sampled`: whether some row is in several runs of a side, so that it is known how much two runs differ anyway. No
    figure of a row that is not (`Change.sampled`) is told apart unless `single` said that repeats will do: `chance`
    then is by them.
    """

    a: list[str]
    b: list[str]
    labels: tuple[str, str]
    sampled: bool
    environment: list[tuple[str, str, str]]
    changes: list[Change]
    only: list[tuple[Literal["a", "b"], str]]
    notes: list[str]
    lost: list[str]  # of damaged runs
    moved: list[Moved] = []  # functions, if messages of both sides were taken apart

    @property
    def judged(self) -> list[Change]:
        """The changes that chance has a part in: all but those of exact figures."""
        return [change for change in self.changes if not change.exact]

    @property
    def unsampled(self) -> list[Change]:
        """Those of them whose row one run on either side has: how much two runs differ anyway is not known."""
        return [change for change in self.judged if not change.sampled]

    @property
    def expected_by_chance(self) -> float:
        """How many of the judged figures would seem changed at 5 % each if none had changed."""
        return CHANCE * len(self.judged)

    def failures(self, over: float) -> list[Change]:
        """Figures that are worse by more than `over` (0.05: 5 %), beyond chance in all of them together."""
        return [
            change
            for change in self.changes
            if change.worse
            and abs(change.ratio.value - 1) > over
            and change.told_apart
            and (change.exact or change.holm <= CHANCE)
        ]


def compare_runs(
    before: Sequence[ReportedRun], after: Sequence[ReportedRun], *, anyway: bool = False, single: bool = False
) -> Diff:
    """Hold runs against runs.

    :param before, after: one run or more a side
    :param single: judge one run on either side by their repeats, which differ by less than runs do
    :param anyway: compare also what cannot be compared otherwise
    :raises UsageError: if the runs cannot be compared: an emulated machine and a real one, virtual and wall-clock time,
        two kernels or topologies, traced and untraced; or if they have no setting in common
    """
    reasons = _incomparable(before, after)
    if reasons and not anyway:
        raise UsageError(
            f"{_names(before)} and {_names(after)} cannot be compared: {'; '.join(reasons)}",
            remedy="--anyway compares them nevertheless; the ratios then mix what changed with what you changed",
        )
    rows_of = [[run.summary().rows for run in side] for side in (before, after)]
    sides = [_by_setting(runs, anyway) for runs in rows_of]
    counts = [_runs_with(runs, anyway) for runs in rows_of]
    changes: list[Change] = []
    withheld = []
    for key, rows in sides[0].items():
        if key in sides[1]:
            found = _changes(rows, sides[1][key], exact=_counts(before) and _counts(after))
            sampled = max(count[key] for count in counts) > 1  # of this row: a run need not have them all
            changes += [structs.replace(change, key=key, sampled=sampled) for change in found]
            withheld += [] if found else [f"{name_of_row(rows[0])} has no figure in all runs: they are withheld"]
    only = _only(sides[0], sides[1])
    if not changes:
        words = [f"{name} only in {'the first' if side == 'a' else 'the second'}" for side, name in only[:4]]
        raise UsageError(
            f"{_names(before)} and {_names(after)} have no {'figure' if withheld else 'setting'} in common: "
            f"{'; '.join((withheld or words)[:4]) or 'nothing was measured'}",
            remedy="hwrx report says why"
            if withheld
            else ""
            if anyway
            else "--anyway leaves the length of the trials out of account",
        )
    judged = [change for change in changes if not change.exact]
    adjusted = stats.holm_adjusted([1.0 if math.isnan(change.chance) else change.chance for change in judged])
    firm = dict(zip(map(id, judged), adjusted, strict=True))
    return Diff(
        a=[run.path.name for run in before],
        b=[run.path.name for run in after],
        labels=(_label(before), _label(after)),
        sampled=any(change.sampled for change in changes),
        environment=_environment(before, after),
        changes=[
            change
            if change.exact
            else structs.replace(
                change, holm=firm[id(change)], told_apart=change.told_apart and (change.sampled or single)
            )
            for change in changes
        ],
        only=only,
        notes=[*_notes(before, after, judged), *withheld],
        lost=[f"{run.path.name}: {loss}" for run in (*before, *after) for loss in run.damage],
        moved=moved_functions(before, after),
    )


def to_json(diff: Diff) -> str:
    """Return everything, for programs. What there is no figure for is null."""
    changes = [{**to_builtins(change), "percent": change.percent} for change in diff.changes]
    for change in changes:
        del change["key"]  # the setting stands in the runs themselves
    content = {**to_builtins(diff), "expected_by_chance": diff.expected_by_chance, "changes": changes}
    return strict_json.to_json(content, indent=1)


# --- which rows belong together ------------------------------------------------------------------------------------


def _by_setting(runs: Sequence[Sequence[Row]], anyway: bool) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for rows in runs:
        for row in rows:
            if row.digests:
                found.setdefault(row_key(row, anyway=anyway), []).append(row)
    return found


def _runs_with(runs: Sequence[Sequence[Row]], anyway: bool) -> Counter[tuple[object, ...]]:
    """How many of the runs have each row. One run may have several of a key that leaves lengths out."""
    return Counter(key for rows in runs for key in {row_key(row, anyway=anyway) for row in rows if row.digests})


def row_key(row: Row, *, anyway: bool = False) -> tuple[Any, ...]:
    """Everything that tells two rows apart: the whole setting, and the load where that is what the rate comes from."""
    left_out = {*(LENGTHS if anyway else ()), *(("rate",) if row.load is not None else ())}
    return row.load, *((field, str(value)) for field, value in sorted(row.setting.items()) if field not in left_out)


def _only(a: dict[tuple[Any, ...], list[Row]], b: dict[tuple[Any, ...], list[Row]]) -> list[tuple[Any, str]]:
    """What one side alone has, and how what is nearest on the other side differs."""
    found = []
    for side, mine, others in (("a", a, b), ("b", b, a)):
        spare = [rows[0] for key, rows in others.items() if key not in mine]
        for key, rows in mine.items():
            if key not in others:
                kin = [row for row in spare if (row.path, row.pattern, row.size) == _kind(rows[0])]
                found.append((side, name_of_row(rows[0]) + (_difference(rows[0], kin[0]) if kin else "")))
    return found


def _kind(row: Row) -> tuple[str, str, int]:
    return row.path, row.pattern, row.size


def _difference(mine: Row, other: Row) -> str:
    fields = [
        f"{field} {mine.setting.get(field)} against {value}"
        for field, value in other.setting.items()
        if mine.setting.get(field) != value
    ]
    if mine.load != other.load:
        fields.append(f"load {mine.load} against {other.load}")
    return f" ({', '.join(fields)} there)" if fields else ""


def name_of_row(row: Row) -> str:
    """A row's name among all of a run."""
    return f"{row.label} {size_of_rows(row)} {row.pattern} {row.wait}"


# --- figures -------------------------------------------------------------------------------------------------------


def _changes(before: Side, after: Side, *, exact: bool) -> list[Change]:
    if exact and (found := exact_changes(before, after, name_of_row(before[0]))) is not None:
        return found
    changes = []
    rated = before[0].pattern == "stream" or any(row.saturated for row in (*before, *after))
    if rated:
        change = _change(before, after, "messages/s", lambda row: row.rates, more_is_better=True)
        return [change] if change else []
    for p in stats.NAMED:
        change = _change(before, after, f"{name_of(p)} µs", lambda row, p=p: _quantiles(row, p))  # type: ignore[misc]
        if change:
            changes.append(change)
    return changes


def _quantiles(row: Row, p: float) -> list[float]:
    """The quantile at `p` of each trial; none if it is withheld in the row."""
    if row.quantiles[name_of(p)] is None:
        return []
    return [digest.quantile(p) for digest in row.digests]


def _change(
    before: Side, after: Side, figure: str, values: Callable[[Row], list[float]], *, more_is_better: bool = False
) -> Change | None:
    trials = [[values(row) for row in side] for side in (before, after)]
    if not all(trial for side in trials for trial in side):
        return None
    runs = [[math.exp(sum(map(math.log, trial)) / len(trial)) for trial in side] for side in trials]
    # one run on either side: its repeats are all there is
    units = runs if max(map(len, runs)) > 1 else [side[0] for side in trials]
    step = 0.0 if more_is_better else 2 * max(_step(row) for row in (*before, *after))
    found = stats.compare_groups(units[0], units[1], step)
    before_value, after_value = (stats.interval_across(side).value for side in runs)
    slower = found.ratio.value < 1 if more_is_better else found.ratio.value > 1
    return Change(
        row=name_of_row(before[0]),
        figure=figure,
        before=before_value,
        after=after_value,
        ratio=found.ratio,
        chance=found.chance,
        told_apart=found.chance <= CHANCE and not found.ratio.low <= 1 <= found.ratio.high,
        worse=slower,
        grouped=any(stats.trial_groups(side, step) for side in units),
    )


def _step(row: Row) -> float:
    """The step of the clock relative to the fastest trial's median."""
    return max((digest.step / max(digest.quantile(0.5), digest.step) for digest in row.digests), default=0.0)


# --- around the figures --------------------------------------------------------------------------------------------


def _names(runs: Sequence[ReportedRun]) -> str:
    return runs[0].path.name if len(runs) == 1 else f"{runs[0].path.name} and {len(runs) - 1} more"


def _label(runs: Sequence[ReportedRun]) -> str:
    return "; ".join(dict.fromkeys(run.summary().label for run in runs))


def _counts(runs: Sequence[ReportedRun]) -> bool:
    return all(run.manifest["clock"] == "icount" for run in runs)


def _incomparable(before: Sequence[ReportedRun], after: Sequence[ReportedRun]) -> list[str]:
    """Why runs must not be held against each other, of either side or within one."""
    runs = [*before, *after]
    first = runs[0]
    reasons = {}
    for run in runs[1:]:
        if run.emulated != first.emulated:
            emulated, real = (first, run) if first.emulated else (run, first)
            reasons["machine"] = (
                f"{emulated.path.name} was measured on an emulated machine, {real.path.name} on a real one"
            )
        if run.manifest["clock"] != first.manifest["clock"]:
            reasons["clock"] = f"one counts {first.manifest['clock']} time, the other {run.manifest['clock']} time"
        if kernel_of(run) != kernel_of(first):
            kernels = f"{kernel_of(first) or 'unknown'}, {kernel_of(run) or 'unknown'}"
            reasons["kernel"] = f"their kernels differ ({kernels})"
        if run.manifest["topology"] != first.manifest["topology"]:
            reasons["topology"] = f"their topologies differ ({first.manifest['topology']}, {run.manifest['topology']})"
        if run.experiment.trace != first.experiment.trace:
            reasons["trace"] = "one was traced, the other was not, and tracing takes time"
    return list(reasons.values())


def _notes(before: Sequence[ReportedRun], after: Sequence[ReportedRun], judged: Sequence[Change]) -> list[str]:
    notes = []
    if judged and len(before) == len(after) == 1:
        notes.append(
            "one run on either side: how much two runs differ anyway was not sampled, and is more than their repeats "
            "differ; nothing here is a verdict. Give several a side: hwrx diff A1 A2 A3 -- B1 B2 B3"
        )
    elif judged and min(len(before), len(after)) == 1:
        notes.append("one side is a single run: it is asked whether it belongs to the others, whose spread counts")
    if judged and len(before) + len(after) > 2:
        notes += [
            f"one run on either side has {row}: how much two runs differ anyway was not sampled for it"
            for row in dict.fromkeys(change.row for change in judged if not change.sampled)
        ]
        began = [[run.manifest["started"] for run in side] for side in (before, after)]
        if max(began[0]) < min(began[1]) or max(began[1]) < min(began[0]):
            notes.append("all runs of one side were made before the other's: what drifts with time counts as a change")
    status = [f"{run.path.name} is {run.status}" for run in (*before, *after) if run.status != "complete"]
    return notes + status


def _environment(before: Sequence[ReportedRun], after: Sequence[ReportedRun]) -> list[tuple[str, str, str]]:
    """What no run of one side has in common with a run of the other."""
    sides = []
    for runs in (before, after):
        found: dict[str, list[str]] = {}
        for run in runs:
            # as it was: two hosts are two, though both are called `server`
            about = dict(flat_changes({**run.whole_manifest, "experiment": to_builtins(run.experiment)}))
            for key, value in about.items():
                if value not in found.setdefault(key, []):
                    found[key].append(value)
        sides.append(found)
    keys = list(dict.fromkeys((*sides[0], *sides[1])))
    left, right = before[0].clean_text, after[0].clean_text
    return [
        (key, left(" / ".join(sides[0].get(key, ["–"]))), right(" / ".join(sides[1].get(key, ["–"]))))
        for key in keys
        if not set(sides[0].get(key, ["–"])) & set(sides[1].get(key, ["–"])) and not set(key.split(".")) & set(VOLATILE)
    ]
