"""What crosses a control pipe, and how: length-prefixed JSON, typed and bounded.

A frame is a 4-byte big-endian length and so many bytes of JSON, at most `LARGEST_FRAME`. A message is one of the
structs below, told apart by its `type`. Each side checks what it reads: garbage, a length that is too large, a
truncated frame, a message of an unknown type or another version end in a named PeerError. Only messages of bytes may be
as large as a frame; the others hold at most `LARGEST_WORDS`, for a list of lists takes 20 times its JSON in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hwrx.control.guest_boot import BOOT_FIELDS, Boot, Iommu, Mitigations, Priced
from hwrx.control.places import Place, Placed, Survey
from hwrx.control.queue_pair import QueuePairFields
from hwrx.errors import PeerError
from hwrx.host.decoding import UNREADABLE
from hwrx.version import __version__

VERSION = 5
LARGEST_FRAME = 1 << 20
LARGEST_WORDS = 1 << 18  # bytes of JSON that may hold anything but a string of bytes
MOST_WAITING = 16  # messages that one side may have sent before the other has taken the first of them
SAMPLES_A_CHUNK = 64_000  # 8 bytes each, a third more in base64: below LARGEST_FRAME

Pattern = Literal["pingpong", "stream", "paced"]
Role = Literal["client", "server"]
ENDS: tuple[Role, Role] = ("client", "server")
# poll and event are understood by every path: sockets take them for spin and block.
Wait = Literal["poll", "event", "block", "epoll", "select", "busy-poll", "spin"]

# What of tc-netem(8) can be asked for: "loss 1%", "delay 1ms 100us", "delay 1ms reorder 5%", …
_AMOUNT = r"[0-9]{1,9}(\.[0-9]{1,9})?(%|us|ms|s)"
NETEM = rf"^((loss|delay|duplicate|reorder|corrupt) {_AMOUNT}( {_AMOUNT})*( (?!$)|$))*$"
HookName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Netem = Annotated[str, Meta(pattern=NETEM, max_length=200)]

# complete: all came; finished: the other end said that no more comes; limit: nothing moved for too long
# nothing: it ended, and not one message had come
Ended = Literal["complete", "finished", "limit", "nothing", "error"]

# An end's stamps, by message: of every path, and of the paths of whole frames where they were asked for. Of many
# connections also which one each message went on, and by connection what was sent and what came
Stamps = Literal["intended", "posted", "delivered", "seen", "parsed", "looked_up", "verified"]
ByConnection = Literal["connection", "sent", "taken"]
Array = Stamps | ByConnection

Clock = Literal["wall", "icount"]  # icount: the clock of a guest that counts its instructions

# Numbers from outside, each within what the C beneath can hold, so that nothing overflows where a trial runs
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Messages = Annotated[int, Meta(ge=1, le=10**9)]  # three times as many still have numbers of 32 bits
Besides = Annotated[int, Meta(ge=0, le=10**9)]  # warm-up, cool-down
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Seconds = Annotated[float, Meta(ge=0.001, le=1e6)]
Rate = Annotated[float, Meta(ge=0.001, le=1e9)]  # messages a second
Crowd = Annotated[int, Meta(ge=0, le=10**6)]
Requests = Annotated[int, Meta(ge=1, le=1 << 24)]  # devices allow fewer, and are asked
BufferSize = Annotated[int, Meta(ge=0, lt=1 << 30)]  # the kernel doubles it into an int
MessageSize = Annotated[int, Meta(ge=8, le=1 << 30)]
# sizes with weights, with what the user called them in front: see hwrx.paths.mixes
MIX = r"^$|^([A-Za-z0-9_.(),-]{1,64} )?\d{1,10}:\d{1,7}(,\d{1,10}:\d{1,7})*$"
Mix = Annotated[str, Meta(pattern=MIX, max_length=100_000)]
MIX_FORMS = (
    "imix, sizes with weights such as 64:7,570:4,1500:1, lognormal(MEDIAN,SIGMA) or lognormal(MEDIAN,SIGMA,LARGEST),"
    " or file:PATH with a size a line"
)
FlowWords = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9._,\[\]<>-]*$", max_length=10_000, description="sets of hosts: node[1-8]>sink, a<>b")
]
SIGNAL_EVERY = 16  # as usual, one request of so many has a completion
XdpMode = Literal["auto", "zero-copy", "copy"]
FrameCarrier = Literal["auto", "nic", "uio", "packet-ring", "xdp"]


class Setting(QueuePairFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One path in one setting: all that both ends of a trial need to know, and all that tells two trials apart.

    Times are seconds, sizes bytes, rates messages a second.
    """

    path: Annotated[str, Meta(max_length=64)]
    pattern: Pattern = "pingpong"
    size: MessageSize = 64  # of the longest, if there is a mix
    mix: Mix = ""  # a distribution that each message's size is drawn from; "": all have `size`
    messages: Messages = 1000  # measured; if there is a duration, that there is memory for
    duration: Seconds | None = None  # that the measured messages go on, by the client's clock; None: all of them
    warmup: Besides = 100
    cooldown: Besides = 16
    wait: Wait = "event"
    window: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    batch: Count = 16
    rate: Rate | None = None  # paced only
    arrivals: Literal["even", "poisson"] = "even"  # paced only: see hwrx.paths.arrivals
    signal_every: Count = SIGNAL_EVERY
    inline: Natural | None = None  # bytes; None: as far as the device allows
    check_every: Natural = 64  # 0: header and trailer; n: see cython_ext.core.trial.Trial
    socket_buffer: BufferSize | None = None  # SO_SNDBUF, SO_RCVBUF; None: the kernel's default
    zerocopy_send: bool = False  # udp, tcp: MSG_ZEROCOPY; through io_uring: IORING_OP_SEND_ZC
    zerocopy_receive: bool = False  # tcp: TCP_ZEROCOPY_RECEIVE, which maps pages; size in whole pages
    multishot: bool = False  # udp-uring: one request receives all datagrams, into a ring of provided buffers
    mtu: Literal[256, 512, 1024, 2048, 4096] | None = None  # verbs path MTU; None: the smaller of both ports
    gid_index: Annotated[int, Meta(ge=0, le=255)] | None = None  # struct ibv_global_route: 8 bits
    receives: Requests | None = None  # verbs: receive requests that a receiver keeps posted; None: as the pattern needs
    completions: Requests | None = None  # verbs: entries of a receiver's completion queue; None: as many as it can need
    huge_pages: bool = False
    # roce: what carries the frames. auto: the NIC, if hwrx has a driver for it, else the kernel's packet ring; nic and
    # uio: the NIC, by what there is, or through uio_pci_generic
    link: FrameCarrier = "auto"
    xdp_mode: XdpMode = "auto"  # xdp: auto: zero-copy where the driver has it
    crowd: Crowd = 0  # udp: further sockets, bound at the server before the trial, that nobody talks to
    crowd_on: Literal["spread", "chain"] = "spread"  # evenly over the table's slots, or all before the server's own
    # batch: who is woken never interrupts who runs, so that on one CPU the ends take turns (hwrx.machine.scheduling)
    schedule: Literal["normal", "batch"] = "normal"  # an experiment that counts instructions: batch
    # ping-pong, where instructions are counted: so many are executed between an answer and the next message, and not
    # counted. An emulated NIC that holds interrupts back then holds back none of a message's, in whatever phase it was
    rest: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    # stream, where instructions are counted: the sender sleeps for so many ns before the first measured message and
    # after the last, so that what is under way ends: all that is counted between was then done for the measured ones
    settle: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    copies_priced: Priced = "byte"  # by the guest's processor, if it counts instructions
    iommu: Iommu | None = None  # of the guest, as all of `Boot`
    mitigations: Mitigations | None = None  # of the processor's vulnerabilities
    init_on_alloc: Literal[0, 1] | None = None  # whether the kernel fills what it allocates with zeros
    hook: HookName = "none"  # of hwrx.paths.hooks: put on the way in of both ends
    # of each end's device, where the kernel polls it: see hwrx.paths.napi; None: as the device has it
    threaded_napi: bool | None = None
    napi_defer_hard_irqs: Annotated[int, Meta(ge=0, le=1000)] | None = None
    gro_flush_timeout: Annotated[int, Meta(ge=0, le=10**9)] | None = None  # ns
    senders: Annotated[int, Meta(ge=1, le=64)] = 1  # so many connections, each with both its ends, at the same time
    netem: Netem = ""  # what is done to the wire, both ways: see hwrx.wires.impair
    flows: FlowWords = ""  # hosts: which of them send to which at the same time: see hwrx.control.nodes
    limit: Seconds = 10.0  # nothing received for so long ends the trial
    patience: Seconds = 0.5  # that a client has with a message that may be lost; then it is late

    @property
    def total(self) -> int:
        """Messages of a trial, warm-up and cool-down included."""
        return self.warmup + self.messages + self.cooldown

    @property
    def boot(self) -> Boot:
        """What a guest for it is booted with."""
        return Boot(**{name: getattr(self, name) for name in BOOT_FIELDS})


