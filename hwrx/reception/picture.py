"""The picture of one packet's reception: a row a step in the articles' order, with its time, its CPU and its words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from hwrx.reception.steps import Reception, Step

# as in the report's figures: three to one at least against white
COLOURS = {"thread": "#1b75c4", "softirq": "#c48700", "hard IRQ": "#cf5fa0", "": "#7d8288"}
INK = "#1b1c1d"
WIDTH, LINE, GAP, HEAD, WORDS = 1180, 14, 6, 62, 118  # in SVG units; WORDS in letters
COLUMNS = (14, 60, 180, 300, 400)  # of moment, step, time, CPU, words


def draw_reception(found: Reception) -> str:
    """Draw it as an SVG document."""
    rows = [(step, textwrap.wrap(f"{step.title}: {step.words}", WORDS)) for step in found.steps]
    notes = [line for note in found.notes for line in textwrap.wrap(note, WORDS + 50)]
    height = HEAD + sum(LINE * len(lines) + GAP for _, lines in rows) + 20 + LINE * len(notes)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(14, 22, f"One datagram of {found.request.size:,} bytes over {found.request.topology}, Linux "
              f"{found.kernel}: {found.took / 1000:,.1f} µs with all probes attached", size=14),
        *(_text(x, 46, name) for x, name in zip(COLUMNS, ("T+", "step", "since the call", "CPU", "what"), strict=True)),
    ]  # fmt: skip
    y = HEAD
    for step, lines in rows:
        out += _row(step, lines, y)
        y += LINE * len(lines) + GAP
    out += [_text(14, y + 20 + LINE * number, line, colour=COLOURS[""]) for number, line in enumerate(notes)]
    return "\n".join([*out, "</svg>\n"])


def _row(step: Step, lines: Sequence[str], y: int) -> list[str]:
    colour = COLOURS[step.context] if step.seen else COLOURS[""]
    when = "" if step.at is None else f"{step.at / 1000:,.1f} µs"
    where = "" if step.cpu is None else f"{step.cpu}, {step.context}"
    out = [f'<rect x="6" y="{y - 1}" width="4" height="{LINE * len(lines)}" fill="{colour}"/>']
    out += [
        _text(x, y + 10, word, colour=colour)
        for x, word in zip(COLUMNS, (step.clock, step.step, when, where), strict=False)
    ]
    ink = INK if step.seen else COLOURS[""]
    return out + [_text(COLUMNS[4], y + 10 + LINE * number, line, colour=ink) for number, line in enumerate(lines)]


def _text(x: int, y: int, words: str, *, colour: str = INK, size: int = 11) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}">{escape(words)}</text>'
