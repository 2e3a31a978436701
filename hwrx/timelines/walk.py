"""The journey of one message: every stage with its CPU and actor, the copies, and where the bytes are in memory.

Of a short traced trial the message is shown whose one-way time is the median. Addresses are the kernel's own: of the
skb, and of the endpoints' buffers, virtual and physical, looked up before the first and after the last message.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

import numpy as np

from hwrx.control.messages import Inspect, Prepared, Role, Setting
from hwrx.control.peers import Peer
from hwrx.errors import TrialError
from hwrx.runs.schedule import Pair
from hwrx.stages import BY_NAME
from hwrx.timelines import copies
from hwrx.timelines.exact import Exact
from hwrx.timelines.join import Timelines
from hwrx.timelines.traced import RunTracer

PHYSICAL_UNKNOWN = "unknown (only root may see it)"
COLOURS = {
    # as in the report's figures: three to one at least against white
    "user thread": "#1b75c4",
    "kernel": "#4b93d3",
    "softirq": "#c48700",
    "kernel worker": "#d55e00",
    "hard IRQ": "#cf5fa0",
    "not observed": "#7d8288",
    "device": "#7d8288",
}
INK = "#1b1c1d"
ROW, HEAD, LINE, COLUMN = 17, 64, 13, 560  # of the picture, in SVG units


@dataclass
class Step:
    """One stage that the message passed."""

    stage: str
    function: str
    side: str
    actor: str
    cpu: int | None
    tid: int | None
    ns: int  # since the stage before
    at: int  # since posted
    handles: str  # copied, passed, DMA or ""
    bytes: int
    object: str  # the skb's address


@dataclass
class Journey:
    """One message's walk, and what is known of the memory that it went through."""

    path: str
    size: int
    sequence: int
    one_way: int
    steps: list[Step]
    buffers: dict[str, dict[str, str]] = field(default_factory=dict)  # "sender before" -> name -> address
    ledger: copies.Ledger | None = None  # of all messages of the trial
    unavailable: dict[str, str] = field(default_factory=dict)
    stands_on: str = "probes"  # or the anatomy: what the stages' times are from

    @property
    def copies(self) -> float:
        """How often a CPU wrote each byte of payload to memory on the way, sender and receiver; NaN: not known."""
        return self.ledger.sender + self.ledger.receiver if self.ledger else float("nan")

    def stayed(self) -> bool | None:
        """Whether the receive buffer was the same physical page before and after; None where that is not known."""
        pages = [self.buffers.get(f"receiver {when}", {}).get("receive_physical") for when in ("before", "after")]
        return None if None in pages else pages[0] == pages[1]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "copies": self.copies, "same_physical_page": self.stayed()}


def walk_message(tracer: RunTracer, pair: Pair, setting: Setting) -> Journey:
    """Run a short traced trial and return the journey of its median message; TrialError where none was seen whole."""
    buffers: dict[str, dict[str, str]] = {}

    def inspect(when: str, peers: Mapping[Role, Peer]) -> None:
        for role, side in (("client", "sender"), ("server", "receiver")):
            chosen = peers[role].ask(Inspect(), Prepared).chosen  # type: ignore[index]
            buffers[f"{side} {when}"] = {
                key: str(value) for key, value in chosen.items() if key.endswith(("_address", "_physical"))
            }

    found = tracer.trace(pair, 1, setting, timelines=setting.messages, inspect=inspect)
    timelines = found.timelines["there"]
    if not timelines.complete.any():
        raise TrialError(
            f"no message of {setting.path} was seen at every stage (first missing: {timelines.missing or 'all'})",
            remedy="hwrx stages says what this kernel allows",
        )
    assert tracer.tracing is not None
    journey = journey_of(timelines, setting, tracer.tracing.available)
    journey.buffers = buffers
    journey.ledger = found.ledger
    journey.unavailable = {
        name: why for name, why in tracer.tracing.unavailable.items() if not why.startswith(("it happens", "no clock"))
    }
    return journey


