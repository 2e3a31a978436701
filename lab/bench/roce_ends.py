"""The two ends of lab/bench/roce_exact: hwrx's own queue pair, and one of rxe by the distribution's pyverbs.

Both have one memory that the other end may read and write, take requests in batches, and tell completions alike.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cython_ext.frames.packet_ring import PacketRing
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector
from cython_ext.roce.queue_pair import RoceQueuePair
from cython_ext.verbs.wc_words import name_of
from hwrx.control.places import Place
from hwrx.drill.verbs_peer import VerbsDevice
from hwrx.roce.parameters import gid_of

DEPTH = 512  # requests of either kind that may be posted
MTU = 1024
READS = 4
MAC, ADDRESS, QPN = "02:68:77:72:78:71", "198.18.77.71", 0x1234
# codes of the ACK timeouts, 268 and 67 ms: our retries are counted, and a busy machine must not use them up
OUR_TIMEOUT, RXE_TIMEOUT = 16, 14


class Request(NamedTuple):
    """What is posted at one end; `at` is an offset into its memory, `remote` one into the other's."""

    verb: str
    at: int
    size: int
    remote: int = 0
    immediate: int = 0
    compare: int = 0
    swap: int = 0


class Done(NamedTuple):
    """A completion; `size` and `immediate` (None: none) are told of received messages."""

    number: int
    status: str
    size: int
    immediate: int | None


class OurEnd:
    """hwrx's queue pair on a packet ring whose frames pass the queueing discipline, and so netem."""

    def __init__(self, place: Place, room: int) -> None:
        self.memory = np.zeros(room, np.uint8)
        self._domain = ProtectionDomain()
        self._region = self._domain.register(self.memory)
        self.key, self.address, self.number = self._region.key, self._region.address, QPN
        self._stack = contextlib.ExitStack()
        ring = PacketRing(str(place.netdev), MAC, only_port=4791, bypass=False, blocks=64)
        self._stack.enter_context(ring)
        self.pair = self._stack.enter_context(
            RoceQueuePair(ring, self._domain, qpn=QPN, mtu=MTU, send_depth=DEPTH, receive_depth=DEPTH, reads=READS)
        )

    def connect(self, there: RxeEnd, expects: int, begins: int) -> None:
        """Connect with rxe's end, whose first packet has the number `expects`."""
        way = address_vector(MAC, there.mac, ADDRESS, there.ip)
        self.pair.connect(way, there.number, expects=expects, begins=begins, timeout=OUR_TIMEOUT)

    def post_receives(self, slots: Iterable[tuple[int, int]]) -> None:
        """Post receive requests: place and bytes of each, numbered from 0."""
        for number, (at, size) in enumerate(slots):
            self.pair.post_receive(self._region, at, size, wr_id=number)

    def post_sends(self, requests: Iterable[Request], there: RxeEnd) -> None:
        """Post send requests, numbered from 0."""
        for number, r in enumerate(requests):
            self.pair.post_send(
                r.verb, self._region, r.at, r.size, wr_id=number, key=there.key, address=there.address + r.remote,
                immediate=r.immediate, compare=r.compare, swap=r.swap,
            )  # fmt: skip

    def poll(self, queue: str) -> list[Done]:
        """Return completions of "send" or "receive"."""
        found = self.pair.poll_sends() if queue == "send" else self.pair.poll_receives()
        return [Done(each.wr_id, each.status, each.size, each.immediate) for each in found]

    def counts(self) -> dict[str, int]:
        """Return what the queue pair has counted."""
        return self.pair.counters

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()


