"""The port that one end of a verbs path uses: opened, checked, and what was chosen of it; how the two ends agree."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from hwrx.errors import MachineError, UsageError
from hwrx.paths import verbs_memory
from hwrx.paths.verbs_end import End, OwnEnd, agree_ends, choose_gid, choose_mtu, gid_text, hw_counters, parse_end

if TYPE_CHECKING:
    from cython_ext.core.pinned import PinnedBuffer
    from cython_ext.verbs.rdma_cm import ManagedConnection
    from cython_ext.verbs.verbs_device import Context, Gid, Port
    from hwrx.control.messages import Prepare, Setting

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ChosenPort:
    """A port of an open device, and what was chosen of it.

    A `VerbsTransport` is made with one: the decisions are taken here, and the transport asks for them.
    """

    context: Context  # belongs to the transport that is made with this
    port: Port
    gid: Gid
    mtu: int  # bytes of payload a packet that this end can do

    @property
    def address(self) -> str:
        """The GID as people write it."""
        return gid_text(self.gid.raw)

    def describe_end(self, **own: Unpack[OwnEnd]) -> End:
        """What the other end is told: of the device, the port and the machine.

        :param own: the fields that the transport knows: path, size, its queue pair's and its ring's
        :return: an End, whole
        """
        netdev = self.gid.netdev
        mac = Path(f"/sys/class/net/{netdev}/address").read_text(encoding="utf-8").strip() if netdev else ""
        return End(
            device=self.context.name, port=self.port.number, node_guid=self.context.node_guid, mac=mac,
            boot=BOOT_ID.read_text(encoding="utf-8").strip(), rxe=self.context.is_rxe, gid=self.gid.raw.hex(),
            lid=self.port.lid,
            mtu=self.mtu, **own,
        )  # fmt: skip

    def get_memory(self, setting: Setting, size: int) -> PinnedBuffer:
        """Return at least `size` bytes of memory, of the kind that the setting asks for.

        :raises MachineError: if the device has no regions of this kind, or the machine has no such memory
        """
        return verbs_memory.get_memory(self.context, setting, size)

    def describe_memory(self, setting: Setting, buffer: PinnedBuffer) -> str:
        """Say of which kind the memory is, for the report."""
        return verbs_memory.describe_memory(setting, buffer)

    def count_paging(self, setting: Setting, address: int, size: int) -> dict[str, int]:
        """What was faulted in so far of a ring of `size` bytes, as `hwrx.paths.verbs_memory.count_paging` has it."""
        return verbs_memory.count_paging(self.context.name, setting, address, size)

    def listen_or_call(self, prepare: Prepare) -> ManagedConnection:
        """Return this end's part of a connection that RDMA-CM makes: a server listens, a client will call.

        :param prepare: setting and role
        :raises MachineError: if RDMA-CM cannot be had, by librdmacm, the kernel or the device
        """
        try:
            from cython_ext.verbs.rdma_cm import ManagedConnection
        except ImportError as error:
            raise MachineError(f"librdmacm cannot be used: {error}", remedy="apt install librdmacm1") from error

        netdev = self.gid.netdev
        scope = socket.if_nametoindex(netdev) if netdev else 0
        return ManagedConnection(self.address, scope, prepare.role == "server", prepare.setting.limit)

    def agree_with(self, here: End, remote: dict[str, Any]) -> tuple[End, int]:
        """Check what the other end tells of itself.

        :param here: this end
        :param remote: the fields of the other one, as they came over the control pipe
        :return: the other end, and the MTU that both can do
        :raises PeerError: if it describes no end of this path
        :raises UsageError: if both ends stand on one rxe device
        """
        there = parse_end(remote)
        return there, agree_ends(here, there)

    def counters(self) -> dict[str, int]:
        """The port's hardware counters that tell of packets sent again, as `hw_counters` has them."""
        return hw_counters(self.context.name, self.port.number)


def open_port(prepare: Prepare, device: str) -> ChosenPort:
    """Open a device, and choose of its port what the setting asks for, or what fits.

    :param prepare: setting, role, and where we are
    :param device: name of a verbs device
    :return: the port; its context is open, and is the caller's to close, or the transport's that takes it
    :raises MachineError: if the device cannot be had, or its port is not active
    :raises UsageError: if the setting does not fit the device
    """
    from cython_ext.verbs.verbs_device import Context

    setting = prepare.setting
    context = Context(device)
    try:
        port = context.port(prepare.here.port)
        where = f"{device} port {port.number}"
        if not port.active:
            raise MachineError(
                f"{where} is not active ({port.state})",
                remedy="bring its netdev up ('ip link set NETDEV up'), and plug the cable in",
            )
        if setting.size > port.max_message:
            raise UsageError(
                f"{where} carries messages of up to {port.max_message} bytes, not {setting.size}",
                remedy="a smaller --size",
            )
        if setting.pkey_index >= port.pkeys:
            raise UsageError(
                f"{where} has {port.pkeys} partition keys, entry {setting.pkey_index} is asked for",
                remedy=f"--pkey-index {port.pkeys - 1} or less; they are in"
                f" /sys/class/infiniband/{device}/ports/{port.number}/pkeys",
            )
        gid = choose_gid(
            context.gids(port.number), where=where, ethernet=port.ethernet, index=setting.gid_index,
            address=prepare.here.address, network=setting.gid,
        )  # fmt: skip
        return ChosenPort(context, port, gid, choose_mtu(port.mtu, setting.mtu, where))
    except BaseException:
        context.close()
        raise
