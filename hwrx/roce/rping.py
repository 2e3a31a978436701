"""What rping does (librdmacm/examples/rping.c): the server fetches the client's text by READ, and writes it back.

The client tells of its memory by a SEND of 16 bytes, address, key and size, once where the text is and once where it is
to come back to; after each of both the server says by a SEND that it is done.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from hwrx.errors import PathError, PeerError
from hwrx.roce.calling import Caller
from hwrx.roce.connecting import Manager
from hwrx.roce.endpoints import Endpoint
from hwrx.roce.talking import RoundTrips, drive_for

LARGEST = 1 << 20  # bytes of a text; rping's own limit is 64 KiB
_TOLD = struct.Struct(">QII")
_RECEIVES = 4


class Words:
    """Receive requests for what the other end tells, posted before both are connected."""

    def __init__(self, qp: Endpoint) -> None:
        self._memory = bytearray(_TOLD.size * _RECEIVES)
        self._region = qp.register(self._memory)
        self._qp = qp
        for slot in range(_RECEIVES):
            self._post(slot)

    def _post(self, slot: int) -> None:
        self._qp.post_receive(self._region, slot * _TOLD.size, _TOLD.size, wr_id=slot)

    def next(self, manager: Manager | Caller, timeout: float | None) -> tuple[int, int, int] | None:
        """Return address, key and size as the other end tells them next; None if it leaves.

        :param manager: says whether it has left
        :param timeout: seconds; None: as long as it takes
        :raises PathError: if the other end is silent, or the request ends badly
        :raises PeerError: if it says something else
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := self._qp.queue_pair.poll_receives(1)):
            if manager.ended:
                return None
            if deadline is not None and time.monotonic() > deadline:
                raise PathError(f"the other end has said nothing for {timeout:g} s", remedy="see what rping says")
            self._qp.drive(0.05)
        completion = self._qp.check_completion(found[0])
        if completion.size != _TOLD.size:
            raise PeerError(
                f"the other end sent {completion.size} bytes, and rping's are {_TOLD.size}", remedy="leave --rping out"
            )
        address, key, size = _TOLD.unpack_from(self._memory, completion.wr_id * _TOLD.size)
        self._post(completion.wr_id)
        return address, key, size


def serve_rping(
    qp: Endpoint, manager: Manager, words: Words, *, timeout: float | None, told: Callable[[int, bytes], None]
) -> int:
    """Answer one client until it leaves.

    :param qp: connected
    :param timeout: seconds without a word of the client after which it is given up
    :param told: is given the number of each text, from 1 on, and the text
    :return: how many texts went to and fro
    :raises PathError: if a request ends badly, or the client is silent
    :raises PeerError: if the client is not rping
    """
    text = bytearray(LARGEST)
    region = qp.register(text)
    number = size = 0
    reading = True
    while (said := words.next(manager, timeout)) is not None:
        address, key, asked = said
        if asked > LARGEST:
            raise PeerError(f"the client offers {asked} bytes", remedy=f"rping -S with at most {LARGEST}")
        size = asked if reading else min(size, asked)
        qp.post_send("read" if reading else "write", region, 0, size, key=key, address=address)
        qp.check_completion(qp.next_send(timeout))
        if not reading:
            number += 1
            told(number, bytes(text[:size]))
        qp.post_send("send", region, 0, _TOLD.size)  # rping looks at its length alone
        qp.check_completion(qp.next_send(timeout))
        reading = not reading
    return number


def ping_rping(
    qp: Endpoint, caller: Caller, words: Words, size: int, count: int, *, interval: float, timeout: float,
    told: Callable[[int], None],
) -> RoundTrips:  # fmt: skip
    """Give rping's server `count` texts, one after the other, and take the time until each is back.

    :param qp: connected by `caller`
    :param size: bytes of a text; the server's own, 100 if it was not told otherwise, is the most that it takes
    :param interval: seconds between two of them
    :param timeout: seconds for each of the server's two words
    :return: times in ns, and how many texts came back different
    :raises PathError: if a request ends badly, or the server is silent
    :raises PeerError: if the server leaves, or is not rping
    """
    text, back, message = bytearray(size), bytearray(size), bytearray(_TOLD.size)
    source, sink, words_out = qp.register(text), qp.register(back), qp.register(message)
    times: list[int] = []
    different = 0
    for done in range(count):
        text[:] = make_text(done, size)
        begun = time.monotonic_ns()
        for region in (source, sink):
            message[:] = _TOLD.pack(region.address, region.key, size)
            qp.post_send("send", words_out)
            qp.check_completion(qp.next_send(timeout))
            if words.next(caller, timeout) is None:
                raise PeerError(f"the server left after {done} texts", remedy="see what rping -s says: -C, -S, -v")
        times.append(time.monotonic_ns() - begun)
        different += back != text
        told(done + 1)
        drive_for(qp, interval)
    return RoundTrips("rping", size, times, different, 0, qp.queue_pair.counters)


def make_text(number: int, size: int) -> bytes:
    """Return a text as rping's client makes it: its number, and letters that begin one further each time; 0 ends it."""
    head = f"rdma-ping-{number}: ".encode()
    letters = bytes(65 + (number + place) % 58 for place in range(max(0, size - len(head) - 1)))
    return (head + letters)[: max(0, size - 1)].ljust(size, b"\0")
