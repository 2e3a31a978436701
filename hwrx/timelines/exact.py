"""A message whose stages are known to the instruction, as the anatomy hands it to other rooms."""

from __future__ import annotations

from msgspec import Struct


class Exact(Struct, frozen=True):
    """A message whose stages are known to the instruction, in one direction: each stage, its actor, and since posted.

    `label`: of its setting.
    """

    path: str
    label: str
    direction: str
    stamps: list[tuple[str, str, int]]
