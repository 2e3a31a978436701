"""What the machine itself adds to a message: settings that differ only in what their guest was booted with.

The first value of each axis is what the others are held against, function by function.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from hwrx.anatomy.flame import draw_difference
from hwrx.anatomy.model import Dissection
from hwrx.control.guest_boot import BOOT_FIELDS
from hwrx.report.cells import Cell, Kind, Table
from hwrx.report.moved import moved_parts
from hwrx.report.numbers import size_words

AXES = (*BOOT_FIELDS, "huge_pages")
SHOWN = 12  # functions of a pair


class Added(Struct, frozen=True):
    """A message on two machines. `words`: what the second one has, "iommu=strict"; `base`: the first one instead."""

    before: Dissection
    after: Dissection
    words: str
    base: str

    @property
    def title(self) -> str:
        """In words, with the path and the size."""
        difference = self.after.instructions - self.before.instructions
        return f"{self.after.path}, {size_words(self.after.size)}: {self.words} {difference:+,.0f} against {self.base}"


def added_by_machine(dissected: Sequence[Dissection]) -> list[Added]:
    """Pair each message with the first one that differs from it in nothing but axes of the machine."""
    first: dict[str, tuple[Dissection, dict[str, str]]] = {}
    found = []
    for one in dissected:
        words = one.label.split()
        axes = {word.split("=")[0]: word for word in words if word.split("=")[0] in AXES}
        rest = " ".join(word for word in words if word not in axes.values())
        base, of_base = first.setdefault(rest, (one, axes))
        if base is not one:
            apart = [name for name in axes if axes[name] != of_base[name]]
            found.append(
                Added(base, one, " ".join(axes[name] for name in apart), " ".join(of_base[name] for name in apart))
            )
    return found


def machine_tables(dissected: Sequence[Dissection], name: str, label: str) -> list[Table]:
    """Return a table for each pair: the functions that have more or fewer instructions of a message.

    :param name: what tells the run's tables from those of another run
    :param label: the run in words
    """
    caption = (
        "Instructions of half a round trip (of a READ the whole), of the state that most messages were in, each in a "
        f"guest of its own that differs in this word of its machine alone. Functions that moved most. {label}."
    )
    columns: list[tuple[str, Kind]] = [
        ("function", "t"), ("of", "t"), ("layer", "t"), ("before", ""), ("after", ""), ("more", ""),
    ]  # fmt: skip
    tables = []
    for number, added in enumerate(added_by_machine(dissected), 1):
        rows: list[tuple[bool, list[Cell]]] = []
        for each in moved_parts(added.before, added.after)[:SHOWN]:
            words = each.function, each.of, each.layer, f"{each.before:,.0f}", f"{each.after:,.0f}"
            rows.append((False, [*((word, "") for word in words), (f"{each.after - each.before:+,.0f}", "")]))
        title = f"What the machine adds: {added.title}"
        tables.append(Table(f"machine{name}-{number}", title, caption, columns, rows, 3, folded=True))
    return tables


def difference_of(added: Added) -> str:
    """Return an SVG of a pair, before and after, coloured by what each function has more or less."""
    sides = (added.before, added.base), (added.after, added.words)
    return draw_difference([(f"{one.path}, {size_words(one.size)}, {words}", one.pieces) for one, words in sides])