def journey_of(timelines: Timelines, setting: Setting, available: Mapping[str, str]) -> Journey:
    """Return the walk of the complete message whose one-way time is the median."""
    rows = np.flatnonzero(timelines.complete)
    one_way = timelines.one_way()
    place = int(np.argsort(one_way, kind="stable")[len(one_way) // 2])
    row = int(rows[place])
    steps = []
    before = start = int(timelines.stamps[row, 0])
    for column, stage in enumerate(timelines.stages):
        at = int(timelines.stamps[row, column])
        if not at:
            continue
        chosen = int(timelines.chosen[row, column])
        event = timelines.events[chosen] if chosen >= 0 else None
        steps.append(
            Step(
                stage=stage.name,
                function=available.get(stage.name, "").partition(" ")[2],
                side=stage.side,
                actor=timelines.actor(row, column),
                cpu=None if event is None else int(event["cpu"]),
                tid=None if event is None else int(event["tid"]),
                ns=at - before,
                at=at - start,
                handles=stage.handles,
                bytes=setting.size if stage.handles else 0,
                object="" if event is None or not event["object"] else f"{int(event['object']):#x}",
            )
        )
        before = at
    return Journey(setting.path, setting.size, int(timelines.sequence[row]), int(one_way[place]), steps)


def on_stamps(journey: Journey, exact: Exact) -> Journey:
    """Return the walk with the stages of a message that was taken apart, each to the instruction (a nanosecond).

    Also those that no probe reaches; of the others it keeps what the probe saw: thread, CPU, skb.
    """
    probed = {step.stage: step for step in journey.steps}
    steps = []
    before = 0
    for name, actor, at in exact.stamps:
        stage, seen = BY_NAME[name], probed.get(name)
        steps.append(
            Step(
                stage=name,
                function=seen.function if seen else "",
                side=stage.side,
                actor=actor,
                cpu=seen.cpu if seen else None,
                tid=seen.tid if seen else None,
                ns=at - before,
                at=at,
                handles=stage.handles,
                bytes=journey.size if stage.handles else 0,
                object=seen.object if seen else "",
            )
        )
        before = at
    return replace(journey, steps=steps, one_way=before, stands_on="the anatomy")


def source_words(journey: Journey) -> str:
    """Say what the stages' times stand on."""
    if journey.stands_on == "probes":
        return "stages stand on kernel probes, which make each take longer"
    return "stages stand on the anatomy: instructions, 1,000 a µs, of a message that nobody traced"


def memory_words(journey: Journey) -> list[str]:
    """Say what the stages stand on and where the bytes lay, in sentences."""
    words = [source_words(journey)]
    sender, after = journey.buffers.get("sender before", {}), journey.buffers.get("receiver after", {})
    before = journey.buffers.get("receiver before", {})
    if sender:
        physical = sender.get("send_physical", "")
        words.append(
            f"sender's buffer: virtual {sender.get('send_address', '?')}"
            + (f", physical {physical}" if physical else "")
        )
    skbs = list(dict.fromkeys(step.object for step in journey.steps if step.object))
    if skbs:
        words.append(f"skb on the way: {', then '.join(skbs)}")
    if before:
        words.append(
            f"receive buffer: virtual {before.get('receive_address', '?')}, "
            f"physical {before.get('receive_physical', PHYSICAL_UNKNOWN)} before, "
            f"{after.get('receive_physical', PHYSICAL_UNKNOWN)} after"
        )
    stayed = journey.stayed()
    if stayed is not None:
        words.append("the pinned page stayed where it was" if stayed else "the page moved: the buffer was not pinned")
    rows = journey.ledger.rows if journey.ledger else ()
    words += [_row_words(row) for row in sorted(rows, key=lambda row: row.side != "sender")]
    if any(row.stage.startswith("rxe_mr_cop") for row in rows):
        words.append("rxe's copies are a CPU standing in for the HCA's DMA engine: a real HCA makes none")
    return words


def _row_words(row: copies.Row) -> str:
    """Say what became of the bytes at one stage, over the whole trial."""
    if row.kind == "balance":
        return f"{row.side}: {row.per_byte:+.4f} of each byte {row.words}"
    did = {
        "copied": "each byte was copied {:.3f} times",
        "passed": "each byte was read over {:.3f} times (checksum or CRC)",
        "mapped": "{:.3f} of each byte stayed in place, not copied",
        "DMA": "each byte was moved by DMA {:.3f} times",
    }[row.kind]
    return f"{row.side}: {did.format(row.per_byte)} by the {row.actor} ({row.stage})"


# --- the picture ---------------------------------------------------------------------------------------------------


def walk_picture(journeys: Sequence[Journey]) -> str:
    """Draw the journeys side by side, one row a stage in packet order, time downwards but not to scale."""
    rows = max(len(journey.steps) for journey in journeys)
    below = [[piece for line in memory_words(journey) for piece in _wrapped(line, 92)] for journey in journeys]
    width, height = COLUMN * len(journeys), HEAD + ROW * rows + 14 + LINE * max(map(len, below))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, Arial, sans-serif" font-size="10" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]

    def text(x: float, y: float, words: str, extra: str = "") -> None:
        out.append(f'<text x="{x:g}" y="{y:g}" {extra}>{escape(words)}</text>')

    for number, journey in enumerate(journeys):
        left = number * COLUMN
        text(
            left + 14,
            22,
            f"{journey.path}, {journey.size:,} B, one way {journey.one_way / 1000:,.2f} µs",
            'font-size="14"',
        )
        text(
            left + 14,
            38,
            f"message {journey.sequence}; each byte of payload is copied {journey.copies:.3g} times by a CPU",
        )
        text(left + 60, 56, "at µs", 'text-anchor="end" fill="#666"')
        text(left + 116, 56, "+ µs", 'text-anchor="end" fill="#666"')
        text(left + 150, 56, "stage", 'fill="#666"')
        text(left + 340, 56, "CPU · actor", 'fill="#666"')
        side = ""
        for place, step in enumerate(journey.steps):
            y = HEAD + ROW * place + 12
            colour = COLOURS.get(step.actor, "#777777")
            if step.side != side:
                out.append(
                    f'<line x1="{left + 10}" x2="{left + COLUMN - 14}" y1="{y - 12.5}" y2="{y - 12.5}" stroke="#ccc"/>'
                )
                text(left + COLUMN - 14, y, step.side, 'text-anchor="end" fill="#666" font-style="italic"')
                side = step.side
            if place:
                out.append(
                    f'<line x1="{left + 132}" x2="{left + 132}" y1="{y - ROW - 3.5}" y2="{y - 3.5}" '
                    f'stroke="{colour}" stroke-width="3"/>'
                )
            text(left + 60, y, f"{step.at / 1000:,.2f}", 'text-anchor="end" fill="#666"')
            text(left + 116, y, f"{step.ns / 1000:,.2f}", 'text-anchor="end"')
            mark = 6 if step.handles == "copied" else 3.5
            out.append(f'<circle cx="{left + 132}" cy="{y - 3.5}" r="{mark}" fill="{colour}" stroke="white"/>')
            weight = ' font-weight="bold"' if step.handles == "copied" else ""
            text(left + 150, y, step.stage, weight)
            where = f"{'' if step.cpu is None else f'{step.cpu} · '}{step.actor}"
            if step.handles:
                where += f" · {step.handles} {step.bytes:,} B"
            text(left + 340, y, where, weight if step.handles else 'fill="#444"')
        for place, piece in enumerate(below[number]):
            text(left + 14, HEAD + ROW * rows + 14 + LINE * place, piece, 'font-size="9.5"')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="   ")
