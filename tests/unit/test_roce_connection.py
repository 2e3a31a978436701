"""The reliable connection in memory: every verb and size, and what a bad wire does to it."""

from __future__ import annotations

import random

import pytest
from roce_pair import ADDRESSES_V6, Joined, Wire, statuses

from cython_ext.roce.packet import dissect_roce
from cython_ext.roce.queue_pair import MTUS, VERBS
from cython_ext.roce.timer import rnr_wait_ns, timeout_ns

SUCCESS = "IBV_WC_SUCCESS"
SIZES = (0, 1, 255, 256, 257, 1023, 1024, 1025, 4096, 5000, 65536)


def pattern(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


# --- verbs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", MTUS)
@pytest.mark.parametrize("size", SIZES)
def test_every_verb_carries_every_size(mtu, size):
    joined = Joined(mtu=mtu)
    us, them = joined.ends
    body = pattern(size, size)
    us.memory[:size] = body
    there = {"key": them.region.key, "address": them.region.address}
    them.qp.post_receive(them.region, 0, 70_000, wr_id=7)
    us.qp.post_send("send-imm", us.region, 0, size, wr_id=1, immediate=0xFEDCBA98)
    joined.settle()
    assert us.qp.poll_sends() == [(1, SUCCESS, "IBV_WC_SEND", size, None)]
    assert them.qp.poll_receives() == [(7, SUCCESS, "IBV_WC_RECV", size, 0xFEDCBA98)]
    assert them.memory == body + bytes(len(them.memory) - size)
    them.memory[:] = bytes(len(them.memory))
    us.qp.post_send("write", us.region, 0, size, wr_id=2, **there)
    joined.settle()
    assert us.qp.poll_sends() == [(2, SUCCESS, "IBV_WC_RDMA_WRITE", size, None)]
    assert them.qp.poll_receives() == []
    assert them.memory == body + bytes(len(them.memory) - size)
    them.memory[:] = bytes(len(them.memory))
    them.qp.post_receive(them.region, 0, 0, wr_id=8)
    us.qp.post_send("write-imm", us.region, 0, size, wr_id=3, immediate=5, **there)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS]
    assert them.qp.poll_receives() == [(8, SUCCESS, "IBV_WC_RECV_RDMA_WITH_IMM", size, 5)]
    assert them.memory == body + bytes(len(them.memory) - size)
    us.memory[:] = bytes(len(us.memory))
    us.qp.post_send("read", us.region, 3, size, wr_id=4, **there)
    joined.settle()
    assert us.qp.poll_sends() == [(4, SUCCESS, "IBV_WC_RDMA_READ", size, None)]
    assert us.memory == bytes(3) + body + bytes(len(us.memory) - size - 3)
    for end in joined.ends:
        assert all(end.qp.counters[name] == 0 for name in ("sent_again", "naks_sent", "duplicates", "wrong_icrc"))


def test_atomics_change_the_other_ends_memory_and_return_what_stood_there():
    joined = Joined()
    us, them = joined.ends
    them.memory[8:16] = (40).to_bytes(8, "little")
    there = {"key": them.region.key, "address": them.region.address + 8}
    us.qp.post_send("fetch-add", us.region, 0, 8, swap=2, **there)
    us.qp.post_send("compare-swap", us.region, 8, 8, compare=42, swap=2**64 - 1, **there)
    us.qp.post_send("compare-swap", us.region, 16, 8, compare=42, swap=1, **there)
    joined.settle()
    assert [each.opcode for each in us.qp.poll_sends()] == ["IBV_WC_FETCH_ADD"] + ["IBV_WC_COMP_SWAP"] * 2
    assert [int.from_bytes(us.memory[at : at + 8], "little") for at in (0, 8, 16)] == [40, 42, 2**64 - 1]
    assert them.memory[8:16] == b"\xff" * 8


def test_ipv6_carries_the_same():
    joined = Joined(addresses=ADDRESSES_V6)
    us, them = joined.ends
    us.memory[:3000] = pattern(3000, 1)
    us.qp.post_send("write", us.region, 0, 3000, key=them.region.key, address=them.region.address)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS]
    assert them.memory[:3000] == us.memory[:3000]


def test_numbers_go_on_behind_the_last_one():
    joined = Joined(first=(0xFFFFFC, 0xFFFFFF), mtu=256)
    us, them = joined.ends
    for number in range(20):
        them.qp.post_receive(them.region, 0, 4096, wr_id=number)
        us.memory[:2000] = pattern(2000, number)
        us.qp.post_send("send", us.region, 0, 2000)
        us.qp.post_send("read", us.region, 8192, 900, key=them.region.key, address=them.region.address)
        joined.settle()
        assert statuses(us.qp.poll_sends()) == [SUCCESS] * 2
        assert them.memory[:2000] == us.memory[:2000]
        assert us.memory[8192:9092] == us.memory[:900]
    assert len(them.qp.poll_receives()) == 20


