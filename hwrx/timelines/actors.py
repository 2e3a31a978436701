"""Who works at a stage, as each stamp found it: the context of the CPU then, not what the catalogue expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hwrx.stages import STAGES, Stage

if TYPE_CHECKING:
    import pyarrow as pa

# enum context of record.h; the first stands where softirqs cannot be told, because their tracepoints are not attached
UNKNOWN = "not observed"
ACTORS = (UNKNOWN, "user thread", "kernel worker", "softirq")
NEGLIGIBLE = 0.0005  # share below which one actor among several is left out of the words


def actor_of_event(stage: Stage, context: int | None) -> str:
    """Return who worked at a stamp: of a kernel's stamp as it was observed; of an endpoint's (None), itself."""
    return stage.actor if context is None else ACTORS[context]


def shares_in_words(by: Mapping[str, int]) -> str:
    """Name those who did something, the busiest first, with shares if there are several.

    `by`: how much, by name. Example: "softirq"; "user thread 75 %, softirq 25 %". Empty if nobody did anything.
    """
    total = sum(by.values())
    names = [name for name in sorted(by, key=lambda name: -by[name]) if by[name] > NEGLIGIBLE * total]
    if len(names) <= 1:
        return "".join(names)
    return ", ".join(f"{name} {100 * by[name] / total:.3g} %" for name in names)


def actors_in_words(by: npt.NDArray[Any]) -> str:
    """As shares_in_words, for bytes by ACTORS."""
    return shares_in_words(dict(zip(ACTORS, map(int, by), strict=True)))


def actor_column(table: pa.Table) -> npt.NDArray[Any]:
    """Return who worked at each row of a run's `stages` table: an array of words.

    A run of format 1 did not observe it, and gets what the catalogue expects.
    """
    if "actor" in table.column_names:
        return np.asarray(table["actor"].cast("string").to_pylist(), dtype=object)
    expected = {stage.name: stage.actor for stage in STAGES}
    names = table["name"].cast("string").to_pylist()
    return np.array([expected.get(name, UNKNOWN) for name in names], dtype=object)
