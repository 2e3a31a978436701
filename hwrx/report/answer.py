"""The answer to a comparison: one table of a few lines that somebody who has never seen a report can read.

What half a round trip (else a streamed message) costs over each path at up to three sizes, beside that the ratio to the
baseline, and how often CPUs copy each byte on the way; then a line for each thing that is not so or could not be had.
It stands on a screen of 80 columns. Where instructions stand for copies, and both prices of a copy were measured, both
stand in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

from msgspec import Struct

from hwrx.control.guest_boot import Priced
from hwrx.report import captions, ledgers, numbers, words
from hwrx.report.cells import Table
from hwrx.report.model import Row, Summary, swept_words
from hwrx.report.numbers import WITHHELD, number_text, size_of_rows, size_words
from hwrx.report.provenance import kernel_of
from hwrx.stats import Estimate
from hwrx.wires import topology

WIDTH = 80
SIZES = 3  # columns of each kind
LINES = 8  # rows: of more, a few
PRICE = "copies_priced"
PRICES = get_args(Priced)
NARROW = 0.2  # an interval no wider than this is told by its half
SAME = 0.01  # an interval within this of 1 says that two figures are alike
NOT_TOLD = "not told"


class Answer(Struct, kw_only=True):
    """`about` says what was measured, on what; `notes` what is not so. `heads`: group and column; `rows` their cells.

    `counted`: its figures are instructions. `nothing`: that no path is told apart, and why; else empty.
    """

    pattern: str
    counted: bool
    nothing: str
    about: str
    heads: list[tuple[str, str]]
    rows: list[list[str]]
    notes: list[str]

    def lines(self) -> list[str]:
        """The table as text: two lines of heads, then a line a row; none of a table that would hold no figure."""
        return _laid_out(self.heads, self.rows) if self.rows else []


def compares_paths(summary: Summary) -> bool:
    """Whether paths were compared, so that there is an answer."""
    return any(row.path != summary.baseline for row in summary.of("pingpong") + summary.of("stream"))


def answers_of(summary: Summary) -> list[Answer]:
    """The answer for each pattern of a comparison that has one: half a round trip, then a streamed message."""
    if not compares_paths(summary):
        return []
    return [_answer(summary, pattern) for pattern in ("pingpong", "stream") if _lines(summary, pattern)]


def as_table(summary: Summary, found: Answer) -> Table:
    """The same as a table of the page."""
    # a size stays in one line
    heads = [" ".join(filter(None, (group, head.replace(" ", "\u00a0")))) for group, head in found.heads]
    columns = [(head, "t" if not place else "") for place, head in enumerate(heads)]
    rows = [(False, [(cell, "") for cell in cells]) for cells in found.rows]
    title = "In short" if found.pattern == "pingpong" else "In short: a streamed message"
    return Table(f"answer-{found.pattern}", title, f"{found.about} {summary.label}.", columns, rows, 1)  # type: ignore[arg-type]


# --- rows ----------------------------------------------------------------------------------------------------------

Line = dict[tuple[int, str], Row]  # by size and price of a copy


def _lines(summary: Summary, pattern: str) -> dict[tuple[Any, ...], Line]:
    """The rows of a pattern, those together that differ in size and in the price of a copy alone."""
    found: dict[tuple[Any, ...], Line] = {}
    for row in summary.of(pattern):
        swept = tuple((key, value) for key, value in sorted(row.swept.items()) if key != PRICE)
        line = found.setdefault((row.run, row.path, row.wait, swept), {})
        line[row.size, str(row.swept.get(PRICE) or PRICES[0])] = row
    return found


def _few(lines: dict[tuple[Any, ...], Line]) -> list[Line]:
    """At most LINES of them; of those of a sweep the first, the last, and between."""
    several = list(lines.values())
    if len(several) <= LINES:
        return several
    steps = list(dict.fromkeys(key[3] for key in lines))
    most = max(2, LINES * len(steps) // len(several))
    chosen = {steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)}
    return [line for key, line in lines.items() if key[3] in chosen][:LINES]


def _answer(summary: Summary, pattern: str) -> Answer:
    lines = _lines(summary, pattern)
    shown = _few(lines)
    sizes = summary.sizes(pattern)
    if len(sizes) > SIZES:
        sizes = [sizes[round(place * (len(sizes) - 1) / (SIZES - 1))] for place in range(SIZES)]
    measure = _Measure(summary, pattern)
    prices = [price for price in PRICES if any((size, price) in line for line in shown for size in sizes)]
    names = _names(shown)
    columns: list[tuple[str, str, list[str]]] = [("", "path", names)]
    columns += _costs(shown, sizes, prices, measure)
    columns += _ratios(summary, shown, sizes, prices, measure)
    columns, dropped = _fitting(columns, _handled(summary, shown, sizes))
    heads = [(group, head) for group, head, _ in columns]
    rows = [list(cells) for cells in zip(*(cells for _, _, cells in columns), strict=True)]
    if not any(measure.figure(row) for line in lines.values() for row in line.values()):
        rows = []
    notes = _notes(summary, lines, shown, sizes, prices, measure)
    if dropped:
        notes.append(f"{' and '.join(dropped)}: in the report, for want of columns here.")
    if len(shown) < len(lines):
        notes.append(f"{len(shown)} of {len(lines)} rows stand here; all are below and in the report.")
    about = _about(summary, pattern, shown, prices, measure)
    return Answer(
        pattern=pattern,
        counted=measure.counted,
        nothing=nothing_told(summary, lines, measure),
        about=about,
        heads=heads,
        rows=rows,
        notes=notes,
    )


def _names(shown: Sequence[Line]) -> list[str]:
    """Path, and of wait, run and what is swept that which tells the lines apart."""
    rows = [next(iter(line.values())) for line in shown]
    waits = len({row.wait for row in rows}) > 1
    names = []
    for row in rows:
        swept = [swept_words(key, value) for key, value in row.swept.items() if key != PRICE]
        names.append(" ".join(filter(None, [row.name, row.wait if waits else "", *swept])))
    return names


class _Measure:
    """What the figures of one pattern are: instructions executed where they were counted, else time or rate."""

    def __init__(self, summary: Summary, pattern: str) -> None:
        rows = summary.of(pattern)
        self.counted = all(row.cost is not None for row in rows)
        self.icount = all(run.manifest["clock"] == "icount" for run in summary.runs)
        self.stream = pattern == "stream"
        self._bases = [row for row in rows if row.path == summary.baseline]

    @property
    def unit(self) -> str:
        if self.counted:
            return "instructions"
        return "messages/s" if self.stream else "virtual µs" if self.icount else "µs"

    def figure(self, row: Row) -> Estimate | None:
        if self.counted:
            # of a stream that was never steady, much was done before or after the messages that were measured
            return None if "cost" in row.withheld else row.cost
        return row.messages_per_s if self.stream else row.quantiles["p50"]

    def ratio(self, row: Row) -> Estimate | None:
        if self.counted:
            return None if self.figure(row) is None or not self._based(row) else row.cost_ratio
        return row.ratio

    def _based(self, row: Row) -> bool:
        """Whether the baseline has a figure under the same conditions."""
        alike = [base for base in self._bases if (base.size, base.swept.get(PRICE)) == (row.size, row.swept.get(PRICE))]
        return any(self.figure(base) is not None for base in alike)


def _costs(
    shown: Sequence[Line], sizes: Sequence[int], prices: Sequence[str], measure: _Measure
) -> list[tuple[str, str, list[str]]]:
    found = []
    for size in sizes:
        cells = []
        for line in shown:
            row = line.get((size, prices[0]))
            estimate = None if row is None else measure.figure(row)
            cells.append(WITHHELD if estimate is None else _amount(estimate.value, measure))
        found.append((measure.unit, _size(size), cells))
    return found


def _amount(value: float, measure: _Measure) -> str:
    """Three digits; of counted instructions with a prefix from 1,000 on, for there are many columns."""
    return numbers.compact_number(value) if measure.counted or value >= 1e5 else number_text(value)


def _ratios(
    summary: Summary, shown: Sequence[Line], sizes: Sequence[int], prices: Sequence[str], measure: _Measure
) -> list[tuple[str, str, list[str]]]:
    if not any(measure.ratio(row) for line in shown for row in line.values()):
        return []
    what = "rate, times" if measure.stream and not measure.counted else "times"
    group = f"{what} {summary.baseline}'s" + (", byte|word" if len(prices) > 1 else "")
    found = []
    for size in sizes:
        cells = []
        for line in shown:
            rows = [line[size, price] for price in prices if (size, price) in line]
            if rows and rows[0].path == summary.baseline:
                cells.append("1")
            elif len(prices) == 1:
                cells.append(ratio_words(measure.ratio(rows[0])) if rows else WITHHELD)
            else:
                cells.append("|".join(_bare_ratio(measure.ratio(row)) for row in rows) or WITHHELD)
        found.append((group, _size(size), cells))
    return found


def ratio_words(ratio: Estimate | None) -> str:
    """A ratio and its interval in few letters: 1.24±.01, 0.41–0.95; or that it is not told apart from 1."""
    if ratio is None:
        return WITHHELD
    if math.isnan(ratio.low):
        return f"{ratio.value:.2f}"
    if not told_apart(ratio):
        return NOT_TOLD
    half = (ratio.high - ratio.low) / 2
    if half > NARROW * ratio.value / 2:
        return f"{ratio.low:.2g}–{ratio.high:.2g}"
    digits = 2 if half >= 0.005 or ratio.value >= 10 else 3
    return f"{ratio.value:.{digits}f}±{half:.{digits}f}".replace("±0.", "±.")


def _bare_ratio(ratio: Estimate | None) -> str:
    if ratio is None:
        return WITHHELD
    return f"{ratio.value:.2f}" if math.isnan(ratio.low) or told_apart(ratio) else "?"


def told_apart(ratio: Estimate) -> bool:
    """Whether a ratio is told apart from 1, or is known to be 1 as nearly as matters."""
    return ratio.low > 1 or ratio.high < 1 or max(ratio.high - 1, 1 - ratio.low) <= SAME


def _handled(
    summary: Summary, shown: Sequence[Line], sizes: Sequence[int]
) -> list[tuple[str, list[tuple[str, str, list[str]]]]]:
    """Columns of copies and of passes, each kind once for all sizes where they are alike, else for each."""
    known = ledgers.bytes_handled(summary)
    if not known:
        return []
    kinds: list[tuple[str, Callable[[ledgers.Handled], tuple[float | None, float | None]]]] = [
        ("copies", lambda found: found.copied),
        ("passes", lambda found: found.passed),
    ]
    found = []
    for kind, of in kinds:
        by_size = []
        for size in sizes:
            cells = []
            for line in shown:
                traced = [known[row.key] for (s, _), row in line.items() if s == size and row.key in known]
                cells.append("+".join(map(_times, of(traced[0]))) if traced else WITHHELD)
            by_size.append(cells)
        alike = all(len({cell for cell in cells if cell != WITHHELD}) <= 1 for cells in zip(*by_size, strict=True))
        if alike:
            one = [next((c for c in cells if c != WITHHELD), WITHHELD) for cells in zip(*by_size, strict=True)]
            found.append((kind, [(kind, "", one)]))
        else:
            found.append((kind, [(kind, _size(size), cells) for size, cells in zip(sizes, by_size, strict=True)]))
    return found


def _size(size: int) -> str:
    return size_words(size).replace(",", "")


def _times(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.0f}" if abs(value - round(value)) < 0.02 else f"{value:.1f}"


def _fitting(
    columns: list[tuple[str, str, list[str]]], more: list[tuple[str, list[tuple[str, str, list[str]]]]]
) -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """The columns, and of copies and passes those that 80 letters have room for; and what had none."""
    dropped = []
    for kind, of in more:
        for several in (of, [_joined(of)] if len(of) > 1 else of):
            wider = [*columns, *several]
            heads = [(group, head) for group, head, _ in wider]
            rows = [list(cells) for cells in zip(*(cells for _, _, cells in wider), strict=True)]
            if max(map(len, _laid_out(heads, rows))) <= WIDTH:
                columns = wider
                break
        else:
            dropped.append(f"{kind} a byte")
    return columns, dropped


def _joined(of: list[tuple[str, str, list[str]]]) -> tuple[str, str, list[str]]:
    """Columns of several sizes as one, the values one behind the other."""
    cells = [" ".join(cells) for cells in zip(*(cells for _, _, cells in of), strict=True)]
    return of[0][0], "by size", cells


def _laid_out(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns right-aligned but the first, two blanks between groups, one within; a group's name above its columns."""
    widths = [max(len(head), *(len(cells[place]) for cells in rows)) for place, (_, head) in enumerate(heads)]
    gaps = [0 if not place else 1 if heads[place][0] == heads[place - 1][0] else 2 for place in range(len(heads))]
    starts = [place for place in range(len(heads)) if gaps[place] != 1]
    above = ""
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(heads)
        room = sum(widths[start:end]) + end - start - 1
        short = max(0, len(heads[start][0]) - room)
        widths[end - 1] += short  # a group's name may be longer than its columns
        above += " " * gaps[start] + heads[start][0].rjust(room + short)
    lines = [above.rstrip()]
    for cells in ([head for _, head in heads], *rows):
        line = "".join(
            " " * gaps[place] + (cell.ljust(widths[place]) if not place else cell.rjust(widths[place]))
            for place, cell in enumerate(cells)
        )
        lines.append(line.rstrip())
    return lines


