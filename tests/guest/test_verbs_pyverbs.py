"""Our verbs endpoint against one that is not ours: the distribution's pyverbs, in both directions, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from guest_ends import Ends

from cython_ext import payload
from hwrx import topology
from hwrx.messages import Connect, Done, Ready, Role, Setting, Start
from hwrx.peers import wait

MESSAGES = 40
STRIDE = 8192
SLOTS = 64  # a power of two, as our endpoint wants of a ring that it writes to
LIMIT = 60.0


class Stranger:
    """An RC queue pair of pyverbs on the place of one of our ends, with one registered region of SLOTS slots."""

    def __init__(self, ours: dict[str, Any], instead_of: dict[str, Any], gid_index: int) -> None:
        from pyverbs import enums
        from pyverbs.addr import GID, AHAttr, GlobalRoute
        from pyverbs.cq import CQ
        from pyverbs.device import Context
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

        self.context = Context(name=instead_of["device"])
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 4 * SLOTS)
        # the upper half is where answers are built
        flags = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE
        self.mr = MR(self.pd, 2 * SLOTS * STRIDE, flags)
        cap = QPCap(max_send_wr=SLOTS, max_recv_wr=SLOTS, max_send_sge=1, max_recv_sge=1)
        init = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=1)
        attr = QPAttr(port_num=instead_of["port"])
        attr.qp_access_flags = flags
        self.qp = QP(self.pd, init, attr)
        route = GlobalRoute(dgid=GID(self._gid(ours["gid"])), sgid_index=gid_index, hop_limit=64)
        attr = QPAttr(port_num=instead_of["port"])
        attr.ah_attr = AHAttr(port_num=instead_of["port"], is_global=1, gr=route)
        attr.dest_qp_num, attr.rq_psn, attr.sq_psn = ours["qpn"], ours["psn"], 7
        attr.path_mtu = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}[min(ours["mtu"], instead_of["mtu"])]
        attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = 12, 15, 7, 7
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 1
        for slot in range(SLOTS):
            self.post_receive(slot)
        self.qp.to_rts(attr)
        self.remote = {
            **instead_of, "qpn": self.qp.qp_num, "psn": 7, "address": self.mr.buf, "rkey": self.mr.rkey,
            "slots": SLOTS, "stride": STRIDE,
        }  # fmt: skip

    @staticmethod
    def _gid(digits: str) -> str:
        return ":".join(digits[at : at + 4] for at in range(0, 32, 4))

    def post_receive(self, slot: int) -> None:
        from pyverbs.wr import SGE, RecvWR

        self.qp.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[SGE(self.mr.buf + slot * STRIDE, STRIDE, self.mr.lkey)]))

    def post(self, slot: int, message: bytes, write_to: dict[str, Any] | None = None) -> None:
        """SEND the message, or WRITE it into the slot of our endpoint's ring."""
        from pyverbs import enums
        from pyverbs.wr import SGE, SendWR

        at = (SLOTS + slot) * STRIDE
        self.mr.write(message, len(message), offset=at)
        piece = SGE(self.mr.buf + at, len(message), self.mr.lkey)
        kind = enums.IBV_WR_SEND if write_to is None else enums.IBV_WR_RDMA_WRITE
        wr = SendWR(wr_id=1000 + slot, opcode=kind, num_sge=1, sg=[piece])
        if write_to is not None:
            there = write_to["address"] + slot % write_to["slots"] * write_to["stride"]
            wr.set_wr_rdma(write_to["rkey"], there)
        self.qp.post_send(wr)

    def completions(self) -> Iterator[Any]:
        """Completions as they come; ends when none came for LIMIT seconds."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            count, found = self.cq.poll(16)
            for completion in found[:count]:
                assert completion.status == 0, f"status {completion.status}"
                deadline = time.monotonic() + LIMIT
                yield completion

    def close(self) -> None:
        for thing in (self.qp, self.mr, self.cq, self.pd, self.context):
            thing.close()


def same_bytes(got: bytes, sequence: int, trial: int) -> None:
    """The message that the stranger's memory holds is the one that payload.pxd describes."""
    sent_at = int.from_bytes(got[16:24], "little") if len(got) >= 32 else 0
    assert got == payload.make(len(got), sequence, trial, sent_at)


def answer_sends(stranger: Stranger, size: int, trial: int, ours: dict[str, Any]) -> None:
    received = 0
    for completion in stranger.completions():
        if completion.wr_id >= 1000:
            continue
        assert completion.byte_len == size
        same_bytes(stranger.mr.read(size, offset=completion.wr_id * STRIDE), received, trial)
        stranger.post_receive(completion.wr_id)
        stranger.post(received % SLOTS, payload.make(size, received, trial, 1))
        received += 1
        if received == MESSAGES:
            return
    raise AssertionError(f"{received} messages came")


def answer_writes(stranger: Stranger, size: int, trial: int, ours: dict[str, Any]) -> None:
    deadline = time.monotonic() + LIMIT
    for sequence in range(MESSAGES):
        at = sequence % SLOTS * STRIDE
        expected = payload.make(size, sequence, trial)
        while True:
            got = stranger.mr.read(size, offset=at)
            if got[-1] == expected[-1] and got[:16] == expected[:16]:
                break
            assert time.monotonic() < deadline, f"message {sequence} did not come"
        same_bytes(got, sequence, trial)
        stranger.post(sequence % SLOTS, payload.make(size, sequence, trial, 1), ours)
    stranger.cq.poll(2 * MESSAGES)


@pytest.mark.parametrize("size", [64, 1400, 5000])
@pytest.mark.parametrize(
    ("path", "answer"), [("rdma-send", answer_sends), ("rdma-write", answer_writes)], ids=["send", "write"]
)
def test_pyverbs_and_our_endpoint_exchange_messages_byte_for_byte(
    ends: Ends, needs: Callable[..., None], path: str, answer: Callable[..., None], size: int
) -> None:
    needs("pyverbs")
    setting = Setting(
        path=path, size=size, messages=MESSAGES, warmup=0, cooldown=0, check_every=1, window=SLOTS,
        wait="event" if path == "rdma-send" else "poll", limit=30.0,
    )  # fmt: skip
    role: Role = "client"
    stranger = None
    try:
        prepared = ends.prepare(setting)
        ours = prepared[role].remote
        place = ends.places["server"]
        assert place.verbs is not None
        gid_index = topology.gid_index(place.verbs, place.address)
        assert gid_index is not None
        stranger = Stranger(ours, prepared["server"].remote, gid_index)
        agent = ends.peers[role]
        agent.send(Connect(stranger.remote))
        wait({agent: Ready}, LIMIT)
        agent.send(Start())
        answer(stranger, size, ends._trial, ours)
        done = wait({agent: Done}, LIMIT)[agent]
    finally:
        if stranger is not None:
            stranger.close()
        ends.release()
    assert done.ended == "complete", done.error
    assert done.tally["delivered"] == done.tally["checked"] == MESSAGES
    assert done.tally["corrupt"] == done.tally["lost"] == 0
