"""The words that every report has in common: captions, cells and what must be said about SoftRoCE."""

from __future__ import annotations

import math

from hwrx.paths import PATHS
from hwrx.report.model import Row, Summary
from hwrx.report.summary import software_rdma
from hwrx.stats import BEYOND, Estimate

WITHHELD = "–"
SATURATED = "†"

RXE = (
    "The rdma paths of this run cross SoftRoCE (rxe), RDMA in software. It has RDMA's interface and RoCE's packets, "
    "but no adapter: kernel threads on the CPU do the HCA's copying. Each payload byte is copied once by the CPU on "
    "the sending side and once on the receiving side, as often as over UDP, and the receiver reads it once more for "
    "the checksum. A real HCA moves the bytes itself, by DMA, and the CPU copies none. So these figures tell what the "
    "interface and its packets cost here; they do not tell how fast RDMA hardware is."
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


def about(summary: Summary) -> list[str]:
    """Paragraphs to stand under the tables: how the figures were made, and what they are not."""
    paragraphs = [HOW]
    if any(run.experiment.until is not None for run in summary.runs):
        paragraphs.append(UNTIL)
    if any(software_rdma(run) for run in summary.runs):
        paragraphs.insert(0, RXE)
    return paragraphs


def latency_caption(summary: Summary) -> str:
    """The caption of the latency table: what was timed, and on what."""
    full = [row for row in summary.of("pingpong") if row.measures == "FULL round trip"]
    return f"{LATENCY}{'; ' + LATENCY_FULL if full else ''}. {summary.label}."


def rate_caption(summary: Summary) -> str:
    """The caption of the throughput table."""
    blind = dict.fromkeys(row.path for row in summary.of("stream") if _seen_by_sender(row.path))
    note = f"; of {' and '.join(blind)} as completions at the end that posted them" if blind else ""
    return f"{RATE}{note}. {summary.label}."


def _seen_by_sender(path: str) -> bool:
    return path in PATHS and PATHS[path].stream_seen_by == "client"


def cost_caption(summary: Summary) -> str:
    """The caption of the table of costs; in virtual time a nanosecond is a guest instruction."""
    virtual = any(run.manifest["clock"] == "icount" for run in summary.runs)
    return f"{COST}{' (1 ns = 1 guest instruction)' if virtual else ''}. {summary.label}."


def signed(estimate: Estimate) -> tuple[str, str]:
    """A figure of either sign and its interval."""
    interval = "" if math.isnan(estimate.low) else f"({number(estimate.low)} to {number(estimate.high)})"
    return number(estimate.value), interval


def paced_caption(summary: Summary) -> str:
    """The caption of the load table."""
    note = f"; {SATURATED}: {GROWS}" if any(row.saturated for row in summary.of("paced")) else ""
    random = any(run.experiment.setting.get("arrivals") == "poisson" for run in summary.runs)
    return f"{PACED}{'; Poisson arrivals' if random else ''}{note}. {summary.label}."


def share(value: float | None) -> str:
    """A share in percent: 80 %."""
    return WITHHELD if value is None else f"{100 * value:.3g} %"


def number(value: float) -> str:
    """Three digits, without exponent: 0.123, 4.56, 78.9, 123, 4,567."""
    if math.isnan(value):
        return WITHHELD
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def value(estimate: Estimate | None) -> str:
    """An estimate's value, or the sign for a withheld one."""
    return WITHHELD if estimate is None else number(estimate.value)


def compact_value(estimate: Estimate | None) -> str:
    """The same in few characters: 12.3k."""
    return WITHHELD if estimate is None else compact(estimate.value)


def plus_minus(estimate: Estimate | None) -> str:
    """Half the interval in percent of the value, ±2.1 %; a wide one, which is lopsided, by its ends: 85.1–320."""
    if estimate is None or math.isnan(estimate.width):
        return ""
    if estimate.width >= 0.2:
        return f"{compact(estimate.low)}–{compact(estimate.high)}"
    percent = 100 * estimate.width
    return f"±{percent:.0f} %" if percent >= 9.95 else f"±{percent:.1f} %"


def compact(value: float) -> str:
    """Three digits and a prefix: 12.3k, 1.92M."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{number(value / factor)}{prefix}"
    return number(value)


def ratio(row: Row, baseline: str) -> str:
    """A row's ratio to the baseline, with its interval."""
    if row.path == baseline and row.ratio is None:
        return "1"
    if row.ratio is None:
        return WITHHELD
    if math.isnan(row.ratio.low):
        return f"{row.ratio.value:.2f}"
    if row.ratio.high >= 10:
        return f"{number(row.ratio.value)} ({number(row.ratio.low)}–{number(row.ratio.high)})"
    digits = 2 if row.ratio.high - row.ratio.low >= 0.02 else 3
    return f"{row.ratio.value:.{digits}f} ({row.ratio.low:.{digits}f}–{row.ratio.high:.{digits}f})"


def bytes_a_second(estimate: Estimate | None) -> str:
    """With a decimal prefix, as links are sold: 1.23 MB/s."""
    if estimate is None:
        return WITHHELD
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if estimate.value >= factor:
            return f"{number(estimate.value / factor)} {prefix}B/s"
    return f"{number(estimate.value)} B/s"
