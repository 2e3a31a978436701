"""Fields of a setting that say how a queue pair is made and connected, and what memory and connections one end has."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

MOST_CONNECTIONS = 1000  # of one process, with one outstanding message each
# An IP address, or a network in CIDR notation, as hwrx.paths.verbs_end reads them
Network = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?$", description="192.0.2.1 or 192.0.2.0/24")]
Bits3 = Annotated[int, Meta(ge=0, le=7)]
Bits4 = Annotated[int, Meta(ge=0, le=15)]
Bits5 = Annotated[int, Meta(ge=0, le=31)]
Bits8 = Annotated[int, Meta(ge=0, le=255)]
Bits16 = Annotated[int, Meta(ge=0, le=65535)]

MemoryRegionKind = Literal["pinned", "odp", "implicit-odp", "dmabuf"]
Registration = Literal["once", "message"]


class QueuePairFields(Struct, frozen=True, kw_only=True):
    """A part of `hwrx.control.messages.Setting`: fields of ibv_modify_qp(3), by the names of that page."""

    gid: Network | None = None  # the GID that is this address, or lies in this network; None: see choose_gid
    # of the route header: the IP header's DSCP and ECN in RoCEv2, so that 4 × DSCP is a class without ECN; of sockets
    # IP_TOS or IPV6_TCLASS
    traffic_class: Bits8 = 0
    service_level: Bits4 = 0  # InfiniBand's; RoCE makes the priority of a VLAN tag of it
    pkey_index: Bits16 = 0  # entry of the port's table of partition keys
    # RC. A lost packet is sent again after 4.096 µs × 2^16 = 268 ms, 6 times: a peer that is gone is given up within
    # 2 s, and one that is merely slow, on an emulated or overloaded machine, is not. Not 7 times: rxe's completer
    # counts down only where the count is not 7, and goes on for ever (rxe_comp.c, COMPST_ERROR_RETRY).
    ack_timeout: Bits5 = 16  # until an unanswered packet is sent again: 4.096 µs × 2 to this power; 0: never
    retry_count: Bits3 = 6  # how often
    rnr_retry: Bits3 = 7  # how often for want of a receive request; 7: for ever
    connect: Literal["pipe", "cm"] = "pipe"  # RC: by what the agents tell each other, or by RDMA-CM (rdma_cm(7))
    # pinned: the kernel pins the pages when they are registered; odp: the device faults them in when it comes to them,
    # implicit-odp: all of the process's memory at once; dmabuf: the device is told of a dma-buf, not of an address
    mr: MemoryRegionKind = "pinned"
    registration: Registration = "once"  # of what goes out: once, or of each message before it is sent
    # of one process at each end, a message under way on each: see cython_ext.loops.many
    connections: Annotated[int, Meta(ge=1, le=MOST_CONNECTIONS)] = 1
    srq: bool = True  # rdma-send, rdma-ud: connections share their receive requests (ibv_create_srq(3))
