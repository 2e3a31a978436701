"""What the repeats of a run drew anew, and what all of them shared: how far the intervals of its figures reach.

A figure's interval tells how much the figure moves when everything that a repeat renews is renewed. What all repeats of
a run share (one boot, one wire, one hour) can move it further, and only several runs tell by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

# what every repeat has of its own, whatever the testbed is
RENEWED = ("the processes of both ends", "their sockets, queue pairs and buffers", "the order of the trials")


class Renewal(Struct, frozen=True, kw_only=True):
    """What each repeat had of its own, and what it shared with the others of its run."""

    renewed: list[str]
    kept: list[str]


def find_renewal(*, guest: bool, bound: bool, topology: str) -> Renewal:
    """Return what a run's repeats renew and what they keep.

    `guest`: the ends are forks of one process in a guest, so that their memory is laid out alike; processes that are
    started anew on a real machine have a layout drawn at random. `bound`: the ends are bound to CPUs.
    """
    renewed = list(RENEWED)
    kept = ["the boot of the guest" if guest else "the boot of the machine"]
    if guest:
        kept.append("the layout of the processes' memory")
    else:
        renewed.append("the layout of their memory")
    if bound:
        kept.append("the CPUs that the ends are bound to")
    else:
        renewed.append("the CPUs, as far as the scheduler moved the ends")
    kept.append("the wire" if topology in ("here", "hosts") else f"the wire ({topology}) and its devices")
    kept.append("the time of day")
    return Renewal(renewed=renewed, kept=kept)


def describe_renewal(manifest: Mapping[str, Any]) -> str:
    """Say in two sentences what the intervals of a run stand for; "" if the run does not tell (an older one)."""
    found = manifest.get("renewal")
    if not found:
        return ""
    return (
        f"Each repeat had of its own {_list(found['renewed'])}; all repeats of the run shared {_list(found['kept'])}. "
        "What those move a figure by is in no interval of one run: several runs tell (hwrx diff A1 A2 -- B1 B2)."
    )


def _list(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
