"""Our endpoints against an independent peer: the distribution's pyverbs, in both directions, byte for byte."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from guest_ends import Ends, Places

from cython_ext.core import payload
from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from cython_ext.verbs.verbs_queue import QKEY
from hwrx import paths
from hwrx.control.messages import Prepare, Setting
from hwrx.host import tools
from hwrx.paths.verbs_end import End, parse_end

MESSAGES = 40
TRIAL = 7
SLOTS = 64
LIMIT = 20.0
CONTROL = 16  # cython_ext/verbs/ud.pyx
SEND_NS_AT = 16  # cython_ext/core/payload.pxd


class PyverbsEnd:
    """A queue pair of pyverbs on the pair's second device, and one memory region: sends from its last slot.

    `beside`: an end whose protection domain it shares, and whose memory its queue pair may so reach.

    `PD.pd` of pyverbs 44 casts a C pointer to a Python object: nothing here may touch that property.
    """

    def __init__(
        self, device: str, gid_index: int, size: int, *, datagram: bool = False, beside: PyverbsEnd | None = None
    ) -> None:
        import pyverbs.enums as e
        from pyverbs.cq import CQ
        from pyverbs.device import Context
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

        self.e = e
        self.size = size
        self.gid_index = gid_index
        self.head = 40 if datagram else 0
        # our endpoint says its credits and its end in datagrams of their own; rxe puts a queue pair whose buffer is
        # too short for one into the error state
        self.room = self.head + (max(size, CONTROL) if datagram else size)
        self.stride = (self.room + 63) // 64 * 64
        self.datagram = datagram
        self.own = [] if beside else [Context(name=device)]
        self.context = beside.context if beside else self.own[0]
        self.own += [] if beside else [PD(self.context)]
        self.pd = beside.pd if beside else self.own[1]
        self.send_cq, self.recv_cq = CQ(self.context, 64), CQ(self.context, 2 * SLOTS)
        self.access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        self.access |= e.IBV_ACCESS_REMOTE_ATOMIC
        self.mr = MR(self.pd, self.stride * (SLOTS + 1), self.access)
        cap = QPCap(max_send_wr=64, max_recv_wr=SLOTS, max_inline_data=0)
        kind = e.IBV_QPT_UD if datagram else e.IBV_QPT_RC
        self.qp = QP(self.pd, QPInitAttr(qp_type=kind, scq=self.send_cq, rcq=self.recv_cq, cap=cap, sq_sig_all=1))
        attributes = QPAttr(port_num=1)
        if datagram:
            attributes.qkey = QKEY
        else:
            attributes.qp_access_flags = self.access
        self.qp.to_init(attributes)
        self.received = 0
        self.remote: End | None = None
        self.way: Any = None

    def describe(self, ours: dict[str, Any]) -> dict[str, Any]:
        """What our endpoint is told; `ours` is what it says of itself."""
        raw = bytes(int(word, 16) >> shift & 0xFF for word in self.gid().split(":") for shift in (8, 0))
        return {
            **ours, "device": "rxe1", "node_guid": "pyverbs", "mac": "", "gid": raw.hex(), "qpn": self.qp.qp_num,
            "psn": 0, "reads": 1, "address": self.mr.buf, "rkey": self.mr.rkey, "slots": SLOTS, "stride": self.stride,
        }  # fmt: skip

    def gid(self) -> str:
        return str(self.context.query_gid(1, self.gid_index))

    def connect(self, remote: dict[str, Any]) -> None:
        from pyverbs.addr import AH, AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr

        self.remote = parse_end(remote)
        raw = bytes.fromhex(self.remote.gid)
        text = ":".join(raw[i : i + 2].hex() for i in range(0, 16, 2))
        route = GlobalRoute(dgid=text_gid(text), sgid_index=self.gid_index)
        address = AHAttr(gr=route, is_global=1, port_num=1)
        attributes = QPAttr(port_num=1)
        if self.datagram:
            self.way = AH(self.pd, attr=address)
            attributes.qkey = QKEY
            attributes.sq_psn = 0
            self.qp.to_rts(attributes)
            return
        attributes.dest_qp_num = self.remote.qpn
        attributes.path_mtu = self.e.IBV_MTU_1024
        attributes.rq_psn = self.remote.psn
        attributes.sq_psn = 0
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = 12
        attributes.timeout = 15
        attributes.retry_cnt = 6
        attributes.rnr_retry = 7
        attributes.ah_attr = address
        self.qp.to_rts(attributes)

    def post_receive(self, slot: int) -> None:
        from pyverbs.wr import SGE, RecvWR

        sge = SGE(self.mr.buf + slot * self.stride, self.room, self.mr.lkey)
        self.qp.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[sge]))

    def completion(self) -> Any:
        """Of the next message that comes in."""
        return self._poll(self.recv_cq)

    def _poll(self, cq: Any) -> Any:
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            count, completions = cq.poll()
            if count:
                assert completions[0].status == self.e.IBV_WC_SUCCESS, completions[0].status
                return completions[0]
        raise AssertionError("pyverbs saw no completion")

    def read(self, slot: int) -> bytes:
        data: bytes = self.mr.read(self.size, slot * self.stride + self.head)
        return data

    def watch(self, slot: int, sequence: int, to_check: bool) -> bytes:
        """Poll memory until the message of that sequence number, or the one to be checked before it, is in a slot."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            message = self.read(slot % SLOTS)
            if stands(message, sequence, to_check):
                return message
        raise AssertionError(f"message {sequence} was never written")

    def send(self, opcode: int, message: bytes, slot: int, imm: int = 0) -> None:
        """From the last slot; WRITE goes to `slot` of our endpoint's ring. Returns when it is completed."""
        from pyverbs.wr import SGE, SendWR

        assert self.remote is not None
        self.mr.write(message, len(message), SLOTS * self.stride)
        sge = SGE(self.mr.buf + SLOTS * self.stride, len(message), self.mr.lkey)
        wr = SendWR(opcode=opcode, num_sge=1, sg=[sge], send_flags=self.e.IBV_SEND_SIGNALED, imm_data=imm)
        if self.datagram:
            wr.set_wr_ud(self.way, self.remote.qpn, QKEY)
        elif opcode != self.e.IBV_WR_SEND:
            wr.set_wr_rdma(self.remote.rkey, self.remote.address + slot * self.remote.stride)
        self.qp.post_send(wr)
        self._poll(self.send_cq)

    def add(self, key: int, address: int, amount: int) -> None:
        """Fetch and add on 8 bytes of the other end's memory. Returns when it is completed."""
        from pyverbs.wr import SGE, SendWR

        sge = SGE(self.mr.buf, 8, self.mr.lkey)
        flags = self.e.IBV_SEND_SIGNALED
        wr = SendWR(opcode=self.e.IBV_WR_ATOMIC_FETCH_AND_ADD, num_sge=1, sg=[sge], send_flags=flags)
        wr.set_wr_atomic(key, address, amount, 0)
        self.qp.post_send(wr)
        self._poll(self.send_cq)

    def close(self) -> None:
        for part in (self.qp, self.way, self.mr, self.send_cq, self.recv_cq, *reversed(self.own)):
            if part is not None:
                part.close()


