"""Many streams over one port: how the host and a guest share a single virtio-serial line.

A frame is an 8-byte header (magic, kind, channel, length; big-endian) and at most `LARGEST` bytes. Channel 0 belongs to
the port itself; each other channel is one process in the guest, its standard input and output. A sender holds at most
`WINDOW` bytes of a channel that the receiver has not taken yet, so neither a slow reader nor a large transfer fills
memory or stops the other channels. This engine moves bytes; what processes are behind them is `hwrx.lab.guest`'s and
`hwrx.lab.vm`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from hwrx.errors import GuestError

HEADER = struct.Struct("!BBHI")
MAGIC = 0xA7
LARGEST = 1 << 15  # bytes of a frame: one buffer of the kernel's virtio_console
WINDOW = 1 << 18  # bytes of a channel on their way or not yet taken
_HELD_BACK = 1 << 18  # bytes queued for the port above which no channel is read
_MOST_QUEUED = 1 << 23  # bytes of answers that the other side may ask for and leave unread


class Kind(IntEnum):
    """What a frame says."""

    READY = 1  # guest to host, channel 0: the topology is up; JSON
    FAILED = 2  # guest to host: it is not, or the process could not be started; JSON
    OPEN = 3  # host to guest: start a process on this channel; JSON
    DATA = 4
    EOF = 5  # nothing more will be sent on this channel in this direction
    CREDIT = 6  # so many bytes of this channel were taken; 4 bytes
    EXIT = 7  # guest to host: the process is gone; 4 bytes of status, then the end of its standard error
    KILL = 8  # host to guest: send this signal to the process and its group; 1 byte
    PING = 9  # channel 0
    PONG = 10
    QUIT = 11  # host to guest, channel 0: end everything


KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: Kind
    channel: int
    payload: bytes


def pack_frame(kind: Kind, channel: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame's bytes; GuestError if the payload is larger than LARGEST, which the other side would refuse."""
    if len(payload) > LARGEST:
        raise GuestError(f"a frame for the control port carries {len(payload)} bytes, and at most {LARGEST} fit")
    return HEADER.pack(MAGIC, kind, channel, len(payload)) + payload


class Splitter:
    """Cuts what was read into frames; GuestError at the first byte that is none."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take what was read, return the frames that are complete."""
        self._data += data
        frames = []
        at = 0
        while len(self._data) - at >= HEADER.size:
            magic, kind, channel, length = HEADER.unpack_from(self._data, at)
            if magic != MAGIC or kind not in KINDS or length > LARGEST:
                raise GuestError(
                    "the guest's control port carried something else than hwrx's frames: "
                    f"{bytes(self._data[at : at + 24])!r}",
                    remedy="host and guest must run the same hwrx, and nothing else may write to the port",
                )
            end = at + HEADER.size + length
            if len(self._data) < end:
                break
            frames.append(Frame(Kind(kind), channel, bytes(self._data[at + HEADER.size : end])))
            at = end
        del self._data[:at]
        return frames


@dataclass(slots=True)
class _Channel:
    read_fd: int  # what is read here goes to the port; -1: no more
    write_fd: int  # what the port brings is written here; -1: no more
    on_end: Callable[[], None] | None  # called when nothing more will be read here
    open: set[int]  # the descriptors that are still to be closed
    is_socket: bool  # both are one socket, of which each direction ends by itself
    credit: int = WINDOW  # bytes that may be sent
    arrived: bytearray = field(default_factory=bytearray)  # not yet written to write_fd
    finish: bool = False  # end write_fd when `arrived` is written
    drain: bool = False  # the process is gone: what is there now is all there will be
    leave: bool = False  # detach when `arrived` is written

    def end_read(self) -> None:
        if not self.is_socket:
            os.close(self.read_fd)
            self.open.discard(self.read_fd)
        self.read_fd = -1

    def end_write(self) -> None:
        if self.is_socket:
            shut_write(self.write_fd)
        else:
            os.close(self.write_fd)
            self.open.discard(self.write_fd)
        self.write_fd = -1


