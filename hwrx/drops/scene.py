"""A sender and a reader between which losses are provoked: what one sent, and what came of it at the other."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from msgspec import Struct

from hwrx.control.messages import Role
from hwrx.drops.books import Told, tell_nobody
from hwrx.host import netns
from hwrx.wires import topology

PORT = 40_777
SIZE = 64  # bytes of a message
BURST = 64
QUIET = 0.3  # seconds without a datagram after which none is on its way any more
SO_RCVBUFFORCE = 33

Names = dict[Role, str]
HERE: Names = {"client": "", "server": ""}  # this namespace, where the SoftRoCE pair must be


class Sent(Struct):
    """What the sender and the reader counted."""

    sent: int = 0
    refused: int = 0  # by sendto itself: they never were on their way
    delivered: int = 0
    truncated: int = 0
    corrupt: int = 0
    duplicated: int = 0


class Scene:
    """Two namespaces, a sender in one and a reader in the other. A context manager; closes both sockets."""

    def __init__(self, names: Names, trial: int) -> None:
        self.names = names
        self.trial = trial
        self.tally = Sent()
        self.reads = True  # after each burst
        self.reads_at_last = True
        self.buffer = SIZE
        self.destination = (topology.ADDRESSES["server"], PORT)
        self.make: Callable[[bytes], bytes] | None = None  # a frame for AF_PACKET instead of a datagram
        self.tap: socket.socket | None = None
        self.pause = 0.0  # seconds after a burst, for what runs elsewhere
        with netns.entered_namespace(names["client"] or None):
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.many = 0  # messages after which the reader is closed and another opened; 0: never
        self.reader = self._open()

    def _open(self) -> socket.socket:
        with netns.entered_namespace(self.names["server"] or None):
            reader = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reader.bind((topology.ADDRESSES["server"], PORT))
        reader.setblocking(False)
        return reader

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sender.close()
        self.reader.close()

    def roomy(self) -> None:
        """Give the reader a buffer that many unread messages do not fill."""
        self.reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)

    def raw(self) -> None:
        """Send frames from now on, with `make`."""
        self.sender.close()
        with netns.entered_namespace(self.names["client"] or None):
            self.sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.sender.bind((topology.LINKS["client"], 0))

    def run(self, messages: int, burst: int = BURST, told: Told = tell_nobody) -> Sent:
        """Send so many messages and read what comes of them, until nothing comes any more."""
        from cython_ext.core import payload

        tally = self.tally
        seen = bytearray(messages)
        for first in range(0, messages, burst):
            for number in range(first, min(first + burst, messages)):
                message = payload.make(SIZE, number, self.trial)
                try:
                    if self.make is not None:
                        self.sender.send(self.make(message))
                    else:
                        self.sender.sendto(message, self.destination)
                    tally.sent += 1
                except OSError:
                    tally.refused += 1
            if self.pause:
                time.sleep(self.pause)
            if self.reads:
                self._drain(seen)
            if self.many and tally.sent % self.many < burst:
                self.reader.close()
                self.reader = self._open()
                self.roomy()
            told(tally.sent)
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET:
            if self.reads and self._drain(seen):
                quiet_since = time.monotonic()
            time.sleep(0.01)
        if self.reads_at_last and self.reader.fileno() >= 0:
            self._drain(seen)
        return tally

    def _drain(self, seen: bytearray) -> int:
        from cython_ext.core import payload

        count = 0
        buffer = bytearray(self.buffer)
        while True:
            try:
                size, _, flags, _ = self.reader.recvmsg_into([buffer])
            except BlockingIOError:
                return count
            count += 1
            if flags & socket.MSG_TRUNC:
                self.tally.truncated += 1
                continue
            number = payload.sequence(buffer)
            if payload.check(buffer, self.trial) != payload.VERDICTS[0] or size != SIZE or number >= len(seen):
                self.tally.corrupt += 1
            elif seen[number]:
                self.tally.duplicated += 1
            else:
                seen[number] = 1
                self.tally.delivered += 1