def test_opcodes_and_acknowledgements_are_as_the_specification_has_them():
    wire = Wire()
    wire.record = True
    joined = Joined(wire, window=4)
    us, them = joined.ends
    us.qp.post_send("write", us.region, 0, 5 * 1024 + 1, key=them.region.key, address=them.region.address)
    joined.settle()
    middle = ["RDMA_WRITE_MIDDLE"] * 4
    assert wire.opcodes(0) == ["RDMA_WRITE_FIRST", *middle, "RDMA_WRITE_LAST"]
    asked = [found["ack_request"] for side, found in wire.seen if side == 0]
    assert asked == [False, True, False, True, False, True]
    assert set(wire.opcodes(1)) == {"ACKNOWLEDGE"}
    wire.seen.clear()
    us.qp.post_send("read", us.region, 0, 2049, key=them.region.key, address=them.region.address)
    joined.settle()
    assert wire.opcodes(0) == ["RDMA_READ_REQUEST"]
    assert wire.opcodes(1) == [f"RDMA_READ_RESPONSE_{which}" for which in ("FIRST", "MIDDLE", "LAST")]


def test_one_acknowledgement_answers_a_batch():
    joined = Joined()
    us, them = joined.ends
    for _ in range(16):
        them.qp.post_receive(them.region, 0, 64)
        us.qp.post_send("send", us.region, 0, 64)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS] * 16
    assert them.qp.counters["acks_sent"] == 1
    assert them.qp.counters["acks_coalesced"] == 15


def test_what_is_not_signalled_has_no_completion():
    joined = Joined()
    us, them = joined.ends
    there = {"key": them.region.key, "address": them.region.address}
    us.qp.post_send("write", us.region, 0, 10, wr_id=1, signaled=False, **there)
    us.qp.post_send("write", us.region, 0, 10, wr_id=2, **there)
    us.qp.post_send("write", us.region, 0, 10, wr_id=3, signaled=False, key=1, address=0)
    joined.settle()
    assert [(each.wr_id, each.status) for each in us.qp.poll_sends()] == [(2, SUCCESS), (3, "IBV_WC_REM_ACCESS_ERR")]


# --- bad wires -----------------------------------------------------------------------------------------------------


class Traffic:
    """Random verbs of random sizes from both ends; what each must have done is checked as soon as it is complete.

    Each end's memory: what it sends, where SENDs come in, where the other end writes and reads, a counter.
    """

    SLOT, SLOTS = 6000, 8
    HALF = SLOT * SLOTS

    def __init__(self, joined: Joined, messages: int, seed: int) -> None:
        self.joined, self.left, self.draw = joined, [messages, messages], random.Random(seed)
        self.pending: list[list] = [[], []]
        self.incoming: list[list] = [[], []]
        self.added = [0, 0]
        self.numbers = [0, 0]
        self.fetched: list[list[int]] = [[], []]
        for end in joined.ends:
            for slot in range(self.SLOTS):
                end.qp.post_receive(end.region, self.HALF + slot * self.SLOT, self.SLOT, wr_id=slot)

    def post(self, side: int) -> None:
        us, them = self.joined.ends[side], self.joined.ends[1 - side]
        number, self.numbers[side] = self.numbers[side], self.numbers[side] + 1
        slot = number % self.SLOTS
        size = self.draw.choice((0, 1, 63, 256, 1000, 1024, 1025, 2048, 4097, self.draw.randrange(self.SLOT)))
        verb = self.draw.choice(list(VERBS))
        at, remote = slot * self.SLOT, 2 * self.HALF + slot * self.SLOT
        there = {"key": them.region.key, "address": them.region.address + remote}
        body = self.draw.randbytes(size)
        if verb == "read":
            them.memory[remote : remote + size] = body
            us.qp.post_send(verb, us.region, at, size, wr_id=number, **there)
        elif verb in ("fetch-add", "compare-swap"):
            verb = "fetch-add"
            there["address"] = them.region.address + 3 * self.HALF
            us.qp.post_send(verb, us.region, at, 8, wr_id=number, swap=1, **there)
        else:
            us.memory[at : at + size] = body
            us.qp.post_send(verb, us.region, at, size, wr_id=number, immediate=number, **there)
        if "send" in verb or "imm" in verb:
            self.incoming[side].append((number if "imm" in verb else None, "send" in verb, body))
        self.pending[side].append((number, verb, at, remote, body))

    def look(self, side: int) -> None:
        us, them = self.joined.ends[side], self.joined.ends[1 - side]
        for found in them.qp.poll_receives():
            immediate, send, body = self.incoming[side].pop(0)
            assert (found.status, found.size, found.immediate) == (SUCCESS, len(body), immediate)
            start = self.HALF + found.wr_id * self.SLOT
            if send:
                assert them.memory[start : start + found.size] == body
            them.qp.post_receive(them.region, start, self.SLOT, wr_id=found.wr_id)
        for found in us.qp.poll_sends():
            number, verb, at, remote, body = self.pending[side].pop(0)
            assert (found.wr_id, found.status) == (number, SUCCESS)
            if verb == "read":
                assert us.memory[at : at + len(body)] == body
            elif verb == "fetch-add":
                self.fetched[side].append(int.from_bytes(us.memory[at : at + 8], "little"))
            elif "write" in verb:
                assert them.memory[remote : remote + len(body)] == body

    def run(self) -> None:
        for _ in range(4_000_000):
            for side in (0, 1):
                while self.left[side] and len(self.pending[side]) < self.SLOTS:
                    self.post(side)
                    self.left[side] -= 1
            moved = self.joined.step()
            for side in (0, 1):
                self.look(side)
            if not moved and not any(self.left) and not any(self.pending):
                break
        assert not any(self.pending)
        assert not any(self.incoming)
        # each addition was executed once, in its order
        assert self.fetched == [list(range(len(fetched))) for fetched in self.fetched]


