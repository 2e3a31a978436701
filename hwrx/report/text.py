"""The words that every report has in common: captions, cells and what must be said about SoftRoCE."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hwrx.machine import placement
from hwrx.paths import PATHS
from hwrx.report.model import Row, Summary
from hwrx.report.provenance import software_rdma
from hwrx.report.words import size_words
from hwrx.runs import renewal
from hwrx.stats import BEYOND, LEVEL, Estimate

WITHHELD = "–"
KILO = 1e3
PREFIXES = (("G", 1e9), ("M", 1e6), ("k", KILO))
SATURATED = "†"

RXE = (
    "The rdma paths of this run cross SoftRoCE (rxe), RDMA in software. It has RDMA's interface and RoCE's packets, "
    "but no adapter: the CPU does the HCA's copying. Each payload byte is copied once by the CPU on the sending "
    "side (twice if it is posted inline) and once on the receiving side, as often as over UDP, and either side "
    "reads it once more for the checksum. A real HCA moves the bytes itself, by DMA, and the CPU copies none. So "
    "these figures tell what the interface and its packets cost here; they do not tell how fast RDMA hardware is."
)
HOW = (
    "Figures are geometric means over the repeats. Intervals are Student's at 95 %, on the logarithm of each repeat's "
    "figure, and no narrower than the clock's step; they hold what varied between the repeats of this run, and nothing "
    "that all of them had in common, as two runs have not: hwrx diff takes several runs a side. Within one repeat the "
    "settings ran in random order. Quantiles are of type 8 of Hyndman and Fan. "
    f"{WITHHELD} stands where fewer than {BEYOND} samples lie beyond the quantile; an interval is withheld of one "
    "repeat, and of repeats that fall into groups."
)
LATENCY = "Half a round trip of a ping-pong, µs (timed as a round trip by one clock, and halved)"
LATENCY_FULL = "rdma-read: the FULL round trip, since a READ fetches and comes back"
RATE = "Stream in one direction: messages and bytes delivered a second"
TRACED = "Tracing lengthens every stage that it stamps; how much in all stands in the table of what tracing cost."
COST = (
    "The line through the median half round trip against message size, fitted in each repeat: what a byte more and a "
    "message as such cost one way. Bytes are copied, checksummed and cut into packets; the slope holds all of it"
)
PACED = "Open loop at a given rate: response time from the intended send and, in brackets, from the actual one, µs"
GROWS = "more was offered than was answered, so that the response time grows with the trial's length"


UNTIL = (
    "Repeats went on until the intervals were as narrow as the experiment asked. Whoever looks after each repeat stops "
    "too early too often, so these intervals were made at 98 %; they hold the truth in 95 of 100 such runs, or more."
)


def about_row(summary: Summary) -> list[str]:
    """Paragraphs to stand under the tables: how the figures were made, and what they are not."""
    paragraphs = [HOW]
    if any(run.experiment.until is not None for run in summary.runs):
        paragraphs.append(UNTIL)
    paragraphs += _conditions(summary)
    if any(software_rdma(run) for run in summary.runs):
        paragraphs.insert(0, RXE)
    return paragraphs


def _conditions(summary: Summary) -> list[str]:
    """Say where the ends ran, and what the repeats had in common; each sentence once, however many runs there are."""
    said: dict[str, None] = {}
    for run in summary.runs:
        where = run.manifest.get("placement")
        said[placement.describe_placement(where) if where else ""] = None
        said[renewal.describe_renewal(run.manifest)] = None
    return [sentence for sentence in said if sentence]


def basis(rows: Sequence[Row]) -> str:
    """What a table's figures stand on: sizes, repeats and samples of a trial, and what its intervals are."""
    sizes = sorted({row.size for row in rows})
    repeats = [len(row.digests) for row in rows]
    samples = [digest.count for row in rows for digest in row.digests]
    said = [size_words(sizes[0]) if len(sizes) == 1 else f"{size_words(sizes[0])} to {size_words(sizes[-1])}"]
    said.append(f"{_span(repeats)} repeat{'s' * (repeats != [1] * len(repeats))} of {_span(samples)} samples")
    said.append(
        "no intervals, for they are across repeats"
        if max(repeats) == 1
        else f"{LEVEL:.0%} intervals".replace("%", " %") + " across repeats"
    )
    return "; ".join(said)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def latency_caption(summary: Summary, rows: Sequence[Row]) -> str:
    """The caption of the latency table: what was timed, and on what."""
    full = [row for row in rows if row.measures == "FULL round trip"]
    return f"{LATENCY}{'; ' + LATENCY_FULL if full else ''}; {basis(rows)}. {summary.label}."


def rate_caption(summary: Summary, rows: Sequence[Row]) -> str:
    """The caption of the throughput table."""
    blind = dict.fromkeys(row.path for row in rows if _seen_by_sender(row.path))
    note = f"; of {' and '.join(blind)} as completions at the end that posted them" if blind else ""
    why = dict.fromkeys(reason for row in rows for reason in row.withheld.values())
    withheld = f" Withheld: {'; '.join(list(why)[:3])}." if why else ""
    return f"{RATE}{note}; {basis(rows)}.{withheld} {summary.label}."


