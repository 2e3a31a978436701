"""Two runs held against each other: what changed around them, and what changed in the figures beyond chance."""

from __future__ import annotations

import io
import json
from typing import IO, TYPE_CHECKING, Any, Literal

from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwrx import stats
from hwrx.errors import UsageError
from hwrx.report import text
from hwrx.report.model import Row, name_of
from hwrx.report.summary import kernel_of
from hwrx.report.words import size_words

if TYPE_CHECKING:
    from hwrx.runs import Run
    from hwrx.stats import Estimate

# what differs between any two runs, and says nothing
VOLATILE = ("started", "ended", "process", "seed", "reason", "resumed", "command", "clock_cost_ns", "question")


class Change(Struct, frozen=True, kw_only=True):
    """One figure in both runs. `ratio` is the second over the first; `worse` is meant from the user's side."""

    row: str
    figure: str
    before: float
    after: float
    ratio: Estimate
    told_apart: bool
    worse: bool

    @property
    def percent(self) -> float:
        """By how much it changed, in percent of the first."""
        return 100 * (self.ratio.value - 1)


class Diff(Struct, frozen=True, kw_only=True):
    """What changed from run `a` to run `b`."""

    a: str
    b: str
    labels: tuple[str, str]
    environment: list[tuple[str, str, str]]
    changes: list[Change]
    only: list[tuple[Literal["a", "b"], str]]

    def failures(self, over: float) -> list[Change]:
        """Figures that are worse by more than `over` (0.05: 5 %), where that is not chance."""
        return [
            change
            for change in self.changes
            if change.worse and change.told_apart and abs(change.ratio.value - 1) > over
        ]


def compare(a: Run, b: Run, *, anyway: bool = False) -> Diff:
    """Hold two runs against each other.

    UsageError where they cannot be: an emulated machine against a real one, virtual against wall-clock time, two
    kernels; `anyway` overrides.
    """
    reasons = _incomparable(a, b)
    if reasons and not anyway:
        raise UsageError(
            f"{a.path.name} and {b.path.name} cannot be compared: {'; '.join(reasons)}",
            remedy="--anyway compares them nevertheless; the ratios then mix what changed with what you changed",
        )
    before, after = a.summary(), b.summary()
    keyed = {_key(row): row for row in after.rows if row.digests}
    changes: list[Change] = []
    only: list[tuple[Literal["a", "b"], str]] = []
    for row in before.rows:
        if not row.digests:
            continue
        other = keyed.pop(_key(row), None)
        if other is None:
            only.append(("a", _name(row)))
        else:
            changes += _changes(row, other)
    only += [("b", _name(row)) for row in keyed.values()]
    if not changes:
        raise UsageError(f"{a.path.name} and {b.path.name} have no setting in common: there is nothing to compare")
    return Diff(
        a=a.path.name,
        b=b.path.name,
        labels=(before.label, after.label),
        environment=_environment(a, b),
        changes=changes,
        only=only,
    )


