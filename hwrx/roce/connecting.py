"""The passive side of RDMA-CM: a client asks over queue pair 1, and is connected.

REQ is answered by REP or REJ, RTU ends the handshake, DREQ is answered by DREP.
"""

from __future__ import annotations

import os
import time

from hwrx.errors import PeerError, UsageError
from hwrx.roce.endpoints import Endpoint
from hwrx.roce.management import (
    DREP,
    DREQ,
    INVALID_GID,
    INVALID_SERVICE,
    NO_RESOURCES,
    READS,
    REJ,
    REP,
    REQ,
    Management,
    Request,
    Sender,
    build_reject,
    build_reply,
    read_management,
    read_request,
)
from hwrx.roce.parameters import Parameters


class Manager:
    """The passive side of one connection over an endpoint, on a port of RDMA-CM.

    Attributes: `ended`, whether the client has said that it leaves.
    """

    def __init__(self, qp: Endpoint, port: int) -> None:
        self.ended = False
        self._qp, self._port = qp, port
        self._communication = int.from_bytes(os.urandom(4), "big") | 1
        self._request: Request | None = None

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
        if found is None or found.destination != self._qp.parameters.ip:
            return
        if found.attribute == REQ:
            self._take_request(found)
        elif found.attribute == DREQ and self._request is not None and self._is_ours(found.body):
            self.ended = True
            body = self._communication.to_bytes(4, "big") + self._request.communication.to_bytes(4, "big")
            self._answer(found, DREP, body)

    def _is_ours(self, body: bytes) -> bool:
        return int.from_bytes(body[4:8], "big") == self._communication

    def _take_request(self, found: Management) -> None:
        request, reason = read_request(found.body), NO_RESOURCES
        if request.port == self._port and self._request is None and request.mtu:
            try:
                self._connect(found, request)
            except UsageError:  # an address or a queue pair that cannot be the client's
                reason = INVALID_GID
        if request == self._request:  # also again, because our REP was lost
            self._answer(found, REP, build_reply(request, self._qp.parameters, self._communication, READS))
        else:
            reason = INVALID_SERVICE if request.port != self._port else reason
            self._answer(found, REJ, build_reject(request, reason))

    def _answer(self, found: Management, attribute: int, body: bytes) -> None:
        # to where it came from, whatever it says of itself
        Sender(self._qp, found.mac, found.source).send(attribute, found.transaction, body)

    def _connect(self, found: Management, request: Request) -> None:
        # a REP tells the number with which the client begins, and its REQ told ours
        own = self._qp.parameters
        there = Parameters(gid=request.address, qpn=request.qpn, psn=own.psn, mtu=request.mtu, mac=found.mac)
        self._qp.connect(
            there, begins=request.starting_psn, timeout=request.ack_timeout, retry_count=request.retry_count,
            rnr_retry=request.rnr_retry, reads=request.responder_resources,
        )  # fmt: skip
        self._request = request
