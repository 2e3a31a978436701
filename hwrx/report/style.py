"""How every figure of the report looks: one style, one look for each path, and what their axes have in common."""

from __future__ import annotations

from hwrx.host import plotting as plotting  # before Matplotlib, which MPLBACKEND may stop

# isort: split
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.markers import CARETDOWNBASE, CARETLEFTBASE, CARETRIGHTBASE, CARETUPBASE
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from hwrx.paths import PATHS
from hwrx.paths.model import Dashes
from hwrx.report.model import Row, Summary, name_of
from hwrx.report.numbers import size_words
from hwrx.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.5  # inches: one column of a two-column paper
INK, GRID_INK = "#1b1c1d", "#d4d5d6"
PAPER = "#ffffff"  # what stands for the background: open markers are filled with it, segments parted by it

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

T = TypeVar("T")
Look = tuple[str, str, Dashes]
# each path's own; the ink follows the page
LOOKS: dict[str, Look] = {
    path.name: (path.look.colour or INK, path.look.marker, path.look.dashes) for path in PATHS.values()
}
OTHER: Look = ("#7d8288", "o", "-")  # a path of another version
ACTORS = {
    "user thread": "#1b75c4",
    "kernel": "#4b93d3",
    "softirq": "#c48700",
    "kernel worker": "#d55e00",
    "hard IRQ": "#cf5fa0",
    "device": "#7d8288",
    "not observed": "#7d8288",
}
# in the order in which the lines of one path take them
MARKERS = "".join(dict.fromkeys("osD^vP<>X*h" + "".join(marker for _, marker, _ in LOOKS.values())))
LINES = 8  # of a panel: more cannot be told apart


def measure_text(summary: Summary, pattern: str) -> str:
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


def row_name(summary: Summary, row: Row) -> str:
    """A row's name within one size and pattern; its manner of waiting where the path was measured in several."""
    waits = {other.wait for other in summary.of(row.pattern) if other.label == row.label}
    manner = f" {row.wait}" if len(waits) > 1 else ""
    return row.label + manner + (" (full)" if row.measures == "FULL round trip" else "")


def look_of(summary: Summary, row: Row) -> Look:
    """A path's own look; among several waits, sweeps or runs of one path each has another marker and line."""
    colour, marker, line = LOOKS.get(row.path, OTHER)
    kin = list(dict.fromkeys(other.line for other in summary.of(row.pattern) if other.path == row.path))
    place = kin.index(row.line)
    if place and all(other.path == row.path for other in summary.of(row.pattern)):
        colour = list(LOOKS.values())[place % len(LOOKS)][
            0
        ]  # of one path alone the colours are free to tell its lines apart
    if place:
        marker = MARKERS[(MARKERS.index(marker) + 5 * place) % len(MARKERS)]
        line = (0, (1 + 2 * place, 1, 1, 1))
    return colour, marker, line


def some_sizes(summary: Summary, pattern: str, most: int) -> tuple[list[int], str]:
    """At most so many of a pattern's sizes, and what a reader must be told where those are not all."""
    sizes = summary.sizes(pattern)
    shown = spread_labels(sizes, most)
    note = f"Shown: {', '.join(map(size_words, shown))} of {len(sizes)} sizes" if len(shown) < len(sizes) else ""
    return shown, note


def stack_panels(width: float) -> bool:
    """Whether a figure is so narrow that its panels stand one above the other."""
    return width < 5


def make_panels(figure: Figure, width: float, count: int, *, tall: float, sharey: bool = False) -> list[Axes]:
    """So many panels, beside each other or above, each `tall` inches where they are stacked."""
    if stack_panels(width):
        figure.set_size_inches(width, 0.55 + tall * count)
        return list(figure.subplots(count, 1, squeeze=False).ravel())
    figure.set_size_inches(width, 3.1 if count > 1 else 3.6)
    return list(figure.subplots(1, count, sharey=sharey, squeeze=False).ravel())


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


