"""The host's end on an Ethernet segment of a guest: frames from a host's program to the guest's NICs, and back.

QEMU's `-netdev dgram` takes one frame a datagram, and a hub joins it to the NICs of the topology `nic`. Nothing of the
host's network takes part, and the socket has no name that could be left behind.

    with Segment() as wire, Guest("nic", qemu=wire.qemu, descriptors=wire.descriptors) as guest:
        wire.send(frame)
"""

from __future__ import annotations

import contextlib
import socket
import time
from types import TracebackType
from typing import Self

from hwrx.errors import UsageError
from hwrx.host.waiting import wait_to_read
from hwrx.wires.guest_nics import NIC_HUB

LONGEST = 65_536  # bytes of a frame
AT_ONCE = 0.2  # seconds that a full socket may make the sender wait


class Segment:
    """A port of hub `hub` of a guest. Use `qemu` and `descriptors` for one guest; `close()` when that has ended."""

    def __init__(self, hub: int = NIC_HUB) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._hub = hub

    @property
    def qemu(self) -> list[str]:
        """Words for QEMU, for `Guest(qemu=…)`."""
        name = f"hub{self._hub}host"
        return [
            *("-netdev", f"dgram,id={name},local.type=fd,local.str={self._theirs.fileno()}"),
            *("-netdev", f"hubport,id={name}port,hubid={self._hub},netdev={name}"),
        ]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What QEMU inherits, for `Guest(descriptors=…)`."""
        return (self._theirs.fileno(),)

    def send(self, *frames: bytes) -> int:
        """Send whole Ethernet frames (without CRC), in order: how many the guest took before its queue was full."""
        for number, frame in enumerate(frames):
            if not 14 <= len(frame) <= LONGEST:
                raise UsageError(f"an Ethernet frame of {len(frame)} bytes cannot be", remedy=f"14 to {LONGEST} bytes")
            self._ours.settimeout(AT_ONCE)
            try:
                self._ours.send(frame)
            except TimeoutError:
                return number
        return len(frames)

    def receive(self, count: int = 1, seconds: float = 1.0) -> list[bytes]:
        """Up to `count` frames that NICs of the guest sent, oldest first; fewer where they do not come in time."""
        got: list[bytes] = []
        deadline = time.monotonic() + seconds
        while len(got) < count:
            if not wait_to_read([self._ours], deadline - time.monotonic()):
                break
            got.append(self._ours.recv(LONGEST))
        return got

    def close(self) -> None:
        """Take the host off the segment; harmless when called twice."""
        for end in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