# --- words ---------------------------------------------------------------------------------------------------------


def _about(summary: Summary, pattern: str, shown: Sequence[Line], prices: Sequence[str], measure: _Measure) -> str:
    """One sentence: what was measured, and on what."""
    run = summary.runs[0]
    rows = [row for line in shown for row in line.values()]
    what = "Half a round trip of a message" if pattern == "pingpong" else "A message of a stream"
    if full := captions.full_trips(rows):
        what += f" ({full}: a full one)"
    if measure.counted:
        by = ", a copied byte at one each" if len(prices) > 1 else ""
        what += f": guest instructions executed at both ends{by}"
    elif measure.stream:
        what += ": messages delivered a second"
    else:
        what += f": median {measure.unit}"
    repeats = sorted({len(row.digests) for row in rows})
    times = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    waits = {row.wait for row in rows}
    manner = f", waiting by {next(iter(waits))}" if len(waits) == 1 else ""
    guest = (
        "an emulated guest, " if run.emulated else "a guest, " if run.manifest["topology"] in ("nic", "pair") else ""
    )
    known = topology.KNOWN.get(run.manifest["topology"])
    where = known.brief if known else f"topology {run.manifest['topology']}"
    kernel = f"Linux {kernel_of(run)}" if kernel_of(run) else "an unknown kernel"
    booted = f", booted with {' '.join(run.experiment.boot)}" if run.experiment.boot else ""
    return f"{what}{manner}; {times} repeat{'s' * (times != '1')}. On {where}; {guest}{kernel}{booted}."