class Mux:
    """Moves bytes between a port and the channels' descriptors. Single-threaded: call `step` again and again.

    Descriptors are non-blocking from `attach` on, and owned by the Mux, which closes them. `on_frame` gets the frames
    that are not about moving bytes.
    """

    def __init__(self, port: int, on_frame: Callable[[Frame], None]) -> None:
        self._port = port
        self._on_frame = on_frame
        self._splitter = Splitter()
        self._out = bytearray()
        self._channels: dict[int, _Channel] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self.ended = False  # the other side of the port is gone
        os.set_blocking(port, False)

    def attach(self, number: int, read_fd: int, write_fd: int, on_end: Callable[[], None] | None = None) -> None:
        """Begin to move a channel's bytes. The descriptors may be one socket."""
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._channels[number] = _Channel(read_fd, write_fd, on_end, {read_fd, write_fd}, read_fd == write_fd)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Call `call` when `fd` becomes readable, until `unwatch`."""
        self._watched[fd] = call

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`."""
        self._watched.pop(fd, None)

    def send(self, kind: Kind, channel: int = 0, payload: bytes = b"") -> None:
        """Queue a frame."""
        self._out += pack_frame(kind, channel, payload)

    def drain(self, number: int) -> None:
        """Say that nothing new will be written to this channel's `read_fd`: send what is there, then the end."""
        if number in self._channels:
            self._channels[number].drain = True

    def detach(self, number: int) -> None:
        """Forget a channel and close its descriptors; frames that still arrive for it are dropped."""
        channel = self._channels.pop(number, None)
        if channel is not None:
            for fd in channel.open:
                os.close(fd)

    def leave(self, number: int) -> None:
        """Detach a channel as soon as all that arrived for it is written, or cannot be written any more."""
        channel = self._channels.get(number)
        if channel is not None:
            channel.leave = True
            if not channel.arrived:
                self.detach(number)

    def close(self) -> None:
        """Detach everything. The port stays the caller's."""
        for number in list(self._channels):
            self.detach(number)

    def flush(self) -> None:
        """Write what is queued, waiting as long as it takes or until the port ends."""
        while self._out and not self.ended:
            self.step(None)

    def step(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for something to do, and do it.

        GuestError where the port carries garbage; `ended` is set when its other side is gone.
        """
        poll = select.poll()
        interest: dict[int, int] = {self._port: select.POLLIN}
        if self._out:
            interest[self._port] |= select.POLLOUT
        for fd in self._watched:
            interest[fd] = interest.get(fd, 0) | select.POLLIN
        for channel in self._channels.values():
            if channel.read_fd >= 0 and channel.credit > 0 and len(self._out) < _HELD_BACK:
                if channel.drain:
                    timeout = 0
                interest[channel.read_fd] = interest.get(channel.read_fd, 0) | select.POLLIN
            if channel.write_fd >= 0 and channel.arrived:
                interest[channel.write_fd] = interest.get(channel.write_fd, 0) | select.POLLOUT
        for fd, events in interest.items():
            poll.register(fd, events)
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))

        if ready.get(self._port, 0) & ~select.POLLOUT:
            self._receive()
        for fd in [fd for fd in self._watched if fd in ready]:
            self._watched[fd]()
        for number, channel in list(self._channels.items()):
            if channel.write_fd in ready and channel.arrived:
                self._deliver(number, channel)
            if (
                channel.read_fd >= 0
                and channel.credit > 0
                and len(self._out) < _HELD_BACK
                and (channel.drain or channel.read_fd in ready)
            ):
                self._collect(number, channel)
        if self._out and not self.ended:
            self._transmit()

    def _receive(self) -> None:
        try:
            data = os.read(self._port, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return
        if len(self._out) > _MOST_QUEUED:
            raise GuestError("the other side of the guest's control port asks and asks, and reads no answer")
        for frame in self._splitter.feed(data):
            channel = self._channels.get(frame.channel)
            match frame.kind:
                case Kind.DATA:
                    if channel is None:
                        continue
                    if channel.write_fd < 0:
                        self._taken(frame.channel, len(frame.payload))  # nobody reads it any more
                    elif len(channel.arrived) + len(frame.payload) > WINDOW:
                        raise GuestError("the other side of the guest's control port sent more than it was allowed to")
                    else:
                        channel.arrived += frame.payload
                        self._deliver(frame.channel, channel)
                case Kind.EOF:
                    if channel is not None:
                        channel.finish = True
                        self._deliver(frame.channel, channel)
                case Kind.CREDIT:
                    if channel is not None and len(frame.payload) == 4:
                        channel.credit = min(WINDOW, channel.credit + int.from_bytes(frame.payload))
                case _:
                    self._on_frame(frame)

    def _taken(self, number: int, count: int) -> None:
        self.send(Kind.CREDIT, number, count.to_bytes(4))

    def _deliver(self, number: int, channel: _Channel) -> None:
        """Write what has arrived, as far as it goes."""
        if channel.write_fd < 0:
            return
        while channel.arrived:
            try:
                count = os.write(channel.write_fd, channel.arrived)
            except BlockingIOError:
                return
            except OSError:  # EPIPE: the reader is gone, which is its own affair
                self._taken(number, len(channel.arrived))
                channel.arrived.clear()
                channel.finish = True
                break
            del channel.arrived[:count]
            self._taken(number, count)
        if channel.finish:
            channel.end_write()
        if channel.leave:
            self.detach(number)

    def _collect(self, number: int, channel: _Channel) -> None:
        """Read what the channel's process or user has written, as far as the receiver has room."""
        try:
            data = os.read(channel.read_fd, min(channel.credit, LARGEST))
        except BlockingIOError:
            if not channel.drain:
                return
            data = b""
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ECONNRESET):
                raise
            data = b""
        if data:
            channel.credit -= len(data)
            self.send(Kind.DATA, number, data)
            return
        self.send(Kind.EOF, number)
        channel.end_read()
        if channel.on_end is not None:
            channel.on_end()

    def _transmit(self) -> None:
        try:
            while self._out:
                count = os.write(self._port, self._out[:LARGEST])
                del self._out[:count]
        except BlockingIOError:
            return
        except OSError:
            self.ended = True


def shut_write(fd: int) -> None:
    """Tell the reader of a socket that nothing more will come, as closing a pipe does."""
    end = socket.socket(fileno=os.dup(fd))
    with contextlib.suppress(OSError):  # the reader may have gone first
        end.shutdown(socket.SHUT_WR)
    end.close()
