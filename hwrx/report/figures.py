"""The report's figures, in one style: readable in print at column width, in grey, and by the colour-blind.

Each path keeps its colour (of Okabe and Ito's palette), marker and line in every figure, so that no two are told apart
by colour alone. Output is the same, byte for byte, each time it is made from the same run.
"""

from __future__ import annotations

from hwrx.host import plotting as plotting  # before Matplotlib, which MPLBACKEND may stop

# isort: split
import io
import logging
import pathlib
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from hwrx.errors import UsageError
from hwrx.host import disk
from hwrx.report import style, sweeps, waterfall
from hwrx.report.model import Row, Summary, scaled_estimate
from hwrx.report.numbers import number_text, size_of_rows
from hwrx.report.style import COLUMN, GRID_INK, INK, PAPER, STYLE, Look
from hwrx.stats import BEYOND, GRID, NAMED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# tells of every table of a font that it puts into a PDF, as soon as any library has switched logging on
logging.getLogger("fontTools").setLevel(logging.WARNING)


class ReportFigure(Figure):
    """A figure that a notebook shows by itself: it is bound to no window, and to no backend of the notebook's."""

    def _repr_svg_(self) -> str:
        return render_figure(self, "svg").decode()


def figure_names(summary: Summary) -> list[str]:
    """The figures that these runs can fill, in the report's order."""
    return [name for name, (_, _, has) in FIGURES.items() if has(summary)]


def figure_title(name: str) -> str:
    """What a figure shows, as a caption's first words."""
    return FIGURES[name][1]


def draw_figure(summary: Summary, name: str, width: float = COLUMN) -> Figure:
    """Draw one figure, `width` inches wide. UsageError names the figures that there are."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure '{name}'", remedy=f"choose of: {', '.join(figure_names(summary))}")
    function, _, has = FIGURES[name]
    if not has(summary):
        raise UsageError(
            f"these runs have nothing to draw the figure '{name}' from",
            remedy=f"they have: {', '.join(figure_names(summary)) or 'none'}",
        )
    with rc_context(STYLE):
        figure = ReportFigure(layout="constrained")
        FigureCanvasAgg(figure)
        note = function(summary, figure, width) or ""
        figure.supxlabel(_wrapped(". ".join(filter(None, [summary.label, note])), width), fontsize=5.5, color=INK)
    return figure


def _wrapped(words: str, width: float) -> str:
    """Lines as long as a figure is wide; at this size of type an inch holds some 24 letters."""
    return "\n".join(textwrap.wrap(words, int(24 * width)))


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure as PDF, SVG or PNG, by the name's ending, the same bytes each time."""
    disk.write_new(path, render_figure(figure, path.suffix.lstrip(".")))


def render_figure(figure: Figure, kind: str) -> bytes:
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


def inline_figure(figure: Figure, name: str) -> str:
    """Return a figure as an <svg> element whose ink follows the page's colours, with ids of its own."""
    svg = render_figure(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(GRID_INK, "var(--rule)").replace(PAPER, "var(--paper)")
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


# --- the figures ---------------------------------------------------------------------------------------------------


def _cdf(summary: Summary, figure: Figure, width: float) -> str:
    """Share of messages slower than a time, on a logarithmic axis, so that the tail is as readable as the middle."""
    pattern: Literal["pingpong", "paced"] = "pingpong" if summary.of("pingpong") else "paced"
    sizes, note = style.some_sizes(summary, pattern, 3)
    axes = style.make_panels(figure, width, len(sizes), sharey=True, tall=1.6)
    for ax, size in zip(axes, sizes, strict=True):
        for row in style.few_ticks(style.of_size(summary, pattern, size)):
            _tail(ax, row, style.look_of(summary, row), style.row_name(summary, row))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1.0, _smallest_share(summary, pattern))
        ax.set_title(size_of_rows(*style.of_size(summary, pattern, size)), loc="right", pad=2)
        style.plain_log(ax, "x")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        ax.yaxis.set_minor_locator(NullLocator())
        # `measures` differs only for READ, which the legend marks
        ax.set_xlabel(f"{style.measure_text(summary, pattern)} [µs]")
        if style.stack_panels(width) or ax is axes[0]:
            ax.set_ylabel("messages slower")
    style.draw_legend(figure, axes)
    return note


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
        for quantile, fill, label in (("p50", colour, style.row_name(summary, rows[0])), ("p99", PAPER, None)):
            points = [(row.size, row.quantiles[quantile]) for row in rows]
            look_of: dict[str, object] = {"color": colour, "marker": marker, "linestyle": line}
            look_of |= {"markerfacecolor": fill, "label": label}
            if label is None:
                look_of |= {"linewidth": 0.6}
            style.with_bars(ax, points, look_of, bars=quantile == "p50")
        style.with_dots(ax, [(row.size, style.trial_figures(row, 0.5)) for row in rows], colour)
    style.size_axis(ax, summary.sizes("pingpong"))
    ax.set_yscale("log")
    shown = [row.quantiles[name] for row in summary.of("pingpong") for name in ("p50", "p99")]
    style.clip_interval(ax, "y", *style.span_of(shown))
    style.plain_log(ax, "y")
    ax.set_ylabel(f"{style.measure_text(summary, 'pingpong')} [µs]")
    ax.set_title("filled: p50 with 95 % interval, dots: p50 of each trial, open: p99", loc="right", pad=2, fontsize=5.5)
    style.draw_legend(figure, [ax])


