"""A wire that is made worse on purpose: netem on what an end sends.

Each end spoils what it sends, so that messages and answers suffer alike. Only links that hwrx has made are touched.
"""

from __future__ import annotations

from hwrx.errors import MachineError, PathError, UsageError
from hwrx.host import tools
from hwrx.wires.topology import LINKS

QUEUE = 10_000  # packets that may be on a slow wire; more would be lost on top of what is asked for


def spoil_wire(netdev: str | None, words: str) -> None:
    """Let netem do `words` (for example "loss 1%") to what leaves `netdev`.

    UsageError where the link is not of hwrx's making, PathError where the kernel refuses.
    """
    if netdev is None or netdev not in LINKS.values():
        raise UsageError(
            f"netem spoils only wires that hwrx has made, and {netdev or 'the loopback device'} is none",
            remedy="leave 'netem' out, or use the topology pair or netns",
        )
    try:
        tools.run_tool("tc", "qdisc", "replace", "dev", netdev, "root", "netem", "limit", str(QUEUE), *words.split())
    except MachineError as error:
        raise PathError(
            f"netem '{words}' is refused: {error.args[0]}",
            remedy="the words are tc-netem(8)'s, and the kernel needs the module sch_netem",
        ) from None


def mend_wire(netdev: str | None) -> None:
    """Take away what `spoil` did to the link, whoever called it; harmless where nobody did."""
    if (
        netdev is not None
        and netdev in LINKS.values()
        and "netem" in tools.run_tool("tc", "qdisc", "show", "dev", netdev)
    ):
        tools.run_tool("tc", "qdisc", "delete", "dev", netdev, "root")