# --- controller to agent -------------------------------------------------------------------------------------------


class Hello(Struct, tag="hello", frozen=True):
    """First message in both directions."""

    version: int = VERSION
    hwrx: str = ""


class LookAround(Struct, tag="look-around", frozen=True):
    """Ask what the machine has of CPUs, and which of them the device of a place keeps busy. Answered by Surveyed."""

    here: Place


class Prepare(Struct, tag="prepare", frozen=True):
    """Create the endpoint: sockets bound, queue pairs in INIT, buffers pinned. Answered by Prepared."""

    trial: int
    role: Role
    setting: Setting
    here: Place
    there: Place
    repeat: Natural = 0
    sender: Natural = 0  # which of the trial's senders, or its other end
    stamps: bool = False  # paths of whole frames: stamp the stages inside of the endpoint, too
    alone: bool = False  # nobody else uses the machine: its counters are the trial's (see hwrx.paths.cputime)
    stamped: bool = False  # the server of a ping-pong reads the clock, too, when a message has come
    hold: bool = False  # the next trial is of the same path: what this one takes from the kernel is left to it
    seed: Seed = 0  # of the experiment: with `repeat`, which arrivals an open loop draws
    counted: Annotated[float, Meta(ge=0, le=1e9)] = (
        0.0  # s that the loop may take while CountOpen's programs count; 0: they do not
    )


