"""What a reliable connection refuses: memory that was not offered, requests that cannot be, and bad input in words."""

from __future__ import annotations

import gc
import weakref

import pytest
from roce_pair import Joined, Wire, statuses

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.memory_region import ProtectionDomain, access_flags
from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from cython_ext.roce.queue_pair import RoceQueuePair
from hwrx.errors import UsageError

SUCCESS = "IBV_WC_SUCCESS"


# --- what is refused -----------------------------------------------------------------------------------------------

WRONG = {
    "key": lambda region: {"key": region.key ^ 1, "address": region.address},
    "key of nothing": lambda region: {"key": 0, "address": region.address},
    "before": lambda region: {"key": region.key, "address": region.address - 8},
    "behind": lambda region: {"key": region.key, "address": region.address + region.size - 56},
    "far": lambda region: {"key": region.key, "address": 2**64 - 64},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("verb", ["write", "write-imm", "read", "fetch-add", "compare-swap"])
def test_memory_that_was_not_offered_is_refused_and_not_touched(verb, wrong):
    joined = Joined(size=4096)
    us, them = joined.ends
    before = bytes(them.memory)
    us.memory[:] = b"\xff" * 4096
    them.qp.post_receive(them.region, 0, 64)
    size = 8 if verb in ("fetch-add", "compare-swap") else 64
    where = WRONG[wrong](them.region)
    if size == 8 and wrong == "behind":
        where["address"] = them.region.address + them.region.size
    us.qp.post_send(verb, us.region, 0, size, swap=5, wr_id=4, **where)
    joined.settle()
    assert [(each.wr_id, each.status) for each in us.qp.poll_sends()] == [(4, "IBV_WC_REM_ACCESS_ERR")]
    assert statuses(them.qp.poll_receives()) == ["IBV_WC_WR_FLUSH_ERR"]
    assert them.memory == before
    assert us.memory == b"\xff" * 4096
    assert (us.qp.state, them.qp.state) == ("IBV_QPS_ERR", "IBV_QPS_ERR")


@pytest.mark.parametrize("verb", ["write", "read", "fetch-add"])
@pytest.mark.parametrize("lacks", ["region", "queue pair"])
def test_a_right_that_was_not_given_is_refused(verb, lacks):
    right = {"write": "remote write", "read": "remote read", "fetch-add": "remote atomic"}[verb]
    rights = [each for each in ("local write", "remote write", "remote read", "remote atomic") if each != right]
    joined = Joined(**({"access": rights} if lacks == "queue pair" else {}))
    us, them = joined.ends
    region = them.domain.register(them.memory, access=rights if lacks == "region" else ("local write", right))
    us.memory[:8] = b"\xff" * 8
    us.qp.post_send(verb, us.region, 0, 8, swap=5, key=region.key, address=region.address)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == ["IBV_WC_REM_ACCESS_ERR"]
    assert not any(them.memory)


def test_a_key_opens_nothing_after_its_region_was_closed():
    joined = Joined()
    us, them = joined.ends
    region = them.domain.register(them.memory)
    key = region.key
    region.close()
    again = them.domain.register(bytearray(4096))
    assert again.key != key
    us.qp.post_send("write", us.region, 0, 8, key=key, address=again.address)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == ["IBV_WC_REM_ACCESS_ERR"]


def test_memory_stays_until_its_region_is_closed_also_if_nobody_keeps_the_region():
    class Memory(bytearray):  # which can be referred to weakly
        pass

    joined = Joined()
    us, them = joined.ends
    memory = Memory(4096)
    still = weakref.ref(memory)
    region = them.domain.register(memory)
    where = {"key": region.key, "address": region.address}
    del memory, region
    gc.collect()
    assert still() is not None
    us.memory[:8] = b"\xff" * 8
    us.qp.post_send("write", us.region, 0, 8, **where)
    joined.settle()
    assert still()[:9] == b"\xff" * 8 + b"\0"
    other = Memory(8)
    gone = weakref.ref(other)
    region = them.domain.register(other)
    del other
    region.close()
    assert gone() is None


def test_a_region_that_is_closed_within_a_message_is_written_no_further():
    joined = Joined(window=2, mtu=256)
    us, them = joined.ends
    region = them.domain.register(them.memory)
    us.memory[:] = b"\xff" * len(us.memory)
    us.qp.post_send("write", us.region, 0, 60_000, key=region.key, address=region.address)
    for _ in range(20):
        joined.step()
    assert 0 < them.qp.counters["copied"] < 60_000
    region.close()
    written = sum(them.memory)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == ["IBV_WC_REM_ACCESS_ERR"]
    assert sum(them.memory) == written


def test_a_message_that_is_longer_than_the_receive_buffer_is_refused():
    joined = Joined()
    us, them = joined.ends
    them.qp.post_receive(them.region, 0, 2000, wr_id=9)
    us.memory[:] = b"\xff" * len(us.memory)
    us.qp.post_send("send", us.region, 0, 2001)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == ["IBV_WC_REM_INV_REQ_ERR"]
    assert [(each.wr_id, each.status) for each in them.qp.poll_receives()] == [(9, "IBV_WC_LOC_LEN_ERR")]
    assert not any(them.memory[2000:])


def test_a_receive_buffer_that_may_not_be_written_is_the_receivers_error():
    joined = Joined()
    us, them = joined.ends
    region = them.domain.register(bytearray(64))
    them.qp.post_receive(region)
    region.close()
    us.qp.post_send("send", us.region, 0, 64)
    joined.settle()
    assert statuses(us.qp.poll_sends()) == ["IBV_WC_REM_OP_ERR"]
    assert statuses(them.qp.poll_receives()) == ["IBV_WC_LOC_PROT_ERR"]


def test_own_memory_that_is_gone_is_an_error_of_its_own_request_alone():
    joined = Joined()
    us, them = joined.ends
    region = us.domain.register(bytearray(64))
    there = {"key": them.region.key, "address": them.region.address}
    us.qp.post_send("write", us.region, 0, 64, wr_id=1, **there)
    us.qp.post_send("write", region, wr_id=2, **there)
    us.qp.post_send("write", us.region, 0, 64, wr_id=3, **there)
    region.close()
    joined.settle()
    assert [(each.wr_id, each.status) for each in us.qp.poll_sends()] == [
        (1, SUCCESS), (2, "IBV_WC_LOC_PROT_ERR"), (3, "IBV_WC_WR_FLUSH_ERR"),
    ]  # fmt: skip


# --- packets that nobody should send -------------------------------------------------------------------------------


class Responder:
    """One end, told packets by hand."""

    WAY = address_vector("02:00:00:00:00:01", "02:00:00:00:00:02", "192.0.2.1", "192.0.2.2")

    def __init__(self) -> None:
        wire = Wire()
        wire.record = True
        self.joined = Joined(wire, first=(100, 200))
        self.end = self.joined.ends[1]
        self.end.qp.post_receive(self.end.region, 0, 4096)

    def tell(self, opcode, psn=100, **fields) -> list[tuple[int, int]]:
        """Syndromes and numbers of what it answers."""
        self.joined.wire.seen.clear()
        way = fields.pop("way", self.WAY)
        self.end.link.hand_in(build_packet(way, opcode, **{"qpn": 0x11, "psn": psn, "ack_request": True, **fields}))
        self.end.qp.progress(1)
        return [(found["syndrome"], found["psn"]) for found in map(dissect_roce, self.end.link.take_out())]

    @property
    def there(self):
        return {"key": self.end.region.key, "address": self.end.region.address}


WHOLE = bytes(1024)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("RC_SEND_MIDDLE", {"payload": WHOLE}), None),
        (("RC_SEND_LAST", {"payload": b"x"}), None),
        (("RC_RDMA_WRITE_LAST", {"payload": b"x"}), None),
        (("RC_SEND_FIRST", {"payload": b"short"}), None),
        (("RC_SEND_ONLY", {"payload": WHOLE + b"x"}), None),
        (("RC_SEND_FIRST", {"payload": WHOLE}), ("RC_SEND_FIRST", {"payload": WHOLE})),
        (("RC_SEND_FIRST", {"payload": WHOLE}), ("RC_SEND_ONLY", {"payload": b"x"})),
        (("RC_SEND_FIRST", {"payload": WHOLE}), ("RC_RDMA_WRITE_LAST", {"payload": b"x"})),
        (("RC_SEND_FIRST", {"payload": WHOLE}), ("RC_RDMA_READ_REQUEST", {"length": 1})),
        (("RC_SEND_FIRST", {"payload": WHOLE}), ("RC_SEND_LAST", {"payload": b""})),
        (("RC_RDMA_WRITE_ONLY", {"payload": b"four", "length": 5}), None),
        (("RC_RDMA_WRITE_FIRST", {"payload": WHOLE, "length": 1024}), None),
        (("RC_RDMA_WRITE_FIRST", {"payload": WHOLE, "length": 1030}), ("RC_RDMA_WRITE_LAST", {"payload": b"seven 7"})),
        (("RC_RDMA_WRITE_FIRST", {"payload": WHOLE, "length": 1030}), ("RC_RDMA_WRITE_LAST", {"payload": b"five5"})),
        (("RC_RDMA_WRITE_FIRST", {"payload": WHOLE, "length": 1030}), ("RC_RDMA_WRITE_MIDDLE", {"payload": WHOLE})),
        (("RC_RDMA_READ_REQUEST", {"length": 0x80000001}), None),
        (("RC_FETCH_ADD", {"swap": 1, "off": 4}), None),
        (("RC_SEND_ONLY_WITH_INVALIDATE", {"payload": b"x"}), None),
        ((0x1F, {}), None),
    ],
)
def test_a_request_that_cannot_be_is_refused_as_invalid(first, second):
    responder = Responder()
    before = bytes(responder.end.memory)
    steps = [first] if second is None else [first, second]
    for number, (opcode, fields) in enumerate(steps):
        where = responder.there
        where["address"] += fields.get("off", 0)
        fields = {key: value for key, value in fields.items() if key != "off"}
        said = responder.tell(opcode, psn=100 + number, **{**where, **fields})
    assert said == [(0x61, 100 + len(steps) - 1)]
    assert responder.end.qp.state == "IBV_QPS_ERR"
    assert responder.end.memory == before
    assert responder.tell("RC_SEND_ONLY", psn=100 + len(steps), payload=b"x") == []


