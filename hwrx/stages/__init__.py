"""The catalogue: every stage that a message passes on its way, in packet order, and how to probe it.

One enumeration serves every path (`hwrx.paths.path_stages` gives a path's own). The numbers go into the BPF programs at
build time (`stage_header`), so Python and C cannot disagree. Names are the kernel's own (function, tracepoint or
netfilter hook) wherever the kernel has one.
Standard library only: the build imports this package by itself.

A stage is in the *chain* when it stamps a message once, in packet order, so that differences of neighbouring stamps add
up to the one-way time. Stages outside of the chain count bytes (extra copies, passes) or have no probe that can be tied
to one message; `why_not` then says why.
"""

from __future__ import annotations

from collections.abc import Iterable

from .beside import BESIDE
from .delivering import DELIVERING
from .model import FRAMES, KERNEL, Probe, Side, Stage
from .receiving import RECEIVING
from .sending import SENDING

__all__ = [
    "BY_NAME",
    "COUNT",
    "FRAMES",
    "KERNEL",
    "STAGES",
    "Probe",
    "Side",
    "Stage",
    "stage_header",
    "way_chain",
    "way_stages",
]


def _numbered(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    # `replace` would need every field; the number is the one thing that the literal above does not say
    for number, stage in enumerate(stages, 1):
        object.__setattr__(stage, "number", number)
    return stages


STAGES: tuple[Stage, ...] = _numbered(SENDING + RECEIVING + DELIVERING + BESIDE)
BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
COUNT = len(STAGES) + 1  # numbers start at 1: 0 in an event would be memory that nobody wrote


def way_stages(way: str) -> list[Stage]:
    """Return the stages on a way in packet order; empty if there is no such way.

    :param way: as `Stage.ways` has them; that of a path is `hwrx.paths.way_of`
    """
    return [stage for stage in STAGES if way in stage.ways]


def way_chain(way: str) -> list[Stage]:
    """Return the stages on a way whose stamps follow each other, `posted` first and `delivered` last."""
    return [stage for stage in way_stages(way) if stage.chain and stage.name != "intended"]


def stage_header(stages: Iterable[Stage] = STAGES) -> str:
    """Return the C header that gives the BPF programs the catalogue's numbers.

    :return: a `#define STAGE_… number` for each, and STAGES, one more than the highest: the programs' arrays have so
        many elements
    """
    lines = ["/* made from hwrx/stages */", "#pragma once"]
    lines += [f"#define {stage.ident} {stage.number}" for stage in stages]
    lines.append(f"#define STAGES {COUNT}")
    return "\n".join(lines) + "\n"
