"""One path's messages under the tracer of stages: how often a CPU copies each byte, and how much kernel they pass."""

from __future__ import annotations

import math

from hwrx import paths
from hwrx.claims.figures import give_figures
from hwrx.claims.instruments.bypass import choose_ports
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Step, Steps
from hwrx.claims.session import Session
from hwrx.control.messages import Setting
from hwrx.timelines.copies import Ledger
from hwrx.timelines.traced import Directions
from hwrx.timelines.walk import journey_of

TRIAL = 1 << 20  # numbers of these trials: away from those of runs


@give_figures("delivered", "complete", "copies_sender", "copies_receiver", "kernel_stages", "kernel_share", "system_ns")
def journey(
    session: Session, path: str = "udp", size: int = 64, messages: int = 200, device: str = "any"
) -> Measurement:
    """Trace a ping-pong. `device`: see `bypass.choose`.

    Figures: `copies_sender` and `copies_receiver` for each byte delivered, `kernel_stages` that a message passes,
    `kernel_share` of the one-way time that lies between the first and the last of them, `system_ns` of both ends'
    processors for each message, `delivered`, `complete` (timelines).
    """
    choose_ports(session, device)
    wait = "poll" if paths.find_path(path).memory_alone else "event"
    setting = Setting(path=path, size=size, messages=messages, warmup=20, cooldown=8, wait=wait)  # type: ignore[arg-type]
    found = session.tracer.trace(session.agents, TRIAL, setting, timelines=messages)
    return reckon_journey(found, setting, session.tracer.tracing.available if session.tracer.tracing else {})


def reckon_journey(found: Directions, setting: Setting, available: dict[str, str]) -> Measurement:
    """Put the figures together."""
    timelines = found.timelines["there"]
    figures: dict[str, float | int | bool | str | None] = {
        "delivered": found.measured.tally["delivered"],
        "complete": timelines.share,
        "copies_sender": _or_none(found.ledger.sender),
        "copies_receiver": _or_none(found.ledger.receiver),
        "kernel_stages": None,
        "kernel_share": None,
        "system_ns": sum(end.cpu.get("system", 0) for end in (found.measured.client, found.measured.server))
        / max(1, 2 * setting.messages),
    }
    steps: list[Step] = []
    if timelines.complete.any():
        kernel = (timelines.chosen >= 0)[timelines.complete]
        figures["kernel_stages"] = float(kernel.sum(axis=1).mean())
        walked = journey_of(timelines, setting, available)
        inside = [step.at for step in walked.steps if step.cpu is not None]
        figures["kernel_share"] = (inside[-1] - inside[0]) / walked.one_way if inside else 0.0
        steps = [Step(step.stage, step.at / 1000, step.cpu, _context(step.actor)) for step in walked.steps]
    absent = {name: _why(name, found.ledger) for name, value in figures.items() if value is None}
    title = f"{setting.path}, {setting.size:,} B: the message whose one-way time is the median"
    return Measurement(figures, Steps(steps, title) if steps else None, absent)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _why(name: str, ledger: Ledger) -> str:
    if name.startswith("copies"):
        return f"no probe of this kernel counts the copies of {ledger.path}'s {name.removeprefix('copies_')}"
    return "no message was seen at every stage"


def _context(actor: str) -> str:
    return {"user thread": "reader", "kernel worker": "thread", "kernel": "thread"}.get(actor, actor)
