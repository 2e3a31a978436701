"""Wires made of software: what lies between the two ends of a comparison, put up and taken down.

`netns` is two network namespaces with a veth pair between them, for the socket paths. `pair` is a veth pair in the
initial namespace with an rxe device on each end, for verbs and sockets alike: rxe owns UDP port 4791 of the initial
namespace only, so both its ends must be there. `nic` is two Intel 82574L on one Ethernet segment, given to a guest,
with an rxe device on each if the kernel has rxe; `queues` two virtio NICs, of which one has several receive queues.
`wire` is between guests, and put up in each of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from hwrx.control.environment import in_namespace
from hwrx.control.messages import ENDS, Role
from hwrx.control.places import Place
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.ipv6 import why_no_ipv6
from hwrx.host.netns import entered_namespace
from hwrx.host.undo import Undo
from hwrx.verbs.rxe import RXE_MODULE, add_rxe, load_rxe, wait_for_gid
from hwrx.wires import guest_nics, stations, taps
from hwrx.wires.made import SMALLEST_MTU, Made, both_here
from hwrx.wires.router import routed_namespaces

NETDEVS = Path("/sys/class/net")
# 198.18.0.0/15 is set aside for benchmarks of networks (RFC 2544), and so is 2001:2::/48 (RFC 5180): no real network of
# the user's is hidden by them.
ADDRESSES: dict[Role, str] = {"client": "198.18.77.1", "server": "198.18.77.2"}
ADDRESSES_V6: dict[Role, str] = {"client": "2001:2:0:77::1", "server": "2001:2:0:77::2"}
# locally administered (bit 1 of the first byte): they are the same in every run, and with them the link-local GIDs
HARDWARE: dict[Role, str] = {"client": "02:68:77:72:78:00", "server": "02:68:77:72:78:01"}
LINKS: dict[Role, str] = {"client": "hwrx0", "server": "hwrx1"}
DEVICES: dict[Role, str] = {"client": "rxe0", "server": "rxe1"}
# rxe takes the largest MTU of {256 … 4096} that leaves room for its headers: 1500 gives 1024, 4200 gives 4096.
LARGE_MTU = 4200
LARGEST_MTU = 65535  # of a veth


@contextlib.contextmanager
def netns(*, mtu: int = 1500) -> Iterator[Made]:
    """Two namespaces, `hwrx-a-…` for the client and `hwrx-b-…` for the server, and a veth pair between them.

    The names go on with this process's pid, so that each process has its own.
    """
    tools.need_root("making network namespaces")
    with Undo("two network namespaces") as undo:
        names: dict[Role, str] = {"client": f"hwrx-a-{undo.token}", "server": f"hwrx-b-{undo.token}"}
        for end in ENDS:
            undo.plan("ip", "netns", "delete", names[end])
            tools.run_tool("ip", "netns", "add", names[end])
        # both ends are created inside: at no time is either visible outside
        tools.run_tool("ip", "-n", names["client"], *_veth(mtu), "netns", names["server"])
        _configure(names)
        yield Made(
            {end: Place(address=ADDRESSES[end], netdev=LINKS[end]) for end in ENDS},
            {end: in_namespace(names[end]) for end in ENDS},
        )


@contextlib.contextmanager
def router(*, mtu: int = 1500) -> Iterator[Made]:
    """Two namespaces as in `netns`, each on a wire to a third, `hwrx-r-…`, which forwards between them."""
    _check_mtu(mtu)
    with routed_namespaces(mtu) as (places, names, middle):
        yield Made(places, {end: in_namespace(names[end]) for end in ENDS}, middle)


@contextlib.contextmanager
def pair(*, mtu: int = 1500) -> Iterator[Made]:
    """A veth pair hwrx0, hwrx1 in this namespace, and rxe0, rxe1 on its ends.

    `accept_local` lets the kernel take a packet that comes over the wire from an address of its own, and `rp_filter`
    must not drop it as spoofed. Sockets are bound to their netdev, or the kernel would route local to local over `lo`.
    """
    tools.need_root("making a veth pair with SoftRoCE on its ends")
    load_rxe()
    with Undo("a veth pair with rxe devices") as undo:
        for name in LINKS.values():
            if (NETDEVS / name).exists():
                raise MachineError(
                    f"there is a netdev {name} already: another `pair` is up",
                    remedy=f"wait for it to end, or, if it is left over from an experiment: ip link delete {name}",
                )
        undo.plan("ip", "link", "delete", LINKS["client"])  # its peer goes with it, and the rxe devices on both
        tools.run_tool("ip", *_veth(mtu))
        for scope in ("all", *LINKS.values()):
            undo.sysctl(f"net/ipv4/conf/{scope}/accept_local", "1")
            undo.sysctl(f"net/ipv4/conf/{scope}/rp_filter", "0")
        _configure({})
        for end in ENDS:
            add_rxe(DEVICES[end], LINKS[end])
        for end in ENDS:
            wait_for_gid(DEVICES[end], ADDRESSES[end])
        yield _pair_here()


@contextlib.contextmanager
def wire(*, number: int = 0, guests: int = 0, mtu: int = 1500) -> Iterator[Made]:
    """One guest's end of a wire between guests: either end of a flow may be there. See `stations.station_up`."""
    with stations.station_up(number, guests, mtu) as places:
        yield Made(places, dict.fromkeys(ENDS, "local"))


