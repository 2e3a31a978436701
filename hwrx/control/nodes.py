"""Sets of hosts' names, as ClusterShell and Slurm write them, and who of them sends to whom.

A set is node[1-8], rack[1-2]n[01-16] or a,b. ClusterShell is loaded when a set is read: most agents and runs know none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal

from hwrx.errors import UsageError
from hwrx.host.outside import clean_name

# incast: all clients to each server in turn; all-to-all: all at once; pairs: each pair alone; bidirectional: each
# pair alone, both ways at once; matched: each client to the server in the same place, all at once; matched-pairs: each
# of those alone
Traffic = Literal["incast", "all-to-all", "pairs", "bidirectional", "matched", "matched-pairs"]
MOST = 4096  # hosts of a set
_FLOWS = "node[1-8]>sink, a>b, both ways a<>b, or each to the one in its place a[1-2]>>b[1-2]"
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
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    try:
        names = [str(name) for name in NodeSet(text, resolver=RESOLVER_NOGROUP)]
    except NodeSetException as error:
        raise UsageError(
            f"{source}: '{shown}' is not a set of hosts: {clean_name(str(error))}", remedy=remedy
        ) from None
    if not names:
        raise UsageError(f"{source}: '{shown}' names no host", remedy=remedy)
    return names


def fold_nodes(names: Sequence[str]) -> str:
    """Return names as a set, as short as it can be written."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))


def written_nodes(text: str, source: str) -> list[str]:
    """Return the names of a set in the order in which they are written, each once; see `expand_nodes`, which sorts."""
    names = expand_nodes(text, source)
    if re.search(r"[!&^]", text):  # what is left of sets has no order of its own
        return names
    found: list[str] = []
    for word in re.split(r",(?![^\[]*\])", text):
        parts = re.split(r"\[([^\]]*)\]", word)  # outside and inside of brackets by turns
        choices = [
            [name[1:] for item in part.split(",") for name in expand_nodes(f"x[{item}]", source)] if inside else [part]
            for part, inside in zip(parts, itertools.cycle([False, True]), strict=False)
        ]
        found += ["".join(chosen) for chosen in itertools.product(*choices)]
    return list(dict.fromkeys(found))


def need_sorted(source: str, names: Sequence[str]) -> None:
    """UsageError if names, each of which belongs to the one in the same place, are not as sets are sorted."""
    folded = fold_nodes(names)
    if expand_nodes(folded, source) != list(names):
        raise UsageError(
            f"{source}: each is matched with the one in its place, and '{folded}' is sorted otherwise than"
            f" {clean_name(', '.join(names))}",
            remedy="name both sides in the order in which sets are sorted",
        )


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


def parse_flows(words: str, source: str = "flows") -> list[tuple[str, str]]:
    """Return who sends to whom, [(client, server)], of `CLIENTS>SERVERS`: each of the left to each of the right.

    Nobody sends to itself. `A<>B` is both directions at the same time; `A>>B` each of the left to the one in the same
    place of the right, as sets are sorted.

    :raises UsageError: if it is not that, or nobody is left to send.
    """
    left, arrow, right = words.partition(">")
    both, matched = left.endswith("<"), right.startswith(">")
    right = right.removeprefix(">")
    if not arrow or not right or not left.removesuffix("<"):
        raise UsageError(f"{source}: '{clean_name(words)}' does not say who sends to whom", remedy=_FLOWS)
    clients, servers = expand_nodes(left.removesuffix("<"), source), expand_nodes(right, source)
    if matched:
        if len(clients) != len(servers):
            raise UsageError(
                f"{source}: {len(clients)} that send and {len(servers)} that receive cannot be matched one to one",
                remedy="name as many of both",
            )
        flows = [(client, server) for client, server in zip(clients, servers, strict=True) if client != server]
    else:
        flows = [(client, server) for server in servers for client in clients if client != server]
    if both:
        flows += [(server, client) for client, server in flows]
    if not flows:
        raise UsageError(f"{source}: in '{clean_name(words)}' nobody sends to another host", remedy=_FLOWS)
    if len(flows) > MOST:
        raise UsageError(f"{source}: '{clean_name(words)}' is {len(flows)} flows, more than {MOST}", remedy=_FLOWS)
    return list(dict.fromkeys(flows))


def write_flows(traffic: Traffic, clients: Sequence[str], servers: Sequence[str]) -> list[str]:
    """Return the words of each measurement of a traffic: see Experiment.traffic.

    :param clients: names of those that send
    :param servers: names of those that receive
    """
    many, sinks = fold_nodes(clients), fold_nodes(servers)
    match traffic:
        case "incast":
            return [f"{fold_nodes([c for c in clients if c != server])}>{server}" for server in servers]
        case "all-to-all":
            return [f"{many}>{sinks}"]
        case "pairs":
            return [f"{client}>{server}" for client in clients for server in servers if client != server]
        case "bidirectional":
            pairs = {frozenset((client, server)): f"{client}<>{server}" for client in clients for server in servers}
            return [words for both, words in pairs.items() if len(both) == 2]
        case "matched" | "matched-pairs":
            need_sorted("traffic", clients)
            need_sorted("traffic", servers)
            pairs_of = parse_flows(f"{many}>>{sinks}", "traffic")
            together = traffic == "matched"
            return [f"{many}>>{sinks}"] if together else [f"{client}>{server}" for client, server in pairs_of]