def test_later_numbers_are_refused_once_until_the_expected_one_comes():
    responder = Responder()
    assert responder.tell("RC_SEND_ONLY", psn=102) == [(0x60, 100)]
    assert responder.tell("RC_SEND_ONLY", psn=103) == []
    assert responder.tell("RC_SEND_ONLY", psn=100) == [(0x1F, 100)]
    assert responder.tell("RC_SEND_ONLY", psn=102) == [(0x60, 101)]


def test_earlier_numbers_are_acknowledged_as_far_as_all_came():
    responder = Responder()
    assert responder.tell("RC_SEND_ONLY", psn=100) == [(0x1F, 100)]
    assert responder.tell("RC_SEND_ONLY", psn=100) == [(0x1F, 100)]
    assert responder.tell("RC_SEND_ONLY", psn=99) == [(0x1F, 100)]
    assert len(responder.end.qp.poll_receives()) == 1


def test_strangers_and_spoiled_packets_are_met_with_silence():
    responder = Responder()
    away = address_vector("02:00:00:00:00:01", "02:00:00:00:00:02", "192.0.2.7", "192.0.2.2")
    assert responder.tell("RC_SEND_ONLY", way=away) == []
    assert responder.tell("RC_SEND_ONLY", qpn=0x12) == []
    assert responder.tell("RC_SEND_ONLY", spoil=True) == []
    assert responder.tell("UC_SEND_ONLY") == []
    counters = responder.end.qp.counters
    assert (counters["strangers"], counters["wrong_icrc"], counters["malformed"]) == (2, 1, 1)
    assert responder.end.qp.poll_receives() == []
    assert responder.tell("RC_SEND_ONLY") == [(0x1F, 100)]


