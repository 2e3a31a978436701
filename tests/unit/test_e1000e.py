"""The driver against a model of the NIC: bring-up, packets both ways, filters, interrupts."""

import os
import threading

import numpy as np
import pytest
from model82574 import MAC, OTHER, Model, frame, number_of

from hwrx.errors import MachineError, PathError, UsageError
from hwrx.nic import registers as reg
from hwrx.nic.e1000e import E1000e


def writes(model, *offsets):
    return [entry[1:] for entry in model.log if entry[0] == "write" and entry[1] in offsets]


# --- bring-up ------------------------------------------------------------------------------------------------------


def test_bring_up_keeps_the_datasheets_order(model, nic):
    order = [entry[1] for entry in model.log if entry[0] == "write"]
    first = {offset: order.index(offset) for offset in set(order)}
    last = {offset: len(order) - 1 - order[::-1].index(offset) for offset in set(order)}
    assert first[reg.IMC] < first[reg.CTRL] < last[reg.CTRL] < first[reg.MTA] < first[reg.RDBAL]
    assert first[reg.RDLEN] < first[reg.RCTL]
    # interrupts are masked once before and once after the reset
    resets = [
        at
        for at, (_, offset, *value) in enumerate(entry for entry in model.log if entry[0] == "write")
        if offset == reg.CTRL and value[0] & reg.CTRL_RST
    ]
    masks = [at for at, offset in enumerate(order) if offset == reg.IMC]
    assert any(mask < resets[0] for mask in masks) and any(mask > resets[0] for mask in masks)


def test_the_receive_unit_after_bring_up(model, nic):
    assert model.peek(reg.RCTL) == reg.RCTL_EN | reg.RCTL_BAM | reg.RCTL_SECRC
    assert model.peek(reg.RDLEN) == 64 * 16
    assert model.peek(reg.RDBAL) | model.peek(reg.RDBAH) << 32 == nic.rx.descriptors.iova()
    assert model.peek(reg.RFCTL) == 0
    # one descriptor less than there are: head equal to tail would mean that the ring is empty
    assert model.peek(reg.RDH) == 0 and model.peek(reg.RDT) == 63
    assert model.owned() == list(range(63))


def test_each_descriptor_points_to_its_buffer_and_says_nothing(model, nic):
    table = nic.rx.table
    assert table[:, 1].tolist() == [0] * 64
    assert table[:, 0].tolist() == [nic.rx.buffers.iova(i * 2048) for i in range(64)]


def test_the_transmit_unit_after_bring_up(model, nic):
    assert model.peek(reg.TCTL) & reg.TCTL_EN
    assert model.peek(reg.TXDCTL) >> 16 & 0x3F == 1
    assert model.peek(reg.TDBAL) | model.peek(reg.TDBAH) << 32 == nic.tx.descriptors.iova()


def test_mac_and_link(model, nic):
    assert nic.mac == MAC
    assert nic.link == 1000


def test_statistics_start_at_zero_although_the_nic_had_counted(model):
    model.count("GPRC", 7)
    with E1000e(model, rx=64, tx=64) as nic:
        assert nic.statistics()["GPRC"] == 0
        model.receive(frame(1))
        assert nic.statistics()["GPRC"] == 1
        model.receive(frame(2))
        assert nic.statistics()["GPRC"] == 2  # the register was cleared by reading, the total was not


def test_wide_counters_are_read_in_both_halves(model, nic):
    offset = reg.STATISTICS["GORC"][0]
    model.poke(offset, 5)
    model.poke(offset + 4, 2)
    assert nic.statistics()["GORC"] == 2 << 32 | 5


@pytest.mark.parametrize(("size", "bits"), [(2048, 0), (1024, 1 << 16), (256, 3 << 16), (4096, 3 << 16 | 1 << 25)])
def test_buffer_sizes(size, bits):
    model = Model()
    with E1000e(model, rx=64, tx=64, buffer=size):
        assert model.peek(reg.RCTL) & (3 << 16 | 1 << 25) == bits


def test_a_buffer_size_that_cannot_be_is_refused_before_anything(model):
    with pytest.raises(UsageError, match="no receive buffers of 1000 bytes"):
        E1000e(model, buffer=1000)
    assert model.log == []


@pytest.mark.parametrize("count", [32, 63, 100, 8192])
def test_a_ring_size_that_cannot_be_is_refused_and_leaves_nothing(model, count):
    with pytest.raises(ValueError, match="64, 128"):
        E1000e(model, rx=count)
    assert model.closed and model.regions == []


def test_a_device_that_is_gone_is_named(model):
    model.gone = True
    with pytest.raises(MachineError, match="every register reads 0xffffffff"):
        E1000e(model, rx=64, tx=64)
    assert model.closed and model.regions == []


