"""Figures over something that the experiment varied: the load, the manner of waiting, or any field of `[sweep]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hwrx.report import style
from hwrx.report.model import Row, Summary, swept_words
from hwrx.report.style import LOOKS
from hwrx.report.words import size_words
from hwrx.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load(summary: Summary, figure: Figure, width: float) -> None:
    """Response time against what was answered, with the time from the actual send that a closed loop would report."""
    figure.set_size_inches(width, max(2.7, width * 0.56))
    ax = figure.subplots()
    rows = [row for row in summary.of("paced") if row.rate and row.messages_per_s]
    size = min(row.size for row in rows)
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row.size == size:
            curves.setdefault(row.curve + f" {row.wait}" * style.several_waits(summary, "paced"), []).append(row)
    for name, own in curves.items():
        own.sort(key=lambda row: row.rate or 0.0)
        colour, marker, line = LOOKS.get(own[0].path, ("#555555", "o", "-"))
        for source, quantile, fill, label in (
            ("quantiles", "p50", colour, name),
            ("quantiles", "p99", "white", None),
            ("service_quantiles", "p50", "none", None),
        ):
            points = [(row.messages_per_s.value if row.messages_per_s else 0.0, getattr(row, source).get(quantile))
                      for row in own]  # fmt: skip
            look_of = {"color": colour, "marker": marker, "linestyle": line, "markerfacecolor": fill, "label": label}
            if source == "service_quantiles":
                look_of |= {"linewidth": 0.7, "marker": "", "linestyle": ":"}
            elif quantile == "p99":
                look_of |= {"linewidth": 0.6}
            style.with_bars(ax, points, look_of, bars=quantile == "p50" and source == "quantiles")
    ax.set_yscale("log")
    style.fit_values(ax, [row.quantiles[name] for row in rows for name in ("p50", "p99") if row.size == size])
    style.plain_log(ax, "y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short(value)))
    ax.set_xlim(left=0)
    ax.set_xlabel("answered [messages/s]")
    ax.set_ylabel("response time [µs]")
    ax.set_title(f"{size_words(size)}; filled: p50, open: p99, dotted: p50 from actual send", loc="right", pad=2,
                 fontsize=6)  # fmt: skip
    style.legend(figure, [ax])


def waits(summary: Summary, figure: Figure, width: float) -> None:
    """p50 and p99 of each manner of waiting, at the smallest size."""
    size = summary.sizes("pingpong")[0]
    rows = [row for row in style.of_size(summary, "pingpong", size) if row.quantiles["p50"]]
    figure.set_size_inches(width, 0.8 + 0.2 * len(rows))
    ax = figure.subplots()
    for place, row in enumerate(rows):
        colour, marker, _ = style.look(summary, row)
        for quantile, fill in (("p99", "white"), ("p50", colour)):
            found = row.quantiles[quantile]
            if found is not None:
                bars = None if np.isnan(found.low) else [[found.value - found.low], [found.high - found.value]]
                ax.errorbar(
                    found.value, -place, xerr=bars, color=colour, marker=marker, markerfacecolor=fill, capsize=1.5
                )
    ax.set_yticks([-place for place in range(len(rows))], [f"{row.label}, {row.wait}" for row in rows])
    ax.set_xscale("log")
    style.plain_log(ax, "x")
    ax.set_xlabel(f"{style.measure(summary, 'pingpong')} at {size_words(size)} [µs]; filled: p50, open: p99")
    ax.grid(axis="y", visible=False)


def swept_field(summary: Summary, kind: type) -> str:
    """The first field of `[sweep]` that rows differ in and whose values are of a kind; empty where there is none."""
    for run in summary.runs:
        for key, values in run.experiment.sweep.items():
            varied = any(key in row.swept for row in summary.rows)
            if varied and key != "rate" and all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
                return str(key)
    return ""


def numbers(summary: Summary, figure: Figure, width: float) -> None:
    """Latency and throughput at the smallest size over a field that was swept through numbers."""
    key = swept_field(summary, int | float)  # type: ignore[arg-type]
    panels = _panels(summary, key)
    stacked = width < 5
    count = len(panels)
    figure.set_size_inches(width, 0.7 + 1.75 * count if stacked else 2.9)
    axes = figure.subplots(*((count, 1) if stacked else (1, count)), sharex=True, squeeze=False).ravel()
    for ax, (pattern, rows) in zip(axes, panels, strict=True):
        for name, own in _lines(summary, rows, key).items():
            colour, marker, line = _look_of(summary, own[0], key)
            points = [(float(row.swept[key]), row) for row in own]
            look_of = {"color": colour, "marker": marker, "linestyle": line, "label": name}
            if pattern == "stream":
                style.with_bars(ax, [(x, row.messages_per_s) for x, row in points], look_of)
                continue
            style.with_bars(ax, [(x, row.quantiles["p50"]) for x, row in points], look_of)
            tail = look_of | {"markerfacecolor": "white", "label": None, "linewidth": 0.6}
            style.with_bars(ax, [(x, row.quantiles["p99"]) for x, row in points], tail, bars=False)
        values = sorted({float(row.swept[key]) for row in rows})
        if values[0] > 0:
            ax.set_xscale("log", base=2)
        else:  # nothing is a value too, and stands a step below the smallest
            ax.set_xscale("symlog", base=2, linthresh=next((value for value in values if value > 0), 1.0))
        ax.xaxis.set_major_locator(FixedLocator(values))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short(value)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_yscale("log")
        style.fit_values(ax, [estimate for row in rows for estimate in _shown(row)])
        style.plain_log(ax, "y")
        ax.set_ylabel(_axis_words(summary, pattern))
        if pattern != "stream":
            ax.set_title(f"{size_words(rows[0].size)}; filled: p50, open: p99", loc="right", pad=2, fontsize=6)
        if ax is axes[-1] or not stacked:
            ax.set_xlabel(key.replace("_", " "))
    style.legend(figure, list(axes))


def conditions(summary: Summary, figure: Figure, width: float) -> None:
    """The same, row by row, over a field that was swept through words, such as what netem does to the wire."""
    key = swept_field(summary, str)
    panels = _panels(summary, key)
    run = next(run for run in summary.runs if key in run.experiment.sweep)
    order = [value for value in run.experiment.sweep[key] if any(row.swept.get(key) == value for row in summary.rows)]
    lines = list(dict.fromkeys(_line(summary, row, key) for _, rows in panels for row in rows))
    stacked = width < 5
    count = len(panels)
    tall = 0.7 + 0.085 * len(order) * (len(lines) + 1)
    figure.set_size_inches(width, count * tall if stacked else tall + 0.3)
    axes = figure.subplots(*((count, 1) if stacked else (1, count)), sharey=not stacked, squeeze=False).ravel()
    for ax, (pattern, rows) in zip(axes, panels, strict=True):
        for row in rows:
            colour, marker, _ = _look_of(summary, row, key)
            name = _line(summary, row, key)
            place = -order.index(row.swept[key]) + (0.5 - (lines.index(name) + 1) / (len(lines) + 1)) * 0.9
            shown = [(row.messages_per_s, colour)] if pattern == "stream" else []
            shown = shown or [(row.quantiles["p99"], "white"), (row.quantiles["p50"], colour)]
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
        ax.set_yticks([-place for place in range(len(order))], [str(value) or "none" for value in order])
        ax.set_ylim(-len(order) + 0.5, 0.5)
        for place in range(1, len(order)):
            ax.axhline(0.5 - place, color=style.GRID_INK, linewidth=0.5)
        ax.grid(axis="y", visible=False)
        ax.set_xscale("log")
        values = [estimate.value for row in rows for estimate in _shown(row) if estimate is not None]
        ax.set_xlim(0.6 * min(values), 3 * max(values))
        style.plain_log(ax, "x")
        ax.set_xlabel(_axis_words(summary, pattern) + ("" if pattern == "stream" else "; filled: p50, open: p99"))
    style.legend(figure, list(axes))


def has(kind: type) -> Callable[[Summary], bool]:
    """Whether a summary has rows to draw `numbers` or `conditions` from."""

    def any_rows(summary: Summary) -> bool:
        key = swept_field(summary, kind)
        # words beside numbers tell the lines over the numbers apart
        other = kind is str and swept_field(summary, int | float)  # type: ignore[arg-type]
        return bool(key and not other and _panels(summary, key))

    return any_rows


# --- inside --------------------------------------------------------------------------------------------------------


def _panels(summary: Summary, key: str) -> list[tuple[str, list[Row]]]:
    """The patterns that have rows of the swept field, each with those of its smallest size that hold a figure."""
    found = []
    for pattern in ("pingpong", "stream"):
        sizes = summary.sizes(pattern)
        rows = [row for row in style.of_size(summary, pattern, sizes[0]) if key in row.swept] if sizes else []
        rows = [row for row in rows if any(estimate is not None for estimate in _shown(row))]
        if len({row.swept[key] for row in rows}) > 1:
            found.append((pattern, rows))
    return found


def _shown(row: Row) -> list[Estimate | None]:
    return [row.messages_per_s] if row.pattern == "stream" else [row.quantiles["p50"], row.quantiles["p99"]]


def _axis_words(summary: Summary, pattern: str) -> str:
    return "delivered [messages/s]" if pattern == "stream" else f"{style.measure(summary, pattern)} [µs]"


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
    colour, marker, line = LOOKS.get(row.path, ("#555555", "o", "-"))
    kin = list(dict.fromkeys(_line(summary, other, key) for other in summary.rows if other.path == row.path))
    place = kin.index(_line(summary, row, key))
    if place:
        marker = style.MARKERS[(style.MARKERS.index(marker) + 5 * place) % len(style.MARKERS)]
        line = (0, (1 + 2 * place, 1, 1, 1))
    return colour, marker, line
