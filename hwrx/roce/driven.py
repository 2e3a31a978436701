"""What endpoints of RoCEv2 have in common, whatever their service: a link, an address on it, memory, and driving."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from cython_ext.frames.link import FrameLink
from cython_ext.roce.datagram_pair import DatagramCompleted
from cython_ext.roce.memory_region import EVERY_ACCESS, MemoryRegion, ProtectionDomain
from cython_ext.roce.queue_pair import WorkCompletion
from cython_ext.verbs.wc_words import SENTENCES
from hwrx.errors import PathError, UsageError
from hwrx.roce.neighbours import answer_neighbour, ask_neighbour, read_neighbour
from hwrx.roce.parameters import LARGEST_NUMBER, Parameters, check_station

if TYPE_CHECKING:
    from typing_extensions import Buffer

SLICE = 0.2  # seconds after which a wait looks whether Ctrl-C has come
SUCCESS = "IBV_WC_SUCCESS"
Done = TypeVar("Done", WorkCompletion, DatagramCompleted)
Either = TypeVar("Either", bound=WorkCompletion | DatagramCompleted)


class DrivenPair(Protocol[Done]):
    """What a queue pair of either service does for whoever drives it."""

    def progress(self) -> int:
        """Take what has come, and send what is to be sent; how many frames came."""

    def wait(self, seconds: float) -> bool:
        """Sleep until a frame is there, or something is to be done."""

    def take_aside(self) -> bytes | None:
        """Hand out a frame that is not the queue pair's, but has to be answered."""

    def poll_sends(self, most: int = 64) -> list[Done]:
        """Completions of send requests."""

    def poll_receives(self, most: int = 64) -> list[Done]:
        """Completions of receive requests."""

    @property
    def counters(self) -> dict[str, int]:
        """What has happened so far, by name."""

    def close(self) -> None:
        """Flush what is posted."""


