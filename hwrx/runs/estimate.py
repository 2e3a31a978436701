"""How long a run will take, and how much disk: guessed before it, for --dry-run and budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from hwrx.errors import UsageError
from hwrx.runs import traffic
from hwrx.wires import topology

if TYPE_CHECKING:
    from hwrx.runs.planning import Plan


class Estimate(Struct, frozen=True, kw_only=True):
    """What a run will take: `seconds` of time and `disk` bytes, both guessed from `basis`."""

    trials: int
    samples: int
    seconds: float
    disk: int
    basis: str


_BYTES_A_SAMPLE = 5.0  # measured over runs of round trips around 300 µs: 3.5 to 5, zstd over deltas


def estimate_run(layout: Plan, *, here: bool = False) -> Estimate:
    """Guess how long the plan runs and how much disk it fills; no promise, so the basis is part of the answer.

    :param here: whether the topology is put up on this machine, though a guest is what it has by default.
    """
    over = topology.KNOWN[layout.experiment.topology]
    guess = topology.KNOWN["netns"].guess if here and over.where == "guest" else over.guess
    seconds = guess.start
    samples = 0
    for trial in layout.trials:
        setting = trial.setting
        each = guess.message + guess.byte * setting.size
        if setting.pattern == "pingpong":
            each *= 2
        elif setting.pattern == "paced" and setting.rate:
            each = max(each / 2, 1 / setting.rate)
        else:
            each /= 2
        connections = traffic.count_connections(setting)
        measured = setting.messages
        if setting.duration is not None:
            # an open loop sends what is due, whatever becomes of it; the others wait for each other
            step = 1 / setting.rate if setting.pattern == "paced" and setting.rate else each
            measured = max(1, min(measured, round(setting.duration / step)))
            lasts = min(setting.duration, measured * step) + (setting.warmup + setting.cooldown) * each * connections
        else:
            lasts = (setting.warmup + measured + setting.cooldown) * each * connections
        seconds += guess.trial * connections + lasts
        samples += measured * connections
    return Estimate(
        trials=len(layout.trials),
        samples=samples,
        seconds=seconds,
        disk=int(samples * _BYTES_A_SAMPLE) + 4096 * len(layout.trials) + 100_000,
        basis=f"{guess.basis}, about {guess.message * 1e6:.0f} µs one way and {guess.trial:g} s to set a trial up",
    )


def check_budget(layout: Plan, *, here: bool = False) -> None:
    """UsageError where the plan would take longer than the experiment's budget; `here` as of `estimate_run`."""
    budget = layout.experiment.budget
    guess = estimate_run(layout, here=here)
    if budget is not None and guess.seconds > budget:
        raise UsageError(
            f"experiment '{layout.experiment.name}' would take about {guess.seconds:.0f} s ({guess.trials} trials on "
            f"{guess.basis}), its budget is {budget:g} s",
            remedy="raise 'budget', or lower 'repeats', 'setting.messages', 'setting.duration' or the number of"
            " settings",
        )