def _notes(
    summary: Summary,
    lines: dict[tuple[Any, ...], Line],
    shown: Sequence[Line],
    sizes: Sequence[int],
    prices: Sequence[str],
    measure: _Measure,
) -> list[str]:
    """A line each: how to read the table, what is not told apart, withheld, late, lost, left out."""
    notes = []
    rows = [row for line in lines.values() for row in line.values()]
    ratios = [ratio for row in rows if (ratio := measure.ratio(row)) is not None]
    widths = [ratio.width for ratio in ratios if not math.isnan(ratio.low)]
    if ratios and not widths:
        notes.append("1 repeat: no intervals.")
    elif widths and len(prices) > 1:
        notes.append(f"Every ratio's 95 % interval is within ±{100 * max(widths):.2g} % of it.")
    if any(value for value in ledgers.bytes_handled(summary).values()):
        notes.append("copies, passes: how often CPUs write, or only read, each byte: sender + receiver.")
    elif not measure.stream or not summary.of("pingpong"):
        notes.append("CPU copies a byte were not counted: --trace counts them.")
    if len(prices) > 1:
        notes.append(
            "Emulated copies cost an instruction a byte, or one a word (by another CPU model): hence two ratios."
        )
    unsure = [
        row
        for row in rows
        if (ratio := measure.ratio(row)) is not None and not math.isnan(ratio.low) and not told_apart(ratio)
    ]
    if unsure and len(unsure) < len(ratios):
        notes.append(f"not told apart from {summary.baseline} (the 95 % interval holds 1): {_some(unsure)}.")
    withheld = [row for row in rows if measure.figure(row) is None]
    if withheld:
        notes.append(f"withheld: {_some(withheld)}{_reason(withheld[0])}.")
    states = [row for row in rows if len(row.states) > 1]
    if states:
        notes.append(f"several states, each with times of its own: {_some(states)}.")
    lost = [row for row in rows if row.tally.get("lost")]
    if lost:
        counts = (f"{_row_words(row)} {row.tally['lost']:,}" for row in lost[:3])
        notes.append(f"lost: {', '.join(counts)}.")
    late = [row for row in rows if row.tally.get("late")]
    if late:
        notes.append(f"late, and counted with their true times: {_some(late)}.")
    return notes + _left_out(summary, rows[0].pattern)


