"""The driver against a model of the NIC: damaged frames, and each fault of the device."""

import struct

import pytest
from model82574 import STATION, Model, frame, number_of

from hwrx.errors import PathError
from hwrx.nic import registers as reg
from hwrx.nic.e1000e import E1000e

# --- bad frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0x01, 0x02, 0x04, 0x10, 0x80])
def test_a_damaged_frame_is_counted_and_its_neighbours_are_delivered(model, nic, bit):
    model.receive(frame(1))
    model.receive(frame(2), errors=bit)
    model.receive(frame(3))
    assert [number_of(view) for view in nic.rx.peek()] == [1, 3]
    assert nic.rx.counts["damaged"] == 1
    nic.rx.release(2)
    assert nic.rx.held == 0 and model.peek(reg.RDT) == 2


@pytest.mark.parametrize("bit", [0x20, 0x40])
def test_checksum_errors_are_left_to_who_looks_at_checksums(model, nic, bit):
    model.receive(frame(2), errors=bit)
    (packet,) = nic.rx.receive()
    assert packet.errors == bit


def test_a_runt_is_counted(model, nic):
    model.receive(STATION + b"\x00")
    model.receive(frame(3))
    assert [number_of(view) for view in nic.rx.peek()] == [3]
    assert nic.rx.counts["runt"] == 1


def test_a_frame_over_several_buffers_is_dropped_and_counted_once():
    model = Model()
    with E1000e(model, rx=64, tx=64, buffer=256, long_frames=True) as nic:
        model.receive(frame(1))
        assert len(model.receive(frame(2, size=1000))) == 4
        model.receive(frame(3))
        assert [number_of(view) for view in nic.rx.peek()] == [1, 3]
        assert nic.rx.counts["oversize"] == 1
        nic.rx.release(2)
        assert nic.rx.held == 0
        assert nic.rx.table[:6, 1].tolist() == [0] * 6
        model.receive(frame(4))
        assert [number_of(view) for view in nic.rx.peek()] == [4]


def test_a_long_frame_is_the_nics_to_drop_unless_asked_for(model, nic):
    assert model.receive(frame(1, size=1600)) == []
    assert nic.statistics()["ROC"] == 1


def test_only_refused_frames_go_back_at_once(model, nic):
    model.receive(frame(1), errors=0x80)
    assert nic.rx.peek() == []
    assert nic.rx.held == 0
    assert model.peek(reg.RDT) == 0


def test_a_length_beyond_the_buffer_is_not_believed(model, nic):
    model.receive(frame(1))
    struct.pack_into("<H", nic.rx.descriptors, 8, 5000)
    assert nic.rx.peek() == []
    model.receive(frame(2))
    # what follows the impossible one is taken for its end
    assert nic.rx.peek() == []
    assert nic.rx.counts["oversize"] == 1
    model.receive(frame(3))
    assert [number_of(view) for view in nic.rx.peek()] == [3]


def test_an_address_that_the_iommu_refuses_is_seen_by_the_guard(model):
    with E1000e(model, rx=64, tx=64, guard=True) as nic:
        model.receive(frame(1))
        nic.rx.table[1, 0] = 0xDEAD_BEEF_000
        model.receive(frame(2))  # done is reported, and nothing was written
        model.receive(frame(3))
        assert model.faults == [0xDEAD_BEEF_000]
        assert [number_of(view) for view in nic.rx.peek()] == [1, 3]
        assert nic.rx.counts["unwritten"] == 1
        assert any("IOMMU refuses" in sentence for sentence in nic.diagnose())
        with pytest.raises(PathError, match="never wrote"):
            nic.check()
        nic.rx.release(2)
        # the address is written anew at each refill
        assert nic.rx.table[1, 0] == nic.rx.address(1)


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_reset_under_us_is_seen_and_mended(model, nic):
    model.receive(frame(1))
    model.reset()
    with pytest.raises(PathError, match="somebody reset the NIC"):
        for _ in nic.receive(timeout=1):
            pass
    nic.start()
    assert nic.wait_for_link(1)
    assert model.receive(frame(2))
    assert [number_of(view) for view in nic.rx.peek()] == [2]


def test_bus_master_off_is_seen(model, nic):
    nic.device.bus_master = False
    assert model.receive(frame(1)) == []
    with pytest.raises(PathError, match="bus mastering is off"):
        next(nic.receive(timeout=1))
    nic.device.bus_master = True
    assert model.receive(frame(2))
    assert number_of(next(nic.receive(timeout=1)).data) == 2


def test_a_device_that_goes_away_is_seen(model, nic):
    model.gone = True
    with pytest.raises(PathError, match="does not answer"):
        next(nic.receive(timeout=1))
    model.gone = False


def test_link_down_is_no_error_and_up_again_works(model, nic):
    model.cable = False
    model.poke(reg.STATUS, model.peek(reg.STATUS) & ~reg.STATUS_LU)
    assert nic.link == 0
    assert nic.diagnose() == ["the link is down"]
    assert list(nic.receive(timeout=0.15)) == []
    model.cable = True
    model.poke(reg.STATUS, model.peek(reg.STATUS) | reg.STATUS_LU)
    assert model.receive(frame(1))
    assert [number_of(packet.data) for packet in nic.receive(timeout=0)] == [1]
