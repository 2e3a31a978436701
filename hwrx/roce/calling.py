"""The active side of RDMA-CM: REQ asks a listener for a connection, RTU says that its REP has come, DREQ ends it.

The messages are those of 12.6.5 to 12.6.11 of the InfiniBand specification, volume 1, of which MRA (12.6.6) asks for
time.

Nothing says whether a message arrives, so each is sent again until it is answered. The passive side is
`hwrx.roce.connecting`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hwrx.errors import PeerError, UsageError
from hwrx.roce.endpoints import Endpoint
from hwrx.roce.management import (
    DREP,
    DREQ,
    MRA,
    READS,
    REJ,
    REP,
    REQ,
    RTU,
    Management,
    Reply,
    Request,
    Sender,
    build_request,
    describe_reject,
    read_management,
    read_reply,
)
from hwrx.roce.parameters import Parameters, gid_of

_AGAIN = 0.5  # seconds after which a message that nobody answered is sent again


class Caller:
    """The active side of one connection over an endpoint.

    Attributes: `ended`, whether the listener has said that it leaves.

    :param qp: not connected
    :param address: the listener's IP address
    :param port: of RDMA-CM's TCP port space
    """

    def __init__(self, qp: Endpoint, address: str, port: int) -> None:
        self.ended = False
        self._qp, self._address, self._port = qp, address, port
        self._gid = gid_of(address)
        self._communication = int.from_bytes(os.urandom(4), "big") | 1
        self._transaction = int.from_bytes(os.urandom(8), "big")
        self._reply: Reply | None = None
        self._refused = ""
        self._waits = False  # the listener has asked for more time
        self._left = False  # it has answered that we leave
        self._sender: Sender | None = None

    def connect(self, *, mac: str = "", patience: float = 10.0, ack_timeout: int = 14, retries: int = 7) -> Parameters:
        """Ask for a connection until it stands. Who calls has posted its receive requests.

        :param mac: of the listener, or of the router towards it; "" asks by ARP or neighbour discovery
        :param patience: seconds for an answer; again as many if the listener asks for time
        :param ack_timeout, retries: see Endpoint.connect; the listener is told to use the same
        :return: what the listener says of itself
        :raises PathError: if nobody answers for the address
        :raises PeerError: if nobody answers at the port, or the connection is refused
        """
        own = self._qp.parameters
        mac = mac or self._qp.find_mac(self._address, patience)
        self._sender = Sender(self._qp, mac, self._address)
        request = Request(
            communication=self._communication, port=self._port, qpn=own.qpn, starting_psn=own.psn, mtu=own.mtu,
            initiator_depth=READS, responder_resources=READS, ack_timeout=ack_timeout, retry_count=retries,
            rnr_retry=7, address=own.gid,
        )  # fmt: skip
        self._qp.management = self.take
        self._ask(REQ, build_request(request, self._gid, self._qp.link.mac), patience, self._is_answered)
        if self._refused:
            raise PeerError(
                f"{self._address}, port {self._port} refuses the connection: {self._refused}",
                remedy="is a program of RDMA-CM listening there (rping -s)? --cm ADDRESS:PORT names its port",
            )
        if self._reply is None:
            raise PeerError(
                f"nobody answers at {self._address}, port {self._port}, within {patience:g} s",
                remedy="is RDMA-CM up there (modprobe rdma_cm), and an RDMA device on that address? rdma link",
            )
        # a REQ tells the number with which the listener begins, and its REP told ours
        there = Parameters(gid=self._gid, qpn=self._reply.qpn, psn=own.psn, mtu=own.mtu, mac=mac)
        try:
            self._qp.connect(
                there, begins=self._reply.starting_psn, timeout=ack_timeout, retry_count=retries,
                rnr_retry=self._reply.rnr_retry, reads=self._reply.responder_resources,
            )  # fmt: skip
        except UsageError as error:
            remedy = "see what the listener says"
            raise PeerError(f"the listener's answer cannot be: {Exception.__str__(error)}", remedy=remedy) from error
        self._tell_ready()
        return there

    def disconnect(self, patience: float = 3.0) -> bool:
        """Say that we leave, until the listener knows; harmless if it was not connected.

        :param patience: seconds for its answer
        :return: whether it has answered, or left itself
        """
        if self._reply is not None and not self.ended:
            body = self._both_numbers() + self._reply.qpn.to_bytes(3, "big")
            self._ask(DREQ, body, patience, lambda: self._left or self.ended)
        return self._left or self.ended

    def take(self, frame: bytes) -> None:
        """Take a frame to queue pair 1, if it is the listener's answer."""
        found = read_management(frame)
        if found is None or found.destination != self._qp.parameters.ip:
            return
        if int.from_bytes(found.body[4:8], "big") != self._communication:
            return
        if found.attribute == REP:
            self._take_reply(found)
        elif found.attribute == REJ and self._reply is None:
            self._refused = describe_reject(found.body)
        elif found.attribute == MRA:
            self._waits = True
        elif found.attribute == DREP:
            self._left = True
        elif found.attribute == DREQ and self._reply is not None:
            self.ended = True
            self._send(DREP, found.transaction, self._both_numbers())

    def _take_reply(self, found: Management) -> None:
        if self._reply is not None:  # again, because our RTU was lost
            self._tell_ready()
        elif not self._refused:
            self._reply = read_reply(found.body)

    def _is_answered(self) -> bool:
        return self._reply is not None or bool(self._refused)

    def _ask(self, attribute: int, body: bytes, patience: float, answered: Callable[[], bool]) -> None:
        """Send a message until it is answered, or for too long."""
        begun = time.monotonic()
        asked = begun - _AGAIN
        while not answered() and (now := time.monotonic()) - begun < patience * (1 + self._waits):
            if now - asked >= _AGAIN:
                asked = now
                self._send(attribute, self._transaction, body)
            self._qp.idle(0.02)

    def _tell_ready(self) -> None:
        self._send(RTU, self._transaction, self._both_numbers())

    def _both_numbers(self) -> bytes:
        """Our number for the connection, and the listener's."""
        assert self._reply is not None
        return self._communication.to_bytes(4, "big") + self._reply.communication.to_bytes(4, "big")

    def _send(self, attribute: int, transaction: int, body: bytes) -> None:
        assert self._sender is not None
        self._sender.send(attribute, transaction, body)
