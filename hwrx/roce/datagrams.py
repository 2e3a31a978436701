"""An endpoint of unreliable datagrams (UD): SENDs of one packet, to whoever knows the Q_Key; any may be lost.

with hwrx.roce.datagram_endpoint("eth1", "198.18.77.70") as qp:
    print(qp.parameters.to_line())         # what the other end must know
    buffer = qp.register(bytearray(4096))
    qp.post_receive(buffer)                # the message stands behind GRH = 40 bytes of the network header
    print(qp.next_receive(timeout=10))     # of whoever sends; to send, name one: qp.connect(line_of_the_other_end)
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cython_ext.frames.link import FrameLink
from cython_ext.roce.datagram_pair import GRH, DatagramCompleted, DatagramPair
from cython_ext.roce.memory_region import MemoryRegion
from cython_ext.roce.packet import address_vector
from hwrx.errors import UsageError
from hwrx.roce.driven import QueuePairEndpoint
from hwrx.roce.opening import open_link
from hwrx.roce.parameters import Parameters, parse_mac, parse_parameters

if TYPE_CHECKING:
    from hwrx.nic.driver import Driver

__all__ = ["GRH", "QKEY", "DatagramEndpoint", "datagram_endpoint"]
QKEY = 0x11111111  # of ibv_ud_pingpong
SENDS = ("send", "send-imm")


class DatagramEndpoint(QueuePairEndpoint[DatagramCompleted]):
    """An end of datagrams. Made by `datagram_endpoint`; a context manager, whose end gives everything back.

    It does not run by itself: packets are taken and sent inside of `drive` and of the methods that wait. Not for
    several threads at once.

    Attributes: see QueuePairEndpoint; `queue_pair` is the DatagramPair itself, `peer` where `post_send` sends to.
    """

    queue_pair: DatagramPair

    def __init__(self, link: FrameLink, own: Parameters, resources: contextlib.ExitStack, *, depth: int) -> None:
        super().__init__(link, own, resources)
        self._way = b""
        self.queue_pair = DatagramPair(
            link, self.domain, address=own.ip, qpn=own.qpn, qkey=own.qkey or 0, mtu=own.mtu, send_depth=depth,
            receive_depth=depth,
        )  # fmt: skip

    def connect(self, peer: Parameters | str, *, mac: str = "", patience: float = 5.0) -> None:
        """Name the other end for the messages that follow; nothing is sent to it. It may be called again.

        :param peer: what it says of itself, or the line that says so; without a Q_Key it has ours
        :param mac: of the peer, or of the router towards it; "" asks by ARP or neighbour discovery, if the peer's
            parameters have none
        :param patience: seconds in which that question must be answered
        :raises UsageError: as Endpoint.connect
        :raises PathError: if nobody answers for the peer's address
        """
        there = parse_parameters(peer) if isinstance(peer, str) else peer
        self._check_peer(there)
        hardware = parse_mac(mac or there.mac or self.find_mac(there.ip, patience))
        own = self.parameters
        self._way = address_vector(self.link.mac, hardware, own.ip, there.ip, source_port=0xC000 | own.qpn & 0x3FFF)
        self.peer = there

    def idle(self, seconds: float = 0.0) -> None:
        """See QueuePairEndpoint."""
        self.drive(seconds)

    def post_receive(self, buffer: MemoryRegion, offset: int = 0, size: int | None = None, *, wr_id: int = 0) -> None:
        """Post memory for a message, and for the GRH = 40 bytes in front of it.

        :param buffer: registered memory; `offset` and `size` are bytes of it, at least 40, None: up to its end
        :param wr_id: comes back in the completion
        :raises UsageError: if the memory is not registered, the range is outside of it or too short, or too many are
            posted
        """
        self._check_region(buffer)
        self.queue_pair.post_receive(buffer, offset, size, wr_id=wr_id)

    def post_send(
        self,
        verb: str,
        buffer: MemoryRegion | None = None,
        offset: int = 0,
        size: int | None = None,
        *,
        wr_id: int = 0,
        immediate: int = 0,
    ) -> None:
        """Post a message to `peer`, and send it if it can be sent now.

        :param verb: send or send-imm; datagrams have no others
        :param buffer: registered memory that is sent, at most the MTU; None: 0 bytes
        :param immediate: a number of 32 bits, of send-imm
        :raises UsageError: if there is no such verb, no peer is named, the memory is not registered, the message is
            longer than the MTU, or too many are posted
        """
        if verb not in SENDS:
            raise UsageError(f"datagrams have no {verb}", remedy=f"choose of: {', '.join(SENDS)}")
        if self.peer is None:
            raise UsageError("no peer is named to which the message would go", remedy="connect first")
        if buffer is not None:
            self._check_region(buffer)
        qkey = self.parameters.qkey if self.peer.qkey is None else self.peer.qkey
        self.queue_pair.post_send(
            self._way, self.peer.qpn, buffer, offset, size, qkey=qkey or 0, wr_id=wr_id,
            immediate=immediate if verb == "send-imm" else None,
        )  # fmt: skip
        self.drive()


def datagram_endpoint(
    device: str | Driver | FrameLink,
    address: str,
    *,
    mac: str = "",
    qpn: int | None = None,
    qkey: int = QKEY,
    mtu: int = 1024,
    depth: int = 128,
    poll: bool = False,
) -> DatagramEndpoint:
    """Open an endpoint of datagrams with an address of its own.

    :param device, address, mac, qpn, poll: see `hwrx.roce.endpoint`, also for what is raised
    :param qkey: 32 bits; messages with another Q_Key are counted and dropped
    :param mtu: bytes of the longest message: 256, 512, 1024, 2048 or 4096
    :param depth: requests of either kind that may be posted and not polled
    """
    with contextlib.ExitStack() as stack:
        link, own = open_link(device, address, stack, mac=mac, qpn=qpn, psn=0, mtu=mtu, poll=poll)
        made = DatagramEndpoint(link, own.with_fields(qkey=qkey), stack, depth=depth)
        made._resources = stack.pop_all()
    return made