class Connect(Struct, tag="connect", frozen=True):
    """Here is what the other end said when it was prepared. Answered by Ready."""

    remote: dict[str, Any]


class Start(Struct, tag="start", frozen=True):
    """Run the trial's loop. Answered by Done when it ends."""


class Look(Struct, tag="look", frozen=True):
    """Say how far the loop that runs has come. Answered by Moved, at once, before or after that loop's Done."""


class Stop(Struct, tag="stop", frozen=True):
    """The other end's loop has ended: what a path may have lost is not to be waited for. Not answered.

    `total`: of a trial with a duration, from its client: how many messages it found to have when its time was over.
    """

    total: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Fetch(Struct, tag="fetch", frozen=True):
    """Send `count` values of one of the trial's arrays from `first` on. Answered by Chunk."""

    array: Array
    first: Natural
    count: Annotated[int, Meta(ge=1, le=SAMPLES_A_CHUNK)]


class Inspect(Struct, tag="inspect", frozen=True):
    """Say again what was chosen, and where the endpoint's buffers are now. Answered by Prepared."""


class Release(Struct, tag="release", frozen=True):
    """Tear the endpoint down. Answered by Released, after whatever replies of the trial were left unread."""


class Describe(Struct, tag="describe", frozen=True):
    """Ask for the machine that the agent runs on. Answered by Described.

    `noise`: also for what spoils a measurement there, and how its clock is kept.
    """

    noise: bool = False


