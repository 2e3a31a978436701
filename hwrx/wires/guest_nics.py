"""The NICs of a guest, as topologies: `nic`, two 82574L behind an IOMMU; `queues`, two virtio NICs, one with several.

What QEMU is told of them stands beside what is done with them in the guest, so that both have the same addresses.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping

from hwrx.control.messages import ENDS, Role
from hwrx.control.places import Place
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.undo import Undo
from hwrx.verbs.rxe import VERBS, add_rxe, load_rxe, wait_for_gid
from hwrx.wires import reaching
from hwrx.wires.made import SMALLEST_MTU, Made, both_here

# Linux' e1000e takes frames of 9234 bytes on an 82574L (max_hw_frame_size), 18 of which are Ethernet's
LARGEST_NIC_MTU = 9216
# of `nic`: each end has an 82574L, and beside it an NE2000 (for nic-pio) on a segment of its own
NICS: dict[Role, str] = {"client": "hwnic0", "server": "hwnic1"}
NIC_ADDRESSES: dict[Role, str] = {"client": "198.18.78.1", "server": "198.18.78.2"}
NIC_HARDWARE: dict[Role, str] = {"client": "02:68:77:72:78:10", "server": "02:68:77:72:78:11"}
NIC_DEVICES: dict[Role, str] = {"client": "rxenic0", "server": "rxenic1"}
PIO_NICS: dict[Role, str] = {"client": "hwpio0", "server": "hwpio1"}
NIC_HUB, PIO_HUB = 1, 2  # QEMU's hubs: the segment of the 82574L, and that of the NE2000s
NIC_MODULES = ("e1000e", "ne2k-pci")
PIO_HARDWARE: dict[Role, str] = {"client": "02:68:77:72:78:20", "server": "02:68:77:72:78:21"}
# of `queues`: virtio NICs, the server's with several queues, on taps and a bridge of the host's
QUEUES_ADDRESSES: dict[Role, str] = {"client": "198.18.79.1", "server": "198.18.79.2"}
QUEUES_NICS: dict[Role, str] = {"client": "hwvirt0", "server": "hwvirt1"}
QUEUES_HARDWARE: dict[Role, str] = {"client": "02:68:77:72:78:30", "server": "02:68:77:72:78:31"}
QUEUES_MODULES = ("virtio_net",)


@contextlib.contextmanager
def nic(*, mtu: int = 1500) -> Iterator[Made]:
    """The two 82574L of a guest, found by their MAC addresses, named and configured; the NE2000s are named only.

    Both are in this namespace: a NIC that hwrx drove comes back to the initial one. On each stands an rxe device, so
    that verbs cross the same wire as sockets; a kernel without rxe gets the NICs alone.

    :param mtu: of both 82574L, in bytes; above 1500 their frames are jumbo frames.
    """
    tools.need_root("configuring NICs")
    if not SMALLEST_MTU <= mtu <= LARGEST_NIC_MTU:
        raise UsageError(f"an 82574L cannot have an MTU of {mtu}", remedy=f"{SMALLEST_MTU} to {LARGEST_NIC_MTU}")
    tools.run_tool("modprobe", "-a", *NIC_MODULES)
    pairs = ((NIC_HARDWARE, NICS), (PIO_HARDWARE, PIO_NICS))
    with _two_nics("the guest's NICs", NICS, NIC_ADDRESSES, *pairs, mtu=mtu), _rxe_on_nics():
        yield nic_here()


@contextlib.contextmanager
def _rxe_on_nics() -> Iterator[None]:
    """An rxe device on each 82574L; none on a kernel that has no rxe (cloud kernels)."""
    try:
        load_rxe()
    except MachineError:
        yield
        return
    with Undo("rxe devices on the guest's NICs") as undo:
        for end in ENDS:
            undo.plan("rdma", "link", "delete", NIC_DEVICES[end])
            add_rxe(NIC_DEVICES[end], NICS[end])
        for end in ENDS:
            wait_for_gid(NIC_DEVICES[end], NIC_ADDRESSES[end])
        yield


@contextlib.contextmanager
def queues() -> Iterator[Made]:
    """The two virtio NICs of a guest, of which the server's has several receive queues; both in this namespace."""
    tools.need_root("configuring NICs")
    tools.run_tool("modprobe", "-a", *QUEUES_MODULES)
    with _two_nics("the guest's virtio NICs", QUEUES_NICS, QUEUES_ADDRESSES, (QUEUES_HARDWARE, QUEUES_NICS)):
        yield queues_here()


