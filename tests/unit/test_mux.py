"""The port that many streams share: frames whole or refused, bytes in order, no stream in another's way."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrx.errors import GuestError
from hwrx.lab import mux
from hwrx.lab.mux import HEADER, LARGEST, MAGIC, WINDOW, Frame, Kind, Mux, Splitter

frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 0xFFFF),
    st.binary(max_size=200) | st.binary(min_size=LARGEST, max_size=LARGEST),
)


@given(st.lists(frames, max_size=6), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(mux.pack_frame(frame.kind, frame.channel, frame.payload) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter = Splitter()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += splitter.feed(stream[start:end])
    assert received == sent


@given(st.binary(min_size=HEADER.size, max_size=100).filter(lambda data: data[0] != MAGIC))
def test_what_is_no_frame_is_refused_at_its_first_byte(garbage: bytes) -> None:
    with pytest.raises(GuestError, match="something else than hwrx's frames"):
        Splitter().feed(garbage)


@given(st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))
def test_a_header_with_a_wrong_kind_or_length_is_refused(kind: int, channel: int, length: int) -> None:
    header = HEADER.pack(MAGIC, kind, channel, length)
    if kind in mux.KINDS and length <= LARGEST:
        assert all(frame.channel == channel for frame in Splitter().feed(header))
    else:
        with pytest.raises(GuestError):
            Splitter().feed(header)


@given(st.binary(max_size=4000))
def test_any_garbage_ends_in_words_or_in_frames(garbage: bytes) -> None:
    try:
        Splitter().feed(garbage)
    except GuestError as error:
        assert error.remedy


class Line:
    """Two Mux with a socket between them, each in a thread, and the frames that each was not able to use itself."""

    def __init__(self) -> None:
        self.ports = socket.socketpair()
        for port in self.ports:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.said: list[Frame] = []
        self.left = Mux(self.ports[0].fileno(), self.said.append)
        self.right = Mux(self.ports[1].fileno(), self.said.append)
        self._stop = False
        self._wake = [os.pipe() for _ in range(2)]
        self.problems: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def channel(self, number: int) -> tuple[socket.socket, socket.socket]:
        """Attach a channel on both sides, before `run`; returns the users' ends."""
        ends = []
        for side in (self.left, self.right):
            ours, theirs = socket.socketpair()
            fd = theirs.detach()
            side.attach(number, fd, fd)
            ours.settimeout(20)
            ends.append(ours)
        return ends[0], ends[1]

    @contextmanager
    def run(self) -> Iterator[None]:
        for side, (wake, _) in zip((self.left, self.right), self._wake, strict=True):
            side.watch(wake, lambda: None)
            thread = threading.Thread(target=self._serve, args=(side,))
            thread.start()
            self._threads.append(thread)
        try:
            yield
        finally:
            self._stop = True
            for _, wake in self._wake:
                os.close(wake)
            for thread in self._threads:
                thread.join()
            for wake, _ in self._wake:
                os.close(wake)
            self.left.close()
            self.right.close()
            for port in self.ports:
                port.close()
        assert not self.problems

    def _serve(self, side: Mux) -> None:
        try:
            while not self._stop and not side.ended:
                side.step(None)
        except BaseException as error:
            self.problems.append(error)


def receive(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = end.recv(1 << 16)
        assert part, f"the stream ended after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


def test_large_transfers_cross_both_ways_at_once_and_byte_for_byte() -> None:
    line = Line()
    left, right = line.channel(7)
    forth, back = os.urandom(3 * WINDOW + 13), os.urandom(2 * WINDOW + 5)
    with left, right, line.run():
        writers = [
            threading.Thread(target=left.sendall, args=(forth,)),
            threading.Thread(target=right.sendall, args=(back,)),
        ]
        for writer in writers:
            writer.start()
        halves: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda: halves.update(right=receive(right, len(forth)))),
            threading.Thread(target=lambda: halves.update(left=receive(left, len(back)))),
        ]
        for reader in readers:
            reader.start()
        for thread in [*writers, *readers]:
            thread.join()
    assert halves == {"right": forth, "left": back}


def test_a_reader_that_stands_still_stops_neither_another_stream_nor_fills_memory() -> None:
    line = Line()
    slow, ignored = line.channel(1)
    left, right = line.channel(2)
    with slow, ignored, left, right, line.run():
        slow.settimeout(0.5)
        with pytest.raises(TimeoutError):  # it is not taken without end: WINDOW, and what sockets hold
            slow.sendall(bytes(16 * WINDOW))
        for size in (1, 1000, 100_000):
            left.sendall(bytes(size))
            assert receive(right, size) == bytes(size)


def test_the_end_of_a_stream_arrives_after_its_last_byte_and_leaves_the_other_direction_open() -> None:
    line = Line()
    left, right = line.channel(3)
    with left, right, line.run():
        left.sendall(b"last words")
        left.shutdown(socket.SHUT_WR)
        assert receive(right, 10) == b"last words"
        assert right.recv(1) == b""
        right.sendall(b"an answer")
        assert receive(left, 9) == b"an answer"


def test_writing_to_somebody_who_has_gone_ends_nothing_else() -> None:
    line = Line()
    left, right = line.channel(4)
    other_left, other_right = line.channel(5)
    with left, other_left, other_right, line.run():
        right.close()
        # more than the window: it is taken and thrown away rather than waited for
        left.sendall(bytes(4 * WINDOW))
        other_left.sendall(b"still here")
        assert receive(other_right, 10) == b"still here"


def test_more_than_was_allowed_is_refused() -> None:
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    side = Mux(ours.fileno(), lambda frame: None)
    side.attach(1, os.open("/dev/zero", os.O_RDONLY), write)
    side._channels[1].credit = 0
    with ours, theirs, pytest.raises(GuestError, match="more than it was allowed"):
        theirs.settimeout(20)
        for _ in range(WINDOW // LARGEST + 40):  # nobody reads the pipe
            theirs.sendall(mux.pack_frame(Kind.DATA, 1, bytes(LARGEST)))
            side.step(1)
    side.close()
    os.close(read)


def test_frames_for_a_channel_that_is_gone_are_dropped() -> None:
    ours, theirs = socket.socketpair()
    said: list[Frame] = []
    side = Mux(ours.fileno(), said.append)
    with ours, theirs:
        for kind in (Kind.DATA, Kind.EOF, Kind.CREDIT):
            theirs.sendall(mux.pack_frame(kind, 99, bytes(4)))
        theirs.sendall(mux.pack_frame(Kind.PING, 0))
        while not said:
            side.step(1)
    assert said == [Frame(Kind.PING, 0, b"")]


def test_a_port_that_hangs_up_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    side = Mux(ours.fileno(), lambda frame: None)
    theirs.close()
    while not side.ended:
        side.step(5)
    ours.close()