def _pair_here() -> Made:
    return both_here({end: Place(address=ADDRESSES[end], netdev=LINKS[end], verbs=DEVICES[end]) for end in ENDS})


class Guess(Struct, frozen=True):
    """About how long it takes over a topology, in seconds: one message one way at 64 B, `byte` more for each byte, to
    set a trial up and fetch its samples, and to get the machines up. For --dry-run and budgets only.
    """

    message: float
    byte: float
    trial: float
    start: float
    basis: str


EMULATED = Guess(350e-6, 10e-9, 0.3, 40.0, "an emulated guest")  # after the lab's first runs


class Topology(Struct, frozen=True, kw_only=True):
    """One way of arranging two ends; `where` says on which kernel it is put up unless the user says otherwise.

    `machine`: nothing is put up. `named`: the user names both ends. `sentence` says what it is, `brief` in a few words
    for captions. `verbs`: whether its ends have verbs devices. `mtu`, `netem`: whether its wire takes another MTU, and
    can be made worse. `nics`: its ends have NICs that hwrx has a driver for. `iommu`: its guest has one. `standing`:
    its ends, if both are in the namespace in which it is put up. `many`: each end is on a machine of its own, with a
    clock of its own; there may be more.

    What it needs of a guest: `hardware` are words for QEMU, `append` words for the kernel's command line, `modules` are
    loaded while Python starts; without those of them that are `optional` it can be put up, too. `outside` puts up what
    QEMU needs of the host, and yields the namespace to start it in. It is told the user id that QEMU has.
    """

    name: str
    where: Literal["guest", "host", "machine", "named"]
    sentence: str
    brief: str
    guess: Guess
    make: Callable[..., AbstractContextManager[Made]] | None = None
    standing: Callable[[], Made] | None = None
    verbs: bool = False
    mtu: bool = False
    netem: bool = False
    nics: bool = False
    iommu: bool = False
    many: bool = False
    hardware: tuple[str, ...] = ()
    append: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    outside: Callable[[int], AbstractContextManager[str]] | None = None


# THE list: whatever else hwrx says of a topology is asked of it here
KNOWN: dict[str, Topology] = {
    topology.name: topology
    for topology in (
        Topology(
            name="pair",
            where="guest",
            sentence="a veth pair with a SoftRoCE device on each end, in one namespace",
            brief="a veth pair with SoftRoCE on each end",
            guess=EMULATED,
            make=pair,
            standing=_pair_here,
            verbs=True,
            mtu=True,
            netem=True,
            modules=("veth", "rdma_rxe"),
        ),
        Topology(
            name="netns",
            where="host",
            sentence="a veth pair between two network namespaces",
            brief="a veth pair between two network namespaces",
            guess=Guess(20e-6, 0.5e-9, 0.1, 1.0, "this machine's namespaces"),
            make=netns,
            mtu=True,
            netem=True,
            modules=("veth",),
        ),
        Topology(
            name="router",
            where="guest",
            sentence="two network namespaces, each on a wire to a third that forwards between them",
            brief="a router between two network namespaces",
            guess=EMULATED,
            make=router,
            mtu=True,
            netem=True,
            modules=("veth",),
        ),
        Topology(
            name="nic",
            where="guest",
            sentence="two Intel 82574L on one Ethernet segment, each with a SoftRoCE device, behind an IOMMU, in one "
            "namespace",
            brief="two 82574L NICs on one wire",
            guess=msgspec.structs.replace(EMULATED, trial=0.5),
            make=guest_nics.nic,
            standing=guest_nics.nic_here,
            verbs=True,
            mtu=True,
            nics=True,
            iommu=True,
            hardware=guest_nics.nic_hardware(),
            # passthrough: what the kernel's own drivers do is not translated, as where there is no IOMMU
            append=("intel_iommu=on", "iommu=pt"),
            modules=(*guest_nics.NIC_MODULES, RXE_MODULE),
            optional=(RXE_MODULE,),
        ),
        Topology(
            name="queues",
            where="guest",
            sentence="two virtio NICs on one bridge, the receiving one with several queues, in one namespace",
            brief="two virtio NICs on one bridge",
            guess=EMULATED,
            make=guest_nics.queues,
            standing=guest_nics.queues_here,
            hardware=taps.queues_hardware(guest_nics.QUEUES_HARDWARE),
            modules=guest_nics.QUEUES_MODULES,
            outside=taps.bridged_taps,
        ),
        Topology(
            name="wire",
            where="guest",
            sentence="guests on one wire, each with a kernel and a SoftRoCE device of its own",
            brief="guests on one wire",
            guess=msgspec.structs.replace(EMULATED, message=800e-6, start=60.0, basis="emulated guests"),
            make=wire,
            verbs=True,
            mtu=True,
            many=True,
            modules=(stations.MODULE, RXE_MODULE),
            optional=(RXE_MODULE,),
        ),
        Topology(
            name="here",
            where="machine",
            sentence="the loopback device of this machine",
            brief="this machine's loopback",
            guess=Guess(15e-6, 0.5e-9, 0.1, 1.0, "this machine"),
        ),
        Topology(
            name="hosts",
            where="named",
            sentence="devices or addresses that the user names, of this machine and of its peer",
            brief="devices of this machine and its peer",
            guess=Guess(10e-6, 0.3e-9, 0.3, 2.0, "two hosts"),
            many=True,
        ),
    )
}
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(KNOWN)]  # what a file may name
TOPOLOGIES = {name: topology for name, topology in KNOWN.items() if topology.make is not None}  # that can be put up
ON_ONE_KERNEL = tuple(name for name, topology in TOPOLOGIES.items() if not topology.many)
BETWEEN_MACHINES = tuple(name for name, topology in KNOWN.items() if topology.many)
WITH_VERBS = tuple(name for name, topology in TOPOLOGIES.items() if topology.verbs)
WITH_MTU = tuple(name for name, topology in TOPOLOGIES.items() if topology.mtu)
WITH_NICS = tuple(name for name, topology in TOPOLOGIES.items() if topology.nics)
WITH_IOMMU = tuple(name for name, topology in TOPOLOGIES.items() if topology.iommu)
WITH_NETEM = tuple(name for name, topology in TOPOLOGIES.items() if topology.netem)


