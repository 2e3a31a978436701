"""The functions that have more or fewer instructions of one message than of another."""

from __future__ import annotations

from msgspec import Struct

from hwrx.anatomy.model import Dissection


class Moved(Struct, frozen=True, kw_only=True):
    """A function that has more instructions of a setting's message on one side of a diff than on the other."""

    setting: str
    function: str
    of: str
    layer: str
    before: float
    after: float


def moved_parts(before: Dissection, after: Dissection) -> list[Moved]:
    """Return the functions that have more or less of one message than of the other, the largest difference first."""
    old, new = ({(part.function, part.of): part for part in one.parts} for one in (before, after))
    moved = [
        Moved(
            setting=after.label,
            function=key[0],
            of=key[1],
            layer=(new.get(key) or old[key]).layer,
            before=old[key].instructions if key in old else 0.0,
            after=new[key].instructions if key in new else 0.0,
        )
        for key in dict.fromkeys((*old, *new))
    ]
    moved = [each for each in moved if each.before != each.after]
    return sorted(moved, key=lambda each: -abs(each.after - each.before))
