"""The captions of a report's tables: what was timed, over what, and what the figures stand on."""

from __future__ import annotations

from collections.abc import Sequence

from hwrx.paths import PATHS
from hwrx.report.model import Row, Summary
from hwrx.report.numbers import SATURATED, size_of_rows, size_words
from hwrx.stats import LEVEL

LATENCY = "Half a round trip of a ping-pong, µs (timed as a round trip by one clock, and halved)"
RATE = "Stream in one direction: messages and bytes delivered a second"
TRACED = "Tracing lengthens every stage that it stamps; how much in all stands in the table of what tracing cost."
COST = (
    "The line through the median half round trip against message size, fitted in each repeat: what a byte more and a "
    "message as such cost one way. Bytes are copied, checksummed and cut into packets; the slope holds all of it"
)
PACED = "Open loop at a given rate: response time from the intended send and, in brackets, from the actual one, µs"
GROWS = "more was offered than was answered, so that the response time grows with the trial's length"


def basis(rows: Sequence[Row]) -> str:
    """What a table's figures stand on: sizes, repeats and samples of a trial, and what its intervals are."""
    sizes = sorted({row.size for row in rows})
    repeats = [len(row.digests) for row in rows]
    samples = [digest.count for row in rows for digest in row.digests]
    if len(sizes) == 1:
        said = [size_of_rows(*rows)]
    elif any(row.swept.get("mix") for row in rows):  # whose smallest messages may be smaller than any row's size
        said = [f"up to {size_words(sizes[-1])}"]
    else:
        said = [f"{size_words(sizes[0])} to {size_words(sizes[-1])}"]
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
    full = full_trips(rows)
    whole = f"; {full}: the FULL round trip, since it fetches and comes back" if full else ""
    return f"{LATENCY}{whole}; {basis(rows)}. {summary.label}."


def full_trips(rows: Sequence[Row]) -> str:
    """The paths whose times are of a full round trip, in words; "" if there is none."""
    return ", ".join(dict.fromkeys(row.path for row in rows if row.measures == "FULL round trip"))


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


def paced_caption(summary: Summary, rows: Sequence[Row]) -> str:
    """The caption of the load table."""
    note = f"; {SATURATED}: {GROWS}" if any(row.saturated for row in rows) else ""
    random = any(run.experiment.setting.get("arrivals") == "poisson" for run in summary.runs)
    return f"{PACED}{'; Poisson arrivals' if random else ''}{note}; {basis(rows)}. {summary.label}."