def find_topology(name: str) -> Topology:
    """Return the topology called `name`; UsageError names the ones that exist."""
    try:
        return TOPOLOGIES[name]
    except KeyError:
        raise UsageError(f"there is no topology '{name}'", remedy=f"choose of: {', '.join(TOPOLOGIES)}") from None


def build_topology(name: str, **options: int) -> AbstractContextManager[Made]:
    """Return the context in which the topology called `name` is up."""
    make = find_topology(name).make
    assert make is not None  # of those that `find` knows
    return make(**options)


@contextlib.contextmanager
def at_hand(name: str) -> Iterator[Made]:
    """Yield a topology: the one that stands in this namespace (a guest has booted with it), or one for so long.

    A second one beside it could not be: its devices have the same names.
    """
    standing = find_topology(name).standing
    if standing is not None:
        made = standing()
        if all(place.netdev is not None and _is_up(place.netdev) for place in made.places.values()):
            yield made
            return
    with build_topology(name) as made:
        yield made


def _is_up(netdev: str) -> bool:
    state = NETDEVS / netdev / "operstate"
    return state.exists() and state.read_text(encoding="utf-8").strip() == "up"


def _veth(mtu: int) -> list[str]:
    """Return the words that make `ip` create the veth pair; the server's namespace may follow."""
    _check_mtu(mtu)
    ends = [["name", LINKS[end], "mtu", str(mtu), "address", HARDWARE[end]] for end in ENDS]
    return ["link", "add", *ends[0], "type", "veth", "peer", *ends[1]]


def _check_mtu(mtu: int) -> None:
    if not SMALLEST_MTU <= mtu <= LARGEST_MTU:
        raise UsageError(f"a veth pair cannot have an MTU of {mtu}", remedy=f"{SMALLEST_MTU} to {LARGEST_MTU}")


def _configure(namespaces: Mapping[Role, str]) -> None:
    """Give both ends their addresses and each other's, and raise them.

    The other's hardware address is entered for good: no trial then holds an ARP exchange.
    """
    ip: dict[Role, list[str]] = {end: ["ip", "-n", namespaces[end]] if namespaces else ["ip"] for end in ENDS}
    for end, other in (ENDS, ENDS[::-1]):
        # nodad: nobody else is on this wire, and an address that is still being checked cannot be bound
        lines = ["link set lo up"] if namespaces else []
        lines += [f"address add {ADDRESSES[end]}/24 dev {LINKS[end]}", f"link set {LINKS[end]} up"]
        lines += [f"neighbour replace {ADDRESSES[other]} lladdr {HARDWARE[other]} dev {LINKS[end]} nud permanent"]
        with entered_namespace(namespaces.get(end)):
            v6 = not why_no_ipv6(LINKS[end])  # the kernel refuses such an address otherwise
        if v6:
            lines += [
                f"address add {ADDRESSES_V6[end]}/64 dev {LINKS[end]} nodad",
                f"neighbour replace {ADDRESSES_V6[other]} lladdr {HARDWARE[other]} dev {LINKS[end]} nud permanent",
            ]
        # one process for all: each takes a tenth of a second on an emulated CPU
        tools.run_tool(*ip[end], "-batch", "-", given="\n".join(lines))
    # what is sent before the kernel's link watch has seen the carrier is dropped
    tools.wait_until(
        lambda: all("state UP" in tools.run_tool(*ip[end], "-o", "link", "show", LINKS[end]) for end in ENDS),
        "the veth pair's carrier",
    )
