"""The report's figures, in one style: readable in print at column width, in grey, and by the colour-blind.

Each path keeps its colour (of Okabe and Ito's palette), marker and line in every figure, so that no two are told apart
by colour alone. Output is the same, byte for byte, each time it is made from the same run.
"""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from hwrx.errors import UsageError
from hwrx.report import text, waterfall
from hwrx.report.summary import Row, Summary, size_words
from hwrx.stats import BEYOND, GRID, NAMED, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def names(summary: Summary) -> list[str]:
    """The figures that these runs can fill, in the report's order."""
    return [name for name, (_, _, has) in FIGURES.items() if has(summary)]


def title(name: str) -> str:
    """What a figure shows, as a caption's first words."""
    return FIGURES[name][1]


def draw(summary: Summary, name: str, width: float = COLUMN) -> Figure:
    """Draw one figure, `width` inches wide. UsageError names the figures that there are."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure '{name}'", remedy=f"choose of: {', '.join(names(summary))}")
    function, _, has = FIGURES[name]
    if not has(summary):
        raise UsageError(
            f"these runs have nothing to draw the figure '{name}' from",
            remedy=f"they have: {', '.join(names(summary)) or 'none'}",
        )
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        function(summary, figure, width)
        figure.supxlabel(summary.label, fontsize=5.5, color=INK, wrap=True)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure as PDF, SVG or PNG, by the name's ending, the same bytes each time."""
    path.write_bytes(render(figure, path.suffix.lstrip(".")))


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as PDF, SVG or PNG."""
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": "hwrx", "Producer": None},
        "svg": {"Date": None, "Creator": "hwrx"},
        "png": {"Software": None},
    }
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata[kind], dpi=200)
    return buffer.getvalue()


def inline(figure: Figure, name: str) -> str:
    """Return a figure as an <svg> element whose ink follows the page's colours, with ids of its own."""
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(GRID_INK, "var(--rule)")
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


# --- the figures ---------------------------------------------------------------------------------------------------


