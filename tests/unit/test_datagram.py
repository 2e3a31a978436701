"""UDP over whole frames, between two models of the NIC and a wire made of a thread."""

import threading
import time
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from model82574 import Model

from cython_ext.core.payload import make
from cython_ext.core.trial import Trial
from cython_ext.frames.datagram import DatagramTransport
from cython_ext.frames.packet import dissect, udp_frame, udp_template
from cython_ext.loops import loop
from cython_ext.nics.e1000e_link import RingLink
from hwrx.errors import PathError
from hwrx.nic import registers as reg
from hwrx.nic.e1000e import E1000e

TRIAL = 7
MACS = ("52:54:00:00:00:0a", "52:54:00:00:00:0b")
ADDRESSES = ("192.0.2.1", "192.0.2.2")


class Wire:
    """Carries frames from each NIC to the other, perhaps changed by `change(side, frame)`, which returns frames."""

    def __init__(self, models):
        self.models = models
        self.change = lambda side, frame: [frame]
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stop.is_set():
            for side, model in enumerate(self.models):
                for frame in model.transmit():
                    for changed in self.change(side, frame.ljust(60, b"\0")):
                        self.models[1 - side].receive(changed)
            time.sleep(0)


def station(mac):
    model = Model()
    whole = bytes.fromhex(mac.replace(":", ""))
    plain = model.reset_registers

    def reset_registers():
        plain()
        model.poke(reg.RAL0, int.from_bytes(whole[:4], "little"))
        model.poke(reg.RAH0, int.from_bytes(whole[4:], "little") | reg.RAH_AV)

    model.reset_registers = reset_registers
    reset_registers()
    return model


def endpoint(model, side, **more):
    options = {
        "size": 64,
        "window": 32,
        "batch": 8,
        "stream": False,
        "trial": TRIAL,
        # a busy machine may leave the wire's thread waiting for long; what is lost then would be no loss of ours
        "patience": 5.0,
        "limit": 30.0,
        "address": ADDRESSES[side],
        "port": 7000 + side,
    }
    interrupt = more.pop("interrupt", None)
    return DatagramTransport(RingLink(E1000e(model, rx=128, tx=128, interrupt=interrupt)), **{**options, **more})


@contextmanager
def ends(**more):
    models = [station(mac) for mac in MACS]
    wire = Wire(models)
    both = [endpoint(model, side, **more) for side, model in enumerate(models)]
    try:
        both[0].connect(both[1].describe())
        both[1].connect(both[0].describe())
        yield both, wire
    finally:
        for one in both:
            one.close()
        wire.stop.set()
        wire.thread.join()
    assert all(model.closed and not model.regions and not model.faults for model in models)


def run_both(both, pattern, *, messages=300, size=64, check_every=1, patience=10.0, **more):
    """`patience`, in seconds: long, as that of the endpoints, since the wire is a thread that waits for its turn."""
    trials = [
        Trial(
            messages=messages,
            size=size,
            trial=TRIAL,
            batch=8,
            check_every=check_every,
            limit_ns=30_000_000_000,
            patience_ns=round(patience * 1e9),
            due=2_000_000 * np.arange(1, messages + 1) if pattern == "paced" else None,
            **more,
        )
        for _ in both
    ]
    status = {}

    def server():
        status["server"] = loop.run(trials[1], both[1], pattern, "server")

    thread = threading.Thread(target=server)
    thread.start()
    status["client"] = loop.run(trials[0], both[0], pattern, "client")
    thread.join(60)
    assert not thread.is_alive()
    return trials, {role: loop.ENDED.get(code, code) for role, code in status.items()}


@pytest.mark.parametrize("size", [8, 16, 31, 64, 1472])
@pytest.mark.parametrize("pattern", ["pingpong", "paced"])
def test_every_message_comes_back_whole(pattern, size):
    with ends(size=size) as (both, _):
        (client, server), status = run_both(both, pattern, size=size)
        # an open loop goes on while the wire's thread waits for its turn: then the ring is full, and says so
        full = sum(one.counts().get("RNBC", 0) for one in both)
    assert status["client"] == "complete"
    counts = client.counts()
    assert full == 0 or pattern == "paced"
    assert (counts["delivered"], counts["lost"]) == (300 - full, full)
    assert (counts["checked"], counts["corrupt"]) == (counts["delivered"], 0)
    assert server.counts()["delivered"] >= counts["delivered"]


@pytest.mark.parametrize("size", [64, 1472])
def test_a_stream_keeps_to_the_window_and_loses_nothing(size):
    with ends(size=size, stream=True) as (both, _):
        (_, server), status = run_both(both, "stream", size=size, messages=2000)
        assert both[1].counts().get("RNBC", 0) == 0
    assert status == {"client": "complete", "server": "complete"}
    counts = server.counts()
    assert (counts["delivered"], counts["corrupt"], counts["reordered"], counts["duplicated"]) == (2000, 0, 0, 0)