class RxeEnd:
    """A queue pair of rxe. Requests are posted in chains: one system call for all of them."""

    def __init__(self, place: Place, room: int) -> None:
        import pyverbs.enums as e
        from pyverbs.cq import CQ
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

        self.ip = str(place.address)
        self.mac = Path(f"/sys/class/net/{place.netdev}/address").read_text(encoding="utf-8").strip()
        self.memory = np.zeros(room, np.uint8)
        self._counters = Path(f"/sys/class/infiniband/{place.verbs}/ports/1/hw_counters")
        self._before = self._read_counters()
        self._stack = contextlib.ExitStack()
        keep, closing = self._stack.enter_context, contextlib.closing
        self._device = keep(closing(VerbsDevice(str(place.verbs), self.ip)))
        context = self._device.context
        access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        self._access = access | e.IBV_ACCESS_REMOTE_ATOMIC
        # Any: the distribution's pyverbs has no types
        domain: Any = keep(closing(PD(context)))
        self._queues: dict[str, Any] = {what: keep(closing(CQ(context, 2 * DEPTH))) for what in ("send", "receive")}
        self.address = int(self.memory.ctypes.data)
        mr: Any = keep(closing(MR(domain, room, self._access, address=self.address)))
        cap = QPCap(max_send_wr=DEPTH, max_recv_wr=DEPTH, max_inline_data=0)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self._queues["send"], rcq=self._queues["receive"], cap=cap,
                          sq_sig_all=1)  # fmt: skip
        self._qp: Any = keep(closing(QP(domain, init)))
        first = QPAttr(port_num=1)
        first.qp_access_flags = self._access
        self._qp.to_init(first)
        self.key, self._lkey, self.number = int(mr.rkey), int(mr.lkey), int(self._qp.qp_num)
        self._with_immediate = e.IBV_WC_WITH_IMM
        self._opcodes = {
            "send": e.IBV_WR_SEND, "send-imm": e.IBV_WR_SEND_WITH_IMM, "write": e.IBV_WR_RDMA_WRITE,
            "write-imm": e.IBV_WR_RDMA_WRITE_WITH_IMM, "read": e.IBV_WR_RDMA_READ,
            "compare-swap": e.IBV_WR_ATOMIC_CMP_AND_SWP, "fetch-add": e.IBV_WR_ATOMIC_FETCH_AND_ADD,
        }  # fmt: skip

    def connect(self, there: OurEnd, expects: int, begins: int) -> None:
        """Connect with our end, whose first packet has the number `expects`."""
        import pyverbs.enums as e
        from pyverbs.addr import GID, AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr

        gid = GID(ipaddress.IPv6Address(gid_of(ADDRESS)).exploded)
        route = GlobalRoute(dgid=gid, sgid_index=self._device.index)
        attributes = QPAttr(port_num=1)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
        attributes.dest_qp_num, attributes.path_mtu = there.number, getattr(e, f"IBV_MTU_{MTU}")
        attributes.rq_psn, attributes.sq_psn = expects, begins
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = READS
        attributes.min_rnr_timer, attributes.timeout = 12, RXE_TIMEOUT
        # 7 is for ever, of NAKs too: rxe counts each of them, and a long message over such a wire has many
        attributes.retry_cnt = attributes.rnr_retry = 7
        self._qp.to_rts(attributes)

    def post_receives(self, slots: Iterable[tuple[int, int]]) -> None:
        """See OurEnd."""
        from pyverbs.wr import SGE, RecvWR

        chain = [
            RecvWR(wr_id=number, num_sge=1, sg=[SGE(self.address + at, size, self._lkey)])
            for number, (at, size) in enumerate(slots)
        ]
        for one, following in itertools.pairwise(chain):
            one.next_wr = following
        if chain:
            self._qp.post_recv(chain[0])

    def post_sends(self, requests: Iterable[Request], there: OurEnd) -> None:
        """See OurEnd."""
        from pyverbs.wr import SGE, SendWR

        chain = []
        for number, r in enumerate(requests):
            # pyverbs hands the bytes of an immediate on as they are
            swapped = int.from_bytes(r.immediate.to_bytes(4, "big"), "little")
            wr = SendWR(wr_id=number, opcode=self._opcodes[r.verb], num_sge=1, imm_data=swapped,
                        sg=[SGE(self.address + r.at, r.size, self._lkey)])  # fmt: skip
            if r.verb == "compare-swap":
                wr.set_wr_atomic(there.key, there.address + r.remote, r.compare, r.swap)
            elif r.verb == "fetch-add":
                wr.set_wr_atomic(there.key, there.address + r.remote, r.swap, 0)
            elif not r.verb.startswith("send"):
                wr.set_wr_rdma(there.key, there.address + r.remote)
            if chain:
                chain[-1].next_wr = wr
            chain.append(wr)
        if chain:
            self._qp.post_send(chain[0])

    def poll(self, queue: str) -> list[Done]:
        """See OurEnd."""
        count, found = self._queues[queue].poll(64)
        return [self._done(each) for each in found[:count]]

    def _done(self, each: Any) -> Done:
        told = int(each.wc_flags) & self._with_immediate
        immediate = int.from_bytes(int(each.imm_data).to_bytes(4, "little"), "big") if told else None
        return Done(int(each.wr_id), name_of(int(each.status)), int(each.byte_len), immediate)

    def _read_counters(self) -> dict[str, int]:
        return {path.name: int(path.read_text(encoding="utf-8")) for path in sorted(self._counters.iterdir())}

    def counts(self) -> dict[str, int]:
        """Return what rxe has counted since this end was made."""
        return {name: count - self._before.get(name, 0) for name, count in self._read_counters().items()}

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()
