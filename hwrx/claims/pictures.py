"""One picture for each claim, as inline SVG: bars, the steps of a message, lines, or cells.

Colours are the page's (CSS classes `c0` … `c5`, `ink`, `dim`), so a picture follows its dark mode and its print. Each
is drawn twice, for a desk and for a phone, because letters must not shrink with the page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape

from msgspec import Struct

WIDE, NARROW = 760, 350  # CSS pixels
CONTEXTS = {"hard IRQ": "c3", "softirq": "c1", "reader": "c0", "thread": "c4", "device": "c5"}
STEM = 92.0  # where the steps' dots are
RIGHT = 26  # kept free beside a diagram, for half of the last number
DOTTED = 40  # points of a line that can be told apart
LINE = 18  # from one line of text to the next


class Bars(Struct, frozen=True, tag="bars"):
    """One bar a row, from 0; `unit` is said once. `kinds`: a colour's number for each row, 0 where it is short."""

    rows: list[tuple[str, float]]
    unit: str
    kinds: list[int] = []


class Step(Struct, frozen=True):
    """A function or stage: when, in µs since the first, on which CPU, and in whose context."""

    name: str
    at: float
    cpu: int | None
    context: str


class Steps(Struct, frozen=True, tag="steps"):
    """What one message passed, in the order of time."""

    steps: list[Step]
    title: str = ""


class Lines(Struct, frozen=True, tag="lines"):
    """Points joined by lines. `log`: both axes have powers."""

    series: dict[str, list[tuple[float, float]]]
    x: str
    y: str
    log: bool = False


class Cells(Struct, frozen=True, tag="cells"):
    """Rows of squares, each of one of the `kinds` (a word for the legend): packets, pages, descriptors."""

    rows: dict[str, list[int]]
    kinds: list[str]


Picture = Bars | Steps | Lines | Cells


def number_words(value: float) -> str:
    """A number for a picture: three digits, or all of a whole number."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def to_svg(picture: Picture, width: int) -> str:
    """Draw a picture, so many CSS pixels wide."""
    match picture:
        case Bars():
            return _bars(picture, width)
        case Steps():
            return _steps(picture, width)
        case Lines():
            return _lines(picture, width)
        case Cells():
            return _cells(picture, width)


class _Canvas:
    """Pieces of SVG; `close` gives the whole."""

    def __init__(self, width: int, label: str) -> None:
        self._width = width
        self._label = label
        self._out: list[str] = []

    def text(self, x: float, y: float, words: str, classes: str = "ink", anchor: str = "start") -> None:
        end = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._out.append(f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}"{end}>{escape(words)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, classes: str) -> None:
        self._out.append(
            f'<rect class="{classes}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"/>'
        )

    def dot(self, x: float, y: float, classes: str, radius: float = 4) -> None:
        self._out.append(f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')

    def line(self, points: Sequence[tuple[float, float]], classes: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._out.append(f'<polyline class="line {classes}" points="{joined}"/>')

    def close(self, height: float) -> str:
        box = f'viewBox="0 0 {self._width} {height:.0f}"'
        head = f'<svg class="picture" {box} role="img" aria-label="{escape(self._label)}">'
        return head + "".join(self._out) + "</svg>"


def _letters(pixels: float) -> int:
    """How many letters of the pictures' 13 px text fit."""
    return max(4, int(pixels / 6.9))


def _bars(bars: Bars, width: int) -> str:
    """Labels above their bars on a phone, beside them on a desk."""
    narrow = width < 500
    canvas = _Canvas(width, f"bars, {bars.unit}: " + "; ".join(f"{name} {value:g}" for name, value in bars.rows))
    left = 0.0 if narrow else 0.4 * width
    room = width - left - 80
    most = max([value for _, value in bars.rows] + [0.0]) or 1.0
    y = LINE
    for number, (name, value) in enumerate(bars.rows):
        lines = textwrap.wrap(name, _letters(width if narrow else left - 12)) or [""]
        for line in lines:
            canvas.text(0, y, line)
            y += LINE
        top = y - 10 if narrow else y - LINE * (len(lines) + 1) / 2 - 4
        kind = bars.kinds[number] if number < len(bars.kinds) else 0
        length = room * max(value, 0) / most
        canvas.rect(left, top - 6, max(length, 1.5), 14, f"c{kind}")
        canvas.text(left + max(length, 1.5) + 6, top + 5, number_words(value))
        y += LINE if narrow else 6
    for line in textwrap.wrap(bars.unit, _letters(width - left)):
        canvas.text(left, y + 2, line, "dim")
        y += LINE
    return canvas.close(y - 6)


