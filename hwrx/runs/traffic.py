"""Who sends to whom: what an experiment says of many hosts, and the flows that each of its settings has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from hwrx.control import nodes
from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.runs.overrides import Overrides

MANY = 'topology = "hosts", or guests: topology = "wire"'
TWO_GUESTS = "client>server"  # what a wire between guests has if nobody names others


class Asked(Protocol):
    """What is read of an experiment."""

    @property
    def topology(self) -> str:
        """Its topology."""

    @property
    def between_machines(self) -> bool:
        """Whether each end is on a machine of its own."""

    @property
    def between_guests(self) -> bool:
        """Whether those are guests that hwrx boots."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Sets of hosts that send."""

    @property
    def servers(self) -> tuple[str, ...]:
        """Sets of hosts that receive."""

    @property
    def traffic(self) -> nodes.Traffic:
        """Which of them to which."""

    @property
    def setting(self) -> Overrides:
        """Fields of every setting."""

    @property
    def sweep(self) -> dict[str, list[object]]:
        """Fields that take several values."""

    @property
    def cpu(self) -> tuple[int, ...] | Literal["any"]:
        """CPUs of a client and a server."""

    @property
    def numa(self) -> int | None:
        """The node that CPUs are taken from."""


def check_traffic(source: str, experiment: Asked, given: Collection[str]) -> None:
    """UsageError if what the experiment says of many hosts does not go together.

    :param given: the fields of a setting that are given anywhere
    """
    many = experiment.between_machines
    if not experiment.clients:
        if experiment.servers or experiment.traffic != "incast":
            key = "servers" if experiment.servers else "traffic"
            raise UsageError(f"{source}: {key}: it needs hosts that send", remedy='clients = ["node[1-8]"]')
        if "flows" in given and not many:
            raise UsageError(f"{source}: flows: it is between hosts", remedy=MANY)
        if experiment.between_guests:
            _check_ends(source, experiment)
        return
    if not many:
        raise UsageError(f"{source}: clients: they are hosts, and the topology is '{experiment.topology}'", remedy=MANY)
    if "flows" in given:
        raise UsageError(f"{source}: flows: clients, servers and traffic say it", remedy="leave out either")
    if not experiment.servers and experiment.traffic == "incast":
        raise UsageError(f"{source}: servers: an incast needs a host that receives", remedy='servers = ["sink"]')
    _check_ends(source, experiment)
    if not flows_of(experiment):
        raise UsageError(f"{source}: clients: none of them sends to another host", remedy="name other servers")


def _check_ends(source: str, experiment: Asked) -> None:
    """UsageError if the experiment asks for what ends on machines of their own do not have."""
    for key in ("trace", "anatomy"):
        if getattr(experiment, key):
            raise UsageError(f"{source}: {key}: it is of two ends on one kernel, not of hosts", remedy=f"{key} = false")
    if experiment.cpu not in ((), "any") or experiment.numa is not None:
        raise UsageError(
            f"{source}: cpu and numa: each host has CPUs of its own",
            remedy="`cpus` or `numa` of the host in the inventory",
        )


def flows_of(experiment: Asked) -> list[str]:
    """Return the `flows` of the settings, each of which is measured alone; [""] if the experiment is of two ends."""
    if not experiment.clients:
        given = "flows" in experiment.setting or "flows" in experiment.sweep
        return [TWO_GUESTS if experiment.between_guests and not given else ""]
    clients, servers = _names(experiment.clients), _names(experiment.servers or experiment.clients)
    return [words for words in nodes.write_flows(experiment.traffic, clients, servers) if not words.startswith(">")]


def hosts_of(experiment: Asked) -> list[str]:
    """Return the names of all hosts that take part, each once; empty if the experiment is of two ends."""
    given = [experiment.setting.get("flows", ""), *experiment.sweep.get("flows", [])]
    flows = [str(words) for words in (*flows_of(experiment), *given) if words]
    return list(dict.fromkeys(name for words in flows for flow in nodes.parse_flows(words) for name in flow))


def count_connections(setting: Setting) -> int:
    """Return how many pairs of ends a setting has at the same time."""
    return setting.senders * (len(nodes.parse_flows(setting.flows)) if setting.flows else 1)


def _names(sets: Collection[str]) -> list[str]:
    return list(dict.fromkeys(name for words in sets for name in nodes.expand_nodes(words, "clients, servers")))
