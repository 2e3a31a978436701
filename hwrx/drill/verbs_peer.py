"""A queue pair of a verbs device as the peer of a drill: SoftRoCE, or a real NIC."""

from __future__ import annotations

import contextlib
from typing import Any

from cython_ext.verbs.wc_words import name_of
from hwrx.drill.ends import IMMEDIATE, RECEIVED, ROOM, STRIDE, Completed, Posted, first_memory, local_place
from hwrx.drill.model import Side
from hwrx.errors import MachineError
from hwrx.roce.parameters import Parameters, gid_of
from hwrx.verbs.rxe import gid_index

BEGINS_AT = 5
DEPTH = 64
MTUS = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}  # ibv_mtu


class VerbsDevice:
    """A verbs device, opened once for many peers.

    :param name: as `hwrx devices` shows it
    :param address: one of its IPv4 addresses
    :raises MachineError: if it cannot be opened, or has no GID of that address
    """

    def __init__(self, name: str, address: str) -> None:
        try:
            import pyverbs.device
        except ImportError as error:
            raise MachineError(f"pyverbs is missing: {error}", remedy="apt-get install python3-pyverbs") from error
        index = gid_index(name, address)
        if index is None:
            raise MachineError(f"{name} has no RoCE v2 GID of {address}", remedy="hwrx devices shows those it has")
        self.address, self.index = address, index
        try:
            # Any: the distribution's pyverbs has no types
            self.context: Any = pyverbs.device.Context(name=name)
        except Exception as error:  # PyverbsError is no common base of what 44.0 raises
            raise MachineError(f"{name} cannot be opened: {error}", remedy="hwrx devices") from error

    def close(self) -> None:
        """Close the device."""
        self.context.close()


class VerbsPeer:
    """See `hwrx.drill.ends.Peer`.

    `PD.pd` of pyverbs 44 casts a C pointer to a Python object: it is not touched here.
    """

    def __init__(self, device: VerbsDevice, side: Side) -> None:
        import pyverbs.enums as e
        from pyverbs.cq import CQ
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPCap, QPInitAttr

        self._device, self._enums = device, e
        self._parts = contextlib.ExitStack()
        keep, closing = self._parts.enter_context, contextlib.closing
        rights = {
            "local write": e.IBV_ACCESS_LOCAL_WRITE, "remote write": e.IBV_ACCESS_REMOTE_WRITE,
            "remote read": e.IBV_ACCESS_REMOTE_READ, "remote atomic": e.IBV_ACCESS_REMOTE_ATOMIC,
        }  # fmt: skip
        self._every = sum(rights.values())
        # Any: the distribution's pyverbs has no types
        self._pd: Any = keep(closing(PD(device.context)))
        self._queues: dict[str, Any] = {what: keep(closing(CQ(device.context, DEPTH))) for what in ("send", "receive")}
        self._mr: Any = keep(closing(MR(self._pd, ROOM, sum(rights[name] for name in side.access))))
        cap = QPCap(max_send_wr=DEPTH, max_recv_wr=DEPTH, max_inline_data=0)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self._queues["send"], rcq=self._queues["receive"], cap=cap,
                          sq_sig_all=1)  # fmt: skip
        self._qp: Any = keep(closing(QP(self._pd, init)))
        self._mr.write(bytes(first_memory("peer")), ROOM)
        self.own = Parameters(
            gid=gid_of(device.address), qpn=int(self._qp.qp_num), psn=side.psn, mtu=side.mtu, key=int(self._mr.rkey),
            address=int(self._mr.buf), size=ROOM,
        )  # fmt: skip
        self.sends: list[Completed] = []
        self.receives: list[Completed] = []

    def connect(self, us: Parameters, mac: str, side: Side) -> None:
        """See Peer. The kernel has to know whose frames come from the MAC address."""
        import ipaddress

        from pyverbs.addr import GID, AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr

        gid = GID(ipaddress.IPv6Address(us.gid).exploded)
        route = GlobalRoute(dgid=gid, sgid_index=self._device.index)
        first = QPAttr(port_num=1)
        first.qp_access_flags = self._every
        self._qp.to_init(first)
        attributes = QPAttr(port_num=1)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
        attributes.dest_qp_num, attributes.path_mtu = us.qpn, MTUS[side.mtu]
        attributes.rq_psn, attributes.sq_psn = us.psn, side.psn
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = side.reads
        attributes.min_rnr_timer, attributes.timeout = side.min_rnr_timer, side.timeout
        attributes.retry_cnt, attributes.rnr_retry = side.retry_count, side.rnr_retry
        self._qp.to_rts(attributes)

    def post_receive(self, slot: int, size: int) -> None:
        """See Peer."""
        from pyverbs.wr import SGE, RecvWR

        piece = SGE(self._mr.buf + RECEIVED + slot * STRIDE, size, self._mr.lkey)
        self._qp.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[piece]))

    def post(self, posted: Posted, key: int, address: int) -> None:
        """See Peer."""
        from pyverbs.wr import SGE, SendWR

        e = self._enums
        opcode = {
            "send": e.IBV_WR_SEND, "send-imm": e.IBV_WR_SEND_WITH_IMM, "write": e.IBV_WR_RDMA_WRITE,
            "write-imm": e.IBV_WR_RDMA_WRITE_WITH_IMM, "read": e.IBV_WR_RDMA_READ,
            "compare-swap": e.IBV_WR_ATOMIC_CMP_AND_SWP, "fetch-add": e.IBV_WR_ATOMIC_FETCH_AND_ADD,
        }[posted.verb]  # fmt: skip
        piece = SGE(self._mr.buf + local_place(posted), posted.size, self._mr.lkey)
        # pyverbs hands the bytes of the immediate on as they are
        swapped = int.from_bytes(IMMEDIATE.to_bytes(4, "big"), "little")
        request = SendWR(opcode=opcode, num_sge=1, sg=[piece], send_flags=e.IBV_SEND_SIGNALED, imm_data=swapped)
        if posted.verb == "compare-swap":
            request.set_wr_atomic(key, address, BEGINS_AT, 1)
        elif posted.verb == "fetch-add":
            request.set_wr_atomic(key, address, 1, 0)
        elif not posted.verb.startswith("send"):
            request.set_wr_rdma(key, address)
        self._qp.post_send(request)

    def poll(self) -> None:
        """See Peer."""
        e = self._enums
        for what, completed in (("send", self.sends), ("receive", self.receives)):
            count, found = self._queues[what].poll(DEPTH)
            for each in found[:count]:
                told = int(each.wc_flags) & e.IBV_WC_WITH_IMM
                immediate = int.from_bytes(int(each.imm_data).to_bytes(4, "little"), "big") if told else None
                completed.append(Completed(name_of(int(each.status)), int(each.byte_len), immediate))

    def read(self, at: int, size: int) -> bytes:
        """See Peer."""
        return bytes(self._mr.read(size, at)) if size else b""

    def close(self) -> None:
        """See Peer."""
        self._parts.close()
