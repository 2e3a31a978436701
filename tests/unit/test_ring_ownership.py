"""No buffer is ever owned by both: random steps of NIC and driver, in any order, against the model of the NIC."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from model82574 import MAC, Model

from hwrx.nic.e1000e import E1000e

STATION = bytes.fromhex(MAC.replace(":", ""))
COUNT = 64


class Rings(RuleBasedStateMachine):
    """What the driver and the NIC each hold is tracked beside them, and compared after each step."""

    def __init__(self):
        super().__init__()
        self.model = Model()
        self.nic = E1000e(self.model, rx=COUNT, tx=COUNT, buffer=256, long_frames=True)
        self.next = 0
        self.arrived = deque()  # numbers of good frames that the NIC took and the driver has not seen
        self.held = deque()  # (number, view) that the driver handed out
        self.posted = deque()

    def teardown(self):
        self.held.clear()
        self.nic.close()
        assert self.model.faults == []

    @rule(burst=st.integers(1, 40), size=st.integers(60, 256), damaged=st.booleans())
    def frames_arrive(self, burst, size, damaged):
        for _ in range(burst):
            frame = STATION * 2 + b"\x88\xb5" + self.next.to_bytes(8, "little") + bytes(size - 22)
            before = {slot for _, _, slot in self.held}
            used = self.model.receive(frame, errors=0x80 if damaged else 0)
            assert not before & set(used), "the NIC wrote to a buffer that the driver had handed out"
            if used and not damaged:
                self.arrived.append(self.next)
            self.next += 1

    @rule(pieces=st.integers(2, 5))
    def a_frame_longer_than_a_buffer_arrives(self, pieces):
        used = self.model.receive(STATION * 2 + b"\x88\xb5" + bytes(256 * pieces - 20))
        assert not {slot for _, _, slot in self.held} & set(used)

    @rule(most=st.integers(1, 80))
    def the_driver_looks(self, most):
        for packet in self.nic.rx.receive(most):
            number = int.from_bytes(bytes(packet.data[14:22]), "little")
            assert number == self.arrived.popleft(), "out of order, twice, or never sent"
            self.held.append((number, packet, packet.number % COUNT))

    @rule(share=st.floats(0, 1))
    def the_driver_releases(self, share):
        count = round(len(self.held) * share)
        self.nic.rx.release(count)
        for _ in range(count):
            _, packet, _ = self.held.popleft()
            assert packet.released

    @rule(count=st.integers(1, 80))
    def the_driver_sends(self, count):
        frames = [STATION * 2 + b"\x88\xb5" + (self.next + i).to_bytes(8, "little") + bytes(38) for i in range(count)]
        taken = self.nic.tx.send(frames)
        self.posted.extend(frames[:taken])
        self.next += taken

    @rule(most=st.integers(1, 80))
    def the_nic_sends(self, most):
        for frame in self.model.transmit(most):
            assert frame == self.posted.popleft(), "sent out of order, twice, or changed after it was posted"

    @precondition(lambda self: not self.arrived)
    @rule()
    def the_nic_is_reset_and_brought_up_again(self):
        self.model.reset()
        self.nic.start()
        self.held.clear()
        self.posted.clear()
        self.nic.wait_for_link(1)

    @invariant()
    def nobody_shares_a_descriptor(self):
        ours = {slot for _, _, slot in self.held}
        assert len(ours) == len(self.held)
        assert not ours & set(self.model.owned())

    @invariant()
    def what_is_held_has_not_changed(self):
        for number, packet, _ in self.held:
            assert not packet.released
            assert int.from_bytes(bytes(packet.data[14:22]), "little") == number

    @invariant()
    def no_descriptor_is_lost(self):
        # the NIC's, ours, done but not looked at, and the gap
        assert len(self.model.owned()) + self.nic.rx.held <= COUNT - 1
        assert self.nic.tx.pending == len(self.posted)


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
