"""What a test says of itself with `@pytest.mark.hwrx(…)`: which lab it wants, and what it needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from hwrx.errors import UsageError
from hwrx.wires import topology as topologies

MARKER = "hwrx"
TOPOLOGY = "netns"  # of a test that names none
# of `hwrx.Lab`, besides topology and kernel
LAB_WORDS = ("clock", "boot", "wire_mtu", "copies_priced", "iommu", "mitigations", "init_on_alloc", "huge_pages")


class Wish(Struct, frozen=True, kw_only=True):
    """A test's lab and needs. `kernels`: it runs once for each; empty: on the lab's own, or this machine's."""

    topology: str = TOPOLOGY
    kernels: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    lab: tuple[tuple[str, Any], ...] = ()  # further words of `hwrx.Lab`

    def in_guest(self, kernel: str | None) -> bool:
        """Whether its topology is put up in a virtual machine, if it runs on this kernel."""
        if os.environ.get("HWRX_IN_GUEST") == "1" or self.topology == "here":
            return False
        found = topologies.KNOWN.get(self.topology)
        named = kernel is not None or dict(self.lab).get("clock") == "icount"
        return (found is not None and found.where == "guest") or named


def read_wish(markers: Sequence[Mapping[str, object]]) -> Wish:
    """Return what the markers of a test say together, the nearest one first.

    :raises UsageError: if one has a word that is none
    """
    words: dict[str, Any] = {}
    for marker in reversed(markers):
        words |= marker
    known = ("topology", "kernel", "needs", *LAB_WORDS)
    if unknown := [word for word in words if word not in known]:
        raise UsageError(f"@pytest.mark.{MARKER} does not know '{unknown[0]}'", remedy=f"choose of: {', '.join(known)}")
    lab = {word: words[word] for word in LAB_WORDS if words.get(word) is not None}
    return Wish(
        topology=words.get("topology", TOPOLOGY),
        kernels=_several(words.get("kernel")),
        needs=_several(words.get("needs")),
        lab=tuple((word, tuple(value) if isinstance(value, list) else value) for word, value in lab.items()),
    )


def split_words(text: str) -> tuple[str, ...]:
    """Split the words of an option at commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _several(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return split_words(value) if isinstance(value, str) else tuple(map(str, value))  # type: ignore[call-overload]
