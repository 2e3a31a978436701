"""Frames as they pass a network device, both ways, by a packet socket beside whoever they are for."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from hwrx.errors import MachineError
from hwrx.host.waiting import wait_to_read
from hwrx.roce.captures import CapturedFrame

SOL_PACKET = 263  # linux/socket.h, which Python's module does not have
PACKET_STATISTICS = 6  # linux/if_packet.h
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SO_TIMESTAMPNS = 35
BUFFER = 1 << 25  # bytes that may wait in the socket: a burst of READ responses comes faster than Python takes it
LARGEST = 1 << 16


class Sniffer:
    """A packet socket on a network device. What passes it is copied: nobody is kept from anything.

    :param netdev: name of a network device of this network namespace
    :raises MachineError: if there is none, or it may not be listened to
    """

    def __init__(self, netdev: str) -> None:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except OSError as error:
            raise MachineError(f"no packet socket: {os.strerror(error.errno or 0)}", remedy="run as root") from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._socket.bind((netdev, ETH_P_ALL))
        except OSError as error:
            self._socket.close()
            if error.errno == errno.ENODEV:
                raise MachineError(
                    f"there is no network device '{netdev}'", remedy="ip link shows those there are"
                ) from error
            raise MachineError(
                f"'{netdev}' cannot be listened to: {os.strerror(error.errno or 0)}", remedy="run as root"
            ) from error

    def frames(self, timeout: float | None = None) -> Iterator[CapturedFrame]:
        """Yield each frame as it comes.

        :param timeout: seconds without a frame after which it ends; None: never
        :raises MachineError: if the device goes away or down
        """
        while wait_to_read([self._socket], timeout):
            try:
                data, messages, _, _ = self._socket.recvmsg(LARGEST, 64)
            except OSError as error:
                raise MachineError(
                    f"the network device is gone: {os.strerror(error.errno or 0)}", remedy="set it up again: ip link"
                ) from error
            at = time.time_ns()
            for level, kind, value in messages:
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                    seconds, nanoseconds = struct.unpack("qq", value[:16])
                    at = seconds * 1_000_000_000 + nanoseconds
            yield CapturedFrame(at, data, len(data))

    def count_lost(self) -> int:
        """Return how many frames were lost since the last call because the socket was full."""
        raw = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return int(struct.unpack("II", raw)[1])

    def close(self) -> None:
        """Close the socket; harmless when called twice."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
