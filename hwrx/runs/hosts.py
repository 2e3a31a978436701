"""Hosts of the inventory as a testbed: an agent wherever a flow has an end, started as the inventory says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwrx.control import nodes
from hwrx.control.endings import ENDS
from hwrx.control.environment import Host
from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Describe, Described, Role, Setting
from hwrx.control.peers import Peer, Way, start_peers
from hwrx.control.places import Place
from hwrx.errors import MachineError, PeerError, SilenceError, UsageError
from hwrx.runs.addresses import need_one_family, own_address

Manifest = dict[str, Any]
End = tuple[Role, str, int]  # the role, the host, and which of the host's ends of that role


class HostsBed:
    """Hosts by name. See `hwrx.runs.beds.Testbed`; which of them are the ends of a trial its setting says."""

    alone = False
    boot: Boot | None = None

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.begun = False  # whether a trial has had all its ends: from then on one that is gone is measured without
        self.places: Mapping[Role, Place] = {"client": Place(), "server": Place()}  # of no host in particular

    def flows(self, setting: Setting) -> list[dict[Role, End]]:
        """Return the ends of each flow of a setting: as many agents at a host as flows begin or end there."""
        counts: dict[tuple[Role, str], int] = {}
        found: list[dict[Role, End]] = []
        for names in nodes.parse_flows(setting.flows) * setting.senders:
            ends: dict[Role, End] = {}
            for (role, _), name in zip(ENDS[::-1], names, strict=True):
                self._find(name)
                number = counts.get((role, name), 0)
                counts[role, name] = number + 1
                ends[role] = (role, name, number)
            found.append(ends)
        return found

    def place_of(self, end: End) -> Place:
        """Return where an end lives."""
        return place_of_host(self._find(end[1]))

    def start_ends(self, ends: Sequence[End]) -> dict[End, Peer]:
        """Start agents, several at a time; the first that cannot be is raised, and none is then left."""
        started = self.try_ends(ends)
        failed = [each for each in started.values() if isinstance(each, PeerError)]
        peers = {end: peer for end, peer in started.items() if isinstance(peer, Peer)}
        if failed:
            for peer in peers.values():
                peer.close()
            raise failed[0]
        return peers

    def try_ends(self, ends: Sequence[End]) -> dict[End, Peer | PeerError]:
        """Start agents, several at a time; return each, or why there is none."""
        return start_peers({end: (self._way_to(end), name_end(end)) for end in ends})

    def wire_drops(self) -> dict[str, int]:
        """Return how many packets for each host the wire has dropped, by its own counters, if hwrx has put it up."""
        return {}

    def start(self, role: Role) -> Peer:
        """See `hwrx.runs.beds.Testbed`: there is no one host that has the role."""
        raise UsageError(f"the {role} is one of several hosts", remedy="name two hosts: --client HOST --server HOST")

    def start_tracer(self) -> tuple[Peer, list[str]]:
        """See `hwrx.runs.beds.Testbed`."""
        raise MachineError(
            "messages between hosts cannot be traced: one kernel must stamp them", remedy="leave out --trace"
        )

    def need_answer(self, trouble: SilenceError) -> None:
        """See `hwrx.runs.beds.Testbed`: no guest is here."""

    def manifest(self) -> Manifest:
        """See `hwrx.runs.beds.Testbed`: every host's machine and how its clock is kept, by the host's name."""
        # pyverbs and pyudev: not needed where only a guest is measured
        from hwrx.machine import description

        return {
            "wire": f"between {len(self.hosts)} hosts of the inventory",
            "emulated": False,
            "machine": description.describe_machine(),
            **self._describe_hosts(),
        }

    def _describe_hosts(self) -> Manifest:
        """Ask an agent at each host what machine it is on, and how that one's clock is kept."""
        peers = self.start_ends([("client", name, 0) for name in self.hosts])
        machines, clocks = {}, {}
        try:
            for (_, name, _), peer in peers.items():
                told = peer.ask(Describe(noise=True), Described)
                machines[name], clocks[name] = told.machine, told.timekeeping
        finally:
            for peer in peers.values():
                peer.close()
        return {"host machines": machines, "host clocks": clocks}

    def _way_to(self, end: End) -> Way:
        return self._find(end[1]).agent_command()

    def _find(self, name: str) -> Host:
        if name not in self.hosts:
            raise UsageError(f"the host '{name}' is not among those of this run", remedy="write it into the inventory")
        return self.hosts[name]


def place_of_host(host: Host) -> Place:
    """Return where an end at a host lives.

    :raises UsageError: if nothing says by which device or address it is reached.
    """
    if not host.address and host.verbs is None:
        raise UsageError(
            f"the host '{host.name}' has neither an address nor a verbs device",
            remedy="give `address` (of the wire that is measured) or `verbs` in the inventory",
        )
    address = host.address or Place().address
    return Place(address=address, netdev=host.netdev, verbs=host.verbs, port=host.port, cpus=host.cpus, numa=host.numa)


def name_ends(
    client: Host | None, server: Host | None
) -> tuple[dict[Role, Place], dict[Role, str | Host], dict[str, str]]:
    """Return the places of two hosts of the inventory, how they are reached, and the wire in words.

    One that is None is here, at the address that leads to the other.

    :raises UsageError: if it cannot be told which devices or addresses are compared.
    """
    ends: dict[Role, Host | None] = {"client": client, "server": server}
    (there,) = [host for host in ends.values() if host is not None][:1]
    places: dict[Role, Place] = {}
    peers: dict[Role, str | Host] = {}
    for role, host in ends.items():
        peers[role] = host or "local"
        if host is not None:
            places[role] = place_of_host(host)
        elif there.address:
            places[role] = Place(address=own_address(there.address))
        else:
            raise UsageError(
                f"the host '{there.name}' has no address, and the {role} here no device",
                remedy=f"name both: --client HOST --server HOST, or give '{there.name}' an address in the inventory",
            )
    need_one_family(places["client"].address, places["server"].address)
    names = {role: host.name if host else "here" for role, host in ends.items()}
    return places, peers, {"wire": f"{names['client']} to {names['server']}, hosts of the inventory"}


def name_end(end: End) -> str:
    """Name an end in sentences."""
    role, host, number = end
    return f"{host} ({role}{f' {number + 1}' if number else ''})"