def _throughput(summary: Summary, figure: Figure, width: float) -> None:
    """Messages and bytes a second against message size."""
    axes = style.make_panels(figure, width, 2, tall=1.75)
    for look, rows in _series(summary, "stream"):
        colour, marker, line = look
        look_of = {"color": colour, "marker": marker, "linestyle": line, "label": style.row_name(summary, rows[0])}
        style.with_bars(axes[0], [(row.size, row.messages_per_s) for row in rows], look_of)
        style.with_bars(axes[1], [(row.size, row.bytes_per_s) for row in rows], look_of, 1e-6)
    rates = [row.messages_per_s for row in summary.of("stream")]
    bytes_ = [row.bytes_per_s and scaled_estimate(row.bytes_per_s, 1e-6) for row in summary.of("stream")]
    for ax, words, shown in zip(axes, ("messages/s", "MB/s"), (rates, bytes_), strict=True):
        ax.set_yscale("log")
        style.clip_interval(ax, "y", *style.span_of(shown))
        style.plain_log(ax, "y")
        ax.set_ylabel(f"delivered [{words}]")
        style.size_axis(ax, summary.sizes("stream"))
    style.draw_legend(figure, axes)


def _ratios(summary: Summary, figure: Figure, width: float) -> str:
    """Each path's p50 as a multiple of the baseline's, with its interval."""
    sizes, note = style.some_sizes(summary, "pingpong", 6)
    lines = [row for row in summary.of("pingpong") if row.ratio is not None and row.size in sizes]
    labels = list(dict.fromkeys(style.row_name(summary, row) for row in lines))
    figure.set_size_inches(width, 0.9 + 0.17 * len(lines) + 0.08 * len(labels))
    ax = figure.subplots()
    places: list[tuple[float, str]] = []
    for row in sorted(lines, key=lambda row: (labels.index(style.row_name(summary, row)), row.size)):
        assert row.ratio is not None
        colour, marker, _ = style.look_of(summary, row)
        low, high = row.ratio.value - row.ratio.low, row.ratio.high - row.ratio.value
        bars = None if np.isnan(low) else [[low], [high]]
        place = -len(places) - 0.5 * labels.index(style.row_name(summary, row))
        ax.errorbar(row.ratio.value, place, xerr=bars, color=colour, marker=marker, capsize=1.5, linestyle="none")
        places.append((place, f"{style.row_name(summary, row)}, {size_of_rows(row)}"))
    ax.axvline(1, color=INK, linewidth=0.8)
    ax.set_yticks([place for place, _ in places], [label for _, label in places])
    ax.set_xscale("log")
    low, high = style.span_of([row.ratio for row in lines])
    style.clip_interval(ax, "x", min(low, 0.95), max(high, 1.05))
    style.plain_log(ax, "x")
    ax.set_xlabel(
        f"p50, multiple of {summary.baseline}'s, with 95 % interval\n(an arrow: it goes on beyond the border)"
    )
    ax.grid(axis="y", visible=False)
    return note