class TraceOpen(Struct, tag="trace-open", frozen=True):
    """Attach the ledger's programs to the agent's kernel, for the stages on these ways. Answered by Tracing.

    `namespaces`: network namespaces whose netfilter hooks are wanted where functions cannot be probed.
    """

    ways: list[str]
    namespaces: list[str] = []


class TraceBegin(Struct, tag="trace-begin", frozen=True):
    """Record the messages of one trial; each `sample_every`-th gets a timeline (0: none). Answered by Ready."""

    trial: int
    size: int
    sample_every: Natural = 1


class TraceEnd(Struct, tag="trace-end", frozen=True):
    """Stop recording. Answered by Traced."""


class TraceClose(Struct, tag="trace-close", frozen=True):
    """Detach everything. Answered by Ready."""


class CountOpen(Struct, tag="count-open", frozen=True):
    """Attach the programs that give each CPU's time to its actors, to the client's kernel. Answered by Counting."""


class CountEnd(Struct, tag="count-end", frozen=True):
    """Stop counting, which the client's loop began; say what lies between two times (CLOCK_MONOTONIC ns).

    Answered by Counted.
    """

    start: int
    stop: int


class FetchEvents(Struct, tag="fetch-events", frozen=True):
    """Send `count` events of the recording from `first` on. Answered by Chunk."""

    first: Natural
    count: Annotated[int, Meta(ge=1, le=SAMPLES_A_CHUNK // 6)]


class Quit(Struct, tag="quit", frozen=True):
    """End. Answered by end-of-file."""


# --- agent to controller -------------------------------------------------------------------------------------------


class Prepared(Struct, tag="prepared", frozen=True):
    """What the other end needs to reach this one (address and port; QP number, GID, rkey, …), and what was chosen."""

    remote: dict[str, Any]
    chosen: dict[str, Any]  # for the manifest: MTU, inline limit, GID, buffer addresses, socket options


class Surveyed(Struct, tag="surveyed", frozen=True):
    """The machine that the agent runs on, as far as the choice of a CPU needs it."""

    survey: Survey


class Ready(Struct, tag="ready", frozen=True):
    """What was asked for is done."""


class Released(Struct, tag="released", frozen=True):
    """Nothing of the trial is left in the agent."""


class Done(Struct, tag="done", frozen=True):
    """The loop ended; what it counted, and what had been chosen by then. `ended` says how."""

    tally: dict[str, int]
    ended: Ended
    error: str = ""
    resent: int = 0  # packets that the path's own recovery sent again, as far as it tells
    cpu: dict[str, int] = {}  # ns over the measured messages, as hwrx.paths.cputime.time_used gives them
    resident: int = 0  # bytes, peak
    chosen: dict[str, Any] = {}  # as in Prepared, with what only the connection decided: the window, the agreed MTU, …
    placed: Placed | None = None  # where the loop ran
    boot: str = ""  # of the kernel beneath: ends that agree share one clock
    filled: bool = False  # it ended before its duration, for there was no memory for more messages
    between: tuple[int, int] = (0, 0)  # CLOCK_MONOTONIC ns of what `cpu` is of; 0: not seen


class Moved(Struct, tag="moved", frozen=True):
    """How far a loop has come: a number that grows with every message."""

    count: int


class Chunk(Struct, tag="chunk", frozen=True):
    """Values as little-endian 64-bit integers."""

    first: int
    data: bytes


class Described(Struct, tag="described", frozen=True):
    """The machine that the agent runs on, as `hwrx.machine.description.describe_machine` gives it.

    `noise`: what `hwrx.machine.tune.find_noise` finds there, in words; `timekeeping`: see hwrx.machine.timekeeping.
    """

    machine: dict[str, Any]
    noise: list[str] = []
    timekeeping: dict[str, Any] = {}


class Tracing(Struct, tag="tracing", frozen=True):
    """What became of each stage: name to the probe that stamps it, or in `unavailable` to the reason why none does."""

    available: dict[str, str]
    unavailable: dict[str, str]
    seconds: float  # that attaching took


class Traced(Struct, tag="traced", frozen=True):
    """How many events wait to be fetched, how many were lost, and the totals of each stage (`tracer.TOTALS`)."""

    events: int
    lost: int
    missed: dict[str, int]  # by program: calls that it was not run for, because it was running on that CPU already
    totals: bytes


class Counting(Struct, tag="counting", frozen=True):
    """The programs count whenever a trial says so; `lacks` in words what this kernel does not show."""

    lacks: list[str]


class Counted(Struct, tag="counted", frozen=True):
    """Each CPU's time in ns by actor, in the order of `hwrx.probes.account.ACTORS`."""

    ns: list[list[int]]


class Failed(Struct, tag="failed", frozen=True):
    """What was asked could not be done; `kind` is the name of an exception of hwrx.errors."""

    kind: str
    message: str
    remedy: str = ""


ToTracer = TraceOpen | TraceBegin | TraceEnd | FetchEvents | TraceClose
ToCounter = CountOpen | CountEnd
ToAgent = (
    Hello
    | LookAround
    | Prepare
    | Connect
    | Start
    | Look
    | Stop
    | Fetch
    | Inspect
    | Release
    | Describe
    | ToTracer
    | ToCounter
    | Quit
)
FromAgent = (
    Hello
    | Surveyed
    | Prepared
    | Ready
    | Released
    | Done
    | Moved
    | Chunk
    | Described
    | Tracing
    | Traced
    | Counting
    | Counted
    | Failed
)

_encode = msgspec.json.Encoder().encode
_decode_to_agent = msgspec.json.Decoder(ToAgent).decode
_decode_from_agent = msgspec.json.Decoder(FromAgent).decode
_decode_bytes = msgspec.json.Decoder(Chunk | Traced).decode
_LENGTH = struct.Struct(">I")


def frame_message(message: ToAgent | FromAgent) -> bytes:
    """Return the bytes of one frame; PeerError if the message is larger than a frame of its kind may be."""
    body = _encode(message)
    most = LARGEST_FRAME if isinstance(message, Chunk | Traced) else LARGEST_WORDS
    if len(body) > most:
        raise PeerError(f"a {type(message).__name__} of {len(body)} bytes does not fit a frame of {most}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into messages; feed it what was read, in pieces of any size.

    `side` says which messages are expected. What cannot be a message raises PeerError, and the stream is of no use
    afterwards.
    """

    def __init__(self, side: Literal["to agent", "from agent"]) -> None:
        self._decode: Callable[[bytes], Any] = _decode_to_agent if side == "to agent" else _decode_from_agent
        self._most = LARGEST_WORDS if side == "to agent" else LARGEST_FRAME
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes, in order."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._most:
                raise PeerError(
                    f"what came over the control pipe is no frame of hwrx: it announces {length} bytes, "
                    f"at most {self._most} are allowed (it begins with {bytes(self._buffer[:32])!r})",
                    remedy="does something print to the agent's standard output, for example a login script?",
                )
            if len(self._buffer) < _LENGTH.size + length:
                break
            body = bytes(self._buffer[_LENGTH.size : _LENGTH.size + length])
            del self._buffer[: _LENGTH.size + length]
            try:
                messages.append(self._decode(body) if length <= LARGEST_WORDS else _decode_bytes(body))
            except UNREADABLE as error:
                raise PeerError(f"a frame holds no message of hwrx: {error} ({body[:64]!r})") from None
        return messages

    @property
    def truncated(self) -> bool:
        """Whether the stream, if it ended now, would end within a frame."""
        return bool(self._buffer)


def same_version(hello: Hello) -> None:
    """PeerError where the other side speaks another version of this protocol."""
    if hello.version != VERSION:
        raise PeerError(
            f"the other end speaks version {hello.version} of the control protocol (hwrx {hello.hwrx}), "
            f"this one version {VERSION} (hwrx {__version__})",
            remedy="install the same hwrx on both ends",
        )
