"""Where one end of a path over our own queue pair stands: a link of frames, its addresses, and how the ends agree."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from hwrx.errors import PathError, UsageError
from hwrx.paths.verbs_end import End, OwnEnd, agree_ends, gid_text, parse_end

if TYPE_CHECKING:
    from cython_ext.frames.link import FrameLink
    from hwrx.control.messages import Prepare

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MTUS = (256, 512, 1024, 2048, 4096)
# in front of the payload and behind it, at most: IP and UDP, BTH, RETH, ImmDt; padding and ICRC
AROUND_PAYLOAD = 20 + 8 + 12 + 16 + 4 + 3 + 4
DEVICE = "hwrx"  # what the other end is told as the name of our device


@dataclass(frozen=True)
class RocePort:
    """A link that carries our packets, and what was chosen for it. The link belongs to the transport made with it."""

    link: FrameLink
    address: str  # IPv4
    mtu: int  # bytes of payload a packet that this end can do
    interleaves: bool = False  # messages can be received into pages of the user's: see frames/landing.pxd
    notes: Mapping[str, object] = field(default_factory=dict)  # for the manifest

    @staticmethod
    def choose_qpn(prepare: Prepare) -> int:
        """Return the number of this end's queue pair: by the trial, so that stragglers of another one are strangers."""
        return 0x100 + prepare.trial % 0x7FFF * 2 + (prepare.role == "client")

    @property
    def gid(self) -> bytes:
        """The address as a GID: IPv4 mapped into IPv6 (annex A17)."""
        return ipaddress.IPv6Address(f"::ffff:{self.address}").packed

    def describe_end(self, **own: Unpack[OwnEnd]) -> End:
        """What the other end is told, in the words of a verbs end: it may be one.

        :param own: the fields that the transport knows
        """
        octets = bytes.fromhex(self.link.mac.replace(":", ""))
        return End(
            device=DEVICE,
            port=1,
            node_guid=(octets[:3] + b"\xff\xfe" + octets[3:]).hex(),  # EUI-64, as devices make theirs
            mac=self.link.mac,
            boot=BOOT_ID.read_text(encoding="utf-8").strip(),
            rxe=False,
            gid=self.gid.hex(),
            mtu=self.mtu,
            **own,
        )

    def agree_with(self, here: End, remote: dict[str, object]) -> tuple[End, int]:
        """Check what the other end tells of itself; return it, and the MTU that both can do.

        :raises PeerError: if it describes no end of this path
        :raises PathError: if its address is of another kind, or is our own
        """
        there = parse_end(remote)
        mtu = agree_ends(here, there)
        if there.gid == here.gid:
            raise PathError(f"both ends have the address {self.address}", remedy="give each end an address of its own")
        return there, mtu

    def address_of(self, there: End) -> str:
        """The other end's address, as people write it."""
        return gid_text(bytes.fromhex(there.gid))


def choose_roce_mtu(wire: int, wanted: int | None, where: str) -> int:
    """Bytes of payload a packet: the largest that fits the wire's MTU, as rxe chooses, or `wanted`.

    :param wire: bytes of an IP packet
    :param where: names the device in an error
    :raises UsageError: if none, or not `wanted`, fits
    """
    fitting = [mtu for mtu in MTUS if mtu + AROUND_PAYLOAD <= wire]
    if not fitting or (wanted is not None and wanted not in fitting):
        raise UsageError(
            f"packets of {wanted or MTUS[0]} bytes do not fit {where}, whose MTU is {wire}",
            remedy="a smaller --mtu, or a larger MTU of the network device ('ip link set NETDEV mtu 4200' for 4096)",
        )
    return wanted or fitting[-1]