def test_a_duplicate_read_is_answered_as_far_as_it_was_executed():
    responder = Responder()
    assert len(responder.tell("RC_RDMA_READ_REQUEST", length=2048, **responder.there)) == 2
    assert len(responder.tell("RC_RDMA_READ_REQUEST", length=2048, **responder.there)) == 2
    assert responder.tell("RC_RDMA_READ_REQUEST", length=2049, **responder.there) == []
    assert responder.tell("RC_RDMA_READ_REQUEST", length=8, key=5, address=0) == []
    assert responder.end.qp.state == "IBV_QPS_RTS"


def test_a_read_that_comes_twice_before_its_answer_goes_is_answered_once():
    """The second answer would only cross what the requester asks for next."""
    responder = Responder()
    request = {"qpn": 0x11, "ack_request": True, "length": 2048, **responder.there}
    for psn in (100, 100, 102, 100):
        responder.end.link.hand_in(build_packet(Responder.WAY, "RC_RDMA_READ_REQUEST", psn=psn, **request))
    responder.end.qp.progress(1)
    answers = [dissect_roce(frame) for frame in responder.end.link.take_out()]
    assert [found["psn"] for found in answers] == [100, 101, 102, 103]
    # once it has gone it is answered again, and so is another part of it
    assert len(responder.tell("RC_RDMA_READ_REQUEST", length=2048, **responder.there)) == 2
    rest = {"key": responder.end.region.key, "address": responder.end.region.address + 1024}
    assert responder.tell("RC_RDMA_READ_REQUEST", psn=101, length=1024, **rest) == [(0x1F, 101)]


