"""A queue pair of rxe through the distribution's pyverbs, as a peer for tests: one memory region, every verb."""

from __future__ import annotations

import time
from typing import Any

from hwrx.verbs import rxe

LIMIT = 60.0  # seconds that a completion may take in an emulated guest on a busy machine
TIMEOUT = 18  # 1.07 s: what a busy guest delays for less is not sent again
QKEY = 0x11111111


class RxePeer:
    """A queue pair on `device`, with `size` bytes that the other end may read, write and change.

    `index`: of its GID, if not that of the IPv4 `address`.

    `PD.pd` of pyverbs 44 casts a C pointer to a Python object: nothing here may touch that property.
    """

    def __init__(
        self, device: str, address: str, *, size: int = 1 << 18, datagram: bool = False, index: int | None = None
    ) -> None:
        import pyverbs.enums as e
        from pyverbs.cq import CQ
        from pyverbs.device import Context
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

        index = rxe.gid_index(device, address) if index is None else index
        assert index is not None
        self.e, self.index, self.datagram = e, index, datagram
        self.context = Context(name=device)
        self.pd = PD(self.context)
        self.send_cq, self.recv_cq = CQ(self.context, 128), CQ(self.context, 128)
        access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        access |= e.IBV_ACCESS_REMOTE_ATOMIC
        self.mr = MR(self.pd, size, access)
        kind = e.IBV_QPT_UD if datagram else e.IBV_QPT_RC
        cap = QPCap(max_send_wr=64, max_recv_wr=64, max_inline_data=0)
        self.qp = QP(self.pd, QPInitAttr(qp_type=kind, scq=self.send_cq, rcq=self.recv_cq, cap=cap, sq_sig_all=1))
        attributes = QPAttr(port_num=1)
        if datagram:
            attributes.qkey = QKEY
        else:
            attributes.qp_access_flags = access
        self.qp.to_init(attributes)
        self.gid = str(self.context.query_gid(1, index))
        # while they are there: pyverbs reads them where they were, also after they were closed
        self.number, self.address, self.key = int(self.qp.qp_num), int(self.mr.buf), int(self.mr.rkey)
        self.way: Any = None

    def connect(
        self, gid: str, number: int, *, expects: int = 0, begins: int = 0, rnr_retry: int = 7, mtu: int = 1024
    ) -> None:
        """Towards queue pair `number` of a GID; the first PSN that it sends, and the first of ours."""
        from pyverbs.addr import AH, GID, AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr

        route = GlobalRoute(dgid=GID(gid), sgid_index=self.index)
        way = AHAttr(gr=route, is_global=1, port_num=1)
        attributes = QPAttr(port_num=1)
        attributes.sq_psn = begins
        if self.datagram:
            self.way = AH(self.pd, attr=way)
            attributes.qkey = QKEY
        else:
            attributes.dest_qp_num, attributes.rq_psn = number, expects
            attributes.path_mtu = getattr(self.e, f"IBV_MTU_{mtu}")
            attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 4
            attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt = 12, TIMEOUT, 6
            attributes.rnr_retry, attributes.ah_attr = rnr_retry, way
        self.qp.to_rts(attributes)

    def post_receive(self, at: int, size: int, wr_id: int = 0) -> None:
        from pyverbs.wr import SGE, RecvWR

        self.qp.post_recv(RecvWR(wr_id=wr_id, num_sge=1, sg=[SGE(self.mr.buf + at, size, self.mr.lkey)]))

    def post(self, opcode: int, at: int, size: int, *, key: int = 0, address: int = 0, immediate: int = 0,
             number: int = 0, compare: int = 0, swap: int = 0) -> None:  # fmt: skip
        """A request for `size` bytes from, or to, `at` of the region. `immediate` as a number."""
        from pyverbs.wr import SGE, SendWR

        swapped = int.from_bytes(immediate.to_bytes(4, "big"), "little")  # pyverbs hands the bytes on as they are
        wr = SendWR(
            opcode=opcode, num_sge=1, sg=[SGE(self.mr.buf + at, size, self.mr.lkey)],
            send_flags=self.e.IBV_SEND_SIGNALED, imm_data=swapped,
        )  # fmt: skip
        if self.datagram:
            wr.set_wr_ud(self.way, number, QKEY)
        elif opcode in (self.e.IBV_WR_ATOMIC_CMP_AND_SWP, self.e.IBV_WR_ATOMIC_FETCH_AND_ADD):
            wr.set_wr_atomic(key, address, compare, swap)
        elif opcode not in (self.e.IBV_WR_SEND, self.e.IBV_WR_SEND_WITH_IMM):
            wr.set_wr_rdma(key, address)
        self.qp.post_send(wr)

    def sent(self) -> int:
        """The status of the next request to complete."""
        return int(self.completion("send").status)

    def completion(self, queue: str) -> Any:
        """Of the next request of `send` or `receive` to complete."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if (found := self.poll(queue)) is not None:
                return found
            time.sleep(0.001)
        raise AssertionError(f"rxe completed no {queue}")

    def poll(self, queue: str) -> Any:
        count, found = (self.send_cq if queue == "send" else self.recv_cq).poll()
        return found[0] if count else None

    def write(self, data: bytes, at: int) -> None:
        if data:
            self.mr.write(data, len(data), at)

    def read(self, size: int, at: int) -> bytes:
        return bytes(self.mr.read(size, at)) if size else b""

    def close(self) -> None:
        for part in (self.qp, self.way, self.mr, self.send_cq, self.recv_cq, self.pd, self.context):
            if part is not None:
                part.close()