@contextlib.contextmanager
def _two_nics(
    what: str,
    used: Mapping[Role, str],
    addresses: Mapping[Role, str],
    *named: tuple[Mapping[Role, str], Mapping[Role, str]],
    mtu: int = 1500,
) -> Iterator[None]:
    """Name a guest's NICs, each pair of `named` by its MAC addresses; give those that are `used` addresses and MTU."""
    with Undo(what) as undo:
        lines = []
        for hardware, names in named:
            for end in ENDS:
                found = reaching.find_netdev(hardware[end])
                lines += [f"link set {found} name {names[end]}"] if found != names[end] else []
        tools.run_tool("ip", "-batch", "-", given="\n".join(lines))
        for scope in ("all", "default", *used.values()):
            undo.sysctl(f"net/ipv4/conf/{scope}/accept_local", "1")
            undo.sysctl(f"net/ipv4/conf/{scope}/rp_filter", "0")
        hardware = named[0][0]
        lines = []
        for end, other in (ENDS, ENDS[::-1]):
            undo.plan("ip", "address", "flush", "dev", used[end])
            undo.plan("ip", "link", "set", used[end], "down")
            lines += [
                f"link set {used[end]} mtu {mtu}",
                f"address replace {addresses[end]}/24 dev {used[end]}",
                f"link set {used[end]} up",
                f"neighbour replace {addresses[other]} lladdr {hardware[other]} dev {used[end]} nud permanent",
            ]
        tools.run_tool("ip", "-batch", "-", given="\n".join(lines))
        tools.wait_until(
            lambda: all("state UP" in tools.run_tool("ip", "-o", "link", "show", used[end]) for end in ENDS),
            "the NICs' links",
        )
        # a link that has just been taken down and up again may still be told as it was before
        for end, other in (ENDS, ENDS[::-1]):
            tools.wait_until(
                functools.partial(reaching.carries_datagram, used[end], addresses[end], used[other], addresses[other]),
                f"a datagram from {used[end]} at {used[other]}",
            )
        yield


def nic_hardware() -> tuple[str, ...]:
    """QEMU's words: an IOMMU, before the devices that it is for, and two NICs on each of two hubs."""
    # the split irqchip is what KVM needs to remap interrupts; without KVM it means nothing
    words = ["-machine", "kernel-irqchip=split", "-device", "intel-iommu,intremap=on"]
    for hub, model, hardware in ((NIC_HUB, "e1000e", NIC_HARDWARE), (PIO_HUB, "ne2k_pci", PIO_HARDWARE)):
        for end in ENDS:
            words += ["-netdev", f"hubport,id=hub{hub}{end},hubid={hub}"]
            words += ["-device", f"{model},netdev=hub{hub}{end},mac={hardware[end]}"]
    return tuple(words)


def nic_here() -> Made:
    """Return the topology `nic` as it stands."""
    verbs = {end: NIC_DEVICES[end] if (VERBS / NIC_DEVICES[end]).exists() else None for end in ENDS}
    return both_here(
        {end: Place(address=NIC_ADDRESSES[end], netdev=NICS[end], pio=PIO_NICS[end], verbs=verbs[end]) for end in ENDS}
    )


def queues_here() -> Made:
    """Return the topology `queues` as it stands."""
    return both_here({end: Place(address=QUEUES_ADDRESSES[end], netdev=QUEUES_NICS[end]) for end in ENDS})
