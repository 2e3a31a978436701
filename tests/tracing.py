"""What the host's and the guest's tests of tracing share."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from hwrx import stages
from hwrx.control.messages import Setting
from hwrx.machine.placement import Wish
from hwrx.runs.schedule import Pair
from hwrx.timelines.join import Timelines
from hwrx.timelines.traced import Directions, RunTracer

# Both ends on one CPU, where (under SCHED_BATCH) none interrupts the other: what one call sends, one receives.
ONE_CPU = Wish(cpu=(0, 0))
MAGIC = 0x78727768  # of a message (cython_ext/core/payload.pxd)


def trace(tracer: RunTracer, pair: Pair, number: int, setting: Setting) -> Directions:
    """A traced trial in which every measured message has a timeline."""
    return tracer.trace(pair, number, setting, timelines=setting.messages)


def check(timelines: Timelines, messages: int) -> None:
    """What must be true of the timelines of a trial in which nothing was lost."""
    assert len(timelines.complete) >= 0.99 * messages, "messages without any event"
    told = f"{timelines.missing} missing, {timelines.disordered} out of order, {timelines.dropped} dropped"
    assert timelines.share >= 0.999, told
    assert not timelines.disordered, told
    intervals, _ = timelines.intervals()
    assert (intervals >= 0).all()
    assert (intervals.sum(axis=1) == timelines.one_way()).all()
    kernel = timelines.stamps[:, 1:-1]
    inside = (kernel >= timelines.stamps[:, :1]) & (kernel <= timelines.stamps[:, -1:])
    assert inside[kernel > 0].all(), "a kernel's stamp outside of the user's"


def check_batches(found: Directions, messages: int) -> None:
    """What must be true of a stream whose datagrams were sent and received many a call."""
    (timelines,) = found.timelines.values()
    check(timelines, messages)
    column = [stage.name for stage in timelines.stages].index("sys_exit recv")
    assert len(np.unique(timelines.stamps[:, column])) < messages / 2, "no call received several"
    assert found.ledger.sender == pytest.approx(1.0, abs=1e-3)
    assert found.ledger.receiver == pytest.approx(1.0, abs=1e-3)


SHORT = 16  # bytes that a reader takes of a message of 256: enough to be known by


def read_short(how: int, messages: int = 200) -> int:
    """Bytes that the ledger says were copied to a reader that takes SHORT bytes of each of `messages` datagrams.

    `how`: flags of each receiving call; with MSG_PEEK each datagram is looked at, and then taken.
    """
    from hwrx.probes.recording import Ledger

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        Ledger(["udp"]) as ledger,
    ):
        reader.bind(("127.0.0.1", 0))
        sender.connect(reader.getsockname())
        ledger.begin(sample_every=0, size=256)
        for sequence in range(messages):
            sender.send(struct.pack("<IQI", MAGIC, sequence, 0).ljust(256, b"."))
            reader.recv(SHORT, how)
            if how & socket.MSG_PEEK:
                reader.recv(SHORT)
        recording = ledger.end()
    return int(recording.totals[stages.BY_NAME["copied to the user"].number]["bytes"])


def check_short_reads() -> None:
    """What is copied is what the reader took, whatever the datagram's length and however often it was looked at."""
    messages = 200
    # where no function can be probed the reader is known from its first message on
    for how, times in ((0, 1), (socket.MSG_TRUNC, 1), (socket.MSG_PEEK, 2)):
        copied = read_short(how, messages)
        assert times * (messages - 1) * SHORT <= copied <= times * messages * SHORT, (how, copied)


def actors(timelines: Timelines, stage: str) -> set[str]:
    """Who worked at a stage of the complete messages that passed it, as observed."""
    column = [each.name for each in timelines.stages].index(stage)
    rows = np.flatnonzero(timelines.complete & (timelines.stamps[:, column] > 0))
    return {timelines.actor(int(row), column) for row in rows}


def count(traced: Directions, stage: str) -> int:
    """How many messages passed a stage, warm-up and cool-down included."""
    from cython_ext.bpf.tracer import TOTALS

    totals = np.frombuffer(traced.traced.totals, dtype=TOTALS)
    return int(totals[stages.BY_NAME[stage].number]["count"])


def snmp(text: str, protocol: str, name: str) -> int:
    """A counter of /proc/net/snmp."""
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith(f"{protocol}:"))
    return int(dict(zip(names, values, strict=True))[name])


def hw_counter(device: str, name: str) -> int:
    """A hardware counter of a verbs device, for rxe one of the driver."""
    return int(Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters/{name}").read_text())
