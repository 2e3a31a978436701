"""Sets of hosts' names, as ClusterShell and Slurm write them: node[1-8], rack[1-2]n[01-16], a,b."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from hwrx.errors import UsageError
from hwrx.host.outside import clean_name

MOST = 4096  # hosts of a set
_LONGEST = 10_000  # characters
_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?:/\d+)?")


def expand_nodes(text: str, source: str) -> list[str]:
    """Return the names of a set. Groups (`@name`) are not looked up: that would run commands of the machine's.

    :param source: what errors begin with.
    :raises UsageError: if it is not a set, has no members, or more than MOST.
    """
    remedy = "node[1-8], rack[1-2]n[01-16], a,b"
    shown = clean_name(text)
    if "@" in text or len(text) > _LONGEST or _count_most(text) > MOST:
        raise UsageError(f"{source}: '{shown}' is not a set of at most {MOST} hosts", remedy=remedy)
    try:
        names = [str(name) for name in NodeSet(text, resolver=RESOLVER_NOGROUP)]
    except NodeSetException as error:
        raise UsageError(f"{source}: '{shown}' is not a set of hosts: {clean_name(str(error))}", remedy=remedy) from None
    if not names:
        raise UsageError(f"{source}: '{shown}' names no host", remedy=remedy)
    return names


def fold_nodes(names: Sequence[str]) -> str:
    """Return names as a set, as short as it can be written."""
    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))


def _count_most(text: str) -> int:
    """Return how many members a set may have, before it is expanded: the product over its brackets of each word."""
    most = 0
    for word in re.split(r",(?![^\[]*\])", text):
        product = 1
        for inside in re.findall(r"\[([^\]]*)\]", word):
            product *= sum(
                abs(int(last or first) - int(first)) + 1 if len(first) < 10 and len(last) < 10 else MOST + 1
                for first, last in _RANGE.findall(inside)
            )
        most += product
    return most