def _cdf(summary: Summary, figure: Figure, width: float) -> None:
    """Share of messages slower than a time, on a logarithmic axis, so that the tail is as readable as the middle."""
    pattern: Literal["pingpong", "paced"] = "pingpong" if summary.of("pingpong") else "paced"
    sizes = _spread(summary.sizes(pattern), 3)
    stacked = width < 5
    shape = (len(sizes), 1) if stacked else (1, len(sizes))
    figure.set_size_inches(width, 0.5 + 1.35 * len(sizes) if stacked else 0.9 + width / 3.2)
    axes = figure.subplots(*shape, sharey=True, sharex=stacked, squeeze=False).ravel()
    for ax, size in zip(axes, sizes, strict=True):
        for row in _of_size(summary, pattern, size):
            _tail(ax, row, _look(summary, row), _name(summary, row))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1.0, _smallest_share(summary, pattern))
        ax.set_title(size_words(size), loc="right", pad=2)
        _plain_log(ax, "x")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        ax.yaxis.set_minor_locator(NullLocator())
    # `measures` differs only for READ, which the legend marks
    axes[-1 if stacked else len(axes) // 2].set_xlabel(f"{_measure(summary, pattern)} [µs]")
    axes[len(axes) // 2 if stacked else 0].set_ylabel("share of messages slower")
    _legend(figure, list(axes))


def _tail(ax: Axes, row: Row, look: Look, name: str) -> None:
    count = min(digest.count for digest in row.digests)
    kept = (1 - GRID) * count >= BEYOND - 1e-6
    thin = np.isin(np.round(GRID, 12), NAMED) | (np.arange(len(GRID)) % 4 == 0)  # more points than a picture can show
    kept &= thin
    curves = np.array([digest.quantiles[kept] for digest in row.digests])
    curves = np.maximum(curves, 1e-3)
    middle = np.exp(np.log(curves).mean(axis=0))
    beyond = 1 - GRID[kept]
    colour, marker, line = look
    # markers at the quantiles of the tables
    marks = [int(np.argmin(np.abs(GRID[kept] - p))) for p in (0.5, 0.9, 0.99, 0.999) if p <= GRID[kept][-1] + 1e-9]
    ax.plot(middle, beyond, color=colour, linestyle=line, marker=marker, markevery=marks, label=name)
    if len(curves) > 1:
        ax.fill_betweenx(beyond, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, linewidth=0)


def _latency(summary: Summary, figure: Figure, width: float) -> None:
    """p50 (filled) and p99 (open) against message size."""
    figure.set_size_inches(width, max(2.5, width * 0.56))
    ax = figure.subplots()
    for look, rows in _series(summary, "pingpong"):
        colour, marker, line = look
        for quantile, fill, label in (("p50", colour, _name(summary, rows[0])), ("p99", "white", None)):
            points = [(row.size, row.quantiles[quantile]) for row in rows]
            style = {"color": colour, "marker": marker, "linestyle": line, "markerfacecolor": fill, "label": label}
            if label is None:
                style |= {"linewidth": 0.6, "alpha": 0.9}
            _with_bars(ax, points, style, bars=quantile == "p50")
    _size_axis(ax, summary.sizes("pingpong"))
    ax.set_yscale("log")
    _plain_log(ax, "y")
    ax.set_ylabel(f"{_measure(summary, 'pingpong')} [µs]")
    ax.set_title("filled: p50 with 95 % interval, open: p99", loc="right", pad=2, fontsize=6)
    _legend(figure, [ax])


def _throughput(summary: Summary, figure: Figure, width: float) -> None:
    """Messages and bytes a second against message size."""
    stacked = width < 5
    figure.set_size_inches(width, 3.9 if stacked else 2.9)
    axes = figure.subplots(*((2, 1) if stacked else (1, 2)), sharex=True, squeeze=False).ravel()
    for look, rows in _series(summary, "stream"):
        colour, marker, line = look
        style = {"color": colour, "marker": marker, "linestyle": line, "label": _name(summary, rows[0])}
        _with_bars(axes[0], [(row.size, row.messages_per_s) for row in rows], style)
        _with_bars(axes[1], [(row.size, row.bytes_per_s) for row in rows], style, 1e-6)
    for ax, words in zip(axes, ("messages/s", "MB/s"), strict=True):
        ax.set_yscale("log")
        _plain_log(ax, "y")
        ax.set_ylabel(f"delivered [{words}]")
        _size_axis(ax, summary.sizes("stream"))
    if stacked:
        axes[0].set_xlabel("")
    _legend(figure, list(axes))


def _ratios(summary: Summary, figure: Figure, width: float) -> None:
    """Each path's p50 as a multiple of the baseline's, with its interval."""
    sizes = summary.sizes("pingpong")
    lines = [row for row in summary.of("pingpong") if row.ratio is not None]
    labels = list(dict.fromkeys(_name(summary, row) for row in lines))
    figure.set_size_inches(width, 0.8 + 0.17 * len(labels) * max(1, len(sizes)) ** 0.5 + 0.12 * len(lines))
    ax = figure.subplots()
    places = []
    for place, row in enumerate(sorted(lines, key=lambda row: (labels.index(_name(summary, row)), row.size))):
        assert row.ratio is not None
        colour, marker, _ = _look(summary, row)
        low, high = row.ratio.value - row.ratio.low, row.ratio.high - row.ratio.value
        bars = None if np.isnan(low) else [[low], [high]]
        ax.errorbar(row.ratio.value, -place, xerr=bars, color=colour, marker=marker, capsize=1.5, linestyle="none")
        places.append((-place, f"{_name(summary, row)}, {size_words(row.size)}"))
    ax.axvline(1, color=INK, linewidth=0.8)
    ax.set_yticks([place for place, _ in places], [label for _, label in places])
    ax.set_xlabel(f"p50, multiple of {summary.baseline}'s, with 95 % interval")
    ax.set_xlim(left=min(0.9, ax.get_xlim()[0]))
    ax.grid(axis="y", visible=False)


def _cost(summary: Summary, figure: Figure, width: float) -> None:
    """Median against size on even axes, with the fitted lines: the slope is the cost of a byte."""
    figure.set_size_inches(width, max(2.5, width * 0.56))
    ax = figure.subplots()
    for cost in summary.costs:
        rows = [row for row in summary.of("pingpong") if (row.label, row.wait) == (cost.row, cost.wait)]
        colour, marker, line = _look(summary, rows[0])
        sizes = np.array([row.size for row in rows], float)
        medians = [row.quantiles["p50"] for row in rows]
        label = f"{_name(summary, rows[0])}: {text.number(cost.byte.value)} ns/B"
        ax.plot(
            sizes / 1024,
            cost.message.value + cost.byte.value / 1e3 * sizes,
            color=colour,
            linestyle=line,
            linewidth=0.8,
        )
        points = [(row.size / 1024, median) for row, median in zip(rows, medians, strict=True)]
        _with_bars(ax, points, {"color": colour, "marker": marker, "linestyle": "none", "label": label})
    ax.set_xlabel("message size [KiB]")
    ax.set_ylabel(f"{_measure(summary, 'pingpong')}, p50 [µs]")
    ax.set_ylim(bottom=0)
    _legend(figure, [ax])


def _load(summary: Summary, figure: Figure, width: float) -> None:
    """Response time against the offered rate, with the service time that a closed loop would report."""
    figure.set_size_inches(width, max(2.7, width * 0.56))
    ax = figure.subplots()
    rows = [row for row in summary.of("paced") if row.rate]
    size = min(row.size for row in rows)
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row.size == size:
            swept = {key: value for key, value in row.swept.items() if key not in ("rate", "load")}
            plain = msgspec.structs.replace(row, swept=swept)
            curves.setdefault(plain.label + f" {row.wait}" * _several_waits(summary, "paced"), []).append(row)
    for name, own in curves.items():
        own.sort(key=lambda row: row.rate or 0.0)
        colour, marker, line = LOOKS.get(own[0].path, ("#555555", "o", "-"))
        for source, quantile, fill, label in (
            ("quantiles", "p50", colour, name),
            ("quantiles", "p99", "white", None),
            ("service_quantiles", "p50", "none", None),
        ):
            points = [(row.rate or 0.0, getattr(row, source).get(quantile)) for row in own]
            style = {"color": colour, "marker": marker, "linestyle": line, "markerfacecolor": fill, "label": label}
            if source == "service_quantiles":
                style |= {"linewidth": 0.7, "marker": "", "linestyle": ":"}
            elif quantile == "p99":
                style |= {"linewidth": 0.6}
            _with_bars(ax, points, style, bars=quantile == "p50" and source == "quantiles")
    ax.set_yscale("log")
    _plain_log(ax, "y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.set_xlim(left=0)
    ax.set_xlabel("offered [messages/s]")
    ax.set_ylabel("response time [µs]")
    ax.set_title(f"{size_words(size)}; filled: p50, open: p99, dotted: service p50", loc="right", pad=2, fontsize=6)
    _legend(figure, [ax])


def _waits(summary: Summary, figure: Figure, width: float) -> None:
    """p50 and p99 of each manner of waiting, at the smallest size."""
    size = summary.sizes("pingpong")[0]
    rows = [row for row in _of_size(summary, "pingpong", size) if row.quantiles["p50"]]
    figure.set_size_inches(width, 0.8 + 0.2 * len(rows))
    ax = figure.subplots()
    for place, row in enumerate(rows):
        colour, marker, _ = _look(summary, row)
        for quantile, fill in (("p99", "white"), ("p50", colour)):
            found = row.quantiles[quantile]
            if found is not None:
                bars = None if np.isnan(found.low) else [[found.value - found.low], [found.high - found.value]]
                ax.errorbar(
                    found.value, -place, xerr=bars, color=colour, marker=marker, markerfacecolor=fill, capsize=1.5
                )
    ax.set_yticks([-place for place in range(len(rows))], [f"{row.label}, {row.wait}" for row in rows])
    ax.set_xscale("log")
    _plain_log(ax, "x")
    ax.set_xlabel(f"{_measure(summary, 'pingpong')} at {size_words(size)} [µs]; filled: p50, open: p99")
    ax.grid(axis="y", visible=False)


# --- inside --------------------------------------------------------------------------------------------------------


def _several(pattern: str) -> Callable[[Summary], bool]:
    return lambda summary: len(summary.sizes(pattern)) > 1


def _several_waits(summary: Summary, pattern: str = "pingpong") -> bool:
    rows = summary.of(pattern)
    return len({(row.path, row.wait) for row in rows}) > len({row.path for row in rows})


FIGURES: dict[str, tuple[Callable[[Summary, Figure, float], None], str, Callable[[Summary], bool]]] = {
    "cdf": (
        _cdf,
        "Distribution of latency: the share of messages that took longer; lines are means over the repeats, shades "
        "their range, marks p50, p90, p99, p99.9",
        lambda summary: any(
            digest.count >= 2 * BEYOND for p in ("pingpong", "paced") for row in summary.of(p) for digest in row.digests
        ),
    ),
    "latency": (_latency, "Latency against message size", _several("pingpong")),
    "ratio": (_ratios, "Latency relative to the baseline", lambda s: any(row.ratio for row in s.of("pingpong"))),
    "throughput": (_throughput, "Throughput against message size", _several("stream")),
    "cost": (_cost, "Cost of a byte: the slope of time over message size", lambda s: bool(s.costs)),
    "load": (_load, "Latency under load", lambda s: len({row.rate for row in s.of("paced")} - {None}) > 1),
    "waits": (_waits, "Manners of waiting", _several_waits),
    "waterfall": (
        waterfall.draw,
        "Where the time goes: mean time since the stage before, in packet order, by who works; from traced trials",
        waterfall.has,
    ),
}


def _measure(summary: Summary, pattern: str) -> str:
    kinds = list(dict.fromkeys(row.measures for row in summary.of(pattern)))
    return kinds[0] if len(kinds) == 1 else "half round trip (READ: full)"


def _of_size(summary: Summary, pattern: str, size: int) -> list[Row]:
    return [row for row in summary.of(pattern) if row.size == size]


def _name(summary: Summary, row: Row) -> str:
    """A row's name within one size and pattern; its manner of waiting where the path was measured in several."""
    waits = {other.wait for other in summary.of(row.pattern) if other.label == row.label}
    manner = f" {row.wait}" if len(waits) > 1 else ""
    return row.label + manner + (" (full)" if row.measures == "FULL round trip" else "")


def _series(summary: Summary, pattern: str) -> list[tuple[Look, list[Row]]]:
    """Rows that differ in size alone, with the look that they have."""
    found: dict[str, list[Row]] = {}
    for row in summary.of(pattern):
        found.setdefault(_name(summary, row), []).append(row)
    return [(_look(summary, rows[0]), rows) for rows in found.values()]


def _look(summary: Summary, row: Row) -> Look:
    """A path's own look; among several waits, sweeps or runs of one path each has another marker and line."""
    colour, marker, line = LOOKS.get(row.path, ("#555555", "o", "-"))
    kin = list(dict.fromkeys((other.label, other.wait) for other in summary.of(row.pattern) if other.path == row.path))
    place = kin.index((row.label, row.wait))
    if place:
        marker = MARKERS[(MARKERS.index(marker) + 5 * place) % len(MARKERS)]
        line = (0, (1 + 2 * place, 1, 1, 1))
    return colour, marker, line


def _with_bars(
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


def _size_axis(ax: Axes, sizes: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    shown = _spread(sizes, 6)
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: size_words(int(size))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("message size")


def _plain_log(ax: Axes, which: Literal["x", "y"]) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5 where it spans little."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = ax.dataLim.intervalx if which == "x" else ax.dataLim.intervaly
    decades = np.log10(max(high, 1e-9) / max(low, 1e-9)) if low > 0 else 1.0
    steps = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.9 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:,.6g}"


def _smallest_share(summary: Summary, pattern: str) -> float:
    count = max(min(digest.count for digest in row.digests) for row in summary.of(pattern))
    return float(max(BEYOND / count, 1e-7) * 0.8)


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values: first, last and evenly between."""
    if len(values) <= most:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, most)]


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
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


def write_all(summary: Summary, directory: pathlib.Path, kinds: Sequence[str] = ("pdf", "svg")) -> list[pathlib.Path]:
    """Write every figure at column width; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names(summary):
        figure = draw(summary, name)
        for kind in kinds:
            save(figure, directory / f"{name}.{kind}")
            written.append(directory / f"{name}.{kind}")
    return written
