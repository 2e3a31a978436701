"""How every figure of the report looks: one style, one look for each path, and what their axes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from hwrx.report.model import Row, Summary
from hwrx.report.words import size_words
from hwrx.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.5  # inches: one column of a two-column paper
INK, GRID_INK = "#1b1c1d", "#d4d5d6"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same on every machine
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.8,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_INK,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "pdf.fonttype": 42,  # TrueType inside, as publishers ask
    "svg.fonttype": "path",  # glyphs as outlines: the same in every viewer
    "svg.hashsalt": "hwrx",
    "path.simplify_threshold": 0.2,
}

Look = tuple[str, str, Any]
LOOKS: dict[str, Look] = {
    "udp": ("#0072B2", "o", "-"),
    "tcp": ("#56B4E9", "s", (0, (5, 1.5))),
    "rdma-send": ("#D55E00", "^", (0, (3, 1, 1, 1))),
    "rdma-write": ("#E69F00", "D", (0, (1, 1))),
    "rdma-write-imm": ("#B8860B", "v", (0, (6, 1, 1, 1, 1, 1))),
    "rdma-read": ("#CC79A7", "P", (0, (2, 2))),
    "rdma-ud": ("#7A3E9D", "X", (0, (4, 3))),
    "packet-ring": ("#009E73", "<", (0, (8, 2))),
    "xdp": ("#4D8B31", ">", (0, (3, 3))),
    "nic-ring": ("#000000", "*", "-"),
    "nic-pio": ("#777777", "h", (0, (1, 2))),
}
MARKERS = "osD^vP<>X*h"
LINES = 8  # of a panel: more cannot be told apart


def measure(summary: Summary, pattern: str) -> str:
    """What the rows of a pattern measure, for an axis."""
    kinds = list(dict.fromkeys(row.measures for row in summary.of(pattern)))
    return kinds[0] if len(kinds) == 1 else "half round trip (READ: full)"


def several_waits(summary: Summary, pattern: str = "pingpong") -> bool:
    """Whether a path was measured waiting in several manners."""
    rows = summary.of(pattern)
    return len({(row.path, row.wait) for row in rows}) > len({row.path for row in rows})


def of_size(summary: Summary, pattern: str, size: int) -> list[Row]:
    """The rows of one pattern and size."""
    return [row for row in summary.of(pattern) if row.size == size]


def name(summary: Summary, row: Row) -> str:
    """A row's name within one size and pattern; its manner of waiting where the path was measured in several."""
    waits = {other.wait for other in summary.of(row.pattern) if other.label == row.label}
    manner = f" {row.wait}" if len(waits) > 1 else ""
    return row.label + manner + (" (full)" if row.measures == "FULL round trip" else "")


def look(summary: Summary, row: Row) -> Look:
    """A path's own look; among several waits, sweeps or runs of one path each has another marker and line."""
    colour, marker, line = LOOKS.get(row.path, ("#555555", "o", "-"))
    kin = list(dict.fromkeys(other.line for other in summary.of(row.pattern) if other.path == row.path))
    place = kin.index(row.line)
    if place:
        marker = MARKERS[(MARKERS.index(marker) + 5 * place) % len(MARKERS)]
        line = (0, (1 + 2 * place, 1, 1, 1))
    return colour, marker, line


def with_bars(
    ax: Axes,
    points: Sequence[tuple[float, Estimate | None]],
    style: dict[str, Any],
    factor: float = 1.0,
    *,
    bars: bool = True,
) -> None:
    """A line with interval bars; withheld points are left out."""
    known = [(x, estimate) for x, estimate in points if estimate is not None]
    if not known:
        return
    values = np.array([estimate.value for _, estimate in known]) * factor
    low = np.array([estimate.low for _, estimate in known]) * factor
    high = np.array([estimate.high for _, estimate in known]) * factor
    reach = np.nan_to_num(np.abs(np.vstack([values - low, high - values])))
    reach[0] = np.minimum(reach[0], values * 0.999)  # on a logarithmic axis a bar cannot reach 0
    places = [x for x, _ in known]
    if bars:
        ax.errorbar(places, values, yerr=reach, elinewidth=0.7, capsize=1.5, **style)
    else:
        ax.plot(places, values, **style)


def size_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis of message sizes."""
    ax.set_xscale("log", base=2)
    shown = spread(sizes, 6)
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: size_words(int(size))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("message size")


def fit_values(ax: Axes, estimates: Sequence[Estimate | None]) -> None:
    """Let a logarithmic axis span the values: an interval of two or three trials may span decades, and is cut there."""
    values = [estimate.value for estimate in estimates if estimate is not None]
    if values:
        ax.set_ylim(0.6 * min(values), 1.8 * max(values))


def plain_log(ax: Axes, which: Literal["x", "y"]) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5 where it spans little."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    decades = np.log10(max(high, 1e-9) / max(low, 1e-9)) if low > 0 else 1.0
    steps = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """A number for an axis: 12k, 1.5M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:,.6g}"


def few(rows: Sequence[Row]) -> list[Row]:
    """Of rows that differ by rate or sweep, as many as lines can be told apart: the first, the last, and between."""
    if len(rows) <= LINES:
        return list(rows)
    steps = list(dict.fromkeys((row.load or row.rate, str(row.swept)) for row in rows if not row.saturated))
    steps.sort()
    chosen = [steps[place] for place in spread(range(len(steps)), max(1, LINES * len(steps) // len(rows)))]
    return [row for row in rows if (row.load or row.rate, str(row.swept)) in chosen][: 2 * LINES]


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values: first, last and evenly between."""
    if len(values) <= most:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, most)]


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all axes, each name once."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    if found:
        wide = figure.get_size_inches()[0] >= 5
        longest = max(map(len, found))
        columns = max(1, min(len(found), int((16 if wide else 8.5) * 8 / (longest + 6))))
        figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns, handlelength=3)