def _left_out(summary: Summary, pattern: str) -> list[str]:
    """What of this pattern was left out; the reason's first clause, for the report has all of it."""
    found: dict[str, dict[str, None]] = {}
    for label, reason in summary.skipped:
        if pattern in label:
            found.setdefault(reason.partition(";")[0], {})[label.split()[0]] = None
    return [f"left out: {', '.join(paths)}: {reason}" for reason, paths in found.items()]


def _row_words(row: Row) -> str:
    swept = [swept_words(key, value) for key, value in row.swept.items() if key != PRICE]
    return " ".join(filter(None, [row.name, row.wait, *swept, size_of_rows(row)]))


def _some(rows: Sequence[Row], most: int = 3) -> str:
    """The first of them, each once, and how many more there are."""
    names = list(dict.fromkeys(map(_row_words, rows)))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reason(row: Row) -> str:
    return f" ({'; '.join(row.withheld.values()) or 'too few messages'})"


def nothing_told(summary: Summary, lines: dict[tuple[Any, ...], Line], measure: _Measure) -> str:
    """If no path is told apart from the baseline: that, and why; else empty."""
    rows = [row for line in lines.values() for row in line.values()]
    ratios = [ratio for row in rows if (ratio := measure.ratio(row)) is not None and not math.isnan(ratio.low)]
    if not ratios or any(told_apart(ratio) for ratio in ratios):
        return ""
    base = next((row for row in rows if row.path == summary.baseline and measure.figure(row) is not None), None)
    why = ""
    if base is not None and (own := measure.figure(base)) is not None and not math.isnan(own.low):
        why = (
            f" repeats of one and the same path differ as much as paths do ({_row_words(base)}: "
            f"{number_text(own.low, own.value)}–{number_text(own.high, own.value)} {measure.unit})."
        )
    remedy = " More repeats, an idle machine, or --clock icount, which counts instructions, tell more."
    return f"NOTHING IS TOLD APART from {summary.baseline}:{why or ' every interval holds 1.'}{remedy}"


