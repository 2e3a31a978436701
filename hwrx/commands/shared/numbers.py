"""Options that are numbers: each has a range, and a number that is none (nan) or has no end (inf) is in no range.

The options that describe an experiment are not among them: `hwrx.runs.experiment` checks those, with its files.
"""

from __future__ import annotations

import math

import click

BYTES = 1 << 30  # the largest message and the largest buffer that the kernel's int holds
CPUS = 8191  # the highest CPU number that x86's kernels can be built for
LONG = 1e6  # seconds: twelve days


class FiniteRange(click.FloatRange):
    """A range of finite numbers. click's own takes nan, which is neither below nor above anything."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; a usage error names the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not in the range {self._describe_range()}.", param, ctx)
        return number


def whole_number(least: int, most: int) -> click.IntRange:
    """Return the type of an option that takes whole numbers from `least` to `most`."""
    return click.IntRange(least, most)


def real_number(least: float, most: float) -> FiniteRange:
    """Return the type of an option that takes finite numbers from `least` to `most`."""
    return FiniteRange(least, most)