class Requester:
    """The other end, with one request sent, told responses by hand."""

    WAY = address_vector("02:00:00:00:00:02", "02:00:00:00:00:01", "192.0.2.2", "192.0.2.1")

    def __init__(self, verb: str, size: int) -> None:
        self.end = Joined(first=(100, 200)).ends[0]
        self.end.memory[:] = b"\xff" * len(self.end.memory)
        self.end.qp.post_send(verb, self.end.region, 0, size, key=1, address=8)
        self.end.qp.progress(1)
        self.end.link.take_out()

    def tell(self, opcode, psn=100, **fields) -> list[str]:
        """Statuses of what is complete then."""
        self.end.link.hand_in(build_packet(self.WAY, opcode, qpn=0x10, psn=psn, **fields))
        self.end.qp.progress(1)
        return statuses(self.end.qp.poll_sends())


@pytest.mark.parametrize(
    ("verb", "size", "opcode", "fields"),
    [
        ("read", 2048, "RC_RDMA_READ_RESPONSE_LAST", {"payload": WHOLE}),
        ("read", 2048, "RC_RDMA_READ_RESPONSE_ONLY", {"payload": WHOLE}),
        ("read", 2048, "RC_RDMA_READ_RESPONSE_FIRST", {"payload": WHOLE[:1000]}),
        ("read", 2048, "RC_RDMA_READ_RESPONSE_FIRST", {"payload": WHOLE + b"four"}),
        ("read", 8, "RC_RDMA_READ_RESPONSE_FIRST", {"payload": bytes(8)}),
        ("read", 8, "RC_RDMA_READ_RESPONSE_ONLY", {"payload": bytes(9)}),
        ("read", 8, "RC_ATOMIC_ACKNOWLEDGE", {}),
        ("fetch-add", 8, "RC_RDMA_READ_RESPONSE_ONLY", {"payload": bytes(8)}),
        ("send", 8, "RC_RDMA_READ_RESPONSE_ONLY", {"payload": bytes(8)}),
        ("send", 8, "RC_ATOMIC_ACKNOWLEDGE", {}),
    ],
)
def test_a_response_that_fits_no_request_is_an_error_and_writes_nothing(verb, size, opcode, fields):
    requester = Requester(verb, size)
    assert requester.tell(opcode, **fields) == ["IBV_WC_BAD_RESP_ERR"]
    assert requester.end.memory == b"\xff" * len(requester.end.memory)


