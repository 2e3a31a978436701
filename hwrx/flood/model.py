"""What a flood is, and what is found of it. Times are seconds or ns as the names say, sizes bytes, rates messages/s."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hwrx import paths
from hwrx.drops.books import Balance
from hwrx.paths.model import Flooding
from hwrx.probes import account

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Meta(ge=0.001, le=1e9)]
CpuNumber = Annotated[int, Meta(ge=0, le=8191)]

# what can be flooded, and what that must know of it
PATHS: dict[str, Flooding] = {name: path.flooding for name, path in paths.PATHS.items() if path.flooding is not None}
VERBS = tuple(name for name in PATHS if paths.find_path(name).needs == "verbs")
MOST_MESSAGES = 8_000_000  # of one flood: 16 bytes each are kept
MOST_SOCKETS = 16  # SOCKETS of the programs
Series = dict[str, list[int]]


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One flood: `burst` messages as fast as the path takes them, or `seconds` of them at `rate` (None: the same)."""

    path: str = "udp"
    burst: Count | None = 100_000
    seconds: Annotated[float, Meta(ge=0.001, le=600)] | None = None
    rate: Rate | None = None
    size: Annotated[int, Meta(ge=16, le=65507)] = 64
    sockets: Annotated[int, Meta(ge=1, le=MOST_SOCKETS)] = 1
    batch: Annotated[int, Meta(ge=1, le=256)] = 64  # messages of one post; of a given rate: as many as 1 ms has
    receive_buffer: Annotated[int, Meta(ge=1, lt=1 << 30)] | None = None  # SO_RCVBUF; None: the kernel's default
    read: Literal["always", "after"] = "always"  # after: nobody reads before all is sent
    work: Annotated[float, Meta(ge=0, le=1)] = 0.0  # seconds of the reader's own work with each message
    receives: Count | None = None  # verbs: receive requests posted (rdma-write: slots of memory); None: 512 (4096)
    completions: Count | None = None  # rdma-send, rdma-ud: entries of the receiver's completion queue; None: enough
    rps: bool = False  # RPS: protocol work on another CPU than the sender's
    send_cpu: CpuNumber | None = None  # None: the last one
    read_cpu: CpuNumber | None = None  # None: the first one
    topology: str | None = None  # None: what the path needs, `netns` for sockets
    trial: Annotated[int, Meta(ge=1, lt=1 << 32)] = 1

    @property
    def wants(self) -> int:
        """The most messages that it may send: of a flood that lasts, as many as its rate and its seconds make."""
        if self.seconds is None:
            return self.burst or 1
        return min(MOST_MESSAGES, int(self.seconds * self.rate)) if self.rate else MOST_MESSAGES

    @property
    def together(self) -> int:
        """Messages of one post: a rate is kept a millisecond at a time, and no post is larger than `batch`."""
        if self.rate is None:
            return self.batch
        return max(1, min(self.batch, int(self.rate / 1000)))


class Context(Struct, frozen=True):
    """Who ran net_rx_action, one of account.CONTEXTS: how often, how many packets that brought, how long it took."""

    name: str
    runs: int
    packets: int
    ns: int


class Cpu(Struct, frozen=True):
    """One CPU over the whole flood. `ns` is by actor and adds up to `total_ns`.

    `recorded` is the same over all that was recorded, the quiet around it too, and `stat` what /proc/stat said of the
    same time, in ns: the kernel's own account, which looks once a tick where it does not count exactly.
    """

    number: int
    total_ns: int
    ns: dict[str, int]
    recorded: dict[str, int]
    stat: dict[str, int]
    packets: int  # that this CPU polled
    calls: int  # interrupts by other CPUs that wanted a function called (RPS wakes a CPU so)
    interrupts: int | None  # the receiving device's; None: it has none


class FirstLoss(Struct, frozen=True):
    """Where loss begins: the first message that was sent and never came, and the place that dropped first.

    `at_ns` is since the first message was sent; `place_sequence` is the first message dropped at that place, which may
    be another than `sequence` where several CPUs drop.
    """

    sequence: int
    at_ns: int
    place: str
    place_sequence: int | None
    place_at_ns: int | None


