"""What each path can do at most, measured before an experiment that asks for shares of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from hwrx import paths, stats
from hwrx.errors import TrialError
from hwrx.paths import arrivals
from hwrx.runs import experiment as experiments
from hwrx.runs import fleet, planning, traffic

if TYPE_CHECKING:
    from hwrx.control.messages import Setting
    from hwrx.runs.beds import Testbed
    from hwrx.runs.schedule import Measured

ANSWERED = 0.99  # share of the messages that must be answered at a rate that a path keeps up with
KEPT = 0.98  # share of the rate at which they must be
ENOUGH = 4000  # messages: with random arrivals, 2 % of fewer are a backlog that comes and goes below capacity too
COLLAPSE = 0.9  # a path that answers less than this share of what it kept up with breaks down under overload
DOUBLINGS = 12
HALVINGS = 4  # of the distance, on the logarithm, between a rate that it keeps up with and one that it does not
PATIENCE = 1.0  # seconds; what is lost at a rate that is too high is not waited for longer


def calibrate_plan(
    layout: planning.Plan,
    testbed: Testbed,
    *,
    check: Callable[[Setting], None] = paths.check_setting,
    say: Callable[[str, str], None] = lambda stage, text: None,
) -> planning.Plan:
    """Measure the capacities that the plan's experiment does not know, and return the plan with the rates they give.

    `check` is the one that the plan was made with. TrialError where a capacity cannot be measured.
    """
    settings = planning.uncalibrated_settings(layout)
    if not settings:
        return layout
    found: dict[str, float] = {}
    with fleet.open_agents(testbed, experiments.wish_of(layout.experiment), needs_all=True) as pair:

        def measure(setting: Setting) -> Measured:
            return pair.measure(0, setting)

        for number, setting in enumerate(settings):
            key = planning.capacity_key(setting, layout.experiment)
            say("capacity", f"{number + 1} of {len(settings)}: {key}")
            found[key] = float(f"{find_capacity(setting, measure, key):.3g}")
    experiment = msgspec.structs.replace(layout.experiment, capacity={**layout.experiment.capacity, **found})
    return planning.plan_run(experiment, check)


def find_capacity(setting: Setting, measure: Callable[[Setting], Measured], name: str) -> float:
    """Return the highest rate that a path keeps up with, messages a second of each flow, within a few percent.

    It begins with the rate of a ping-pong, doubles it until the path falls behind, and closes in on the rate between.
    Of a path that falls behind without losing anything, what it answers meanwhile is its capacity. Errors call it
    `name`.
    """
    # of a trial that a time ends `messages` is what there is memory for, and not how many it has
    messages = ENOUGH if setting.duration is not None else max(setting.messages, ENOUGH)
    setting = msgspec.structs.replace(setting, duration=None, messages=messages)
    closed = measure(msgspec.structs.replace(setting, pattern="pingpong", rate=None))
    if not len(closed.ns):
        error = closed.client.error or closed.server.error or "no message came back"
        raise TrialError(f"the capacity of {name} cannot be measured: {error}")

    behind: dict[float, float] = {}  # rate that it fell behind -> what it answered without loss

    def keeps_up(rate: float) -> bool:
        trial = msgspec.structs.replace(setting, rate=rate, limit=min(setting.limit, PATIENCE))
        try:
            offered, answered = rates_of(measure(trial), trial)
        except TrialError:  # one end gave up waiting for what the other has lost
            return False
        if answered < KEPT * offered and answered:
            behind[rate] = answered
        return answered >= KEPT * offered > 0

    rate = 1e9 / float(closed.ns.mean())
    good, bad = 0.0, math.inf
    for _ in range(DOUBLINGS):
        if keeps_up(rate):
            good, rate = rate, rate * 2
            if bad < math.inf:
                break
        else:
            bad, rate = rate, rate / 2
            if good:
                break
    if not good:
        raise TrialError(
            f"the capacity of {name} cannot be measured: it does not keep up with {bad:.3g} messages a second",
            remedy="look for other load, or lower 'window'",
        )
    for _ in range(HALVINGS if bad < math.inf else 0):
        middle = math.sqrt(good * bad)
        if keeps_up(middle):
            good = middle
        else:
            bad = middle
    sustained = behind.get(bad, 0.0)
    return sustained if sustained >= COLLAPSE * good else good


def rates_of(measured: Measured, setting: Setting) -> tuple[float, float]:
    """Messages due and messages answered a second, of each flow; the latter 0 if more than a few were not answered."""
    flows = traffic.count_connections(setting)
    due = arrivals.intended_times(setting, 0, 0, measured.sequence)
    answered = stats.answered_within(due, measured.ns)
    offered = stats.answered_within(due, np.zeros_like(due))  # random arrivals are not exactly at the rate
    complete = len(measured.ns) >= ANSWERED * setting.messages * flows
    return (offered or 0.0) / flows, (answered or 0.0) / flows if complete else 0.0