def text_gid(text: str) -> Any:
    from pyverbs.addr import GID

    return GID(text)


class Meeting:
    """Our endpoint on the first device, pyverbs on the second, connected; our loop runs in a thread of its own."""

    def __init__(
        self, pair: Places, path: str, role: str, size: int, pattern: str, wait: str, messages: int = MESSAGES
    ) -> None:
        setting = Setting(
            path=path, pattern=pattern, size=size, wait=wait, window=16, messages=messages, warmup=0, cooldown=0,
            check_every=1, signal_every=4, batch=4, ack_timeout=18,
        )  # type: ignore[arg-type]  # fmt: skip
        there = "server" if role == "client" else "client"
        self.pattern, self.role = pattern, role
        self.ours = paths.open_endpoint(
            Prepare(trial=TRIAL, role=role, setting=setting, here=pair["client"], there=pair[there])  # type: ignore[arg-type, index]
        )
        self.theirs = PyverbsEnd("rxe1", self.ours.describe()["port"], size, datagram=path == "rdma-ud")
        self.trial = Trial(
            messages=messages, size=size, trial=TRIAL, batch=4, check_every=1, limit_ns=round(LIMIT * 1e9)
        )
        self.status = 0
        self.thread = threading.Thread(target=self._run)

    def meet(self) -> None:
        described = self.ours.describe()
        self.theirs.connect(described)
        self.ours.connect(self.theirs.describe(described))
        self.thread.start()

    def _run(self) -> None:
        self.status = loop.run(self.trial, self.ours, self.pattern, self.role)

    def end(self) -> dict[str, int]:
        """Our loop's tally, once it is complete."""
        self.thread.join(LIMIT)
        assert loop.ENDED.get(self.status) == "complete", self.ours.explain(self.status)
        return self.trial.counts()

    def close(self) -> None:
        if self.thread.is_alive():
            self.thread.join()  # the loop's own limit ends it; its endpoint must outlive it
        self.ours.close()
        self.theirs.close()


