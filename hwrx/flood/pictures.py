"""Floods as pictures, in the reports' style: over time, by visit, and as a curve."""

from __future__ import annotations

from hwrx.host import plotting as plotting  # before Matplotlib, which MPLBACKEND may stop

# isort: split
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hwrx.errors import UsageError
from hwrx.flood import words
from hwrx.flood.model import Flood
from hwrx.probes import account
from hwrx.report import figures, style
from hwrx.report.style import COLUMN, INK, STYLE
from hwrx.stats import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# colour and hatch of each actor: Okabe and Ito's palette, and lines that tell neighbours apart in grey
LOOKS: dict[str, tuple[str, str]] = {
    "interrupts": ("#4B1D8F", ""),
    "softirq NET_RX": ("#D55E00", ""),
    "other softirqs": ("#E69F00", "////"),
    "ksoftirqd": ("#CC79A7", "...."),
    "sender, system": ("#0072B2", ""),
    "sender, user": ("#56B4E9", ""),
    "reader, system": ("#007A5A", ""),
    "reader, user": ("#6CC9A8", ""),
    "kernel workers": ("#B8A100", "xxxx"),
    "kernel workers of one CPU": ("#D8CC66", ""),
    "others, system": ("#8A8A8A", "\\\\\\\\"),
    "others, user": ("#BEBEBE", ""),
    "idle": ("#F4F4F2", ""),
}
FLOOD_LOOKS = (("#0072B2", "o", "-"), ("#D55E00", "s", (0, (4, 1.5))), ("#009E73", "^", (0, (1, 1))))
POINTS = 28  # an inch, of a line over time
OVER_TIME = 4  # floods that have a picture over time: the first, the last, and between
MEGA, KILO = 1e6, 1e3


def picture_names(floods: Sequence[Flood]) -> list[str]:
    """The pictures that these floods can fill, in the page's order."""
    shown = style.spread_labels(range(len(floods)), OVER_TIME)
    return [*(f"time-{number}" for number in shown), *(name for name, (_, has) in OF_ALL.items() if has(floods))]


def title_of(floods: Sequence[Flood], name: str) -> str:
    """What a picture shows."""
    if name.startswith("time-"):
        flood = floods[int(name.removeprefix("time-"))]
        return (
            f"Over time: {words.label_of(flood.spec)}; messages, queues, and whose time each CPU's is, "
            f"in bins of {flood.timeline.width_ns / MEGA:.3g} ms"
        )
    return (OF_ALL[name][0].__doc__ or name).rstrip(".")


def draw_picture(floods: Sequence[Flood], name: str, label: str, width: float = COLUMN) -> Figure:
    """Draw one picture, `width` inches wide. UsageError names those that there are."""
    if name not in picture_names(floods):
        raise UsageError(f"there is no picture '{name}'", remedy=f"choose of: {', '.join(picture_names(floods))}")
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        if name.startswith("time-"):
            _over_time(floods[int(name.removeprefix("time-"))], figure, width)
        else:
            OF_ALL[name][0](floods, figure, width)
        figure.supxlabel(label, fontsize=5.5, color=INK, wrap=True)
    return figure


def inline_svg(floods: Sequence[Flood], name: str, label: str, width: float, ident: str) -> str:
    """Return a picture as an <svg> element; a hundredth of a point is exact enough for so many points."""
    svg = figures.inline_figure(draw_picture(floods, name, label, width), ident)
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d+\.\d\d)\d+", r"\1", path[0]), svg)