WIRES = {
    "good": {},
    "loss": {"loss": 0.05},
    "duplicates": {"double": 0.2},
    "reordering": {"delay": 0.1},
    "spoiled": {"spoil": 0.05},
    "everything": {"loss": 0.03, "double": 0.03, "delay": 0.05, "spoil": 0.03},
}


@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("wire", WIRES)
def test_messages_arrive_once_in_order_and_byte_for_byte(wire, window):
    joined = Joined(
        Wire(11, **WIRES[wire]), size=4 * Traffic.HALF, first=(0xFFFF00, 0), window=window,
        connect={"retry_count": 7, "timeout": 9}.items(),
    )  # fmt: skip
    # a wire that is this bad loses the same packet eight times in a row now and then: the timer is not what is tested
    Traffic(joined, 700, 3).run()
    counters = [end.qp.counters for end in joined.ends]
    bad = wire != "good"
    assert any(each["sent_again"] for each in counters) == bad or wire == "duplicates"
    assert any(each["wrong_icrc"] for each in counters) == ("spoil" in WIRES[wire])
    assert any(each["duplicates"] for each in counters) == bad


# --- losses, one by one --------------------------------------------------------------------------------------------


def lose(wanted: dict[tuple[int, str], int]):
    """Lose the n-th frame with an opcode that a side sends, once each."""
    left = dict(wanted)

    def script(side, frame):
        key = (side, dissect_roce(frame)["opcode"].removeprefix("RC_"))
        if key in left:
            left[key] -= 1
            if left[key] < 0:
                del left[key]
                return []
        return None

    return script


@pytest.mark.parametrize("opcode", ["SEND_FIRST", "SEND_MIDDLE", "SEND_LAST"])
def test_a_lost_packet_is_told_by_a_nak_or_the_timer_and_sent_again(opcode):
    wire = Wire()
    wire.script = lose({(0, opcode): 0})
    joined = Joined(wire)
    us, them = joined.ends
    us.memory[:5000] = pattern(5000, 1)
    them.qp.post_receive(them.region, 0, 5000)
    us.qp.post_send("send", us.region, 0, 5000)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == statuses(them.qp.poll_receives()) == [SUCCESS]
    assert them.memory[:5000] == us.memory[:5000]
    last = opcode == "SEND_LAST"
    assert them.qp.counters["naks_sent"] == (0 if last else 1)
    assert us.qp.counters["timeouts"] == (1 if last else 0)
    assert us.qp.counters["sent_again"] == {"SEND_FIRST": 5, "SEND_MIDDLE": 4, "SEND_LAST": 5}[opcode]


def test_a_read_goes_on_where_its_response_was_lost():
    wire = Wire()
    wire.script = lose({(1, "RDMA_READ_RESPONSE_MIDDLE"): 1})
    wire.record = True
    joined = Joined(wire)
    us, them = joined.ends
    them.memory[:6000] = pattern(6000, 2)
    us.qp.post_send("read", us.region, 0, 6000, key=them.region.key, address=them.region.address)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS]
    assert us.memory[:6000] == them.memory[:6000]
    again = [found for side, found in wire.seen if side == 0][1]
    assert (again["address"] - them.region.address, again["length"]) == (2048, 6000 - 2048)
    assert us.qp.counters["lost_responses"] == 1
    assert us.qp.counters["timeouts"] == 0