Meet = Callable[..., Meeting]


@pytest.fixture
def meet(pair: Places, ends: Ends, needs: Callable[..., None]) -> Iterator[Meet]:
    needs("pyverbs")
    meetings: list[Meeting] = []

    def make(
        path: str, role: str, size: int, pattern: str = "pingpong", wait: str = "event", messages: int = MESSAGES
    ) -> Meeting:
        meetings.append(Meeting(pair, path, role, size, pattern, wait, messages))
        return meetings[-1]

    yield make
    for meeting in meetings:
        meeting.close()


def outline(message: bytes) -> bytes:
    """What every message carries, checked or not: header but for the send time, and trailer."""
    if len(message) >= 17:
        return message[:SEND_NS_AT] + message[-1:]
    return message[: 16 if len(message) == 16 else 12 if len(message) >= 12 else 8]


def stands(message: bytes, sequence: int, to_check: bool) -> bool:
    wanted = payload.make(len(message), sequence, TRIAL, to_check=to_check)
    return outline(message) == outline(wanted) and (not to_check or message == wanted)


def ours_of(sequence: int, message: bytes, size: int, to_check: bool) -> None:
    """The message that our sender built: what is to be checked byte for byte, what is timed by header and trailer."""
    assert len(message) == size
    assert stands(message, sequence, to_check), message


def theirs_of(sequence: int, size: int, to_check: bool) -> bytes:
    """A message as pyverbs sends it; of its send time we know nothing."""
    return payload.make(size, sequence, TRIAL, 1, to_check=to_check)


# a ping-pong's messages: before each (check_every=1) goes one that is checked to the last byte, and not timed
EXCHANGES = [(sequence, to_check) for sequence in range(MESSAGES) for to_check in (True, False)]
SIZES = (8, 13, 17, 64, 1000, 65536)


@pytest.mark.parametrize("size", SIZES)
def test_our_sends_reach_pyverbs_and_its_answers_reach_us(meet: Meet, size: int) -> None:
    meeting = meet("rdma-send", "client", size)
    theirs = meeting.theirs
    for slot in range(8):
        theirs.post_receive(slot)
    meeting.meet()
    for sequence, to_check in EXCHANGES:
        completion = theirs.completion()
        assert completion.byte_len == size
        ours_of(sequence, theirs.read(completion.wr_id), size, to_check)
        theirs.post_receive(completion.wr_id)
        theirs.send(theirs.e.IBV_WR_SEND, theirs_of(sequence, size, to_check), 0)
    tally = meeting.end()
    assert tally["checked"] == tally["delivered"] == MESSAGES