def test_waiting_by_interrupt():
    with ends(interrupt="msix") as (both, _):
        (client, _), status = run_both(both, "pingpong")
        assert both[0].counts()["interrupts"] > 0
    assert status["client"] == "complete"
    assert client.counts()["delivered"] == 300


def test_what_gets_lost_and_doubled_on_the_wire_is_counted():
    seen = [0, 0]

    def change(side, frame):
        seen[side] += 1
        if dissect(frame).get("size") != 64 or side == 1:
            return [frame]
        return [] if seen[0] % 50 == 0 else [frame] * (1 + (seen[0] % 31 == 0))

    with ends(stream=True, patience=0.2) as (both, wire):
        wire.change = change
        (_, server), status = run_both(both, "stream", messages=1000)
    counts = server.counts()
    assert status["client"] == "complete"
    assert counts["lost"] > 0 and counts["duplicated"] > 0
    assert counts["delivered"] + counts["lost"] == 1000


def test_a_changed_bit_is_refused_by_the_checksum_and_counted():
    seen = [0]

    def change(side, frame):
        seen[0] += side == 0
        return [frame[:50] + bytes([frame[50] ^ 4]) + frame[51:]] if side == 0 and seen[0] % 41 == 0 else [frame]

    with ends(patience=0.2) as (both, wire):
        wire.change = change
        (client, _), _ = run_both(both, "pingpong", patience=0.2)
        assert both[1].counts()["bad checksum"] > 0
    assert client.counts()["corrupt"] == 0 and client.counts()["lost"] > 0


def test_without_the_checksum_the_payloads_own_check_sees_it():
    seen = [0]

    def change(side, frame):
        seen[0] += side == 0
        return [frame[:80] + bytes([frame[80] ^ 4]) + frame[81:]] if side == 0 and seen[0] % 41 == 0 else [frame]

    with ends(verify="none", patience=0.2) as (both, wire):
        wire.change = change
        (_, server), _ = run_both(both, "pingpong", patience=0.2)
    assert server.counts()["corrupt"] > 0


def test_a_strangers_datagram_is_nobodys():
    with ends() as ((one, two), _):
        stranger = udp_template(MACS[0], MACS[1], "192.0.2.77", ADDRESSES[1], 7000, 7001)
        wrong_port = udp_template(MACS[0], MACS[1], ADDRESSES[0], ADDRESSES[1], 7000, 7002)
        before = two.counts()["nobody's"]
        for template in (stranger, wrong_port):
            assert one.link.send(udp_frame(template, make(64, 0, TRIAL)))
        (client, _), status = run_both([one, two], "pingpong", messages=20)
        assert two.counts()["nobody's"] == before + 2
    assert status["client"] == "complete" and client.counts()["delivered"] == 20


def test_the_end_of_the_other_side_is_told():
    with ends() as ((one, two), _):
        trial = Trial(messages=10, size=64, trial=TRIAL, limit_ns=500_000_000)
        run_both([one, two], "pingpong", messages=10)
        # the client said that nothing more comes; the server hears it at its next look
        status = loop.run(trial, two, "pingpong", "server")
        assert loop.ENDED[status] == "finished"


def test_silence_ends_a_trial_in_time():
    with ends(patience=0.2) as ((one, _), _):
        trial = Trial(messages=10, size=64, trial=TRIAL, limit_ns=300_000_000)
        began = time.monotonic()
        loop.run(trial, one, "pingpong", "client")
        assert time.monotonic() - began < 10
        assert trial.counts()["delivered"] == 0


def test_a_window_is_no_larger_than_what_the_ring_holds():
    with ends(window=10_000, stream=True) as ((one, two), _):
        assert one.window == two.window == 63


# --- addresses -----------------------------------------------------------------------------------------------------


def packed(address):
    return bytes(map(int, address.split(".")))


def arp(kind, mac, address, asked):
    sender = bytes.fromhex(mac.replace(":", ""))
    header = b"\xff" * 6 + sender + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04"
    return header + kind.to_bytes(2, "big") + sender + packed(address) + bytes(6) + packed(asked)


