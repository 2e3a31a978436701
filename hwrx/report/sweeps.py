"""Figures over something that the experiment varied: the load, the manner of waiting, or any field of `[sweep]`."""

from __future__ import annotations

from hwrx.host import plotting as plotting  # before Matplotlib, which MPLBACKEND may stop

# isort: split
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hwrx.report import style
from hwrx.report.model import Row, Summary, swept_words
from hwrx.report.numbers import size_of_rows
from hwrx.report.style import LOOKS, OTHER, PAPER
from hwrx.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_load(summary: Summary, figure: Figure, width: float) -> str:
    """Response time against what was answered, with the time from the actual send that a closed loop would report."""
    rows = [row for row in summary.of("paced") if row.rate and row.messages_per_s]
    sizes, note = style.some_sizes(summary, "paced", 3)
    sizes = [size for size in sizes if any(row.size == size for row in rows)]
    axes = style.make_panels(figure, width, len(sizes), tall=2.0)
    for ax, size in zip(axes, sizes, strict=True):
        of_size = [row for row in rows if row.size == size]
        _load_panel(summary, ax, of_size)
        words = f"{size_of_rows(*of_size)}; filled: p50, open: p99, dotted: p50 from actual send"
        small = 6 if len(sizes) == 1 or style.stack_panels(width) else 4.8
        ax.set_title(words, loc="right", pad=2, fontsize=small)
    style.draw_legend(figure, axes)
    return note


