"""The ring of messages over a modelled NIC: frames gathered from where they lie, and received into the user's pages."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from model82574 import MAC, Model

from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from cython_ext.roce.queue_pair import RoceQueuePair
from hwrx.errors import MachineError, UsageError
from hwrx.nic.e1000e import E1000e

OTHER = "52:54:00:ff:ff:ff"
HERE, THERE = "192.0.2.1", "192.0.2.2"
OUT, BACK = address_vector(MAC, OTHER, HERE, THERE), address_vector(OTHER, MAC, THERE, HERE)
SIZES = (0, 1, 3, 64, 1021, 1024)


def pattern(size: int, seed: int = 0) -> bytes:
    return bytes((seed * 31 + k * 7 + (k >> 8)) & 0xFF for k in range(size))


class Ends:
    """Our queue pair on the NIC, and the frames of another that a test builds."""

    def __init__(self, model: Model, *, mtu: int = 1024, **options: int) -> None:
        self.model = model
        self.nic = E1000e(model, rx=64, tx=64, buffer=8192, long_frames=True)
        self.link = self.nic.message_link()
        self.domain = ProtectionDomain()
        self.qp = RoceQueuePair(self.link, self.domain, qpn=17, mtu=mtu, **options)

    def connect(self) -> None:
        self.qp.connect(OUT, 18, expects=0, begins=0)

    def arrive(self, opcode: str, psn: int, payload: bytes = b"", **fields: int) -> list[int]:
        return self.model.receive(build_packet(BACK, opcode, qpn=17, psn=psn, payload=payload, **fields))


@pytest.fixture
def ends(model: Model):
    made = Ends(model)
    yield made
    made.link.close()
    assert model.closed and model.regions == []


@pytest.mark.parametrize("size", SIZES)
def test_a_message_is_gathered_from_the_users_memory(model: Model, ends: Ends, size: int) -> None:
    memory = ends.link.sending_memory(4096)
    ends.connect()
    region = ends.domain.register(memory)
    memoryview(memory)[:size] = pattern(size)
    for psn in range(40):  # more than the ring holds at a time: descriptors come back
        ends.qp.post_send("send", region, 0, size)
        ends.qp.progress(0)
        (sent,) = model.transmit()
        found = dissect_roce(sent)
        assert (found["icrc"], found["psn"]) == (True, psn)
        assert found["payload"] == pattern(size)
        ends.arrive("RC_ACKNOWLEDGE", psn)
        ends.qp.progress(0)
        assert [each.status for each in ends.qp.poll_sends()] == ["IBV_WC_SUCCESS"]
    assert (ends.qp.counters["gathered"], ends.qp.counters["copied_out"]) == (40 * size, 0)
    assert ends.link.statistics()["fetched_bytes"] == 40 * size
    assert ends.model.faults == []
    region.close()


def test_what_is_sent_is_what_stands_there_when_the_nic_fetches_it(model: Model, ends: Ends) -> None:
    """It was not copied: bytes that change before the NIC comes are those that go out, and the ICRC tells."""
    memory = ends.link.sending_memory(4096)
    ends.connect()
    ends.qp.post_send("send", ends.domain.register(memory), 0, 64)
    ends.qp.progress(0)
    memoryview(memory)[:1] = b"x"
    (sent,) = model.transmit()
    assert dissect_roce(sent)["payload"][:1] == b"x"
    assert not dissect_roce(sent)["icrc"]


def test_a_descriptor_never_crosses_the_end_of_a_page(model: Model, ends: Ends) -> None:
    memory = ends.link.sending_memory(3 * 4096)
    ends.connect()
    region = ends.domain.register(memory)
    memoryview(memory)[:] = pattern(3 * 4096)
    asked: list[tuple[int, int]] = []
    reach = model.reach
    model.reach = lambda iova, size: (asked.append((iova, size)), reach(iova, size))[1]  # type: ignore[method-assign]
    for offset in (4095, 3800, 4096, 0):
        ends.qp.post_send("send", region, offset, 1000)
    ends.qp.progress(0)
    found = [dissect_roce(frame) for frame in model.transmit()]
    assert [each["payload"] for each in found] == [pattern(3 * 4096)[at : at + 1000] for at in (4095, 3800, 4096, 0)]
    assert all(each["icrc"] for each in found)
    assert all(iova // 4096 == (iova + size - 1) // 4096 for iova, size in asked)


def test_memory_that_the_nic_does_not_reach_is_copied_and_counted(model: Model, ends: Ends) -> None:
    ends.connect()
    region = ends.domain.register(bytearray(pattern(1000)))
    ends.qp.post_send("send", region, 0, 1000)
    ends.qp.progress(0)
    (sent,) = model.transmit()
    assert dissect_roce(sent)["payload"] == pattern(1000)
    assert (ends.qp.counters["gathered"], ends.qp.counters["copied_out"]) == (0, 1000)


@pytest.mark.parametrize("verb", ["write", "write-imm"])
@pytest.mark.parametrize("size", [1, 64, 1024, 2500])
def test_extended_headers_and_padding_are_in_the_gathered_icrc(model: Model, ends: Ends, verb: str, size: int) -> None:
    memory = ends.link.sending_memory(4096)
    ends.connect()
    memoryview(memory)[:size] = pattern(size)
    ends.qp.post_send(verb, ends.domain.register(memory), 0, size, key=5, address=7, immediate=9)
    ends.qp.progress(0)
    found = [dissect_roce(frame) for frame in model.transmit()]
    assert all(each["icrc"] for each in found)
    assert b"".join(each["payload"] for each in found) == pattern(size)


def test_a_full_ring_keeps_the_rest_for_later(model: Model, ends: Ends) -> None:
    memory = ends.link.sending_memory(4096)
    ends.connect()
    region = ends.domain.register(memory)
    for _ in range(40):
        ends.qp.post_send("send", region, 0, 64)
    sent = 0
    for _ in range(4):
        ends.qp.progress(0)
        frames = model.transmit()
        assert len(frames) <= 63 // 3 and model.faults == []
        sent += len(frames)
    assert sent == 40


# --- landing -------------------------------------------------------------------------------------------------------


def protect(memory, writable: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.address), ctypes.c_size_t(len(memory)), 3 if writable else 1) == 0


@pytest.mark.parametrize("size", [1, 64, 4095, 4096, 4097, 5000, 65536])
def test_sends_land_in_one_piece_in_memory_that_the_cpu_may_not_write(model: Model, size: int) -> None:
    ends = Ends(model, mtu=4096)
    slots, packets = 4, -(-size // 4096)
    user = ends.link.prepare_landing(slots=slots, size=size, mtu=4096, first=54, middle=54, last=54)
    region = ends.domain.register(user)
    ends.qp.use_landing()
    ends.connect()
    protect(user, False)
    psn = 0
    for message in range(3 * slots):
        at = message % slots * packets * 4096
        ends.qp.post_receive(region, at, size)
        body = pattern(size, message)
        for packet in range(packets):
            place = "FIRST" if packet == 0 else "LAST" if packet + 1 == packets else "MIDDLE"
            opcode = "RC_SEND_ONLY" if packets == 1 else f"RC_SEND_{place}"
            assert ends.arrive(opcode, psn, body[4096 * packet : 4096 * (packet + 1)])
            psn += 1
            ends.qp.progress(0)
        assert [each.status for each in ends.qp.poll_receives()] == ["IBV_WC_SUCCESS"]
        assert np.frombuffer(user, np.uint8)[at : at + size].tobytes() == body
        ends.link.release_messages(1)
    assert (ends.qp.counters["placed"], ends.qp.counters["copied"]) == (3 * slots * size, 0)
    assert ends.model.faults == []
    protect(user, True)
    region.close()
    ends.link.close()


def test_a_stranger_in_between_costs_a_copy_and_the_prediction_mends_itself(model: Model) -> None:
    ends = Ends(model, mtu=4096)
    user = ends.link.prepare_landing(slots=8, size=64, mtu=4096, first=54, middle=54, last=54)
    region = ends.domain.register(user)
    ends.qp.use_landing()
    ends.connect()
    for message in range(40):
        if message == 3:
            model.receive(bytes.fromhex("ffffffffffff525400ffffff0806") + bytes(46))
        ends.qp.post_receive(region, message % 8 * 4096, 64)
        ends.arrive("RC_SEND_ONLY", message, pattern(64, message))
        ends.qp.progress(0)
        assert [each.status for each in ends.qp.poll_receives()] == ["IBV_WC_SUCCESS"]
        at = message % 8 * 4096
        assert bytes(memoryview(user)[at : at + 64]) == pattern(64, message)
        ends.link.release_messages(1)
    counters = ends.qp.counters
    # as many as were armed when the stranger came
    assert 64 <= counters["misplaced"] == counters["copied"] <= 8 * 64
    assert counters["placed"] == 40 * 64 - counters["copied"]
    region.close()
    ends.link.close()


def test_a_message_that_was_delivered_is_not_overwritten_by_the_next_one(model: Model) -> None:
    """Acknowledgements that are foreseen and do not come: each message comes in front of its own place.

    It must not be copied there: the NIC still has that page, and writes the next message over it.
    """
    ends = Ends(model, mtu=4096)
    slots = 16
    user = ends.link.prepare_landing(slots=slots, size=64, mtu=4096, first=54, middle=54, last=54, asides=1)
    region = ends.domain.register(user)
    ends.qp.use_landing()
    ends.connect()
    held: list[int] = []
    for message in range(60):
        ends.qp.post_receive(region, message % slots * 4096, 64)
        for _ in range(3):  # what is refused is sent again
            ends.arrive("RC_SEND_ONLY", message, pattern(64, message))
            ends.qp.progress(0)
            if statuses := [each.status for each in ends.qp.poll_receives()]:
                break
        assert statuses == ["IBV_WC_SUCCESS"]
        held.append(message)
        for each in held:
            at = each % slots * 4096
            assert bytes(memoryview(user)[at : at + 64]) == pattern(64, each), (message, each)
        if len(held) > 3:
            ends.link.release_messages(1)
            del held[0]
    counters = ends.qp.counters
    # as many as were foretold when the first one showed that the sequence is another
    assert 0 < counters["clashes"] == counters["naks_sent"] <= 8
    assert counters["placed"] + counters["misplaced"] == 60 * 64 and counters["wrong_icrc"] == 0
    region.close()
    ends.link.close()


def test_frames_that_come_together_do_not_overwrite_each_other(model: Model) -> None:
    ends = Ends(model, mtu=4096)
    slots = 16
    user = ends.link.prepare_landing(slots=slots, size=64, mtu=4096, first=54, middle=54, last=54, asides=1)
    region = ends.domain.register(user)
    ends.qp.use_landing()
    ends.connect()
    done = posted = 0
    while done < 48:
        while posted < done + 4:
            ends.qp.post_receive(region, posted % slots * 4096, 64)
            posted += 1
        for message in range(done, done + 4):
            ends.arrive("RC_SEND_ONLY", message, pattern(64, message))
        ends.qp.progress(0)
        came = ends.qp.poll_receives()
        for each in range(done, done + len(came)):
            at = each % slots * 4096
            assert bytes(memoryview(user)[at : at + 64]) == pattern(64, each)
        done += len(came)
        ends.link.release_messages(len(came))
    assert ends.qp.counters["wrong_icrc"] == 0
    region.close()
    ends.link.close()


@pytest.mark.parametrize("first", [False, True])
def test_acknowledgements_between_messages_are_foreseen(model: Model, first: bool) -> None:
    ends = Ends(model, mtu=4096)
    user = ends.link.prepare_landing(
        slots=8, size=5000, mtu=4096, first=54, middle=54, last=54, asides=1, asides_first=first
    )
    region = ends.domain.register(user)
    ends.qp.use_landing()
    ends.connect()
    sends = ends.domain.register(bytearray(64))
    psn = 0

    def own() -> None:
        ends.qp.post_send("send", sends, 0, 64)
        ends.qp.progress(0)
        ends.arrive("RC_ACKNOWLEDGE", message)
        ends.qp.progress(0)

    for message in range(30):
        if first:
            own()
        ends.qp.post_receive(region, message % 8 * 8192, 5000)
        body = pattern(5000, message)
        ends.arrive("RC_SEND_FIRST", psn, body[:4096])
        ends.arrive("RC_SEND_LAST", psn + 1, body[4096:])
        psn += 2
        ends.qp.progress(0)
        assert [each.status for each in ends.qp.poll_receives()] == ["IBV_WC_SUCCESS"]
        assert bytes(memoryview(user)[message % 8 * 8192 :][:5000]) == body
        ends.link.release_messages(1)
        if not first:
            own()
    assert (ends.qp.counters["placed"], ends.qp.counters["copied"]) == (30 * 5000, 0)
    region.close()
    sends.close()
    ends.link.close()


def test_pages_that_the_user_still_has_are_not_written(model: Model) -> None:
    ends = Ends(model, mtu=4096)
    user = ends.link.prepare_landing(slots=2, size=64, mtu=4096, first=54, middle=54, last=54)
    region = ends.domain.register(user)
    ends.qp.use_landing()
    ends.connect()
    for message in range(2):
        ends.qp.post_receive(region, message * 4096, 64)
        ends.arrive("RC_SEND_ONLY", message, pattern(64, message))
        ends.qp.progress(0)
    # nothing was released: what comes now lands elsewhere
    model.receive(build_packet(BACK, "RC_SEND_ONLY", qpn=17, psn=2, payload=b"\xee" * 64))
    assert bytes(memoryview(user)[:64]) == pattern(64, 0)
    assert bytes(memoryview(user)[4096:4160]) == pattern(64, 1)
    region.close()
    ends.link.close()


def test_what_cannot_land_in_one_piece_is_refused(model: Model, ends: Ends) -> None:
    with pytest.raises(UsageError, match="none but the first would begin with a page"):
        ends.link.prepare_landing(slots=2, size=1025, mtu=1024, first=54, middle=54, last=54)


def test_without_an_iommu_nothing_lands(model: Model, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwrx.nic.device import Device

    monkeypatch.setattr(Model, "share", Device.share)
    with pytest.raises(MachineError, match="sees physical addresses"):
        ends.link.prepare_landing(slots=2, size=64, mtu=1024, first=54, middle=54, last=54)