def _seen_by_sender(path: str) -> bool:
    return path in PATHS and PATHS[path].stream_seen_by == "client"


def cost_caption(summary: Summary) -> str:
    """The caption of the table of costs; in virtual time a nanosecond is a guest instruction."""
    virtual = any(run.manifest["clock"] == "icount" for run in summary.runs)
    return f"{COST}{' (1 ns = 1 guest instruction)' if virtual else ''}. {summary.label}."


def signed_percent(estimate: Estimate) -> tuple[str, str]:
    """A figure of either sign and its interval."""
    interval = "" if math.isnan(estimate.low) else f"({number_text(estimate.low)} to {number_text(estimate.high)})"
    return number_text(estimate.value), interval


def paced_caption(summary: Summary, rows: Sequence[Row]) -> str:
    """The caption of the load table."""
    note = f"; {SATURATED}: {GROWS}" if any(row.saturated for row in rows) else ""
    random = any(run.experiment.setting.get("arrivals") == "poisson" for run in summary.runs)
    return f"{PACED}{'; Poisson arrivals' if random else ''}{note}; {basis(rows)}. {summary.label}."


def offered_words(rate: float | None) -> str:
    """The rate of an open loop."""
    return WITHHELD if rate is None else number_text(rate)


def share_words(value: float | None) -> str:
    """A share in percent: 80 %."""
    return WITHHELD if value is None else f"{100 * value:.3g} %"


def number_text(value: float, like: float | None = None) -> str:
    """Three digits, without exponent: 0.123, 4.56, 78.9, 123, 4,560, 78,900; from 100,000 on with a prefix: 1.92M.

    `like`: the figure beside which it stands, whose prefix it takes.
    """
    if math.isnan(value):
        return WITHHELD
    if value == 0:
        return "0"
    scale = abs(value if like is None or math.isnan(like) or not like else like)
    prefix, factor = next(
        ((name, of) for name, of in PREFIXES if _rounded(scale) >= 100 * KILO and scale >= of), ("", 1.0)
    )
    scaled = value / factor
    digits = min(6, max(0, 2 - _magnitude(scaled)))
    if _magnitude(scaled) > 2:  # what lies before the point is cut to three digits, too
        scaled = _rounded(scaled)
    return f"{scaled:,.{digits}f}{prefix}"


def _magnitude(value: float) -> int:
    """The exponent of ten of a number once it is rounded to three digits."""
    return int(f"{value:.2e}".partition("e")[2])


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")


def value_text(estimate: Estimate | None) -> str:
    """An estimate's value, or the sign for a withheld one."""
    return WITHHELD if estimate is None else number_text(estimate.value)


def compact_value(estimate: Estimate | None) -> str:
    """The same in few characters: 12.3k."""
    return WITHHELD if estimate is None else compact_number(estimate.value)


def plus_minus(estimate: Estimate | None) -> str:
    """Half the interval in percent of the value, ±2.1 %; a wide one, which is lopsided, by its ends: 85.1–320.

    The ends have the value's own prefix.
    """
    if estimate is None or math.isnan(estimate.width):
        return ""
    if estimate.width >= 0.2:
        return f"{number_text(estimate.low, estimate.value)}–{number_text(estimate.high, estimate.value)}"
    percent = 100 * estimate.width
    return f"±{percent:.0f} %" if percent >= 9.95 else f"±{percent:.1f} %"


def compact_number(value: float) -> str:
    """Three digits and a prefix: 12.3k, 1.92M."""
    for prefix, factor in PREFIXES:
        if _rounded(value) >= factor:
            return f"{number_text(value / factor)}{prefix}"
    return number_text(value)


def ratio_text(row: Row, baseline: str) -> str:
    """A row's ratio to the baseline, with its interval."""
    if row.path == baseline and row.ratio is None:
        return "1"
    if row.ratio is None:
        return WITHHELD
    if math.isnan(row.ratio.low):
        return f"{row.ratio.value:.2f}"
    if row.ratio.high >= 10:
        return f"{number_text(row.ratio.value)} ({number_text(row.ratio.low)}–{number_text(row.ratio.high)})"
    digits = 2 if row.ratio.high - row.ratio.low >= 0.02 else 3
    return f"{row.ratio.value:.{digits}f} ({row.ratio.low:.{digits}f}–{row.ratio.high:.{digits}f})"


def bytes_a_second(estimate: Estimate | None) -> str:
    """With a decimal prefix, as links are sold: 1.23 MB/s."""
    if estimate is None:
        return WITHHELD
    for prefix, factor in PREFIXES:
        if _rounded(estimate.value) >= factor:
            return f"{number_text(estimate.value / factor)} {prefix}B/s"
    return f"{number_text(estimate.value)} B/s"