def answer_sentence(summary: Summary) -> str:
    """The answer in a sentence, for who asks for no table: the paths against the baseline at the smallest size."""
    lines = _lines(summary, "pingpong")
    measure = _Measure(summary, "pingpong")
    if not measure.counted:
        nothing = nothing_told(summary, lines, measure)
        return nothing or words.answer_words(summary.rows, summary.baseline)
    size = summary.sizes("pingpong")[0]
    parts: list[str] = []
    for name, line in zip(_names(list(lines.values())), lines.values(), strict=True):
        rows = [row for (of, _), row in line.items() if of == size]
        costs = [_amount(row.cost.value, measure) for row in rows if row.cost is not None]
        if rows and rows[0].path == summary.baseline:
            parts.insert(0, f"{name} costs {' or '.join(dict.fromkeys(costs))} guest instructions")
        elif rows:
            found = " or ".join(dict.fromkeys(_bare_ratio(row.cost_ratio) for row in rows))
            parts.append(f"over {name} {found} times as many")
    priced = len({row.swept.get(PRICE) for line in lines.values() for row in line.values()}) > 1
    note = " (a copied byte at an instruction, or a word)" if priced else ""
    of_size = [row for line in lines.values() for (of, _), row in line.items() if of == size]
    return f"{words.at_words(of_size)}, half a round trip over {', '.join(parts)}{note}."
