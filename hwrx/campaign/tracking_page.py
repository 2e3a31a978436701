"""A history of runs as a page: a chart for each setting, with its change points."""

from __future__ import annotations

from html import escape

from hwrx.campaign.history import History, Track
from hwrx.report.page import render_template

WIDTH, HEIGHT = 640, 150  # of a chart, in its own units
NARROW = 330  # the same on a phone
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 24


def render_track(track: Track, over: float) -> str:
    """Return the page; the same for the same runs each time."""
    charts = [
        {
            "title": each.setting,
            "words": history_words(each),
            "changes": change_words(each),
            "wide": draw_history(each, WIDTH),
            "narrow": draw_history(each, NARROW),
            "not_judged": each.not_judged,
            "functions": [(change.run, change.functions) for change in each.changes if change.functions],
        }
        for each in track.histories
    ]
    changed = sum(bool(each.changes) for each in track.histories)
    runs = len({point.run for each in track.histories for point in each.points})
    judged = sum(not each.not_judged for each in track.histories)
    answer = (
        f"{changed} of {judged} histories that were judged changed by more than {100 * over:g} %, over {runs} runs."
    )
    return render_template("track.html", answer=answer, charts=charts, left_out=track.left_out)


def history_words(of: History) -> str:
    """Say what a history is of."""
    kernel = of.kernel or "several kernels"
    return (
        f"{of.experiment}, topology {of.topology}, {kernel}, machine: {of.machine}; {of.unit}, {len(of.points)} runs"
        f"{', to the digit' if of.exact else ''}"
    )


def change_words(of: History) -> list[str]:
    """Return a sentence for each change point."""
    return [
        f"{each.run}: {number(each.before)} -> {number(each.after)} {of.unit}, {100 * (each.ratio - 1):+.2f} %, "
        f"{'worse' if each.worse else 'better'}"
        + (f" (p = {each.chance:.2g})" if each.chance is not None else " (to the digit)")
        for each in of.changes
    ]


def number(value: float) -> str:
    """Write a figure: whole instructions and messages, of a time four digits."""
    return f"{value:,.1f}".removesuffix(".0") if value >= 1000 else f"{value:.4g}"


def draw_history(of: History, width: int) -> str:
    """Return an SVG: the figure of each run, and a line at each change point. Colours are the page's."""
    values = [point.value for point in of.points]
    low, high = min(values), max(values)
    room = (high - low) or abs(high) * 0.02 or 1.0
    low, high = low - 0.15 * room, high + 0.15 * room

    def x(place: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * (place / (len(values) - 1) if len(values) > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg class="picture" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(of.setting)}">',
        f'<line class="rule" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{width - RIGHT}" y2="{HEIGHT - BOTTOM}"/>',
    ]
    for value in dict.fromkeys((min(values), max(values))):
        parts.append(f'<line class="rule" x1="{LEFT}" y1="{y(value):.1f}" x2="{width - RIGHT}" y2="{y(value):.1f}"/>')
        parts.append(
            f'<text class="dim" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for change in of.changes:
        at = x(change.place - 0.5)
        side = "worse" if change.worse else "better"
        parts.append(f'<line class="{side}" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>')
    places = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in enumerate(values))
    parts.append(f'<polyline class="course" points="{places}"/>')
    for place, point in enumerate(of.points):
        title = escape(f"{point.run}: {number(point.value)} {of.unit}, {point.kernel}")
        parts.append(
            f'<circle class="dot" cx="{x(place):.1f}" cy="{y(point.value):.1f}" r="3.2"><title>{title}</title></circle>'
        )
    first, last = of.points[0].started[:10], of.points[-1].started[:10]
    parts.append(f'<text class="dim" x="{LEFT}" y="{HEIGHT - 7}">{escape(first)}</text>')
    if last != first:
        parts.append(f'<text class="dim" x="{width - RIGHT}" y="{HEIGHT - 7}" text-anchor="end">{escape(last)}</text>')
    return "".join([*parts, "</svg>"])
