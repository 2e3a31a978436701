"""What a stage is, the ways that it may lie on, and how it is probed. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Side = Literal["sender", "wire", "receiver"]
Actor = Literal["user thread", "softirq", "hard IRQ", "kernel worker", "device", "kernel"]
Kind = Literal["user", "tp_btf", "fentry", "fexit", "netfilter", "cgroup_skb", "none"]
Handling = Literal["", "copied", "passed", "DMA"]

# The ways that messages go. Each path says which is its own (`hwrx.paths.model.Path.way`); several may go the same.
# through io_uring: which message a request is about stands in the ring, where no probe looks
URING = frozenset({"udp-uring", "tcp-uring"})
UDP = frozenset({"udp", "udp-uring"})
TCP = frozenset({"tcp", "tcp-uring"})
SOCKETS = UDP | TCP
CALLS = SOCKETS - URING  # sent and received by system calls of their own
SEND = frozenset({"rdma-send"})
IMM = frozenset({"rdma-write-imm"})
WRITE = frozenset({"rdma-write"})
READ = frozenset({"rdma-read"})
ATOMIC = frozenset({"rdma-atomic"})  # its answer is a field of the acknowledgement (IBTA 9.4.5, AtomicAckETH)
VERBS = SEND | IMM | WRITE | READ
KERNEL = SOCKETS | VERBS  # what crosses the kernel's stack where the HCA is rxe
OWN = frozenset({"nic-ring"})
PIO = frozenset({"nic-pio"})
ROCE = frozenset({"roce"})  # our own queue pair on a NIC that we drive
NIC = OWN | PIO | ROCE
PACKET = frozenset({"packet-ring"})
XDP = frozenset({"xdp"})
RINGS = PACKET | XDP
FRAMES = NIC | RINGS  # the endpoint does itself what the kernel does for a socket,
DATAGRAMS = FRAMES - ROCE  # or what an HCA does
TLS = frozenset({"tls"})  # TCP whose records the kernel encrypts: no message can be recognised in them
MPTCP = frozenset({"mptcp"})  # TCP on subflows, whose sockets are not the one that the program reads
HCA = frozenset({"hca"})  # a hardware verbs device: the kernel takes no part
ALL = KERNEL | ATOMIC | TLS | MPTCP | NIC | RINGS | HCA


@dataclass(frozen=True)
class Probe:
    """One way of stamping a stage.

    `programs` are BPF programs of the object that belong together (IPv4 and IPv6, or the system calls of a family); the
    probe works when one of them does. `along` are loaded with them (the exit that ends what an entry began). `stand_in`
    says what is really measured where that is not the stage itself. A `fallback` is for kernels that let no function be
    probed; elsewhere it would only add to what is measured.
    """

    kind: Kind
    target: str
    programs: tuple[str, ...] = ()
    stand_in: str = ""
    along: tuple[str, ...] = ()
    fallback: bool = False


@dataclass(frozen=True)
class Stage:
    """A point that a message passes.

    `unless` names the condition under which a message legitimately skips it ("" = every message passes), on all ways
    or on those of `unless_on`. `last` takes the last of several stamps (a message of many packets has arrived with its
    last one), otherwise the first counts.
    `handles` says what happens to the payload's bytes there, if anything.
    """

    name: str
    sentence: str
    side: Side
    actor: Actor
    ways: frozenset[str]
    probes: tuple[Probe, ...] = ()
    unless: str = ""
    unless_on: frozenset[str] | None = None
    last: bool = False
    chain: bool = True
    handles: Handling = ""
    why_not: str = ""
    number: int = field(default=0, compare=False)

    def conditional(self, way: str) -> bool:
        """Whether a message that goes this way may legitimately skip the stage."""
        return bool(self.unless) and (self.unless_on is None or way in self.unless_on)

    @property
    def ident(self) -> str:
        """The name as a C constant: STAGE_IP_RCV."""
        return "STAGE_" + "".join(c if c.isalnum() else "_" for c in self.name).upper().strip("_")


def tracepoint(target: str, program: str, stand_in: str = "") -> Probe:
    """A tracepoint."""
    return Probe("tp_btf", target, (program,), stand_in)


def function_entry(target: str, *programs: str, stand_in: str = "") -> Probe:
    """The entry of functions that do the same (IPv4 and IPv6, the calls of a family)."""
    return Probe("fentry", target, programs, stand_in)


def function_exit(target: str, *programs: str, stand_in: str = "") -> Probe:
    """The return of functions."""
    return Probe("fexit", target, programs, stand_in)


def netfilter_hook(target: str, *programs: str, stand_in: str = "") -> Probe:
    """A hook of netfilter's, where functions cannot be probed."""
    return Probe("netfilter", target, programs, stand_in, fallback=True)


USER = (Probe("user", "CLOCK_MONOTONIC"),)
ENDPOINT = (Probe("user", "CLOCK_MONOTONIC, by the endpoint's loop where it is traced"),)
DEVICE = "it happens inside the device; only its counters tell"
SEALED = "what the kernel's TLS hands on is ciphertext, in which no message can be recognised"
UNNAMED = "a request and its answer carry numbers, in which no message can be recognised"
SUBFLOW = "the message travels on a subflow, whose socket is not the one that the program has"
SHARED = "one run serves many messages and does not know which"