def test_a_reset_that_never_ends_is_named(model, monkeypatch):
    monkeypatch.setattr("hwrx.nic.e1000e.RESET_LIMIT", 0.01)
    monkeypatch.setattr(Model, "resetting", property(lambda self: 100, lambda self, value: None), raising=False)
    with pytest.raises(MachineError, match="did not come out of its reset"):
        E1000e(Model(), rx=64, tx=64)


# --- receiving -----------------------------------------------------------------------------------------------------


def test_frames_come_in_order_and_in_place(model, nic):
    sent = [frame(i, size=60 + i) for i in range(10)]
    for one in sent:
        assert model.receive(one)
    views = nic.rx.peek(64)
    assert [bytes(view) for view in views] == sent
    buffers = np.frombuffer(nic.rx.buffers, np.uint8)
    assert all(np.shares_memory(view, buffers) for view in views)
    # what the NIC writes, the view shows: there is no copy in between
    buffers[14] = 0xAB
    assert views[0][14] == 0xAB


def test_release_gives_the_buffers_back_with_one_tail_write(model, nic):
    for i in range(10):
        model.receive(frame(i))
    nic.rx.peek(64)
    assert model.peek(reg.RDT) == 63
    nic.rx.release(4)
    assert model.peek(reg.RDT) == 3
    assert nic.rx.held == 6
    assert nic.rx.table[:4, 1].tolist() == [0] * 4
    nic.rx.release(6)
    assert model.peek(reg.RDT) == 9


def test_more_than_was_handed_out_cannot_be_released(model, nic):
    model.receive(frame(0))
    nic.rx.peek()
    with pytest.raises(ValueError, match="2 frames to release, and 1 are"):
        nic.rx.release(2)
    nic.rx.release(1)


def test_many_times_round_the_ring(model, nic):
    got = []
    for i in range(1000):
        assert model.receive(frame(i))
        if i % 7 == 6:
            views = nic.rx.peek(64)
            got += [number_of(view) for view in views]
            nic.rx.release(len(views))
    got += [number_of(view) for view in nic.rx.peek(64)]
    assert got == list(range(1000))
    assert model.faults == []


def test_ring_full_loses_the_newest_counts_them_and_recovers_in_order(model, nic):
    for i in range(70):
        model.receive(frame(i))
    assert nic.statistics()["RNBC"] == 7
    first = nic.rx.peek(256)
    assert [number_of(view) for view in first] == list(range(63))
    nic.rx.release(63)
    for i in range(100, 110):
        assert model.receive(frame(i))
    assert [number_of(view) for view in nic.rx.peek(256)] == list(range(100, 110))
    assert any("the ring was full" in sentence for sentence in nic.diagnose())


def test_nothing_comes_where_everything_is_handed_out(model, nic):
    for i in range(63):
        model.receive(frame(i))
    assert len(nic.rx.peek(256)) == 63
    assert model.owned() == []
    assert model.receive(frame(64)) == []
    assert nic.rx.peek(256) == []


def test_a_packet_knows_when_it_is_released(model, nic):
    model.receive(frame(5, size=100))
    (packet,) = nic.rx.receive()
    assert len(packet) == 100 and bytes(packet) == frame(5, size=100)
    assert packet.status & 0x03 == 0x03 and packet.errors == 0
    assert not packet.released
    nic.rx.release(1)
    assert packet.released
    with pytest.raises(ValueError, match="released"):
        _ = packet.data


def test_the_generator_releases_what_it_yielded_even_when_left_early(model, nic):
    for i in range(5):
        model.receive(frame(i))
    for packet in nic.receive(timeout=0):
        assert number_of(packet.data) == 0
        break
    assert nic.rx.held == 0
    assert list(nic.receive(timeout=0)) == []


def test_views_outlive_the_driver_and_the_ring_does_not(model):
    nic = E1000e(model, rx=64, tx=64)
    model.receive(frame(9))
    (view,) = nic.rx.peek()
    nic.close()
    assert number_of(view) == 9
    for use in (nic.rx.peek, nic.rx.receive, nic.rx.drain, lambda: nic.rx.release(1), lambda: nic.tx.send([b"x" * 60])):
        with pytest.raises(ValueError, match="closed"):
            use()
    nic.close()


# --- filters -------------------------------------------------------------------------------------------------------


def test_frames_for_others_are_taken_in_promiscuous_mode_only(model, nic):
    assert model.receive(frame(1, destination=OTHER)) == []
    nic.set_promiscuous(True)
    assert model.receive(frame(1, destination=OTHER))
    nic.set_promiscuous(False)
    assert model.receive(frame(1, destination=OTHER)) == []


def test_further_addresses_up_to_sixteen_in_all(model, nic):
    multicast = "01:00:5e:00:00:01"
    assert model.receive(frame(1, destination=bytes.fromhex(multicast.replace(":", "")))) == []
    nic.accept(multicast)
    assert model.receive(frame(1, destination=bytes.fromhex(multicast.replace(":", ""))))
    for i in range(14):
        nic.accept(f"52:54:00:00:00:{i:02x}")
    with pytest.raises(UsageError, match="all 16"):
        nic.accept("52:54:00:00:00:ff")
    # they survive a new bring-up
    nic.start()
    assert model.receive(frame(1, destination=bytes.fromhex(multicast.replace(":", ""))))


