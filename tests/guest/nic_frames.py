"""Frames between the kernel's driver and ours, for the tests of the NIC: what is sent, and what has come of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import numpy as np

from hwrx.nic.e1000e import E1000e
from hwrx.wires import guest_nics

OURS, THEIRS = guest_nics.NIC_HARDWARE["server"], guest_nics.NIC_HARDWARE["client"]
STATION, OTHER = (bytes.fromhex(mac.replace(":", "")) for mac in (OURS, THEIRS))
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
KIND = 0x88B5  # IEEE: for experiments
LIMIT = 30.0  # seconds, against hanging


def frame(number: int, size: int = 64, destination: bytes = STATION) -> bytes:
    head = destination + OTHER + KIND.to_bytes(2, "big") + number.to_bytes(4, "little")
    return head + bytes((number + i) & 0xFF for i in range(size - len(head)))


def number_of(data: bytes) -> int:
    return int.from_bytes(bytes(data[14:18]), "little")


def received(nic: E1000e, last: int) -> list[int]:
    """The numbers of frames up to `last`, behind which nothing was sent: all that the NIC takes has come then."""
    found: list[int] = []
    for packet in nic.receive(timeout=LIMIT):
        if packet.data[12:14].tobytes() == KIND.to_bytes(2, "big"):
            found.append(number_of(packet.data))
            if found[-1] == last:
                break
    return found


def peeked(nic: E1000e, enough: Callable[[list[int]], bool]) -> list[np.ndarray]:
    """What the ring holds of our frames, as soon as their numbers are enough."""
    views: list[np.ndarray] = []
    deadline = time.monotonic() + LIMIT
    while not enough([number_of(view) for view in views]):
        assert time.monotonic() < deadline, [number_of(view) for view in views]
        views += [view for view in nic.rx.peek(256) if bytes(view[12:14]) == KIND.to_bytes(2, "big")]
    return views


class Kernel:
    """The kernel's end: raw frames through its driver."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND))
        self.socket.bind((guest_nics.NICS["client"], KIND))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self.socket.settimeout(10)

    def send(self, *frames: bytes) -> None:
        for one in frames:
            self.socket.send(one)

    def receive(self, count: int) -> list[bytes]:
        return [self.socket.recv(2048) for _ in range(count)]
