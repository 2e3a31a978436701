"""Flame charts: the stacks of a message in the order of execution, from left to right, each function as wide as it ran.

One drawing (SVG) that needs nothing else: the browser's tooltips have each function's figures. A click on a box marks
all of the same name, letters in the field all whose names have them; what they have together is said.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from hwrx.anatomy.layers import LAYERS, UNKNOWN, layer_of
from hwrx.anatomy.stacks import Piece
from hwrx.anatomy.symbols import Function

WIDTH, ROW, HEAD, MARGIN = 1400, 16, 30, 10  # px
NARROWEST = 0.3  # px of a box that is drawn
LETTER = 6.6  # px of a letter at the drawing's size, about
TURN = 137.5  # degrees, the golden angle: neighbours in the table of layers are far apart in colour
STYLE = """
text { font: 11px sans-serif; fill: #111; pointer-events: none } .title { font-size: 14px; fill: #111 }
svg { background: #fff } rect { stroke: #fff; stroke-width: 0.3 } .marked { stroke: #000; stroke-width: 2 }
@media (prefers-color-scheme: dark) { svg { background: #16181c } .title { fill: #eee } rect { stroke: #16181c }
.marked { stroke: #fff } }
"""
SCRIPT = """
const field = document.getElementById("field");
function mark(words, matches) {
  let sum = 0, all = 0;
  for (const box of document.querySelectorAll("rect")) {
    const found = words && matches(box.dataset.name);
    box.classList.toggle("marked", found);
    if (found) sum += Number(box.dataset.own);
    all += Number(box.dataset.own);
  }
  const said = words + ": " + sum + " instructions of its own, " + (100 * sum / all).toFixed(1) + " %";
  document.getElementById("found").textContent = words && said;
}
document.documentElement.addEventListener("click", event => {
  const name = event.target.dataset && event.target.dataset.name;
  if (event.target !== field) mark(name || "", other => other === name);
});
field.addEventListener("input", () => mark(field.value, other => other.includes(field.value)));
"""
FIELD = (
    '<foreignObject x="{x}" y="2" width="200" height="24"><input xmlns="http://www.w3.org/1999/xhtml" id="field"'
    ' placeholder="find functions" style="width: 190px; font: 12px sans-serif"/></foreignObject>'
    '<text class="title" id="found" x="{x}" y="0" dx="-10" dy="18" text-anchor="end"></text>'
)


class Box(Struct):
    """A function from one place to another, both in instructions from the message's start, so many calls deep."""

    function: Function
    depth: int
    start: int
    end: int
    own: int  # instructions that are nobody's whom it called


def find_boxes(pieces: Sequence[Piece]) -> list[Box]:
    """Return the functions' boxes: one that goes on in the next piece, with the same callers, goes on in its box."""
    boxes: list[Box] = []
    opened: list[Box] = []
    at = 0
    for piece in pieces:
        same = 0
        while same < min(len(opened), len(piece.stack)) and opened[same].function == piece.stack[same]:
            same += 1
        del opened[same:]
        for depth in range(same, len(piece.stack)):
            opened.append(Box(piece.stack[depth], depth, at, at, 0))
            boxes.append(opened[-1])
        at += piece.instructions
        for box in opened:
            box.end = at
        opened[-1].own += piece.instructions
    return boxes


def draw_difference(charts: Sequence[tuple[str, Sequence[Piece]]]) -> str:
    """Return an SVG of two charts, before and after, coloured by what each function has more or less than before.

    Red has more of its own instructions afterwards, blue less, both the stronger the more; what is grey has as many.
    """
    sums: list[Counter[Function]] = [Counter(), Counter()]
    for side, (_, pieces) in zip(sums, charts, strict=True):
        for piece in pieces:
            side[piece.stack[-1]] += piece.instructions
    before, after = sums
    return draw_charts(charts, {each: after[each] - before[each] for each in before | after})


def draw_charts(charts: Sequence[tuple[str, Sequence[Piece]]], moved: Mapping[Function, int] | None = None) -> str:
    """Return an SVG with a chart for each title, one beneath the other; all to the same scale.

    :param moved: if given, functions are coloured by these differences, else by layer
    """
    longest = max((sum(piece.instructions for piece in pieces) for _, pieces in charts), default=0) or 1
    drawn = [FIELD.format(x=WIDTH - MARGIN - 200)]
    top = MARGIN
    for title, pieces in charts:
        boxes = find_boxes(pieces)
        depth = 1 + max((box.depth for box in boxes), default=0)
        drawn.append(f'<text class="title" x="{MARGIN}" y="{top + 16}">{html.escape(title)}</text>')
        bottom = top + HEAD + depth * ROW
        scale = (WIDTH - 2 * MARGIN) / longest
        total = sum(piece.instructions for piece in pieces) or 1
        drawn += [
            _draw(box, bottom, scale, total, moved) for box in boxes if (box.end - box.start) * scale >= NARROWEST
        ]
        top = bottom + MARGIN
    height = top
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f"<style>{STYLE}</style>{''.join(drawn)}<script><![CDATA[{SCRIPT}]]></script></svg>\n"
    )


def _draw(box: Box, bottom: int, scale: float, total: int, moved: Mapping[Function, int] | None) -> str:
    x, width = MARGIN + box.start * scale, (box.end - box.start) * scale
    y = bottom - (box.depth + 1) * ROW
    name, layer = str(box.function), layer_of(box.function)
    said = (
        f"{name}: {box.end - box.start:,} instructions ({100 * (box.end - box.start) / total:.1f} %), "
        f"{box.own:,} of its own; {layer}"
    )
    if moved is not None:
        said += f"; {moved[box.function]:+,} in all"
    fill = _colour(layer) if moved is None else _shade(moved[box.function], moved)
    room = int((width - 4) / LETTER)
    short = box.function.name if len(box.function.name) <= room else box.function.name[: room - 1] + "…"
    words = f'<text x="{x + 2:.1f}" y="{y + 12}">{html.escape(short)}</text>' if room > 3 else ""
    return (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}" fill="{fill}"'
        f' data-name="{html.escape(name)}" data-own="{box.own}"><title>{html.escape(said)}</title></rect>{words}'
    )


def _colour(layer: str) -> str:
    hue = [*LAYERS, UNKNOWN].index(layer) * TURN % 360
    return f"hsl({hue:.0f},55%,72%)"


def _shade(change: int, moved: Mapping[Function, int]) -> str:
    """Red of more, blue of less, as light as it is little; the square root, because few functions have most."""
    if not change:
        return "hsl(0,0%,82%)"
    share = math.sqrt(abs(change) / max(map(abs, moved.values())))
    return f"hsl({0 if change > 0 else 215},75%,{85 - 35 * share:.0f}%)"
