"""The catalogue: every stage that a message passes on its way, in packet order, and how to probe it.

One enumeration serves every path; the numbers go into the BPF programs at build time (`header()`), so Python and C
cannot disagree. Names are the kernel's own (function, tracepoint or netfilter hook) wherever the kernel has one.
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
    "chain",
    "header",
    "of_path",
    "probed_in_kernel",
]


def _numbered(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    # `replace` would need every field; the number is the one thing that the literal above does not say
    for number, stage in enumerate(stages, 1):
        object.__setattr__(stage, "number", number)
    return stages


STAGES: tuple[Stage, ...] = _numbered(SENDING + RECEIVING + DELIVERING + BESIDE)
BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
COUNT = len(STAGES) + 1  # numbers start at 1: 0 in an event would be memory that nobody wrote


def of_path(path: str) -> list[Stage]:
    """Return the stages of a path in packet order; empty where there is no such path."""
    return [stage for stage in STAGES if path in stage.paths]


def stage_chain(path: str) -> list[Stage]:
    """Return the stages of a path whose stamps follow each other, `posted` first and `delivered` last."""
    return [stage for stage in of_path(path) if stage.chain and stage.name != "intended"]


def probed_in_kernel(path: str) -> bool:
    """Whether anything on the path's way is the kernel's, and so wants programs to be attached."""
    return any(probe.kind != "user" for stage in of_path(path) for probe in stage.probes)


def stage_header(stages: Iterable[Stage] = STAGES) -> str:
    """Return the C header that gives the BPF programs the catalogue's numbers."""
    lines = ["/* made from hwrx/stages */", "#pragma once"]
    lines += [f"#define {stage.ident} {stage.number}" for stage in stages]
    lines.append(f"#define STAGES {COUNT}")
    return "\n".join(lines) + "\n"
