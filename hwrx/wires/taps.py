"""The host's side of a guest's NIC with several queues: two taps on a bridge, in a network namespace of their own.

QEMU is started in that namespace, so nothing of it is seen outside, and it goes with the namespace. Which of a tap's
queues takes a packet the kernel says by the hash of its flow (drivers/net/tun.c, tun_automq_select_queue): what RSS is
in hardware.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from hwrx.control.messages import ENDS, Role
from hwrx.host import tools
from hwrx.host.undo import Undo

QUEUES = 2  # as many as a guest has CPUs
VECTORS = 2 * QUEUES + 2  # one for each direction of each queue, for the configuration and for the control queue
NAMES: dict[Role, str] = {"client": "hwtap0", "server": "hwtap1"}
BRIDGE = "hwbr0"
LONGEST = 65_536  # packets that a tap holds for a guest that is slow: losses are to be the guest's own


@contextlib.contextmanager
def bridged_taps(owner: int = 0) -> Iterator[str]:
    """Put the taps and the bridge up; yield the namespace's name. `owner`: the user id that QEMU opens them as."""
    tools.need_root("making the tap devices of a guest's NIC")
    with Undo("taps for a guest's NIC with several queues") as undo:
        space = f"hwrx-q-{undo.token}"
        undo.plan("ip", "netns", "delete", space)
        tools.run_tool("ip", "netns", "add", space)
        lines = [f"link add {BRIDGE} type bridge mcast_snooping 0", f"link set {BRIDGE} up"]
        for end, name in NAMES.items():
            several = "multi_queue" if end == "server" else ""
            lines += [f"tuntap add dev {name} mode tap user {owner} {several}"]
            lines += [f"link set {name} txqueuelen {LONGEST} master {BRIDGE} up"]
        tools.run_tool("ip", "-n", space, "-batch", "-", given="\n".join(lines))
        yield space


def queues_hardware(addresses: Mapping[Role, str]) -> tuple[str, ...]:
    """QEMU's words: a NIC with one queue for the client, one with a queue a CPU for the server.

    :param addresses: their MAC addresses
    """
    words: list[str] = []
    for end in ENDS:
        many, several = (f",queues={QUEUES}", f",mq=on,vectors={VECTORS}") if end == "server" else ("", "")
        tap = f"tap,id=hwq{end},ifname={NAMES[end]},script=no,downscript=no{many}"
        words += ["-netdev", tap, "-device", f"virtio-net-pci,netdev=hwq{end},mac={addresses[end]}{several}"]
    return tuple(words)