def _shift(summary: Summary, figure: Figure, width: float) -> str:
    """Every decile, and p99, as a multiple of the baseline's: a line that is not level moved the shape, too."""
    rows = _shifted(summary)
    sizes, note = style.some_sizes(summary, "pingpong", 3)
    sizes = [size for size in sizes if any(row.size == size for row in rows)]
    axes = style.make_panels(figure, width, len(sizes), sharey=True, tall=1.5)
    limits = style.span_of([estimate for row in rows for _, estimate in row.shift if row.size in sizes])
    for ax, size in zip(axes, sizes, strict=True):
        of_size = style.few_ticks([row for row in rows if row.size == size])
        longest = max((row.shift for row in of_size), key=len)
        for number, row in enumerate(of_size):
            colour, marker, line = style.look_of(summary, row)
            # beside each other, so that no bar hides another
            aside = (number - (len(of_size) - 1) / 2) * 0.6 / len(of_size)
            points = [(place + aside, estimate) for place, (_, estimate) in enumerate(row.shift)]
            look_of = {"color": colour, "marker": marker, "linestyle": line, "label": style.row_name(summary, row)}
            style.with_bars(ax, points, look_of)
        # a panel of three has room for every second label
        step = 1 if len(sizes) == 1 or style.stack_panels(width) else 2
        ax.set_xticks(range(len(longest)), [
            f"p{100 * p:.0f}" if place % step == 0 or place == len(longest) - 1 else ""
            for place, (p, _) in enumerate(longest)
        ])  # fmt: skip
        ax.axhline(1, color=INK, linewidth=0.8)
        ax.set_yscale("log")
        style.clip_interval(ax, "y", min(limits[0], 0.95), max(limits[1], 1.05))
        style.plain_log(ax, "y")
        ax.set_title(size_of_rows(*of_size), loc="right", pad=2)
        ax.set_xlabel("quantile")
        if style.stack_panels(width) or ax is axes[0]:
            ax.set_ylabel(f"multiple of {summary.baseline}'s")
    style.draw_legend(figure, axes)
    return note


def _shifted(summary: Summary) -> list[Row]:
    return [] if summary.swept(summary.rows) else [row for row in summary.of("pingpong") if len(row.shift) > 1]


def _over_time(summary: Summary, figure: Figure, width: float) -> str:
    """Every trial from its first to its last message: drift, steps and stalls, which no quantile shows."""
    pattern = next(name for name in ("pingpong", "paced", "stream") if summary.of(name))
    sizes, note = style.some_sizes(summary, pattern, 3)
    axes = style.make_panels(figure, width, len(sizes), sharey=True, tall=1.6)
    for ax, size in zip(axes, sizes, strict=True):
        for row in style.few_ticks(style.of_size(summary, pattern, size)):
            colour, _, line = style.look_of(summary, row)
            for trial, (medians, largest) in enumerate(row.series):
                share = (np.arange(len(medians)) + 0.5) / len(medians) * 100
                label = style.row_name(summary, row) if not trial else None
                ax.plot(share, np.maximum(medians, 1e-3), color=colour, linestyle=line, linewidth=0.6, label=label)
                ax.plot(share, np.maximum(largest, 1e-3), color=colour, linestyle="none", marker=".", markersize=1.3,
                        markeredgewidth=0)  # fmt: skip
        ax.set_yscale("log")
        ax.set_xlim(0, 100)
        style.plain_log(ax, "y")
        ax.set_title(size_of_rows(*style.of_size(summary, pattern, size)), loc="right", pad=2)
        ax.set_xlabel("messages of the trial [%]")
        if style.stack_panels(width) or ax is axes[0]:
            ax.set_ylabel("µs")
    style.draw_legend(figure, axes)
    return note


