"""The connection manager's messages as RDMA-CM sends them: a client asks over queue pair 1, and is connected.

Management datagrams (MAD) of 256 bytes, communication management class, in UD SENDs between the queue pairs 1 of both
ends (InfiniBand specification, volume 1, 12.6 and 13.4.2; the fields' places are Linux' include/rdma/ibta_vol1_c12.h).
Here is the passive side: REQ is answered by REP or REJ, RTU ends the handshake, DREQ is answered by DREP.
"""

from __future__ import annotations

import ipaddress
import os
import time

from msgspec import Struct

from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from hwrx.errors import PeerError
from hwrx.roce.endpoints import Endpoint
from hwrx.roce.parameters import Parameters

GSI = 1  # the queue pair of general management
GSI_QKEY = 0x80010000
MAD = 256  # bytes
REQ, MRA, REJ, REP, RTU, DREQ, DREP = range(0x10, 0x17)
RDMA_PS_TCP = 0x0106 << 16  # of a service ID; the port is in its lower half (annex A11)
INVALID_SERVICE, NO_RESOURCES = 8, 3  # reasons of a REJ
RPING_PORT = 7174
_HEADER = b"\x01\x07\x02\x03"  # base version, class, its version, method Send
MTUS = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
_READS = 4


class Management(Struct, frozen=True):
    """A message of the connection manager: its attribute, its transaction, what follows the header."""

    attribute: int
    transaction: int
    body: bytes
    mac: str  # of who sent it


class Request(Struct, frozen=True):
    """What a REQ asks for."""

    communication: int  # the client's number for this connection
    port: int  # of RDMA-CM's TCP port space; -1: another service
    qpn: int
    starting_psn: int  # with which it wants us to begin
    mtu: int
    initiator_depth: int  # READs that it will have outstanding
    responder_resources: int  # READs of ours that it can bear
    ack_timeout: int
    retry_count: int
    rnr_retry: int
    address: str


def read_management(frame: bytes) -> Management | None:
    """Return a message of the connection manager; None if the frame is anything else."""
    found = dissect_roce(frame)
    payload = found.get("payload", b"")
    if found.get("qpn") != GSI or found.get("qkey") != GSI_QKEY or not found.get("icrc") or len(payload) != MAD:
        return None
    if payload[:4] != _HEADER:
        return None
    number = int.from_bytes(payload[16:18], "big")
    return Management(number, int.from_bytes(payload[8:16], "big"), payload[24:], frame[6:12].hex(":"))


def read_request(body: bytes) -> Request:
    """Take a REQ's fields apart."""
    service = int.from_bytes(body[8:16], "big")
    gid = ipaddress.IPv6Address(body[56:72])
    return Request(
        communication=int.from_bytes(body[0:4], "big"),
        port=service & 0xFFFF if service >> 16 << 16 == RDMA_PS_TCP else -1,
        qpn=int.from_bytes(body[32:35], "big"),
        responder_resources=body[35],
        initiator_depth=body[39],
        starting_psn=int.from_bytes(body[44:47], "big"),
        retry_count=body[47] & 7,
        mtu=MTUS.get(body[50] >> 4, 0),
        rnr_retry=body[50] & 7,
        ack_timeout=body[95] >> 3,
        address=str(gid),
    )


def build_reply(request: Request, own: Parameters, communication: int, reads: int) -> bytes:
    """Return the body of a REP.

    :param communication: our number for this connection
    :param reads: READs that either end may have outstanding
    """
    body = bytearray(MAD - 24)
    body[0:4] = communication.to_bytes(4, "big")
    body[4:8] = request.communication.to_bytes(4, "big")
    body[12:15] = own.qpn.to_bytes(3, "big")
    body[20:23] = own.psn.to_bytes(3, "big")
    body[24] = min(reads, request.initiator_depth)
    body[25] = min(reads, request.responder_resources)
    body[27] = request.rnr_retry << 5
    body[28:36] = bytes.fromhex(own.mac.replace(":", "")).rjust(8, b"\x02")  # the channel adapter's GUID
    return bytes(body)