def test_responses_to_what_nobody_waits_for_change_nothing():
    requester = Requester("send", 8)
    assert requester.tell("RC_ACKNOWLEDGE", psn=99) == []
    assert requester.tell("RC_ACKNOWLEDGE", psn=101) == []
    assert requester.tell("RC_ACKNOWLEDGE", psn=101, syndrome=0x62) == []
    assert requester.end.qp.counters["stale"] == 3
    for reserved in (0x9F, 0x40, 0x65, 0xE0):
        assert requester.tell("RC_ACKNOWLEDGE", syndrome=reserved) == []
    assert requester.end.qp.counters["malformed"] == 4
    assert requester.tell("RC_ACKNOWLEDGE") == [SUCCESS]


# --- bad input in words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"qpn": 1}, "number is between 2"),
        ({"qpn": 1 << 24}, "number is between 2"),
        ({"mtu": 1500}, "no path MTU of 1500"),
        ({"reads": 0}, "reads is between 1"),
        ({"window": 0}, "window is between 1"),
        ({"send_depth": 1 << 20}, "send_depth is between"),
        ({"access": ["remote write"]}, "need local write"),
        ({"access": ["everything"]}, "no right 'everything'"),
    ],
)
def test_a_queue_pair_that_cannot_be_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        RoceQueuePair(HandedLink(), ProtectionDomain(), **{"qpn": 17, **options})


def test_what_cannot_be_posted_is_refused():
    joined = Joined(send_depth=2, receive_depth=2, mtu=256)
    us = joined.ends[0]
    for arguments, words in (
        (("spend", us.region), "no verb 'spend'"),
        (("send", us.region, 0, len(us.memory) + 1), "not within a region"),
        (("send", us.region, -1, 1), "not within a region"),
        (("fetch-add", us.region, 0, 4), "has 8 bytes"),
        (("send", ProtectionDomain().register(bytearray(8))), "another protection domain"),
    ):
        with pytest.raises(UsageError, match=words):
            us.qp.post_send(*arguments)
    with pytest.raises(UsageError, match="not a multiple of 8"):
        us.qp.post_send("fetch-add", us.region, 0, 8, address=4)
    with pytest.raises(UsageError, match="immediate is between"):
        us.qp.post_send("send-imm", us.region, immediate=1 << 32)
    for _ in range(2):
        us.qp.post_send("send", us.region, 0, 1)
        us.qp.post_receive(us.region)
    with pytest.raises(UsageError, match="2 send requests are posted"):
        us.qp.post_send("send", us.region, 0, 1)
    with pytest.raises(UsageError, match="2 receive requests are posted"):
        us.qp.post_receive(us.region)
    us.qp.close()
    assert statuses(us.qp.poll_sends()) == statuses(us.qp.poll_receives()) == ["IBV_WC_WR_FLUSH_ERR"] * 2
    with pytest.raises(UsageError, match="error state"):
        us.qp.post_receive(us.region)


def test_before_it_is_connected_nothing_goes():
    pair = RoceQueuePair(HandedLink(), ProtectionDomain(), qpn=17)
    for call in (pair.progress, lambda: pair.post_send("send")):
        with pytest.raises(UsageError, match="not connected"):
            call()
    with pytest.raises(UsageError, match="timeout is between 0 and 31"):
        pair.connect(Responder.WAY, 18, expects=0, begins=0, timeout=32)
    with pytest.raises(UsageError, match="42 bytes"):
        pair.connect(b"", 18, expects=0, begins=0)
    large = RoceQueuePair(HandedLink(largest=1514), ProtectionDomain(), qpn=17, mtu=2048)
    with pytest.raises(UsageError, match="does not fit a frame"):
        large.connect(Responder.WAY, 18, expects=0, begins=0)


def test_memory_that_cannot_be_registered_is_refused():
    domain = ProtectionDomain()
    for memory in (b"read only", bytearray()):
        with pytest.raises(UsageError):
            domain.register(memory)
    regions = [domain.register(bytearray(8)) for _ in range(256)]
    assert len({region.key for region in regions}) == 256
    with pytest.raises(UsageError, match="at most 256"):
        domain.register(bytearray(8))
    assert access_flags(()) == 0