@pytest.mark.parametrize("size", SIZES)
def test_sends_of_pyverbs_reach_us_and_our_answers_reach_it(meet: Meet, size: int) -> None:
    meeting = meet("rdma-send", "server", size, wait="poll")
    theirs = meeting.theirs
    for slot in range(8):
        theirs.post_receive(slot)
    meeting.meet()
    for sequence, to_check in EXCHANGES:
        theirs.send(theirs.e.IBV_WR_SEND, theirs_of(sequence, size, to_check), 0)
        answer = theirs.completion()
        ours_of(sequence, theirs.read(answer.wr_id), size, to_check)
        theirs.post_receive(answer.wr_id)
    assert meeting.end()["checked"] == MESSAGES


@pytest.mark.parametrize("size", SIZES)
def test_our_writes_reach_pyverbs_and_its_writes_reach_us(meet: Meet, size: int) -> None:
    meeting = meet("rdma-write", "client", size)
    theirs = meeting.theirs
    meeting.meet()
    slots = meeting.ours.describe()["slots"]
    for slot, (sequence, to_check) in enumerate(EXCHANGES):
        ours_of(sequence, theirs.watch(slot, sequence, to_check), size, to_check)
        theirs.send(theirs.e.IBV_WR_RDMA_WRITE, theirs_of(sequence, size, to_check), slot % slots)
    tally = meeting.end()
    assert tally["checked"] == tally["delivered"] == MESSAGES


@pytest.mark.parametrize("size", SIZES)
def test_writes_of_pyverbs_reach_us_and_our_writes_reach_it(meet: Meet, size: int) -> None:
    meeting = meet("rdma-write", "server", size)
    theirs = meeting.theirs
    meeting.meet()
    slots = meeting.ours.describe()["slots"]
    for slot, (sequence, to_check) in enumerate(EXCHANGES):
        theirs.send(theirs.e.IBV_WR_RDMA_WRITE, theirs_of(sequence, size, to_check), slot % slots)
        ours_of(sequence, theirs.watch(slot, sequence, to_check), size, to_check)
    assert meeting.end()["checked"] == MESSAGES


def test_our_writes_with_immediate_complete_at_pyverbs(meet: Meet) -> None:
    meeting = meet("rdma-write-imm", "client", 640)
    theirs = meeting.theirs
    for slot in range(8):
        theirs.post_receive(slot)
    meeting.meet()
    slots = meeting.ours.describe()["slots"]
    for slot, (sequence, to_check) in enumerate(EXCHANGES):
        completion = theirs.completion()
        assert completion.opcode == theirs.e.IBV_WC_RECV_RDMA_WITH_IMM
        ours_of(sequence, theirs.read(slot % SLOTS), 640, to_check)
        theirs.post_receive(0)
        theirs.send(theirs.e.IBV_WR_RDMA_WRITE_WITH_IMM, theirs_of(sequence, 640, to_check), slot % slots)
    assert meeting.end()["checked"] == MESSAGES


@pytest.fixture
def late_answers(pair: Places) -> Iterator[None]:
    """What the second device sends takes a while: between an answer's begin and its end others may act."""
    netdev = pair["server"].netdev
    assert netdev is not None
    tools.run_tool("tc", "qdisc", "add", "dev", netdev, "root", "netem", "delay", "400ms")
    yield
    tools.run_tool("tc", "qdisc", "delete", "dev", netdev, "root")