def build_reject(request: Request, reason: int) -> bytes:
    """Return the body of a REJ of a REQ."""
    body = bytearray(MAD - 24)
    body[4:8] = request.communication.to_bytes(4, "big")
    body[10:12] = reason.to_bytes(2, "big")
    return bytes(body)


class Manager:
    """The passive side of one connection over an endpoint, on a port of RDMA-CM.

    Attributes: `ended`, whether the client has said that it leaves.
    """

    def __init__(self, qp: Endpoint, port: int) -> None:
        self.ended = False
        self._qp, self._port = qp, port
        self._communication = int.from_bytes(os.urandom(4), "big") | 1
        self._sent = 0
        self._request: Request | None = None
        self._way = b""

    def accept(self, patience: float | None = None) -> Parameters:
        """Wait for a client, and connect with it. Who calls has posted its receive requests.

        :param patience: seconds; None: for ever
        :return: what the client says of itself
        :raises PeerError: if none comes in time
        """
        deadline = None if patience is None else time.monotonic() + patience
        self._qp.management = self.take
        while self._qp.peer is None:
            if deadline is not None and time.monotonic() > deadline:
                raise PeerError(
                    f"nobody asked for a connection to port {self._port} within {patience:g} s",
                    remedy="start the client, with our address and this port",
                )
            self._qp.idle(0.05)
        return self._qp.peer

    def take(self, frame: bytes) -> None:
        """Answer a frame to queue pair 1, if it is one of the connection manager."""
        found = read_management(frame)
        if found is None:
            return
        if found.attribute == REQ:
            self._take_request(found)
        elif found.attribute == DREQ and self._request is not None and self._is_ours(found.body):
            self.ended = True
            body = self._communication.to_bytes(4, "big") + self._request.communication.to_bytes(4, "big")
            self._send(found, DREP, body)

    def _is_ours(self, body: bytes) -> bool:
        return int.from_bytes(body[4:8], "big") == self._communication

    def _take_request(self, found: Management) -> None:
        request = read_request(found.body)
        if request.port == self._port and self._request is None and request.mtu:
            self._way = self._way_to(found, request)
            self._connect(found, request)
        own, same = self._qp.parameters, request == self._request
        if same:  # again, because our REP was lost
            self._send(found, REP, build_reply(request, own, self._communication, _READS))
        else:
            way, self._way = self._way, self._way_to(found, request)
            reason = INVALID_SERVICE if request.port != self._port else NO_RESOURCES
            self._send(found, REJ, build_reject(request, reason))
            self._way = way

    def _way_to(self, found: Management, request: Request) -> bytes:
        own, there = self._qp.parameters, Parameters(gid=request.address, qpn=request.qpn, psn=0)
        return address_vector(self._qp.link.mac, found.mac, own.ip, there.ip)

    def _connect(self, found: Management, request: Request) -> None:
        # a REP tells the number with which the client begins, and its REQ told ours
        own = self._qp.parameters
        there = Parameters(gid=request.address, qpn=request.qpn, psn=own.psn, mtu=request.mtu, mac=found.mac)
        self._qp.connect(
            there, begins=request.starting_psn, timeout=request.ack_timeout, retry_count=request.retry_count,
            rnr_retry=request.rnr_retry,
        )  # fmt: skip
        self._request = request

    def _send(self, answers: Management, attribute: int, body: bytes) -> None:
        header = _HEADER + bytes(4) + answers.transaction.to_bytes(8, "big") + attribute.to_bytes(2, "big") + bytes(6)
        packet = build_packet(
            self._way, "UD_SEND_ONLY", qpn=GSI, psn=self._sent & 0xFFFFFF, qkey=GSI_QKEY, source_qpn=GSI,
            payload=(header + body).ljust(MAD, b"\0"),
        )  # fmt: skip
        self._sent += 1
        self._qp.link.send(packet)
