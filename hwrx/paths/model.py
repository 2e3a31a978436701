"""What a path says of itself, once, in the module of its family: all else that hwrx says of paths is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from hwrx.control.messages import Pattern, Role

Needs = Literal["nothing", "verbs", "root", "nic"]
NEEDS: tuple[Needs, ...] = ("nothing", "verbs", "root", "nic")  # paths are listed in this order
# Fields of a Setting that only some paths or patterns read. The loops, or the agents, read all others on every path.
BY_PATTERN: dict[Pattern, frozenset[str]] = {
    "pingpong": frozenset({"rest"}),
    "stream": frozenset({"batch", "settle"}),
    "paced": frozenset({"batch", "rate", "arrivals"}),
}
WINDOW = frozenset({"window"})
CONNECTIONS = frozenset({"connections"})
MIXED = frozenset({"mix"})  # messages that differ in size
# how the kernel polls the device that a path's packets come in by
POLLED = frozenset({"threaded_napi", "napi_defer_hard_irqs", "gro_flush_timeout"})

Dashes = Literal["-"] | tuple[int, tuple[float, ...]]  # a line as Matplotlib draws it: solid, or offset and lengths


class Look(Struct, frozen=True):
    """How a path is drawn in every figure, so that no two are told apart by colour alone.

    `colour`: #rrggbb, with a contrast of 3:1 at least to the page both light and dark; None: the ink of the page.
    """

    colour: str | None
    marker: str
    dashes: Dashes


class Flooding(Struct, frozen=True, kw_only=True):
    """What `hwrx flood` must know of a path, beyond what the path says anyway. Places are those of `hwrx.drops.places`.

    `sockets`: it is received by sockets, of which there may be several, each with a queue that can be looked at.
    `stops`: its sender stands still while nobody reads. `datagrams`: of verbs, what finds no receive request is gone.
    """

    sockets: bool = False
    stops: bool = False
    datagrams: bool = False
    losses: Mapping[str, str] = {}  # what `Transport.counts` tells of lost messages -> the place where they are lost
    copies: frozenset[str] = frozenset()  # places where only a copy of a message can be dropped
    told_twice: Mapping[str, str] = {}  # a place -> the place of `losses` at which the same message has been counted


class Path(Struct, frozen=True, kw_only=True):
    """One way of delivering a message.

    `way`: which way of `hwrx.stages.model` its messages go; several paths may go the same. `reads`: of the fields that
    not every path reads, those that it reads in any pattern; `reads_in`: those that it reads in one pattern only. A
    field that a path does not read is refused; `unread` may say more of it: (why, what else to do).
    """

    name: str
    sentence: str
    needs: Needs
    way: str
    look: Look
    reads: frozenset[str] = frozenset()
    reads_in: Mapping[Pattern, frozenset[str]] = {}
    unread: Mapping[tuple[str, Pattern], tuple[str, str]] = {}
    # a ping-pong over READ fetches and comes back: its time is a full round trip, never halved
    full_rtt: bool = False
    # the end that sees a stream's messages become available: nobody looks at them at the receiver of a WRITE, and READ
    # has no receiver but the one who asks
    stream_seen_by: Role = "server"
    memory_alone: bool = False  # its receiver learns of a message by looking at memory, however it is to wait
    # takes a NIC from the kernel, which takes long: trials of it follow each other
    holding: bool = False
    flooding: Flooding | None = None  # None: no flood goes over it, and `unflooded` says why and what has one instead
    unflooded: str = ""
    # the stages that count what enters the kernel (or rxe), the best first, and the one that counts what leaves it: the
    # balance of the ledger of copies is struck over these. `DMA` needs no probe
    copied_in: tuple[str, ...] = ()
    copied_out: str