def with_dots(ax: Axes, points: Sequence[tuple[float, Sequence[float]]], colour: str) -> None:
    """The figures of single trials, small beside their mean: what an interval is made from."""
    places = [x for x, values in points for _ in values]
    ax.plot(places, [value for _, values in points for value in values], linestyle="none", marker=".", markersize=2.6,
            markeredgewidth=0, color=colour, alpha=0.75, zorder=1.5)  # fmt: skip


def trial_figures(row: Row, p: float) -> list[float]:
    """The quantile of each trial of a row, where the row shows it."""
    return [digest.quantile(p) for digest in row.digests] if row.quantiles.get(name_of(p)) else []


def clip_interval(ax: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Limit an axis, and mark with an arrow on its border each interval bar that goes on beyond it."""
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)
    for container in ax.containers:
        if not isinstance(container, ErrorbarContainer):
            continue
        for bars in container.lines[2]:
            colour = bars.get_color()[0]
            for segment in bars.get_segments():
                (x0, y0), (x1, y1) = segment
                place, ends = (y0, sorted((x0, x1))) if which == "x" else (x0, sorted((y0, y1)))
                if np.isnan(ends).any() or ends[0] > high or ends[1] < low:
                    continue
                for outside, at, marker in ((ends[0] < low, low, 0), (ends[1] > high, high, 1)):
                    if outside:
                        arrow = ((CARETLEFTBASE, CARETRIGHTBASE) if which == "x" else (CARETDOWNBASE, CARETUPBASE))[
                            marker
                        ]
                        ax.plot(*((at, place) if which == "x" else (place, at)), marker=arrow, color=colour,
                                markersize=4.5, linestyle="none", clip_on=False, zorder=4)  # fmt: skip


def span_of(estimates: Sequence[Estimate | None], most: float = 1.9) -> tuple[float, float]:
    """What a logarithmic axis should show: all values, and their intervals as far as `most` times beyond."""
    known = [estimate for estimate in estimates if estimate is not None]
    values = [estimate.value for estimate in known] or [1.0]  # all withheld: an axis without a figure
    low, high = min(values) / most, max(values) * most
    ends = [end for estimate in known for end in (estimate.low, estimate.high) if not np.isnan(end)]
    low, high = max(low, min([*values, *ends])), min(high, max([*values, *ends]))
    room = (high / low) ** 0.06 * 1.02
    return low / room, high * room


def size_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis of message sizes."""
    ax.set_xscale("log", base=2)
    shown = spread_labels(sizes, 6)
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: size_words(int(size))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("message size")


def plain_log(ax: Axes, which: Literal["x", "y"]) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5 where it spans little."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    decades = np.log10(max(high, 1e-9) / max(low, 1e-9)) if low > 0 else 1.0
    steps = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_label(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def short_label(value: float) -> str:
    """A number for an axis: 12k, 1.5M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:,.6g}"


def few_ticks(rows: Sequence[Row]) -> list[Row]:
    """Of rows that differ by rate or sweep, as many as lines can be told apart: the first, the last, and between."""
    if len(rows) <= LINES:
        return list(rows)
    steps = list(dict.fromkeys((row.load or row.rate, str(row.swept)) for row in rows if not row.saturated))
    steps.sort()
    chosen = [steps[place] for place in spread_labels(range(len(steps)), max(1, LINES * len(steps) // len(rows)))]
    return [row for row in rows if (row.load or row.rate, str(row.swept)) in chosen][: 2 * LINES]


def spread_labels(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values: first, last and evenly between."""
    if len(values) <= most:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, most)]


def draw_legend(figure: Figure, axes: Sequence[Axes], more: Mapping[str, Any] = {}) -> None:
    """One legend above all axes, each name once, in as many columns as the figure's width has room for."""
    found: dict[str, Any] = dict(more)
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for columns in range(len(found), 0, -1):
        made = figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns, handlelength=2.6)
        if columns == 1 or made.get_window_extent(renderer).width <= 0.98 * figure.bbox.width:
            return
        made.remove()
