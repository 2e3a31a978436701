"""When the messages of an open loop are to be sent: evenly, or at random as those of many independent users are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec import structs

if TYPE_CHECKING:
    from hwrx.control.messages import Setting


def schedule_sends(setting: Setting, repeat: int, seed: int | None) -> npt.NDArray[np.int64]:
    """Return when each message of a paced trial is due, warm-up and cool-down included: ns from the trial's beginning.

    `even` has one distance between all of them. `poisson` draws the distances from the exponential distribution, so
    that messages meet and queue below capacity too; the draws belong to the experiment's seed and the repeat, so that
    within one all settings see the same arrivals, at their own rates, and differences between them are not those of the
    draws. The generator is NumPy's RandomState, whose sequence is frozen (NEP 19): a report finds the same times as the
    trial had. `seed` None: as runs were drawn that did not use theirs.
    """
    assert setting.rate is not None
    count = setting.warmup + setting.messages + setting.cooldown
    if setting.arrivals == "even":
        return np.round(np.arange(1, count + 1) * (1e9 / setting.rate)).astype(np.int64)
    draws = np.random.RandomState(repeat if seed is None else [seed, repeat]).random_sample(count)
    gaps = -np.log1p(-draws) * (1e9 / setting.rate)
    return np.round(np.cumsum(gaps)).astype(np.int64)


def timed_setting(setting: Setting, repeat: int, seed: int | None) -> Setting:
    """Return a paced setting that has a duration with the number of messages that are due in it; another one as it is.

    Both ends find the same number. The time begins when the last message of the warm-up is due.
    """
    if setting.pattern != "paced" or setting.duration is None:
        return setting
    assert setting.rate is not None
    mean = setting.rate * setting.duration
    most = structs.replace(setting, messages=math.ceil(mean + 8 * math.sqrt(mean) + 20))
    due = schedule_sends(most, repeat, seed)
    first = int(due[setting.warmup - 1]) if setting.warmup else 0
    count = int(np.searchsorted(due, first + round(setting.duration * 1e9), side="right")) - setting.warmup
    return structs.replace(setting, messages=max(1, count))


def intended_times(
    setting: Setting, repeat: int, seed: int | None, sequence: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """The same of the recorded messages with these sequence numbers, which count from the first after the warm-up."""
    return schedule_sends(setting, repeat, seed)[sequence.astype(np.int64) + setting.warmup]
