"""The connection manager's messages as RDMA-CM sends them: written, sent and read.

Management datagrams (MAD) of 256 bytes, communication management class, in UD SENDs between the queue pairs 1 of both
ends (InfiniBand specification, volume 1, 12.6.5 to 12.6.11, with the header of 13.4.3; the fields' places are Linux'
include/rdma/ibta_vol1_c12.h, which has them from tables 106 to 113 of chapter 12).
"""

from __future__ import annotations

import ipaddress

from msgspec import Struct

from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from hwrx.roce.endpoints import Endpoint
from hwrx.roce.parameters import Parameters

GSI = 1  # the queue pair of general management
GSI_QKEY = 0x80010000
MAD = 256  # bytes
REQ, MRA, REJ, REP, RTU, DREQ, DREP = range(0x10, 0x17)
RDMA_PS_TCP = 0x0106 << 16  # of a service ID; the port is in its lower half (annex A11)
INVALID_SERVICE, INVALID_GID, NO_RESOURCES = 8, 12, 3  # reasons of a REJ
RPING_PORT = 7174
_HEADER = b"\x01\x07\x02\x03"  # base version, class, its version, method Send
_RESPONSE_TIMEOUT, _RETRIES = 20, 15  # code of 4.3 s for an answer to a message, which may come 15 times again
MTUS = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
READS = 4  # READs and atomics that either end may have outstanding
_BODY = MAD - 24  # bytes behind the header
# Reasons of a REJ, in words; the numbers are those of enum ib_cm_rej_reason in Linux' include/rdma/ib_cm.h
REASONS = {
    1: "it has no queue pair left", NO_RESOURCES: "it has no resources left", 4: "it waited for our answer in vain",
    5: "it does not support what we ask for", INVALID_SERVICE: "nobody listens at this port",
    10: "it believes that an earlier connection with our queue pair still stands",
    INVALID_GID: "it cannot have one of both GIDs",
    26: "it cannot have this path MTU", 28: "its program refused",
}  # fmt: skip


class Management(Struct, frozen=True):
    """A message of the connection manager: its attribute, its transaction, what follows the header."""

    attribute: int
    transaction: int
    body: bytes
    mac: str  # of who sent it, or of the last router
    source: str  # IP address of who sent it
    destination: str


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


class Reply(Struct, frozen=True):
    """What a REP answers."""

    communication: int  # the server's number for this connection
    answers: int  # the client's
    qpn: int
    starting_psn: int  # with which it wants the client to begin
    responder_resources: int  # READs of the client that it can bear
    rnr_retry: int


def read_management(frame: bytes) -> Management | None:
    """Return a message of the connection manager; None if the frame is anything else."""
    found = dissect_roce(frame)
    payload = found.get("payload", b"")
    if found.get("qpn") != GSI or found.get("qkey") != GSI_QKEY or not found.get("icrc") or len(payload) != MAD:
        return None
    if payload[:4] != _HEADER:
        return None
    number = int.from_bytes(payload[16:18], "big")
    transaction = int.from_bytes(payload[8:16], "big")
    ends = (str(found["source"]), str(found["destination"]))
    return Management(number, transaction, payload[24:], frame[6:12].hex(":"), *ends)


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


