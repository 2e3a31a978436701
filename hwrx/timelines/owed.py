"""How many messages a twin has, and which twins an interrupted run still owes when it goes on.

What a run owes are the twins of trials that were measured and have none yet. Twins run after the trials of their guest;
a run that was interrupted before that has the trials and lacks the twins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hwrx.control.messages import Setting
from hwrx.runs import reading
from hwrx.runs.trials import Trial

if TYPE_CHECKING:
    from hwrx.runs.beds import Testbed
    from hwrx.runs.reading import Run
    from hwrx.runs.store import Writer


# of a twin whose guest counts instructions: each message does there what the others do, and tracing takes long
MOST_COUNTED = 500


def has_twin(trial: Trial, settings: Collection[Setting] | None = None, *, once: bool = True) -> bool:
    """Whether a trial has a twin: those of `settings` (None: of all) have, of each the first one only if `once`."""
    return not (once and trial.repeat) and (settings is None or trial.setting in settings)


def twin_of(trial: Trial, clock: str) -> Trial:
    """Return the trial as its twin runs it: with fewer messages if instructions are counted."""
    messages = min(trial.setting.messages, MOST_COUNTED) if clock == "icount" else trial.setting.messages
    return msgspec.structs.replace(trial, setting=msgspec.structs.replace(trial.setting, messages=messages))


def trials_without(
    writer: Writer, tables: Sequence[str], testbed: Testbed
) -> Iterator[tuple[Trial, dict[str, Any], Run]]:
    """Yield the good trials that a run has and that have no row in these tables: each, its journal line and the run.

    :param tables: that the twins write their rows to, with a column `trial`.
    :param testbed: on which the twins would run: trials whose guest is booted with something else are not its own.

    Nothing is yielded of a run that was never interrupted.
    """
    if not writer.manifest.get("resumed"):
        return

    run = reading.load_run(writer.path)
    found = [rows for name in tables if (rows := run.table(name)) is not None]
    known = {trial for rows in found for trial in rows["trial"].to_pylist()}
    for line in run.journal:
        setting = msgspec.convert(line["setting"], Setting)
        if line["status"] == "ok" and line["trial"] not in known and testbed.boot in (None, setting.boot):
            yield Trial(number=line["trial"], repeat=line["repeat"], setting=setting, label=line["label"]), line, run
