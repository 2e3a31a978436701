"""Where a run takes place: two ends, the wire between them, and how to start an agent at each.

A testbed is this machine's loopback or namespaces, a guest that has a pair of rxe devices, verbs devices of this
machine, or a second machine behind ssh. Leaving the context takes down whatever entering it put up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from hwrx import topology
from hwrx.errors import MachineError, UsageError
from hwrx.experiment import Experiment
from hwrx.messages import Describe, Described, Place, Role
from hwrx.peers import Peer, agent_command
from hwrx.run import Testbed

if TYPE_CHECKING:
    from hwrx.vm import Guest

Say = Callable[[str, str], None]


class Wanted(Struct, frozen=True, kw_only=True):
    """What the user asked for on the command line, beyond the experiment."""

    here: bool = False
    devices: tuple[str, ...] = ()
    peer: str | None = None
    peer_device: str | None = None
    peer_address: str | None = None
    log: Path | None = None  # file that takes the guest's console

    @property
    def explicit(self) -> bool:
        """Whether the user named the two ends, so that no topology is to be made."""
        return bool(self.devices or self.peer or self.peer_device or self.peer_address)


class Bed:
    """Two places, reached by the peers' names."""

    def __init__(self, places: Mapping[Role, Place], peers: Mapping[Role, str], about: dict[str, Any]) -> None:
        self.places = places
        self._peers = peers
        self._about = about

    def start(self, role: Role) -> Peer:
        """See run.Testbed."""
        return Peer.start(self._peers[role], role)

    def start_tracer(self) -> tuple[Peer, list[str]]:
        """Start an agent on the kernel that both ends share; and name the network namespaces that they live in."""
        specs = set(self._peers.values())
        if not all(spec == "local" or spec.startswith("netns:") for spec in specs):
            raise MachineError(
                "both ends must be on this machine to be traced: a message's stages are stamped by one kernel",
                remedy="leave out --trace, or compare here",
            )
        return Peer.start("local", "tracer"), sorted(spec[6:] for spec in specs if spec.startswith("netns:"))

    def manifest(self) -> dict[str, Any]:
        """See run.Testbed: the client's machine, and the server's where that is another one."""
        from hwrx import machine  # pyverbs and pyudev: not needed where only a guest is measured

        about: dict[str, Any] = {"emulated": False, **self._about, "machine": machine.manifest()}
        if self._peers["server"].startswith("ssh:") or "{agent}" in self._peers["server"]:
            with self.start("server") as server:
                about["server machine"] = server.ask(Describe(), Described).machine
        return about


class GuestBed:
    """The topology inside a guest; its agents are processes there."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.places: Mapping[Role, Place] = {role: guest.places[role] for role in ("client", "server")}

    def start(self, role: Role) -> Peer:
        """See run.Testbed."""
        return Peer.greet(self._guest.agent(role), role)

    def start_tracer(self) -> tuple[Peer, list[str]]:
        """As Bed.start_tracer, in the guest."""
        return Peer.greet(self._guest.agent("client"), "tracer"), []

    def manifest(self) -> dict[str, Any]:
        """See run.Testbed: the guest's machine, asked of an agent in it, and the host's around it."""
        from hwrx import machine

        with self.start("client") as peer:
            inside = peer.ask(Describe(), Described).machine
        return {
            "wire": f"in the guest: {topology.find(self._guest.topology).sentence}",
            "guest": self._guest.describe(),
            "emulated": self._guest.describe()["emulated"],
            "machine": inside,
            "host": machine.manifest(),
        }


@contextlib.contextmanager
def opened(experiment: Experiment, wanted: Wanted, say: Say = lambda stage, text: None) -> Iterator[Testbed]:
    """Put up what the experiment needs and yield it.

    `say` is told the stage and what is being done. Raises MachineError where this machine lacks something, GuestError
    where a guest does not come up.
    """
    if wanted.explicit:
        yield explicit(wanted)
    elif experiment.topology == "here":
        about = {"wire": "the loopback device"}
        yield Bed({"client": Place(), "server": Place()}, {"client": "local", "server": "local"}, about)
    elif wanted.here or not in_guest(experiment):
        if experiment.clock == "icount":
            raise UsageError("the clock icount counts a guest's instructions", remedy="leave out --here")
        say("topology", experiment.topology)
        with topology.build(experiment.topology, **_options(experiment)) as made:
            yield Bed(made.places, made.peers, {"wire": "a veth pair"})
    else:
        from hwrx import vm

        with vm.Guest(
            experiment.topology,
            kernel=experiment.kernel,
            clock=experiment.clock,
            options=_options(experiment),
            log=wanted.log,
            progress=say,
        ) as guest:
            yield GuestBed(guest)


def _options(experiment: Experiment) -> dict[str, Any]:
    """Return what the experiment says of the wire; UsageError where there is none whose MTU could be set."""
    if experiment.wire_mtu is None:
        return {}
    if experiment.topology not in ("netns", "pair"):
        raise UsageError(
            f"wire_mtu is for the veth pair of netns and pair; {experiment.topology} has none",
            remedy="leave wire_mtu out",
        )
    return {"mtu": experiment.wire_mtu}


def in_guest(experiment: Experiment) -> bool:
    """Whether the experiment wants a virtual machine: for rxe or NICs, for another kernel, or to count instructions."""
    found = topology.TOPOLOGIES.get(experiment.topology)
    needs_one = found is not None and found.where == "guest"
    return needs_one or experiment.kernel is not None or experiment.clock == "icount"


def explicit(wanted: Wanted) -> Bed:
    """Return the ends that the user named: verbs devices of this machine, or one here and one at the peer."""
    peer = wanted.peer or "local"
    agent_command(peer)  # refuses what is no peer before anything is started
    if len(wanted.devices) > 2 or (len(wanted.devices) == 2 and wanted.peer_device):
        raise UsageError("there are two ends, so at most two devices", remedy="give --device CLIENT[,SERVER]")
    here = wanted.devices[0] if wanted.devices else None
    there = wanted.peer_device or (wanted.devices[1] if len(wanted.devices) == 2 else None)
    if peer == "local" and here and not there:
        raise UsageError(
            "both ends on one device measure nothing of the network (rxe even hands packets over without any)",
            remedy="give two: --device CLIENT,SERVER, or --peer ssh:HOST --peer-device DEV",
        )
    client = _place(here) if here else Place()
    if peer == "local" and there:
        server = _place(there)
    else:
        server = Place(address=wanted.peer_address or Place().address, verbs=there)
    about = {"wire": f"{here or 'sockets'} to {peer} {there or ''}".strip()}
    return Bed({"client": client, "server": server}, {"client": "local", "server": peer}, about)


def _place(device: str) -> Place:
    """Return where a verbs device of this machine lives: its netdev and that one's address."""
    from hwrx import devices

    found = {entry.name: entry for entry in devices.verbs_devices()}
    if device not in found:
        raise MachineError(
            f"there is no verbs device '{device}'",
            remedy=f"choose of: {', '.join(found)}" if found else "hwrx doctor says what is missing; `hwrx devices`",
        )
    return devices.place_of(found[device])