def write_all(floods: Sequence[Flood], label: str, directory: pathlib.Path) -> list[pathlib.Path]:
    """Write every picture as PDF and SVG; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in picture_names(floods):
        figure = draw_picture(floods, name, label)
        for kind in ("pdf", "svg"):
            written.append(directory / f"{name}.{kind}")
            figures.save_figure(figure, written[-1])
    return written


# --- over time --------------------------------------------------------------------------------------------------------


def _over_time(flood: Flood, figure: Figure, width: float) -> None:
    line = flood.timeline
    together = max(1, -(-len(line.sent) // round(POINTS * width)))
    ms = line.width_ns * together / MEGA
    cpus = list(line.cpu)
    heights = [1.1, 1.0, *([1.0] * len(cpus))]
    figure.set_size_inches(width, 0.75 + 0.95 * sum(heights))
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False).ravel()
    places = (np.arange(-(-len(line.sent) // together)) * ms).astype(np.float64)
    _messages(axes[0], flood, places, together, ms)
    _queues(axes[1], flood, places, together)
    for ax, cpu in zip(axes[2:], cpus, strict=True):
        _cpu(ax, line.cpu[cpu], places, together, ms)
        ax.set_ylabel(f"CPU {cpu} [%]")
    axes[-1].set_xlabel("time [ms]")
    axes[0].set_xlim(0, len(places) * ms)
    figure.align_ylabels(list(axes))
    style.draw_legend(figure, list(axes[2:]))


def _added(values: Sequence[int], together: int) -> Floats:
    return account.coarser_bins(np.array(values)[:, None], -(-len(values) // together))[0][:, 0]


def _highest(values: Sequence[int], together: int) -> Floats:
    return account.most_of(np.array(values)[:, None], -(-len(values) // together))[:, 0]


def _messages(ax: Axes, flood: Flood, places: Floats, together: int, ms: float) -> None:
    """Rates: what was sent, taken, and lost of what was sent then."""
    line = flood.timeline
    for values, colour, dashes, name in (
        (line.sent, "#0072B2", "-", "sent"),
        (line.taken, "#009E73", (0, (4, 1.2)), "taken"),
        (line.lost, "#D55E00", (0, (1, 1)), "lost"),
    ):
        if any(values):
            ax.step(places, _added(values, together) / ms, where="post", color=colour, linestyle=dashes, label=name)
    ax.set_ylabel("messages\n[1000/s]")
    _headroom(ax)
    if flood.first_loss is not None:
        at = (line.first_ns + flood.first_loss.at_ns) / MEGA
        ax.axvline(at, color=INK, linewidth=0.6)
        late = at > 0.5 * len(places) * ms
        ax.annotate(
            f"first loss: {flood.first_loss.place}", (at, 0.82), (-2 if late else 2, 0), fontsize=5.5, va="top",
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="right" if late else "left",
        )  # fmt: skip
    _own_legend(ax)


def _queues(ax: Axes, flood: Flood, places: Floats, together: int) -> None:
    """Bytes in the sockets' queues (left; without any, messages under way), packets in the CPUs' backlogs (right)."""
    line = flood.timeline
    shown = False
    for number, values in line.queues.items():
        name = "receive queue" if len(line.queues) == 1 else f"queue {number}"
        label = name if len(line.queues) < 4 or number in ("0", str(len(line.queues) - 1)) else None
        alpha = 1.0 if len(line.queues) == 1 else 0.75
        ax.plot(places, _highest(values, together) / KILO, linewidth=0.9, alpha=alpha, label=label,
                color=style.LOOKS["udp"][0] if len(line.queues) == 1 else None)  # fmt: skip
        shown = True
    if any(value >= 0 for values in (line.receives, line.sends) for value in values):
        _verbs_queues(ax, flood, places, together)
        return
    limit = flood.machine.get("receive_buffer")
    if shown and limit:
        ax.axhline(limit / KILO, color=INK, linewidth=0.6, linestyle=(0, (2, 2)), label="its limit")
    if shown:
        ax.set_ylabel("queue [kB]")
    else:
        ax.plot(places, _highest(line.under_way, together), color="#7A3E9D", label="under way")
        ax.set_ylabel("messages")
    _headroom(ax)
    if any(max(values, default=0) > 1 for values in line.backlog.values()):
        right = ax.twinx()
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
        for place, (cpu, values) in enumerate(line.backlog.items()):
            if max(values, default=0) > 1:
                right.plot(places, _highest(values, together), color="#D55E00", linewidth=0.8,
                           linestyle=(0, (3, 1 + place)), label=f"backlog of CPU {cpu}")  # fmt: skip
        right.set_ylabel("backlog\n[packets]")
        _headroom(right)
        here, there = ax.get_legend_handles_labels(), right.get_legend_handles_labels()
        handles, labels = [*here[0], *there[0]], [*here[1], *there[1]]
        right.legend(handles, labels, loc="upper right", fontsize=5.5, ncols=3, borderaxespad=0.1)
    else:
        _own_legend(ax)


def _verbs_queues(ax: Axes, flood: Flood, places: Floats, together: int) -> None:
    """Receive requests that were posted, the fewest; completions that waited and send requests not done with, the most.

    Gaps stand where nothing came, or nothing was posted.
    """
    line = flood.timeline
    for values, least, colour, dashes, name in (
        (line.receives, True, "#7A3E9D", "-", "receive requests, fewest"),
        (line.completions, False, "#E69F00", (0, (3, 1)), "completions, most"),
        (line.sends, False, "#0072B2", (0, (1, 1)), "send requests, most"),
    ):
        if not any(value >= 0 for value in values):
            continue
        most = max(values)
        shown = [0 if value < 0 else most - value if least else value for value in values]
        seen = _highest([int(value >= 0) for value in values], together) > 0
        heights = most - _highest(shown, together) if least else _highest(shown, together)
        ax.plot(places, np.where(seen, heights, np.nan), color=colour, linestyle=dashes, label=name)
    ax.set_ylabel("entries")
    _headroom(ax)
    _own_legend(ax)


def _cpu(ax: Axes, actors: dict[str, list[int]], places: Floats, together: int, ms: float) -> None:
    """Shares of one CPU, one on top of the other, up to 100 %."""
    stacked = {name: _added(actors[name], together) / (ms * MEGA) * 100 for name in LOOKS if any(actors[name])}
    low = np.zeros(len(places))
    for name, values in stacked.items():
        colour, hatch = LOOKS[name]
        ax.fill_between(
            places, low, low + values, step="post", facecolor=colour, hatch=hatch, linewidth=0, label=name,
            edgecolor="white" if hatch else "none",
        )  # fmt: skip
        low = low + values
    ax.set_ylim(0, 100)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.grid(visible=False)


def _headroom(ax: Axes) -> None:
    """From 0, with room for a legend above the lines."""
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])


def _own_legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper right", fontsize=5.5, ncols=4, borderaxespad=0.1, handlelength=2)


# --- of all floods ----------------------------------------------------------------------------------------------------


def _visits(floods: Sequence[Flood], figure: Figure, width: float) -> None:
    """How many packets one visit brings: the share of packets that came with at most so many in one visit."""
    kinds: list[tuple[str, Callable[[Flood], dict[int, int]], str]] = [
        ("a poll", _all_polls, "poll_budget"),
        ("a run of net_rx_action", lambda flood: flood.runs, "netdev_budget"),
    ]
    if any(flood.per_interrupt for flood in floods):
        kinds.append(("an interrupt", lambda flood: flood.per_interrupt or {}, ""))
    stacked = width < 5
    shape = (len(kinds), 1) if stacked else (1, len(kinds))
    figure.set_size_inches(width, 0.6 + 1.3 * len(kinds) if stacked else 0.8 + width / 3.4)
    axes = figure.subplots(*shape, squeeze=False).ravel()
    for ax, (name, of, limit) in zip(axes, kinds, strict=True):
        for number, flood in enumerate(floods):
            colour, marker, dashes = _look(number)
            histogram = of(flood)
            packets = account.total_time(histogram)
            if not packets:
                continue
            values = sorted(value for value in histogram if value)
            shares = np.cumsum([value * histogram[value] for value in values]) / packets
            ax.step([values[0], *values], [0, *shares], where="post", color=colour, linestyle=dashes, marker=marker,
                    markevery=[-1], label=words.label_of(flood.spec))  # fmt: skip
        most = floods[0].poll_budget if limit == "poll_budget" else floods[0].machine.get(limit, 0)
        if most:
            ax.axvline(most, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
            ax.annotate(f"limit {most}", (most, 0.02), (-2, 0), textcoords="offset points", rotation=90, fontsize=5.5,
                        ha="right", va="bottom")  # fmt: skip
        ax.set_xscale("log")
        longest = max((max(of(flood), default=0) for flood in floods), default=0)
        ax.set_xlim(left=0.9, right=max(1.5 * most, 1.2 * longest, 10))
        style.plain_log(ax, "x")
        ax.set_ylim(0, 1.03)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        ax.set_title(name, loc="right", pad=2)
        ax.set_xlabel("packets at most")
    axes[0].set_ylabel("share of packets")
    style.draw_legend(figure, list(axes))


def _all_polls(flood: Flood) -> dict[int, int]:
    together: dict[int, int] = {}
    for polls in flood.polls.values():
        for value, count in polls.items():
            together[value] = together.get(value, 0) + count
    return together


def _curve(floods: Sequence[Flood], figure: Figure, width: float) -> None:
    """Delivered against offered: below the dotted line messages are lost; where it falls again, livelock begins."""
    figure.set_size_inches(width, max(2.4, width * 0.6))
    ax = figure.subplots()
    lines: dict[bool, list[Flood]] = {}
    for flood in floods:
        lines.setdefault(flood.spec.rps, []).append(flood)
    most = max(flood.offered_rate for flood in floods) / KILO
    ax.plot([0, most], [0, most], color=INK, linewidth=0.6, linestyle=(0, (1, 2)), label="everything delivered")
    for number, (steered, each) in enumerate(lines.items()):
        each = sorted(each, key=lambda flood: flood.offered_rate)
        colour, marker, dashes = _look(number)
        ax.plot(
            [flood.offered_rate / KILO for flood in each], [flood.delivered_rate / KILO for flood in each],
            color=colour, marker=marker, linestyle=dashes, label="with RPS" if steered else "without RPS",
        )  # fmt: skip
    ax.set_xlabel("offered [1000 messages/s]")
    ax.set_ylabel("delivered [1000 messages/s]")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    style.draw_legend(figure, [ax])


def _look(number: int) -> tuple[str, str, Any]:
    colour, marker, dashes = FLOOD_LOOKS[number % len(FLOOD_LOOKS)]
    return colour, style.MARKERS[number % len(style.MARKERS)] if number >= len(FLOOD_LOOKS) else marker, dashes


Draw = Callable[[Sequence[Flood], Figure, float], None]
OF_ALL: dict[str, tuple[Draw, Callable[[Sequence[Flood]], bool]]] = {
    "curve": (_curve, lambda floods: len({flood.spec.rate for flood in floods}) > 1),
    "visits": (_visits, lambda floods: any(_all_polls(flood) for flood in floods)),
}
