"""The wire between guests: a pair of datagram sockets, or of more guests a switch that hands each frame on.

Neither has a name anywhere: no root, no device of this machine, nothing that could be left. A datagram is a frame. A
socket that is full is told to QEMU, which holds its guest's next frame back: between two guests none is ever lost. The
switch takes what a guest sends at once, or one slow guest would hold up all; what it holds for a guest beyond LONGEST
frames is dropped and counted. It knows all addresses beforehand, so that it learns and forgets none.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Self

LONGEST = 16_384  # frames held for a guest that is slow
LARGEST = 1 << 17  # bytes read of a frame: more than QEMU's largest
AT_ONCE = 64  # frames taken from one guest before the others have their turn
_ENDS_WITHIN = 5.0  # seconds that the thread has


class _Port:
    """The switch's side of one guest: what it has counted, and what it holds for that guest."""

    def __init__(self, side: socket.socket) -> None:
        self.side = side
        self.waiting: collections.deque[bytes] = collections.deque()
        self.taken = 0  # frames that the guest has sent
        self.handed = 0  # frames that it was given
        self.dropped = 0  # frames for it that were too many


class Cable:
    """A wire between as many guests as there are hardware addresses. A context manager.

    `plugs` are the descriptors for QEMU, by the guests' order; they stay the cable's, so that a guest can be booted
    once more.
    """

    def __init__(self, hardware: Sequence[str]) -> None:
        self.plugs: list[int] = []
        self._stack = contextlib.ExitStack()
        self._ports: dict[bytes, _Port] = {}
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as stack:
            if len(hardware) == 2:
                self.plugs = [each.fileno() for each in _socket_pair(stack)]
            else:
                for mac in hardware:
                    ours, theirs = _socket_pair(stack)
                    self.plugs.append(theirs.fileno())
                    self._ports[bytes.fromhex(mac.replace(":", ""))] = _Port(ours)
                self._stop, self._wake = _socket_pair(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        if self._ports:
            self._thread = threading.Thread(target=self._run, daemon=True, name="switch between guests")
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None:
            self._wake.send(b"!")
            self._thread.join(_ENDS_WITHIN)
        self._stack.close()

    def counts(self) -> list[Mapping[str, int]]:
        """Return what the switch has counted of each guest, in their order: frames taken, handed over, dropped.

        Empty between two guests, where nothing stands that could drop a frame.
        """
        return [{"taken": p.taken, "handed": p.handed, "dropped": p.dropped} for p in self._ports.values()]

    def _run(self) -> None:
        """Hand frames on until the cable is closed."""
        by_descriptor = {port.side.fileno(): port for port in self._ports.values()}
        with select.epoll() as poll:
            poll.register(self._stop, select.EPOLLIN)
            for descriptor in by_descriptor:
                poll.register(descriptor, select.EPOLLIN)
            while True:
                for descriptor, events in poll.poll():
                    port = by_descriptor.get(descriptor)
                    if port is None:
                        return
                    if events & select.EPOLLOUT and not _drain(port):
                        poll.modify(descriptor, select.EPOLLIN)
                    for frame in _frames_of(port) if events & select.EPOLLIN else ():
                        for other in self._destinations(frame, port):
                            if _hand_over(other, frame):
                                poll.modify(other.side.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _destinations(self, frame: bytes, source: _Port) -> Sequence[_Port]:
        if frame[0] & 1:  # to a group (IEEE 802.3, 3.2.3)
            return [port for port in self._ports.values() if port is not source]
        port = self._ports.get(frame[:6])
        return () if port is None else (port,)


def _socket_pair(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for side in pair:
        side.setblocking(False)
        stack.callback(side.close)
    return pair


def _frames_of(port: _Port) -> list[bytes]:
    """Return what a guest has sent, up to AT_ONCE frames."""
    frames: list[bytes] = []
    with contextlib.suppress(OSError):  # BlockingIOError: no more
        while len(frames) < AT_ONCE:
            frames.append(os.read(port.side.fileno(), LARGEST))
    port.taken += len(frames)
    return [frame for frame in frames if frame]


def _hand_over(port: _Port, frame: bytes) -> bool:
    """Give a guest a frame, or hold it; return whether it is the first one that is held."""
    if not port.waiting:
        try:
            port.side.send(frame)
        except BlockingIOError:
            port.waiting.append(frame)
            return True
        except OSError:  # its QEMU is gone
            port.dropped += 1
        else:
            port.handed += 1
        return False
    if len(port.waiting) < LONGEST:
        port.waiting.append(frame)
    else:
        port.dropped += 1
    return False


def _drain(port: _Port) -> bool:
    """Give a guest what is held for it, as far as it takes it; return whether there is more."""
    with contextlib.suppress(OSError):  # BlockingIOError: it is full again
        while port.waiting:
            port.side.send(port.waiting[0])
            port.waiting.popleft()
            port.handed += 1
    return bool(port.waiting)
