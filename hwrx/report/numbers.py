"""Figures in letters: how many digits, which prefix, and what stands beside them to say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from hwrx.report.model import Row
from hwrx.stats import Estimate

WITHHELD = "–"
KILO = 1e3
PREFIXES = (("G", 1e9), ("M", 1e6), ("k", KILO))
SATURATED = "†"


def signed_percent(estimate: Estimate) -> tuple[str, str]:
    """A figure of either sign and its interval."""
    interval = "" if math.isnan(estimate.low) else f"({number_text(estimate.low)} to {number_text(estimate.high)})"
    return number_text(estimate.value), interval


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


def time_words(us: float) -> str:
    """A time with three digits and a unit."""
    if us < 1:
        return f"{us * 1000:.3g} ns"
    if us < 1000:
        return f"{us:.3g} µs"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


class Sized(Protocol):
    """A row of figures that are of messages."""

    @property
    def size(self) -> int:
        """Bytes of the longest."""

    @property
    def swept(self) -> Mapping[str, object]:
        """As of Row: a mix of sizes among it."""


def size_of_rows(*rows: Sized) -> str:
    """The size that rows have in common, in words; up to which messages go if those of any of them differ."""
    words = size_words(rows[0].size)
    return f"up to {words}" if any(row.swept.get("mix") for row in rows) else words


def size_words(size: int) -> str:
    """A size in B, KiB or MiB where it divides."""
    for unit, bytes_of in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_of and size % bytes_of == 0:
            return f"{size // bytes_of} {unit}"
    return f"{size:,} B"