class QueuePairEndpoint(ABC, Generic[Done]):
    """An end with one queue pair. A context manager, whose end gives everything back.

    Attributes: `parameters`, what the other end must know; `link`, which carries the frames; `queue_pair`, with
    `counters`; `peer`, the other end once it is known; `management`, which is called with each frame that is set
    aside, if it is set (`hwrx.roce.connecting`).
    """

    queue_pair: DrivenPair[Done]

    def __init__(self, link: FrameLink, own: Parameters, resources: contextlib.ExitStack) -> None:
        self.link = link
        self.parameters = own
        self.domain = ProtectionDomain()
        self.peer: Parameters | None = None
        self.management: Callable[[bytes], None] | None = None
        self._resources = resources

    @abstractmethod
    def idle(self, seconds: float = 0.0) -> None:
        """Do what has to be done while the program waits for something else: answer who asks for our address.

        :param seconds: how long to wait if nothing is there
        :raises PathError: if the link fails
        """

    def register(self, buffer: Buffer, *, access: Iterable[str] = EVERY_ACCESS) -> MemoryRegion:
        """Let requests of this endpoint, and the other end, use a buffer.

        :param buffer: writable and contiguous: a PinnedBuffer, a bytearray, a NumPy array. It is held until the region
            is closed
        :param access: what may be done with it, of "local write", "remote write", "remote read", "remote atomic"
        :return: the region, with `key` and `address` for the other end
        :raises UsageError: if the buffer is empty or read-only, or there is no such right
        """
        return self.domain.register(buffer, access=access)

    def find_mac(self, address: str, patience: float = 5.0) -> str:
        """Ask on the link who has an address, and answer who asks for ours meanwhile. Before the first `drive`.

        :param address: of the peer
        :param patience: seconds
        :raises PathError: if nobody answers
        """
        own = self.parameters.ip
        asked, deadline = 0.0, time.monotonic() + patience
        while (now := time.monotonic()) < deadline:
            if now - asked > 0.5:
                asked = now
                self.link.send(ask_neighbour(self.link.mac, own, address))
            for frame in self.link.receive(0.05):
                if (found := read_neighbour(frame, address)) is not None:
                    return found
                self.answer_neighbours(frame)
        raise PathError(
            f"nobody on this link says to have {address}, asked for {patience:g} s",
            remedy="is the peer up, and on this network? Otherwise give mac: the peer's, or the router's towards it",
        )

    def _take_aside(self, frame: bytes) -> None:
        self.answer_neighbours(frame)
        if self.management is not None:
            self.management(frame)

    def answer_neighbours(self, frame: bytes) -> None:
        """Answer a frame that asks who has our address; others are passed over."""
        reply = answer_neighbour(frame, self.link.mac, self.parameters.ip)
        if reply is not None:
            self.link.send(reply)

    def _check_peer(self, there: Parameters) -> None:
        """UsageError if nobody can be where the parameters say."""
        own = self.parameters
        check_station(there.ip)
        if not 2 <= there.qpn < LARGEST_NUMBER:
            raise UsageError(
                f"the other end's queue pair is between 2 and {LARGEST_NUMBER - 1:#x}, not {there.qpn:#x}",
                remedy="0 and 1 are for management, the largest one is for groups: see what the other end prints",
            )
        if there.ip == own.ip:
            raise UsageError(
                f"{own.ip} is this endpoint's own address, and the other end's",
                remedy="was this end's own line pasted? It is the other one's that is wanted",
            )
        if (":" in there.ip) != (":" in own.ip):
            raise UsageError(
                f"{own.ip} and {there.ip} are not of one version of IP", remedy="give the endpoint an address like it"
            )

    def _check_region(self, region: object) -> None:
        if not isinstance(region, MemoryRegion):
            raise UsageError(
                f"this memory is not registered: it is a {type(region).__name__}",
                remedy="region = qp.register(buffer), and give the region",
            )

    # --- driving

    def drive(self, seconds: float = 0.0) -> int:
        """Take packets that have come and send what is to be sent.

        :param seconds: how long to wait if nothing is there; it ends earlier when a timer expires
        :return: how many frames came
        :raises PathError: if the link fails
        """
        came = self.queue_pair.progress()
        if not came and seconds > 0:
            self.queue_pair.wait(min(seconds, SLICE))
            came = self.queue_pair.progress()
        frame = self.queue_pair.take_aside()
        if frame is not None:
            self._take_aside(frame)
        return came

    def next_send(self, timeout: float | None = None) -> Done:
        """Drive until the next send request completes; a bad status is returned like a good one.

        :param timeout: seconds; None: as long as it takes
        :raises PathError: if none completes in time
        """
        return self._next(self.queue_pair.poll_sends, "send request completed", timeout)

    def next_receive(self, timeout: float | None = None) -> Done:
        """Drive until the next receive request completes; a bad status is returned like a good one.

        :param timeout: seconds; None: as long as it takes
        :raises PathError: if none completes in time
        """
        return self._next(self.queue_pair.poll_receives, "message came", timeout)

    def _next(self, poll: Callable[[int], list[Done]], what: str, timeout: float | None) -> Done:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := poll(1)):
            left = SLICE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise PathError(f"no {what} within {timeout:g} s; {self.describe_traffic()}", remedy=self._remedy())
            self.drive(left)
        return found[0]

    def check_completion(self, completion: Either) -> Either:
        """Return a completion that is good.

        :raises PathError: for another one, with what its status means and what was seen of the other end
        """
        if completion.status == SUCCESS:
            return completion
        says, cause = SENTENCES[completion.status]
        what = completion.opcode if isinstance(completion, WorkCompletion) else "a datagram's request"
        raise PathError(
            f"{what} ended with {completion.status}: {says} ({cause}); {self.describe_traffic()}",
            remedy=_REMEDIES.get(completion.status) or self._remedy(),
        )

    def describe_traffic(self) -> str:
        """Say what came from the other end, and what came and was not taken."""
        counted = self.queue_pair.counters
        words = [f"{counted['packets']} packets came from the peer"]
        words += [f"{counted[name]} {label}" for name, label in _NOT_TAKEN.items() if counted.get(name)]
        return ", ".join(words)

    def _remedy(self) -> str:
        counted = self.queue_pair.counters
        if counted.get("wrong_qkey"):
            return "give both ends one Q_Key: --qkey"
        if counted["wrong_icrc"]:
            return "the path changes packets, or the peer's ICRC is wrong: hwrx roce dump --device …"
        if counted["strangers"]:
            return "compare the peer's QPN and GID with those that it was given: hwrx roce dump --device …"
        return "is the peer connected, with this endpoint's QPN, PSN and GID? hwrx roce dump --device … shows packets"

    def close(self) -> None:
        """Give the link, the number and the memory back; harmless when called twice."""
        self.queue_pair.close()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_REMEDIES = {
    "IBV_WC_REM_INV_REQ_ERR": "have both ends one MTU (--mtu), and the peer's receive requests room for the message?",
    "IBV_WC_REM_ACCESS_ERR": "compare key and address with those of the peer's line: --key, --remote-address",
    "IBV_WC_RNR_RETRY_EXC_ERR": "let the peer post receive requests before messages come",
}
_NOT_TAKEN = {
    "strangers": "from strangers or to another queue pair",
    "wrong_icrc": "with a wrong ICRC",
    "malformed": "that are not valid",
    "stale": "to what nobody waits for",
    "wrong_qkey": "with another Q_Key",
    "no_receive": "for which no receive request was posted",
    "too_long": "longer than its receive request",
}