def build_request(request: Request, address: str, mac: str) -> bytes:
    """Return the body of a REQ (12.6.5, table 106).

    :param request: what it asks for; `address` is our GID
    :param address: GID of the other end
    :param mac: ours, of which the channel adapter's GUID is made
    """
    body = bytearray(_BODY)
    body[0:4] = request.communication.to_bytes(4, "big")
    body[8:16] = (RDMA_PS_TCP | request.port).to_bytes(8, "big")
    body[16:24] = _guid_of(mac)
    body[32:35] = request.qpn.to_bytes(3, "big")
    body[35], body[39] = request.responder_resources, request.initiator_depth
    body[43] = _RESPONSE_TIMEOUT << 3
    body[44:47] = request.starting_psn.to_bytes(3, "big")
    body[47] = _RESPONSE_TIMEOUT << 3 | request.retry_count
    body[48:50] = b"\xff\xff"  # the default partition
    body[50] = next(code for code, mtu in MTUS.items() if mtu == request.mtu) << 4 | request.rnr_retry
    body[51] = _RETRIES << 4
    ours, theirs = ipaddress.IPv6Address(request.address), ipaddress.IPv6Address(address)
    body[56:72], body[72:88] = ours.packed, theirs.packed
    body[93], body[95] = 64, request.ack_timeout << 3  # hop limit
    # RDMA-CM's private data: IP version, and both addresses, an IPv4 address in the last 4 of 16 bytes (annex A11)
    body[141] = (4 if theirs.ipv4_mapped else 6) << 4
    for at, gid in ((144, ours), (160, theirs)):
        body[at : at + 16] = gid.ipv4_mapped.packed.rjust(16, b"\0") if gid.ipv4_mapped else gid.packed
    return bytes(body)


def read_reply(body: bytes) -> Reply:
    """Take a REP's fields apart (12.6.8, table 110)."""
    return Reply(
        communication=int.from_bytes(body[0:4], "big"),
        answers=int.from_bytes(body[4:8], "big"),
        qpn=int.from_bytes(body[12:15], "big"),
        starting_psn=int.from_bytes(body[20:23], "big"),
        responder_resources=body[24],
        rnr_retry=body[27] >> 5,
    )


def build_reply(request: Request, own: Parameters, communication: int, reads: int) -> bytes:
    """Return the body of a REP.

    :param communication: our number for this connection
    :param reads: READs that either end may have outstanding
    """
    body = bytearray(_BODY)
    body[0:4] = communication.to_bytes(4, "big")
    body[4:8] = request.communication.to_bytes(4, "big")
    body[12:15] = own.qpn.to_bytes(3, "big")
    body[20:23] = own.psn.to_bytes(3, "big")
    body[24] = min(reads, request.initiator_depth)
    body[25] = min(reads, request.responder_resources)
    body[27] = request.rnr_retry << 5
    body[28:36] = _guid_of(own.mac)
    return bytes(body)


def build_reject(request: Request, reason: int) -> bytes:
    """Return the body of a REJ of a REQ (12.6.7, table 108)."""
    body = bytearray(_BODY)
    body[4:8] = request.communication.to_bytes(4, "big")
    body[10:12] = reason.to_bytes(2, "big")
    return bytes(body)


def describe_reject(body: bytes) -> str:
    """Say why a REJ refuses."""
    reason = int.from_bytes(body[10:12], "big")
    return REASONS.get(reason, f"reason {reason} of the connection manager's")


def _guid_of(mac: str) -> bytes:
    """A channel adapter's GUID."""
    return bytes.fromhex(mac.replace(":", "")).rjust(8, b"\x02")


class Sender:
    """Sends messages to the other end's queue pair 1 over an endpoint's link.

    :param qp: whose addresses are the source
    :param mac: of the other end, or of the router towards it
    :param address: the other end's IP address
    """

    def __init__(self, qp: Endpoint, mac: str, address: str) -> None:
        self._qp = qp
        self._way = address_vector(qp.link.mac, mac, qp.parameters.ip, address)
        self._sent = 0

    def send(self, attribute: int, transaction: int, body: bytes) -> None:
        """Send a message; nobody says whether it arrives."""
        header = _HEADER + bytes(4) + transaction.to_bytes(8, "big") + attribute.to_bytes(2, "big") + bytes(6)
        packet = build_packet(
            self._way, "UD_SEND_ONLY", qpn=GSI, psn=self._sent & 0xFFFFFF, qkey=GSI_QKEY, source_qpn=GSI,
            payload=(header + body).ljust(MAD, b"\0"),
        )  # fmt: skip
        self._sent += 1
        self._qp.link.send(packet)