# --- sending -------------------------------------------------------------------------------------------------------


def test_frames_go_out_as_they_are(model, nic):
    frames = [frame(i, size=60 + i) for i in range(20)]
    assert nic.send(frames) == 20
    assert writes(model, reg.TDT) == [(reg.TDT, 0)]  # the ring's own store goes past the model's log
    assert model.peek(reg.TDT) == 20
    assert model.transmit() == frames
    assert nic.flush()


def test_a_full_transmit_ring_takes_no_more_and_says_why(model, nic):
    assert nic.tx.send([frame(i) for i in range(100)]) == 63
    assert nic.tx.room == 0
    assert nic.tx.send([frame(0)]) == 0
    model.transmit(10)
    assert nic.tx.room == 10
    model.cable = False
    model.poke(reg.STATUS, model.peek(reg.STATUS) & ~reg.STATUS_LU)
    with pytest.raises(PathError, match=r"sent nothing for 0.01 s, and 10 frames wait\n.*link is down"):
        nic.send([frame(i) for i in range(20)], timeout=0.01)


@pytest.mark.parametrize("size", [0, 13, 2049])
def test_a_frame_that_cannot_be_is_not_posted(model, nic, size):
    with pytest.raises(ValueError, match="a frame has 14 to 2048 bytes"):
        nic.tx.send([frame(1), bytes(size)])
    assert model.peek(reg.TDT) == 0


# --- interrupts ----------------------------------------------------------------------------------------------------


def test_msix_is_set_up_and_armed_when_somebody_waits():
    model = Model()
    with E1000e(model, rx=64, tx=64, interrupt="msix", throttle=100) as nic:
        assert model.peek(reg.CTRL_EXT) == reg.CTRL_EXT_PBA_SUPPORT | reg.CTRL_EXT_EIAME
        assert model.peek(reg.IVAR) == 0x80008
        assert model.peek(reg.EIAC) == 1 << 20
        assert model.peek(reg.EITR0) == 391  # 100 µs in steps of 256 ns
        assert not model.peek(reg.IMS)
        assert not nic.rx.wait_for(0.01)
        assert model.peek(reg.IMS) & reg.INT_RXQ0
        model.receive(frame(1))
        assert not model.peek(reg.IMS) & reg.INT_RXQ0
        assert nic.rx.wait_for(1)
        assert nic.rx.interrupt.fired == 0  # the ring had it already: nobody slept


@pytest.mark.parametrize("kind", ["msix", "msi", "intx"])
def test_an_interrupt_ends_the_wait(kind):

    model = Model()
    with E1000e(model, rx=64, tx=64, interrupt=kind) as nic:
        timer = threading.Timer(0.02, lambda: model.receive(frame(1)))
        timer.start()
        assert nic.rx.wait_for(10)
        timer.join()
        assert nic.rx.interrupt.fired >= 1
        assert (nic.rx.lost, nic.rx.spurious) == (0, 0)


def test_a_spurious_interrupt_is_slept_over():
    model = Model()
    with E1000e(model, rx=64, tx=64, interrupt="msix") as nic:
        os.eventfd_write(model.eventfd, 1)
        assert not nic.rx.wait_for(0.03)
        assert nic.rx.spurious == 1


def test_a_lost_interrupt_costs_time_and_no_packet():

    model = Model()
    with E1000e(model, rx=64, tx=64, interrupt="msix") as nic:
        model.fire = lambda causes: None
        timer = threading.Timer(0.01, lambda: model.receive(frame(1)))
        timer.start()
        assert nic.rx.wait_for(10)
        timer.join()
        assert nic.rx.lost == 1
        assert number_of(nic.rx.peek()[0]) == 1


def test_throttling_is_bounded(model, nic):
    nic.throttle(100)
    assert model.peek(reg.ITR) == 391
    with pytest.raises(UsageError, match="0 to 16776"):
        nic.throttle(20_000)


# --- words ---------------------------------------------------------------------------------------------------------


def test_dump_decodes_registers_and_shows_what_the_rings_hold(model, nic):
    model.receive(frame(1, size=77))
    nic.tx.send([frame(2, size=99)])
    lines = list(nic.dump())
    assert any(line.startswith("RCTL") and line.endswith("EN BAM BSIZE=0x0 SECRC") for line in lines)
    assert any("length    77 status DD EOP errors none" in line for line in lines)
    assert any("length    99 command EOP IFCS RS status" in line for line in lines)


def test_registers_check_their_offsets(model, nic):
    for offset in (1, 2, 128 * 1024, 1 << 40):
        with pytest.raises(ValueError, match="no register at"):
            super(type(nic.bar), nic.bar).read(offset)