def _load_panel(summary: Summary, ax: Axes, rows: list[Row]) -> None:
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(row.curve + f" {row.wait}" * style.several_waits(summary, "paced"), []).append(row)
    for name, own in curves.items():
        own.sort(key=lambda row: row.rate or 0.0)
        colour, marker, line = LOOKS.get(own[0].path, OTHER)
        for source, quantile, fill, label in (
            ("quantiles", "p50", colour, name),
            ("quantiles", "p99", PAPER, None),
            ("service_quantiles", "p50", "none", None),
        ):
            points = [(row.messages_per_s.value if row.messages_per_s else 0.0, getattr(row, source).get(quantile))
                      for row in own]  # fmt: skip
            look_of: dict[str, object] = {"color": colour, "marker": marker, "linestyle": line}
            look_of |= {"markerfacecolor": fill, "label": label}
            if source == "service_quantiles":
                look_of |= {"linewidth": 0.7, "marker": "", "linestyle": ":"}
            elif quantile == "p99":
                look_of |= {"linewidth": 0.6}
            style.with_bars(ax, points, look_of, bars=quantile == "p50" and source == "quantiles")
        dots = [(row.messages_per_s.value, style.trial_figures(row, 0.5)) for row in own if row.messages_per_s]
        style.with_dots(ax, dots, colour)
    ax.set_yscale("log")
    style.clip_interval(ax, "y", *style.span_of([row.quantiles[name] for row in rows for name in ("p50", "p99")]))
    style.plain_log(ax, "y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short_label(value)))
    ax.set_xlim(left=0)
    ax.set_xlabel("answered [messages/s]")
    ax.set_ylabel("response time [µs]")


def draw_waits(summary: Summary, figure: Figure, width: float) -> str:
    """p50 and p99 of each manner of waiting, a panel for each size."""
    sizes, note = style.some_sizes(summary, "pingpong", 3)
    of_sizes = [[row for row in style.of_size(summary, "pingpong", size) if row.quantiles["p50"]] for size in sizes]
    of_sizes = [rows for rows in of_sizes if rows]
    figure.set_size_inches(width, 0.5 + sum(0.5 + 0.18 * len(rows) for rows in of_sizes))
    axes = figure.subplots(len(of_sizes), 1, squeeze=False, gridspec_kw={"height_ratios": list(map(len, of_sizes))})
    for ax, rows in zip(axes.ravel(), of_sizes, strict=True):
        for place, row in enumerate(rows):
            colour, marker, _ = style.look_of(summary, row)
            for quantile, fill in (("p99", PAPER), ("p50", colour)):
                found = row.quantiles[quantile]
                if found is not None:
                    bars = None if np.isnan(found.low) else [[found.value - found.low], [found.high - found.value]]
                    ax.errorbar(
                        found.value, -place, xerr=bars, color=colour, marker=marker, markerfacecolor=fill, capsize=1.5
                    )
        ax.set_yticks([-place for place in range(len(rows))], [f"{row.label}, {row.wait}" for row in rows])
        ax.set_ylim(-len(rows) + 0.4, 0.6)
        ax.set_xscale("log")
        style.clip_interval(ax, "x", *style.span_of([row.quantiles[name] for row in rows for name in ("p50", "p99")]))
        style.plain_log(ax, "x")
        ax.set_xlabel(
            f"{style.measure_text(summary, 'pingpong')} at {size_of_rows(*rows)} [µs]; filled: p50, open: p99"
        )
        ax.grid(axis="y", visible=False)
    return note


def swept_field(summary: Summary, kind: type) -> str:
    """The first field of `[sweep]` that rows differ in and whose values are of a kind; empty where there is none."""
    for run in summary.runs:
        for key, values in run.experiment.sweep.items():
            varied = any(key in row.swept for row in summary.rows)
            if varied and key != "rate" and all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
                return str(key)
    return ""


def numbers_of(summary: Summary, figure: Figure, width: float) -> str:
    """Latency and throughput over a field that was swept through numbers, a panel for each pattern and size."""
    key = swept_field(summary, int | float)  # type: ignore[arg-type]
    panels, note = _panels(summary, key)
    axes = style.make_panels(figure, width, len(panels), tall=1.85)
    for ax, (pattern, rows) in zip(axes, panels, strict=True):
        for name, own in _lines(summary, rows, key).items():
            colour, marker, line = _look_of(summary, own[0], key)
            points = [(float(row.swept[key]), row) for row in own]
            look_of = {"color": colour, "marker": marker, "linestyle": line, "label": name}
            if pattern == "stream":
                style.with_bars(ax, [(x, row.messages_per_s) for x, row in points], look_of)
                continue
            style.with_bars(ax, [(x, row.quantiles["p50"]) for x, row in points], look_of)
            tail = look_of | {"markerfacecolor": PAPER, "label": None, "linewidth": 0.6}
            style.with_bars(ax, [(x, row.quantiles["p99"]) for x, row in points], tail, bars=False)
            style.with_dots(ax, [(x, style.trial_figures(row, 0.5)) for x, row in points], colour)
        _swept_axis(ax, sorted({float(row.swept[key]) for row in rows}))
        ax.set_yscale("log")
        style.clip_interval(ax, "y", *style.span_of([estimate for row in rows for estimate in _shown(row)]))
        style.plain_log(ax, "y")
        ax.set_ylabel(_axis_words(summary, pattern))
        words = "" if pattern == "stream" else "; filled: p50, open: p99"
        ax.set_title(f"{size_of_rows(*rows)}{words}", loc="right", pad=2, fontsize=6)
        ax.set_xlabel(key.replace("_", " "))
    style.draw_legend(figure, axes)
    return note


def _swept_axis(ax: Axes, values: list[float]) -> None:
    """The swept numbers on a logarithmic axis, as many of them named as there is room for."""
    base = 10 if values[-1] / max(values[0], 1) > 4096 else 2
    if values[0] > 0:
        ax.set_xscale("log", base=base)
    else:  # nothing is a value too, and stands a step below the smallest
        ax.set_xscale("symlog", base=base, linthresh=next((value for value in values if value > 0), 1.0))
    ax.xaxis.set_major_locator(FixedLocator(style.spread_labels(values, 7)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short_label(value)))
    ax.xaxis.set_minor_locator(NullLocator())


def conditions_of(summary: Summary, figure: Figure, width: float) -> str:
    """The same, row by row, over a field that was swept through words, such as what netem does to the wire."""
    key = swept_field(summary, str)
    panels, note = _panels(summary, key)
    run = next(run for run in summary.runs if key in run.experiment.sweep)
    order = [value for value in run.experiment.sweep[key] if any(row.swept.get(key) == value for row in summary.rows)]
    lines = list(dict.fromkeys(_line(summary, row, key) for _, rows in panels for row in rows))
    stacked = style.stack_panels(width)
    count = len(panels)
    tall = 0.7 + 0.085 * len(order) * (len(lines) + 1)
    figure.set_size_inches(width, count * tall if stacked else tall + 0.3)
    axes = figure.subplots(*((count, 1) if stacked else (1, count)), sharey=not stacked, squeeze=False).ravel()
    for ax, (pattern, rows) in zip(axes, panels, strict=True):
        for row in rows:
            name = _line(summary, row, key)
            place = -order.index(row.swept[key]) + (0.5 - (lines.index(name) + 1) / (len(lines) + 1)) * 0.9
            _condition(ax, row, place, _look_of(summary, row, key), name)
        ax.set_yticks([-place for place in range(len(order))], [str(value) or "none" for value in order])
        ax.set_ylim(-len(order) + 0.5, 0.5)
        for place in range(1, len(order)):
            ax.axhline(0.5 - place, color=style.GRID_INK, linewidth=0.5)
        ax.grid(axis="y", visible=False)
        ax.set_xscale("log")
        low, high = style.span_of([estimate for row in rows for estimate in _shown(row)])
        style.clip_interval(ax, "x", low, high * (1.7 if any(row.lost_share for row in rows) else 1))
        style.plain_log(ax, "x")
        words = "" if pattern == "stream" else "; filled: p50, open: p99"
        ax.set_xlabel(f"{_axis_words(summary, pattern)}, {size_of_rows(*rows)}{words}")
    style.draw_legend(figure, list(axes))
    return note


def _condition(ax: Axes, row: Row, place: float, look: style.Look, name: str) -> None:
    """One row's figures under one condition, and what was lost."""
    colour, marker, _ = look
    shown = [(row.messages_per_s, colour)] if row.pattern == "stream" else []
    shown = shown or [(row.quantiles["p99"], PAPER), (row.quantiles["p50"], colour)]
    for estimate, fill in shown:
        if estimate is None:
            continue
        reach = [[estimate.value - max(estimate.low, 0.0)], [estimate.high - estimate.value]]
        ax.errorbar(
            estimate.value,
            place,
            xerr=None if np.isnan(estimate.low) else reach,
            color=colour,
            marker=marker,
            markerfacecolor=fill,
            linestyle="none",
            elinewidth=0.7,
            capsize=1.5,
            label=name if fill == colour else None,
        )
    known = [estimate.value for estimate, _ in shown if estimate is not None]
    if row.lost_share and known:
        words = f"{100 * row.lost_share:.2g} % lost"
        ax.annotate(words, (max(known), place), (4, 0), "data", "offset points", va="center", fontsize=5)


def has_sweep(kind: type) -> Callable[[Summary], bool]:
    """Whether a summary has rows to draw `numbers` or `conditions` from."""

    def any_rows(summary: Summary) -> bool:
        key = swept_field(summary, kind)
        # words beside numbers tell the lines over the numbers apart
        other = kind is str and swept_field(summary, int | float)  # type: ignore[arg-type]
        return bool(key and not other and _panels(summary, key)[0])

    return any_rows


# --- inside --------------------------------------------------------------------------------------------------------


def _panels(summary: Summary, key: str) -> tuple[list[tuple[str, list[Row]]], str]:
    """The patterns and sizes that have rows of the swept field, each with those that hold a figure; and which are not.

    Of more sizes than two, the smallest and the largest.
    """
    found, notes = [], []
    for pattern in ("pingpong", "stream"):
        sizes, note = style.some_sizes(summary, pattern, 2)
        notes.append(note)
        for size in sizes:
            # a path that does not read the field has no place on its axis
            rows = [row for row in style.of_size(summary, pattern, size) if row.swept.get(key) is not None]
            rows = [row for row in rows if any(estimate is not None for estimate in _shown(row))]
            if len({row.swept[key] for row in rows}) > 1:
                found.append((pattern, rows))
    without = dict.fromkeys(row.path for row in summary.rows if key in row.swept and row.swept[key] is None)
    if without:
        notes.append(f"Not read by {', '.join(without)}: {key.replace('_', ' ')}")
    return found, ". ".join(dict.fromkeys(filter(None, notes)))


def _shown(row: Row) -> list[Estimate | None]:
    return [row.messages_per_s] if row.pattern == "stream" else [row.quantiles["p50"], row.quantiles["p99"]]


def _axis_words(summary: Summary, pattern: str) -> str:
    return "delivered [messages/s]" if pattern == "stream" else f"{style.measure_text(summary, pattern)} [µs]"


def _line(summary: Summary, row: Row, key: str) -> str:
    """What a row is called where the swept field `key` stands on an axis."""
    others = "".join(f" {swept_words(name, value)}" for name, value in row.swept.items() if name not in (key, "rate"))
    waits = f" {row.wait}" if style.several_waits(summary, row.pattern) else ""
    return row.name + others.rstrip() + waits


def _lines(summary: Summary, rows: list[Row], key: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_line(summary, row, key), []).append(row)
    return found


def _look_of(summary: Summary, row: Row, key: str) -> style.Look:
    """A path's own look, with another marker for each further manner of waiting or run."""
    colour, marker, line = LOOKS.get(row.path, OTHER)
    kin = list(dict.fromkeys(_line(summary, other, key) for other in summary.rows if other.path == row.path))
    place = kin.index(_line(summary, row, key))
    if place:
        marker = style.MARKERS[(style.MARKERS.index(marker) + 5 * place) % len(style.MARKERS)]
        line = (0, (1 + 2 * place, 1, 1, 1))
    return colour, marker, line