def _steps(steps: Steps, width: int) -> str:
    narrow = width < 500
    canvas = _Canvas(width, "the steps of one message: " + ", ".join(step.name for step in steps.steps))
    y = LINE
    if steps.title:
        for line in textwrap.wrap(steps.title, _letters(width)):
            canvas.text(0, y, line, "dim")
            y += LINE
    first = y
    places = []
    for step in steps.steps:
        colour = CONTEXTS.get(step.context, "c5")
        canvas.text(78, y, f"{step.at:,.1f} µs", "dim", "end")
        places.append((STEM, y - 4.5, colour))
        canvas.text(STEM + 16, y, step.name)
        where = f"{step.context}" + ("" if step.cpu is None else f", CPU {step.cpu}")
        if narrow:
            y += LINE - 3
            canvas.text(STEM + 16, y, where, f"dim {colour}t")
        else:
            canvas.text(0.55 * width, y, where, f"dim {colour}t")
        y += LINE + 2
    if len(places) > 1:
        canvas.line([(STEM, first - 4.5), (STEM, places[-1][1])], "rule")
    for x, at, colour in places:
        canvas.dot(x, at, colour, 5)
    return canvas.close(y - LINE + 12)


def _lines(lines: Lines, width: int) -> str:
    height, left, below, top = 260.0, 74.0, 40.0, 14.0 + LINE * len(lines.series)
    canvas = _Canvas(width, f"{lines.y} over {lines.x}")
    points = [point for series in lines.series.values() for point in series]
    if not points:
        return canvas.close(10)
    x_axis, y_axis = (_Axis([point[place] for point in points], lines.log, bool(place)) for place in (0, 1))

    def at(point: tuple[float, float]) -> tuple[float, float]:
        right, bottom = width - left - RIGHT, height - top - below
        return left + right * x_axis.share(point[0]), height - below - bottom * y_axis.share(point[1])

    for value in y_axis.ticks:
        _, y = at((x_axis.low, value))
        canvas.line([(left, y), (width - RIGHT, y)], "rule")
        canvas.text(left - 6, y + 4, number_words(value), "dim", "end")
    for value in x_axis.ticks if width >= 500 else x_axis.ticks[:: max(1, len(x_axis.ticks) // 4)]:
        x, _ = at((value, y_axis.low))
        canvas.text(x, height - below + 16, number_words(value), "dim", "middle")
    canvas.text((left + width - RIGHT) / 2, height - 4, lines.x, "dim", "middle")
    for number, (name, series) in enumerate(lines.series.items()):
        canvas.dot(6, 9 + LINE * number, f"c{number}")
        canvas.text(16, 13 + LINE * number, f"{name}: {lines.y}" if number == 0 else name)
        canvas.line([at(point) for point in series], f"c{number}s")
        for point in series if len(series) <= DOTTED else ():
            canvas.dot(*at(point), f"c{number}", 3.5)
    return canvas.close(height)


class _Axis:
    """From the least to the most, from 0 where the scale is even and `from_zero`; ticks at round numbers."""

    def __init__(self, values: Sequence[float], log: bool, from_zero: bool) -> None:
        self._log = log and min(values) > 0
        self.low = min(values) if self._log or not from_zero else min(0.0, *values)
        self.high = max(values) if max(values) > self.low else self.low + 1
        if self._log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            if from_zero:
                self.low, self.high = 10.0 ** exponents[0], 10.0 ** exponents[-1]
            self.ticks = [10.0**power for power in exponents if self.low <= 10.0**power <= self.high]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2))
            step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6)
            first = math.ceil(self.low / step)
            self.ticks = [step * place for place in range(first, math.floor(self.high / step) + 1)]

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self._log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _cells(cells: Cells, width: int) -> str:
    canvas = _Canvas(width, "; ".join(f"{name}: {len(row)} cells" for name, row in cells.rows.items()))
    side, gap = 11, 3
    across = max(1, (width - 4) // (side + gap))
    y = LINE
    for name, row in cells.rows.items():
        for line in textwrap.wrap(name, _letters(width)):
            canvas.text(0, y, line)
            y += LINE
        y -= 8
        for place, kind in enumerate(row):
            canvas.rect((place % across) * (side + gap), y + (place // across) * (side + gap), side, side, f"c{kind}")
        y += (math.ceil(len(row) / across)) * (side + gap) + LINE + 2
    used = {kind for row in cells.rows.values() for kind in row}
    for kind, words in enumerate(cells.kinds):
        if kind in used:
            canvas.rect(0, y - 10, side, side, f"c{kind}")
            canvas.text(18, y, words, "dim")
            y += LINE
    return canvas.close(y - 8)
