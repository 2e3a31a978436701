"""Ping-pongs that nothing traces: ways of waiting against each other, and paths against each other."""

from __future__ import annotations

from statistics import median
from typing import Any

import msgspec

from hwrx.claims.figures import give_figures, words_of
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import Session
from hwrx.control.messages import Setting
from hwrx.runs.schedule import Measured

TRIAL = 3 << 20  # numbers of these trials: away from those of runs


def _names_of(trials: list[str]) -> list[str]:
    keys = [name.replace("-", "_") for name in trials]
    return [f"{key}_{figure}" for key in keys for figure in ("ns", "lost", "delivered")]


@give_figures("ratio", more=lambda given: _names_of(words_of(given, "ways")))
def waits(
    session: Session,
    path: str = "udp",
    size: int = 64,
    messages: int = 400,
    ways: list[str] = ["block", "epoll"],  # noqa: B006 - a default that says the kind
) -> Measurement:
    """Measure a ping-pong for each way of waiting.

    Figures for each way W: W_ns (half a round trip, median; with the clock icount guest instructions), W_lost,
    W_delivered; and `ratio`, of the last way to the first.
    """
    trials = {way: {"path": path, "size": size, "messages": messages, "wait": way} for way in ways}
    return _against(session, trials)


@give_figures("ratio", more=lambda given: _names_of(words_of(given, "paths")))
def rivals(
    session: Session,
    paths: list[str] = ["udp", "rdma-send"],  # noqa: B006
    size: int = 64,
    messages: int = 400,
    wait: str = "event",
) -> Measurement:
    """Measure a ping-pong over each path. Figures as of `waits`, with a path's name, "-" written "_"."""
    trials = {path: {"path": path, "size": size, "messages": messages, "wait": wait} for path in paths}
    return _against(session, trials)


def _against(session: Session, trials: dict[str, dict[str, Any]]) -> Measurement:
    figures: dict[str, float | int | bool | str | None] = {}
    rows: list[tuple[str, float]] = []
    for number, (name, words) in enumerate(trials.items()):
        # what there is not (a way, a path) gets words from the conversion or from the endpoint
        setting = msgspec.convert(words | {"warmup": 50, "cooldown": 8}, Setting)
        measured: Measured = session.agents.measure(TRIAL + number, setting)
        half = median(measured.ns.tolist()) / 2
        key = name.replace("-", "_")
        figures |= {
            f"{key}_ns": half,
            f"{key}_lost": measured.tally["lost"],
            f"{key}_delivered": measured.tally["delivered"],
        }
        rows.append((name, half))
    figures["ratio"] = rows[-1][1] / rows[0][1]
    unit = "guest instructions for half a round trip" if session.clock == "icount" else "ns, half a round trip"
    return Measurement(figures, Bars(rows, unit))
