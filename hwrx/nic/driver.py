"""What a driver of a NIC offers, whatever the model: the commands, the path `nic-ring` and `open_nic` ask no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypedDict

from msgspec import Struct

from hwrx.nic.device import Device, InterruptKind

if TYPE_CHECKING:
    from types import TracebackType

    from numpy import uint8
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from cython_ext.frames.link import FrameLink
    from cython_ext.nics.interrupt import Interrupt


class Options(TypedDict, total=False):
    """How a NIC is brought up. A driver raises UsageError for a value that its model cannot do.

    rx, tx: descriptors. buffer: bytes of a receive buffer. promiscuous: take frames for others too. long_frames: take
    more than 1522 bytes (they must fit one buffer to be delivered). guard: see RxRing. checksums: the NIC looks at
    those of IPv4, UDP and TCP, and says so in each packet's status and errors. interrupt: a kind, or auto for the best
    there is; None: poll. throttle: microseconds between interrupts. link_wait: seconds to wait for the link; its
    absence is no error.
    """

    rx: int
    tx: int
    buffer: int
    promiscuous: bool
    long_frames: bool
    guard: bool
    checksums: bool
    interrupt: InterruptKind | Literal["auto"] | None
    throttle: float
    link_wait: float


class Traffic(Struct, frozen=True):
    """Frames by the NIC's own counters since it was brought up.

    `received`: good ones. `missed`: no room in the NIC's own memory. `no_buffer`: they found no descriptor free.
    """

    received: int
    missed: int
    no_buffer: int


class Packet(Protocol):
    """A frame in the buffer to which the NIC wrote it; `bytes(packet)` keeps it."""

    @property
    def data(self) -> NDArray[uint8]:
        """The frame's bytes, in place."""

    def __len__(self) -> int: ...

    def __bytes__(self) -> bytes: ...


class ReceiveRing(Protocol):
    """Where frames arrive."""

    interrupt: Interrupt | None  # None: it is polled

    def receive(self, most: int = 64) -> Sequence[Packet]:
        """Take up to `most` frames that have arrived; they are the caller's until released."""

    def release(self, count: int) -> None:
        """Give the oldest `count` buffers back to the NIC."""

    def wait_for(self, seconds: float) -> bool:
        """Whether a frame is there within so many seconds."""


class Driver(Protocol):
    """A NIC that this process drives, until `close()`. A context manager."""

    device: Device

    @property
    def rx(self) -> ReceiveRing:
        """Where frames arrive."""

    @property
    def mac(self) -> str:
        """The station's address, as the NIC filters for it."""

    @property
    def link(self) -> int:
        """Megabits a second; 0 if the link is down."""

    def receive(self, *, batch: int = 64, timeout: float | None = None) -> Iterator[Packet]:
        """Packets as they come, each valid until the next is asked for. Ends after `timeout` seconds of silence."""

    def send(self, frames: Iterable[Buffer], *, timeout: float = 1.0) -> int:
        """Send whole Ethernet frames; returns how many. PathError if the ring stays full for `timeout` seconds."""

    def frame_link(self) -> FrameLink:
        """Hand the rings to the measured loops: closing the link closes the driver."""

    def message_link(self) -> FrameLink:
        """Hand them to a transport of messages: a link that gathers what is sent from where it lies."""

    def statistics(self) -> dict[str, int]:
        """The NIC's own counters since it was brought up, by the vendor's names."""

    def traffic(self) -> Traffic:
        """Those of them that every model has."""

    def diagnose(self) -> list[str]:
        """What keeps packets from coming or going, in sentences; [] if nothing is known to."""

    def dump(self) -> Iterator[str]:
        """Lines: registers and rings, decoded; reading them changes nothing."""

    def at_close(self, action: Callable[[], object]) -> None:
        """Have `close()` call `action` last."""

    def close(self) -> None:
        """Stop the NIC and let the device go; harmless when called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