def show(diff: Diff, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print what changed; figures that chance may explain are counted only."""
    console = Console(file=file, width=width, highlight=False)
    if width is None and not console.is_terminal:
        console = Console(file=file, width=80, highlight=False)
    console.print(Text(f"{diff.a}: {diff.labels[0]}"))
    console.print(Text(f"{diff.b}: {diff.labels[1]}"))
    if diff.environment:
        table = Table(title="environment", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("", diff.a, diff.b):
            table.add_column(column, overflow="fold")
        for line in diff.environment:
            table.add_row(*map(Text, line))
        console.print()
        console.print(table)
    else:
        console.print(Text("\nthe environment is the same"))
    told = [change for change in diff.changes if change.told_apart]
    console.print()
    if told:
        table = Table(title="figures", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column, side in (("setting", "left"), ("figure", "left"), ("before", "right"), ("after", "right")):
            table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
        table.add_column("change (95 %)", justify="right", no_wrap=True)
        for change in sorted(told, key=lambda change: -abs(change.percent)):
            low, high = 100 * (change.ratio.low - 1), 100 * (change.ratio.high - 1)
            table.add_row(
                Text(change.row),
                change.figure,
                text.number(change.before),
                text.number(change.after),
                Text(f"{change.percent:+.1f} % ({low:+.1f} to {high:+.1f})", style="red" if change.worse else "green"),
            )
        console.print(table)
    count = len(diff.changes)
    console.print(
        Text(
            f"{len(told)} of {count} figures changed beyond their 95 % intervals; of {count} that did not change about "
            f"{count / 20:.1f} would seem to"
        )
    )
    for side, row in diff.only:
        console.print(Text(f"only in {diff.a if side == 'a' else diff.b}: {row}"))


def to_text(diff: Diff) -> str:
    """Return what `show` prints."""
    buffer = io.StringIO()
    show(diff, buffer, 80)
    return buffer.getvalue()


def to_json(diff: Diff) -> str:
    """Return everything, for programs."""
    changes = [{**to_builtins(change), "percent": change.percent} for change in diff.changes]
    return json.dumps({**to_builtins(diff), "changes": changes}, indent=1, ensure_ascii=False)


# --- inside --------------------------------------------------------------------------------------------------------


def _incomparable(a: Run, b: Run) -> list[str]:
    reasons = []
    if a.emulated != b.emulated:
        emulated, real = (a, b) if a.emulated else (b, a)
        reasons.append(f"{emulated.path.name} was measured on an emulated machine, {real.path.name} on a real one")
    if a.manifest["clock"] != b.manifest["clock"]:
        reasons.append(f"one counts {a.manifest['clock']} time, the other {b.manifest['clock']} time")
    if kernel_of(a) != kernel_of(b):
        reasons.append(f"their kernels differ ({kernel_of(a) or 'unknown'}, {kernel_of(b) or 'unknown'})")
    return reasons


def _key(row: Row) -> tuple[Any, ...]:
    return row.path, row.size, row.pattern, row.wait, tuple(sorted(row.swept.items()))


def _name(row: Row) -> str:
    return f"{row.label} {size_words(row.size)} {row.pattern} {row.wait}"


def _changes(a: Row, b: Row) -> list[Change]:
    if a.pattern == "stream":
        rates = [[digest.count / digest.total * 1e9 for digest in row.digests if digest.total] for row in (a, b)]
        if not all(rates):
            return []
        ratio = stats.ratio_across(rates[1], rates[0], paired=False)
        before, after = stats.across(rates[0]).value, stats.across(rates[1]).value
        return [_change(a, "messages/s", before, after, ratio, worse=ratio.value < 1)]
    changes = []
    for p in stats.NAMED:
        ratio_of = stats.quantile_ratio(b.digests, a.digests, p, paired=False)
        before_of, after_of = a.quantiles[name_of(p)], b.quantiles[name_of(p)]
        if ratio_of is not None and before_of is not None and after_of is not None:
            figure = f"{name_of(p)} µs"
            changes.append(_change(a, figure, before_of.value, after_of.value, ratio_of, worse=ratio_of.value > 1))
    return changes


def _change(row: Row, figure: str, before: float, after: float, ratio: Estimate, *, worse: bool) -> Change:
    told = ratio.low > 1 or ratio.high < 1
    return Change(row=_name(row), figure=figure, before=before, after=after, ratio=ratio, told_apart=told, worse=worse)


def _environment(a: Run, b: Run) -> list[tuple[str, str, str]]:
    before, after = (dict(flat({**run.manifest, "experiment": to_builtins(run.experiment)})) for run in (a, b))
    keys = list(dict.fromkeys((*before, *after)))
    return [
        (key, before.get(key, "–"), after.get(key, "–"))
        for key in keys
        if before.get(key) != after.get(key) and not set(key.split(".")) & set(VOLATILE)
    ]


def flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines `a.b.c`, value. What is empty is left out."""
    if isinstance(tree, dict):
        return [line for key, value in tree.items() for line in flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(tree, list | tuple):
        if all(not isinstance(item, dict | list) for item in tree):
            return [(prefix, " ".join(map(str, tree)))] if tree else []
        return [line for place, value in enumerate(tree) for line in flat(value, f"{prefix}.{place}")]
    return [] if tree is None or tree == "" else [(prefix, str(tree))]