@pytest.mark.parametrize("path", ["rdma-fetch-add", "rdma-cas"])
def test_a_counter_that_another_queue_pair_moved_after_the_last_answer_is_an_error(
    meet: Meet, late_answers: None, path: str
) -> None:
    """The last operation is carried out, its answer is on its way, and what is asked last comes after it."""
    count = 3
    meeting = meet(path, "client", 8, messages=count)
    theirs = meeting.theirs
    theirs.mr.write(payload.make(8, 0, TRIAL), 8)
    second = PyverbsEnd("rxe1", theirs.gid_index, 8, beside=theirs)
    adder = PyverbsEnd("rxe0", theirs.gid_index, 8)
    try:
        described = meeting.ours.describe()
        adder.connect(second.describe(described))
        second.connect(adder.describe(described))
        meeting.meet()
        tools.wait_until(lambda: theirs.read(0) == payload.make(8, count, TRIAL), "the counter to be what was done")
        adder.add(theirs.mr.rkey, theirs.mr.buf, 1 << 32)
        meeting.thread.join(LIMIT)
        assert meeting.status == -errno.EBADMSG
        assert meeting.ours.explain(meeting.status) == "the counter says 4 at the end, after 3 operations"
        assert meeting.trial.counts()["delivered"] == count
    finally:
        second.close()
        adder.close()


def test_we_read_what_pyverbs_holds(meet: Meet) -> None:
    meeting = meet("rdma-read", "client", 4096, pattern="stream")
    theirs = meeting.theirs
    for slot in range(SLOTS):
        theirs.mr.write(payload.make(4096, slot, TRIAL), 4096, slot * theirs.stride)
    meeting.meet()
    tally = meeting.end()
    assert tally["checked"] == tally["delivered"] == MESSAGES


def test_memory_that_pyverbs_spoils_is_noticed(meet: Meet) -> None:
    meeting = meet("rdma-read", "client", 4096, pattern="stream")
    theirs = meeting.theirs
    for slot in range(SLOTS):
        message = bytearray(payload.make(4096, slot, TRIAL))
        if slot == 5:
            message[2000] ^= 1
        theirs.mr.write(bytes(message), 4096, slot * theirs.stride)
    meeting.meet()
    tally = meeting.end()
    assert (tally["corrupt"], tally["delivered"]) == (1, MESSAGES - 1)


@pytest.mark.parametrize("path", ["rdma-fetch-add", "rdma-cas"])
def test_our_atomics_count_in_memory_of_pyverbs(meet: Meet, path: str) -> None:
    meeting = meet(path, "client", 8)
    theirs = meeting.theirs
    theirs.mr.write(payload.make(8, 0, TRIAL), 8, 0)
    meeting.meet()
    tally = meeting.end()
    assert tally["delivered"] == MESSAGES
    assert theirs.mr.read(8, 0) == payload.make(8, MESSAGES, TRIAL)
    assert meeting.ours.counts()["counter"] == MESSAGES


def test_a_counter_that_somebody_else_moves_is_noticed(meet: Meet) -> None:
    meeting = meet("rdma-fetch-add", "client", 8)
    meeting.theirs.mr.write(payload.make(8, 1, TRIAL), 8, 0)
    meeting.meet()
    meeting.thread.join(LIMIT)
    assert loop.ENDED.get(meeting.status) != "complete"
    assert meeting.trial.counts()["corrupt"] == 1
    assert meeting.ours.counts()["counter"] == 2


@pytest.mark.parametrize("size", [8, 64, 1000])
def test_our_datagrams_reach_pyverbs_and_its_reach_us(meet: Meet, size: int) -> None:
    meeting = meet("rdma-ud", "client", size)
    theirs = meeting.theirs
    for slot in range(8):
        theirs.post_receive(slot)
    meeting.meet()
    for sequence, to_check in EXCHANGES:
        completion = theirs.completion()
        assert completion.byte_len == size + 40
        ours_of(sequence, theirs.read(completion.wr_id), size, to_check)
        theirs.post_receive(completion.wr_id)
        theirs.send(theirs.e.IBV_WR_SEND, theirs_of(sequence, size, to_check), 0)
    assert meeting.end()["checked"] == MESSAGES