def _cost(summary: Summary, figure: Figure, width: float) -> None:
    """Median against size on even axes, with the fitted lines: the slope is the cost of a byte."""
    figure.set_size_inches(width, max(2.5, width * 0.56))
    ax = figure.subplots()
    for cost in summary.costs:
        rows = [row for row in summary.of("pingpong") if row.line == cost.line]
        colour, marker, line = style.look_of(summary, rows[0])
        sizes = np.array([row.size for row in rows], float)
        medians = [row.quantiles["p50"] for row in rows]
        label = f"{style.row_name(summary, rows[0])}: {number_text(cost.byte.value)} ns/B"
        ax.plot(
            sizes / 1024,
            cost.message.value + cost.byte.value / 1e3 * sizes,
            color=colour,
            linestyle=line,
            linewidth=0.8,
        )
        points = [(row.size / 1024, median) for row, median in zip(rows, medians, strict=True)]
        style.with_bars(ax, points, {"color": colour, "marker": marker, "linestyle": "none", "label": label})
    ax.set_xlabel("message size [KiB]")
    ax.set_ylabel(f"{style.measure_text(summary, 'pingpong')}, p50 [µs]")
    ax.set_ylim(bottom=0)
    style.draw_legend(figure, [ax])


# --- inside --------------------------------------------------------------------------------------------------------


def _several(pattern: str) -> Callable[[Summary], bool]:
    return lambda summary: len(summary.sizes(pattern)) > 1


FIGURES: dict[str, tuple[Callable[[Summary, Figure, float], str | None], str, Callable[[Summary], bool]]] = {
    "cdf": (
        _cdf,
        "Distribution of latency: the share of messages that took longer; lines are means over the repeats, shades "
        "their range, marks p50, p90, p99, p99.9",
        lambda summary: any(
            digest.count >= 2 * BEYOND for p in ("pingpong", "paced") for row in summary.of(p) for digest in row.digests
        ),
    ),
    "latency": (_latency, "Latency against message size", _several("pingpong")),
    "ratio": (
        _ratios,
        "Latency relative to the baseline",
        lambda s: not s.swept(s.rows) and any(row.ratio for row in s.of("pingpong")),
    ),
    "shift": (
        _shift,
        "Shift of the distribution: each decile and p99 relative to the baseline, with 95 % intervals",
        lambda s: bool(_shifted(s)),
    ),
    "time": (
        _over_time,
        "Every trial over time, in the order of its messages: lines are the medians of its 120 parts, one line a "
        "trial, dots the longest of each part",
        lambda s: any(row.series for row in s.rows),
    ),
    "throughput": (
        _throughput,
        "Throughput against message size",
        lambda s: _several("stream")(s) and any(r.messages_per_s for r in s.of("stream")),
    ),
    "cost": (_cost, "Cost of a byte: the slope of time over message size", lambda s: bool(s.costs)),
    "load": (sweeps.draw_load, "Latency under load", lambda s: len({row.rate for row in s.of("paced")} - {None}) > 1),
    "waits": (sweeps.draw_waits, "Manners of waiting", style.several_waits),
    "sweep": (sweeps.numbers_of, "Latency and throughput over what was varied", sweeps.has_sweep(int | float)),  # type: ignore[arg-type]
    "conditions": (sweeps.conditions_of, "Latency and throughput under each condition", sweeps.has_sweep(str)),
    "waterfall": (
        waterfall.draw_waterfall,
        "Where the time goes: the mean time from each stage to the next, in packet order, by who works; a segment is "
        "named by the stage that ends it, and holds all since the one before it (after a sleeper's sched_switch also "
        "the rest of its waking); from client to server, by the anatomy's stamps if a run has them, else by probes'",
        waterfall.has_waterfall,
    ),
}


def _series(summary: Summary, pattern: str) -> list[tuple[Look, list[Row]]]:
    """Rows that differ in size alone, with the look that they have."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in summary.of(pattern):
        found.setdefault(row.line, []).append(row)
    return [(style.look_of(summary, rows[0]), rows) for rows in found.values()]


def _smallest_share(summary: Summary, pattern: str) -> float:
    count = max(min(digest.count for digest in row.digests) for row in summary.of(pattern))
    return float(max(BEYOND / count, 1e-7) * 0.8)


def write_all(summary: Summary, directory: pathlib.Path, kinds: Sequence[str] = ("pdf", "svg")) -> list[pathlib.Path]:
    """Write every figure at column width; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in figure_names(summary):
        figure = draw_figure(summary, name)
        for kind in kinds:
            save_figure(figure, directory / f"{name}.{kind}")
            written.append(directory / f"{name}.{kind}")
    return written