@pytest.mark.parametrize("verb", ["fetch-add", "compare-swap"])
def test_an_atomic_whose_answer_was_lost_is_executed_once(verb):
    wire = Wire()
    wire.script = lose({(1, "ATOMIC_ACKNOWLEDGE"): 0})
    joined = Joined(wire)
    us, them = joined.ends
    us.qp.post_send(verb, us.region, 0, 8, compare=0, swap=7, key=them.region.key, address=them.region.address)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS]
    assert us.memory[:8] == bytes(8)
    assert them.memory[:8] == (7).to_bytes(8, "little")
    assert them.qp.counters["duplicates"] == 1


def test_a_lost_acknowledgement_makes_no_second_message():
    wire = Wire()
    wire.script = lose({(1, "ACKNOWLEDGE"): 0})
    joined = Joined(wire)
    us, them = joined.ends
    for number in range(2):
        them.qp.post_receive(them.region, 0, 64, wr_id=number)
    us.qp.post_send("send", us.region, 0, 64)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS]
    assert [each.wr_id for each in them.qp.poll_receives()] == [0]
    assert them.qp.counters["duplicates"] == 1


@pytest.mark.parametrize("verb", ["read", "fetch-add"])
def test_no_acknowledgement_has_the_number_of_a_response(verb):
    """A requester that takes an ACK of a READ's number for its answer (rxe) would have no data if that was lost."""
    wire = Wire()
    # a SEND comes once more behind the READ
    wire.script = lambda side, frame: (
        [(1, frame), (10, frame)] if dissect_roce(frame)["opcode"] == "RC_SEND_ONLY" else None
    )
    wire.record = True
    joined = Joined(wire)
    us, them = joined.ends
    them.qp.post_receive(them.region, 64, 64)
    us.qp.post_send("send", us.region, 64, 64)
    us.qp.post_send(verb, us.region, 0, 8, key=them.region.key, address=them.region.address)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS] * 2
    assert them.qp.counters["duplicates"] == 1
    sent = 5
    assert [found["psn"] for side, found in wire.seen if found["opcode"] == "RC_ACKNOWLEDGE"] == [sent]


def test_silence_ends_after_as_many_tries_as_were_allowed():
    wire = Wire(loss=1.0)
    wire.record = True
    joined = Joined(wire, connect={"retry_count": 3}.items())
    us = joined.ends[0]
    us.qp.post_send("send", us.region, 0, 64, wr_id=1)
    us.qp.post_send("send", us.region, 0, 64, wr_id=2)
    joined.settle()
    assert [(each.wr_id, each.status) for each in us.qp.poll_sends()] == [
        (1, "IBV_WC_RETRY_EXC_ERR"), (2, "IBV_WC_WR_FLUSH_ERR"),
    ]  # fmt: skip
    assert us.qp.state == "IBV_QPS_ERR"
    assert len(wire.seen) == 2 * 4
    assert joined.time >= 4 * timeout_ns(8)


# --- receivers that are not ready ----------------------------------------------------------------------------------


def test_a_receiver_that_is_not_ready_is_asked_again_when_it_said():
    joined = Joined(connect={"rnr_retry": 7, "min_rnr_timer": 20}.items())
    us, them = joined.ends
    us.memory[:3000] = pattern(3000, 1)
    us.qp.post_send("send", us.region, 0, 3000)
    for _ in range(30):
        joined.step()
    assert us.qp.counters["rnr_naks"] >= 1
    assert us.qp.poll_sends() == []
    before = joined.time
    them.qp.post_receive(them.region, 0, 3000)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == [SUCCESS]
    assert them.memory[:3000] == us.memory[:3000]
    assert joined.time - before <= rnr_wait_ns(20) + 100_000
    assert us.qp.counters["timeouts"] == 0


def test_a_write_with_immediate_waits_for_a_receive_request_too():
    joined = Joined()
    us, them = joined.ends
    us.memory[:2000] = pattern(2000, 1)
    us.qp.post_send("write-imm", us.region, 0, 2000, immediate=3, key=them.region.key, address=them.region.address)
    for _ in range(50):
        joined.step()
    assert us.qp.counters["rnr_naks"] >= 1
    assert them.memory[1024:2000] == bytes(976)
    them.qp.post_receive(them.region, 0, 0)
    joined.settle()
    assert [each.immediate for each in them.qp.poll_receives()] == [3]
    assert them.memory[:2000] == us.memory[:2000]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_receiver_that_is_never_ready_is_given_up(retries):
    joined = Joined(connect={"rnr_retry": retries}.items())
    us, them = joined.ends
    us.qp.post_send("send", us.region, 0, 64)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == ["IBV_WC_RNR_RETRY_EXC_ERR"]
    assert them.qp.counters["rnr_naks_sent"] == retries + 1


def test_times_are_those_of_the_specification():
    assert timeout_ns(0) == 0
    assert timeout_ns(14) == 67_108_864
    assert [rnr_wait_ns(code) for code in (0, 1, 12, 31)] == [655_360_000, 10_000, 640_000, 491_520_000]
