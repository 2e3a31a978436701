"""Where pages were and where they went, as a picture: one stroke a page, from its address before to that after."""

from __future__ import annotations

from hwrx.host import plotting as plotting  # before Matplotlib, which MPLBACKEND may stop

# isort: split
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hwrx.memory.measuring import Measured, Row
from hwrx.memory.pages import OUT
from hwrx.report.figures import save_figure
from hwrx.report.style import COLUMN, GRID_INK, INK, STYLE

STAYED, MOVED, SWAPPED = INK, "#0072B2", "#D55E00"
HEIGHT = 0.62  # inches a kind
STROKES = 128  # of a kind: more cannot be told apart
STEPS = ("before", "compacted", "paged out")


def draw_pages(measured: Measured, path: Path) -> None:
    """Write the picture as SVG, PDF or PNG, by the name's ending."""
    rows = measured.rows
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, HEIGHT * len(rows) + 0.65), layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        highest = max(max(row.before + row.compacted) for row in rows) / (1 << 20)
        for axes, row in zip(all_axes, rows, strict=True):
            axes.grid(visible=False)
            lines, colours = _strokes(row)
            axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.5))
            out = np.array([line[0][0] for line in _swapped(row)])
            axes.plot(out, np.full(len(out), 2.0), "x", color=SWAPPED, markersize=2.5, markeredgewidth=0.5)
            axes.set_ylim(2.25, -0.15)
            axes.set_xlim(0, highest * 1.02)
            axes.set_yticks(range(3), STEPS)
            axes.tick_params(left=False)
            axes.set_title(f"{row.kind}: {_words(row)}", loc="left")
            axes.spines["bottom"].set_color(GRID_INK)
        all_axes[-1].set_xlabel("physical address, MiB")
        save_figure(figure, path)


def _strokes(row: Row) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """A line from each step to the next for each page that is in memory at both."""
    lines, colours = [], []
    for level, (here, there) in enumerate(((row.before, row.compacted), (row.compacted, row.squeezed))):
        for first, second in _thinned(here, there):
            if first > OUT and second > OUT:
                lines.append([(first / (1 << 20), level), (second / (1 << 20), level + 1.0)])
                colours.append(STAYED if first == second else MOVED)
    return lines, colours


def _swapped(row: Row) -> list[list[tuple[float, float]]]:
    return [[(first / (1 << 20), 2.0)] for first, second in _thinned(row.compacted, row.squeezed) if second == OUT]


def _thinned(here: list[int], there: list[int]) -> list[tuple[int, int]]:
    step = -(-len(here) // STROKES)
    return list(zip(here[::step], there[::step], strict=True))


def _words(row: Row) -> str:
    said = []
    if row.compaction:
        said.append(f"{row.compaction.moved} of {row.pages} moved")
    if row.pressure:
        said.append(f"{row.pressure.swapped} paged out")
    return ", ".join(said)
