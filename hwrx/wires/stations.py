"""Guests on one wire: what each has of it, its NIC and address, and the rxe device on that.

A guest is told by a number, from 1 on, so that all know each other's addresses beforehand: no trial holds an ARP
exchange, and no trial waits for one that was lost. The wire itself is hwrx.lab.cable's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from hwrx.control.messages import ENDS, Role
from hwrx.control.places import Place
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.undo import Undo
from hwrx.verbs.rxe import VERBS, add_rxe, load_rxe, wait_for_gid
from hwrx.wires import reaching
from hwrx.wires.made import SMALLEST_MTU

MODULE = "virtio_net"
NETDEV = "hwire0"
DEVICE = "rxewire0"
MOST = 64  # guests on one wire
LARGEST_MTU = 9216  # a jumbo frame's, as of an 82574L; QEMU's NIC would take more


def station_address(number: int) -> str:
    """Return the address of a guest. 198.18.0.0/15 is set aside for benchmarks of networks (RFC 2544)."""
    return f"198.18.83.{number}"


def station_hardware(number: int) -> str:
    """Return the MAC address of a guest's NIC, which is locally administered (bit 1 of the first byte)."""
    return f"02:68:77:72:79:{number:02x}"


def station_words(number: int, plug: int) -> list[str]:
    """Return QEMU's words for a guest's NIC. `plug`: the descriptor of its end of the wire, a datagram socket."""
    return [
        "-netdev", f"dgram,id=hwire,local.type=fd,local.str={plug}",
        "-device", f"virtio-net-pci,netdev=hwire,mac={station_hardware(number)}",
    ]  # fmt: skip


@contextlib.contextmanager
def station_up(number: int, stations: int, mtu: int) -> Iterator[dict[Role, Place]]:
    """In a guest: give its NIC name, address and MTU, an rxe device if the kernel has rxe, and the others' addresses.

    :param number: of this guest, from 1 on
    :param stations: guests that are on the wire
    :yields: the guest's place on the wire, which either end of a flow may have
    :raises UsageError: if that is no guest of such a wire
    """
    if not 1 <= number <= stations <= MOST:
        raise UsageError(
            "the topology wire is between guests, each with a kernel of its own: it cannot be put up on one kernel",
            remedy="hwrx compare --topology wire, which boots them; on one kernel: pair",
        )
    if not SMALLEST_MTU <= mtu <= LARGEST_MTU:
        raise UsageError(f"a wire cannot have an MTU of {mtu}", remedy=f"{SMALLEST_MTU} to {LARGEST_MTU}")
    tools.need_root("configuring NICs")
    tools.run_tool("modprobe", MODULE)
    with Undo("the guest's NIC") as undo:
        found = reaching.find_netdev(station_hardware(number))
        others = [each for each in range(1, stations + 1) if each != number]
        undo.plan("ip", "address", "flush", "dev", NETDEV)
        undo.plan("ip", "link", "set", NETDEV, "down")
        tools.run_tool("ip", "-batch", "-", given="\n".join(_address_lines(found, number, others, mtu)))
        tools.wait_until(
            lambda: "state UP" in tools.run_tool("ip", "-o", "link", "show", NETDEV), "the carrier of the guest's NIC"
        )
        try:
            load_rxe()
        except MachineError:  # a kernel for clouds, which has none
            yield _places(number)
            return
        undo.plan("rdma", "link", "delete", DEVICE)
        add_rxe(DEVICE, NETDEV)
        wait_for_gid(DEVICE, station_address(number))
        yield _places(number)


def _address_lines(found: str, number: int, others: Sequence[int], mtu: int) -> list[str]:
    return [
        *([f"link set {found} name {NETDEV}"] if found != NETDEV else []),
        f"link set {NETDEV} mtu {mtu}",
        f"address replace {station_address(number)}/24 dev {NETDEV}",
        f"link set {NETDEV} up",
        *(
            f"neighbour replace {station_address(each)} lladdr {station_hardware(each)} dev {NETDEV} nud permanent"
            for each in others
        ),
    ]


def _places(number: int) -> dict[Role, Place]:
    verbs = DEVICE if (VERBS / DEVICE).exists() else None
    return dict.fromkeys(ENDS, Place(address=station_address(number), netdev=NETDEV, verbs=verbs))