def test_a_kernel_that_asks_for_our_address_is_answered():
    with ends(patience=0.2) as ((one, two), _):
        one.link.send(arp(1, MACS[0], ADDRESSES[0], ADDRESSES[1]))
        trial = Trial(messages=1, size=64, trial=TRIAL, limit_ns=200_000_000)
        loop.run(trial, one, "pingpong", "client")  # to whom nobody answers; the frames are looked at
        run = threading.Thread(target=loop.run, args=(trial, two, "pingpong", "server"), daemon=True)
        run.start()
        deadline = time.monotonic() + 30
        answers = []
        while not answers and time.monotonic() < deadline:
            answers = [frame for frame in one.link.receive(0.05) if frame[12:14] == b"\x08\x06"]
        assert answers[0][:42] == (
            bytes.fromhex(MACS[0].replace(":", "")) + bytes.fromhex(MACS[1].replace(":", ""))
            + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02" + bytes.fromhex(MACS[1].replace(":", ""))
            + bytes([192, 0, 2, 2]) + bytes.fromhex(MACS[0].replace(":", "")) + bytes([192, 0, 2, 1])
        )  # fmt: skip
        assert two.counts()["arp answered"] == 1
        one.link.send(udp_frame(udp_template(*MACS, *ADDRESSES, 7000, 7001), make(64, 0, TRIAL)))
        run.join(10)


def test_the_mac_of_an_end_that_did_not_say_it_is_asked_for():
    model = station(MACS[0])
    end = endpoint(model, 0)
    answered = threading.Event()

    def kernel():
        while not answered.is_set():
            for frame in model.transmit():
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1":
                    reply = arp(2, MACS[1], ADDRESSES[1], ADDRESSES[0])
                    model.receive(bytes.fromhex(MACS[0].replace(":", "")) + reply[6:])
            time.sleep(0.001)

    thread = threading.Thread(target=kernel)
    thread.start()
    end.connect({"address": ADDRESSES[1], "port": 9, "receive_buffer": 212_992})
    answered.set()
    thread.join()
    assert end.chosen()["peer_mac"] == MACS[1]
    end.close()


def test_an_end_that_nobody_answers_for_is_named():
    end = endpoint(station(MACS[0]), 0)
    with pytest.raises(PathError, match=r"nobody answered for 192.0.2.2"):
        end.connect({"address": ADDRESSES[1], "port": 9, "receive_buffer": 212_992})
    with pytest.raises(PathError, match="cannot be used"):
        end.connect({"address": "nonsense", "port": 9})
    end.close()


def test_a_message_too_long_for_a_frame():
    model = station(MACS[0])
    nic = E1000e(model, rx=64, tx=64)
    with pytest.raises(PathError, match="at most 1472 bytes"):
        DatagramTransport(
            RingLink(nic), address=ADDRESSES[0], port=1, size=1473, window=1, batch=1, stream=False, trial=1,
            patience=0.1, limit=1.0,
        )  # fmt: skip
    nic.close()


def test_a_closed_endpoint_answers_with_an_error_and_not_with_a_crash():
    with ends() as ((one, _), _):
        one.close()
        trial = Trial(messages=10, size=64, trial=TRIAL, limit_ns=50_000_000)
        status = loop.run(trial, one, "pingpong", "client")
        assert "EBADF" in one.explain(status)
        with pytest.raises(OSError):
            one.link.receive()


@pytest.mark.parametrize("size", [8, 64, 1472])
def test_the_stages_inside_of_the_endpoint_are_stamped_in_order(size):
    with ends(size=size) as (both, _):
        for one in both:
            one.stamp_stages(20, 80)
        (client, server), status = run_both(both, "pingpong", size=size, messages=80, warmup=20, check_every=0)
        counts, stamps = both[1].counts(), both[1].stamps
        clean = {"posted": client.posted, "delivered": server.delivered}
    assert status["client"] == "complete"
    order = [clean["posted"], stamps.seen, stamps.parsed, stamps.looked_up, clean["delivered"]]
    assert all((earlier > 0).all() and (earlier <= later).all() for earlier, later in pairwise(order))
    # warm-up included; and each payload stands in the ring's memory, where the NIC wrote it
    assert counts["payload_bytes"] == counts["in_place_bytes"] == counts["sent_bytes"] == 100 * size
    assert counts["checked_bytes"] == 100 * size


def test_what_is_no_message_of_the_trial_leaves_no_stamp():
    with ends() as (both, wire):
        both[1].stamp_stages(0, 10)
        foreign = udp_frame(udp_template(*MACS, *ADDRESSES, 7000, 7001), make(64, 12, TRIAL + 1))
        wire.change = lambda side, frame: [foreign, frame] if side == 0 else [frame]
        (_, server), status = run_both(both, "pingpong", messages=20, check_every=0)
        counts = both[1].counts()
        stamped = both[1].stamps.seen
    assert status["client"] == "complete"
    assert server.counts()["stale"] == 20
    assert counts["payload_bytes"] == 20 * 64
    assert len(stamped) == 10 and stamped.all()
