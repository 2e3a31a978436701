"""The functions that have more or fewer instructions of one message than of another."""

from __future__ import annotations

import re

from msgspec import Struct

from hwrx.anatomy.model import Dissection

# of GCC's interprocedural passes: ipa-sra, constant propagation, partial inlining, hot and cold parts
_MADE = re.compile(r"(\.(isra|constprop|part|cold|localalias)(\.\d+)?)+$")
NO_INSTRUCTION = 1e-6


class Moved(Struct, frozen=True, kw_only=True):
    """A function that has more instructions of a setting's message on one side of a diff than on the other."""

    setting: str
    function: str
    of: str
    layer: str
    before: float
    after: float


def moved_parts(before: Dissection, after: Dissection) -> list[Moved]:
    """Return the functions that have more or less of one message than of the other, the largest difference first.

    A function and what a compiler made of it are one: whether it makes something differs from kernel to kernel.
    """
    old, new = _by_function(before), _by_function(after)
    moved = [
        Moved(
            setting=after.label,
            function=key[0],
            of=key[1],
            layer=(new.get(key) or old[key])[0],
            before=old[key][1] if key in old else 0.0,
            after=new[key][1] if key in new else 0.0,
        )
        for key in dict.fromkeys((*old, *new))
    ]
    # sums of means, which are binary fractions only now and then
    moved = [each for each in moved if abs(each.after - each.before) > NO_INSTRUCTION]
    return sorted(moved, key=lambda each: -abs(each.after - each.before))


def _by_function(one: Dissection) -> dict[tuple[str, str], tuple[str, float]]:
    """The layer and the instructions of each function, by its name in the source and by whose it is."""
    found: dict[tuple[str, str], tuple[str, float]] = {}
    for part in one.parts:
        key = (_MADE.sub("", part.function), part.of)
        layer, instructions = found.get(key, (part.layer, 0.0))
        found[key] = (layer, instructions + part.instructions)
    return found
