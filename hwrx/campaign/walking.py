"""The journey of one message of each path, on a testbed that is there: `hwrx walk`, and the lab of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from hwrx import paths
from hwrx.errors import UsageError
from hwrx.runs import experiment as experiments
from hwrx.runs import planning
from hwrx.runs.beds import Testbed
from hwrx.runs.experiment import Experiment
from hwrx.runs.schedule import Pair
from hwrx.timelines.traced import RunTracer
from hwrx.timelines.walk import Journey, walk_message
from hwrx.wires import topology as topologies

MESSAGES = 200  # of the trial that the one message is taken from


def describe_walk(
    names: Sequence[str], *, size: int, messages: int = MESSAGES, topology: str | None = None, kernel: str | None = None
) -> Experiment:
    """Return what a walk over some paths is planned by.

    :param topology: None: one that has what the paths need
    :raises UsageError: if a path does not exist, or a message of `size` bytes has no room for its number
    """
    if size < 8:
        raise UsageError(f"a message has at least 8 bytes, not {size}", remedy="the sequence number must fit")
    if not names:
        raise UsageError("no path is given to walk over", remedy='for example "udp"')
    if topology in topologies.BETWEEN_MACHINES:
        raise UsageError(
            f"one kernel stamps the stages of a message, and the topology {topology} is between several",
            remedy="--topology pair",
        )
    verbs = [name for name in names if paths.find_path(name).needs == "verbs"]
    return experiments.from_options(
        paths=list(names),
        sizes=[size],
        messages=messages,
        limit=60.0,
        name="walk",
        topology=topology or paths.default_topology((verbs or names)[0]),
        kernel=kernel,
    )


def walk_paths(plan: Experiment, bed: Testbed, *, wait: str, say: Callable[[str, str], None]) -> list[Journey]:
    """Follow a message of each path of a plan, and return their journeys in the plan's order.

    :param wait: how the reader waits; of a path that looks at memory alone it polls
    :param say: told the stage and what is being done
    :raises TrialError: if no message of a path was seen at every stage
    :raises MachineError: if this machine cannot trace
    """
    journeys = []
    with RunTracer(bed, plan.paths) as tracer, Pair(bed) as pair:
        say("trace", "attaching the programs (in an emulated guest that takes a second or two)")
        tracer.attach()
        settings = {setting.path: setting for setting in planning.plan_run(plan).settings}
        for name in plan.paths:
            say("trace", f"following {name}")
            waiting = "poll" if paths.find_path(name).memory_alone else wait
            journeys.append(walk_message(tracer, pair, msgspec.structs.replace(settings[name], wait=waiting)))
    return journeys
