"""The trials of a run: what a plan consists of, and what all that follows it is handed."""

from __future__ import annotations

from msgspec import Struct

from hwrx.control.messages import Setting


class Trial(Struct, frozen=True, kw_only=True):
    """One path in one setting, once. `number` counts from 0 in the order of the run."""

    number: int
    repeat: int
    setting: Setting
    label: str


class Skipped(Struct, frozen=True, kw_only=True):
    """A combination that the experiment asks for and a path cannot do."""

    label: str
    reason: str