class Socket(Struct, frozen=True):
    """What one of the sockets was offered and delivered."""

    number: int
    offered: int
    delivered: int


class Timeline(Struct, frozen=True):
    """Pictures over time: `width_ns` a bin; the first message is sent `first_ns` after the first one's begin.

    `cpu`: CPU -> actor -> ns of each bin. `polled`: CPU -> packets. `backlog`: CPU -> the most packets that waited.
    `queues`: socket -> the most bytes that its receive queue held. `sent`, `taken`, `lost` (by the time it was sent)
    and `under_way` are messages. Of verbs: `receives`, the fewest requests that were posted, and `completions`, the
    most that waited, -1 in a bin in which no request came (rdma-write has neither); `sends`, the most requests that the
    sender's device had not done with, -1 in a bin in which none was posted.
    """

    width_ns: int
    first_ns: int
    cpu: dict[str, Series]
    polled: Series
    interrupts: Series
    backlog: Series
    queues: Series
    receives: list[int]
    completions: list[int]
    sent: list[int]
    taken: list[int]
    lost: list[int]
    under_way: list[int]
    sends: list[int] = []


class Flood(Struct, frozen=True, kw_only=True):
    """What one flood was found to be. Histograms are value -> how often.

    `polls`: packets that a NAPI poll brought, by poller (backlog: the CPU's own queue, device: the receiving one,
    elsewhere). `runs`: packets that a run of net_rx_action brought. `per_interrupt`: packets polled from the device
    between two of its interrupts; None where it has none. `told` is what the receiving path counted, `counters` what
    both verbs devices did, by name. `ended`: how the flood ended before all was sent or taken, in words. `machine`:
    limits in force (netdev_budget, …). `notes`: what could not be seen, and why.
    """

    spec: Spec
    wire: str
    sent: int
    delivered: int
    sending_ns: int  # from the first to the last send
    taking_ns: int  # from the first to the last delivery
    loss: Balance
    first_loss: FirstLoss | None
    polls: dict[str, dict[int, int]]
    poll_budget: int  # packets that one poll may bring (the weight)
    runs: dict[int, int]
    by_budget: int  # runs that ended with work left because they had netdev_budget packets
    by_time: int  # … because they had their time
    squeezed: int  # time_squeeze of softnet_stat in the meantime: the kernel's own count of both
    outside: int  # packets polled outside of the softirq: threaded NAPI, busy polling
    contexts: list[Context]
    per_interrupt: dict[int, int] | None
    cpus: list[Cpu]
    sockets: list[Socket]
    timeline: Timeline
    reader: dict[str, int]
    told: dict[str, int]
    counters: dict[str, dict[str, int]]
    ended: str
    machine: dict[str, int]
    notes: list[str]

    @property
    def offered_rate(self) -> float:
        """Messages a second that were sent, from the first to the last send; 0.0 if nothing was."""
        return self.sent / self.sending_ns * 1e9 if self.sending_ns else 0.0

    @property
    def delivered_rate(self) -> float:
        """Messages a second that were delivered while it was sent; afterwards only what had queued up comes."""
        longest = max(self.sending_ns, self.taking_ns)
        return self.delivered / longest * 1e9 if longest else 0.0

    @property
    def jain(self) -> float:
        """Jain's index of what the sockets were delivered: 1 if all had as much, 1/n if one of n had everything.

        Jain, Chiu and Hawe, DEC Research Report TR-301 (1984).
        """
        return account.jain_index([socket.delivered for socket in self.sockets])

    def polls_of(self, poller: str) -> dict[int, int]:
        """Packets that a poll brought -> how often, of one poller; empty if it never polled.

        :param poller: backlog, device or elsewhere
        """
        return self.polls.get(poller, {})

    def share(self, actor: str, cpu: int | None = None) -> float:
        """The share of one CPU's time, or of all CPUs', that an actor had: 0.0 … 1.0.

        :param actor: of hwrx.probes.account.ACTORS; of any other name it is 0.0
        :param cpu: the kernel's number of a CPU; None: all together
        """
        chosen = [each for each in self.cpus if cpu in (None, each.number)]
        whole = sum(each.total_ns for each in chosen)
        return sum(each.ns.get(actor, 0) for each in chosen) / whole if whole else 0.0
