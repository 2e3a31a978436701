"""`hwrx lookup --prove`: sends what was asked about and sees which sockets the kernel gives it to.

The witness is a BPF program (probes/bpf/witness.bpf.c) where the kernel asks the control group of each socket that is
to receive: after the lookup, before the queue. Nobody's data is read; a program that listens does get the packet.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Literal, Self

import numpy as np
from msgspec import Struct

from hwrx import stages
from hwrx.errors import MachineError
from hwrx.host import netns
from hwrx.lookup import sending, view, winner, words
from hwrx.lookup.answer import Receiver
from hwrx.lookup.sending import CannotSendError
from hwrx.lookup.table import TCP_LISTEN, Entries, Entry, Protocol, Tables
from hwrx.lookup.winner import Outcome, Packet
from hwrx.probes import attaching, build, cgroups

ARRIVAL = 2.0  # seconds in which what was sent is given to its sockets, unless they are slow indeed
GRACE = 0.1  # seconds more, for one that was not expected
# struct asked of the program
ASKED = np.dtype([("version", "u4"), ("protocol", "u4"), ("ends", "u1", 36)], align=True)


class Proof(Struct, frozen=True):
    """What sending the packet showed. `reason`: why it cannot be proved; `got`, `expected`: sockets."""

    verdict: Literal["proved", "refuted", "cannot be proved"]
    sent: str = ""
    expected: list[Receiver] = []
    got: list[Receiver] = []
    reason: str = ""


class Witness:
    """Counts which sockets are given packets of one four-tuple. A context manager.

    MachineError if this kernel or machine has no place for it.
    """

    def __init__(self, protocol: Protocol, packet: Packet) -> None:
        attaching.require_tracer()
        from cython_ext.bpf.bpf_reader import Reader
        from cython_ext.bpf.tracer import LoadError

        try:
            self._reader = Reader(build.find_or_build(stages.stage_header(), "witness"), b"")
        except build.BuildError as error:
            raise MachineError(str(error), remedy=error.remedy) from None
        except LoadError as error:
            said = attaching.last_word(error.said) or error.strerror
            raise MachineError(f"this kernel does not load the program that watches: {said}") from None
        try:
            self._reader.put(".bss", _asked(protocol, packet))
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        with cgroups.opened_root() as descriptor:
            try:
                self._reader.attach_cgroup("witness", descriptor)
            except OSError as error:
                raise MachineError(f"no program can be put on the control group: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the program away."""
        self._reader.close()

    def seen(self) -> set[int]:
        """Return the cookies of the sockets that were given one."""
        return {int.from_bytes(key, "little") for key, _ in self._reader.items("given")}


def _asked(protocol: Protocol, packet: Packet) -> bytes:
    assert packet.source is not None
    asked = np.zeros((), dtype=ASKED)
    asked["version"], asked["protocol"] = packet.destination.version, sending.PROTOCOLS[protocol]
    ends = packet.source.packed + packet.destination.packed
    ends += packet.source_port.to_bytes(2, "big") + packet.port.to_bytes(2, "big")
    asked["ends"][: len(ends)] = np.frombuffer(ends, dtype="u1")
    return asked.tobytes()


def prove_packet(protocol: Protocol, packet: Packet, namespace: str | None = None) -> Proof:
    """Predict who gets a packet, send it, and see who does.

    :param namespace: name of a network namespace, or the PID of a process in it; None: this one
    :return: proved: those that were predicted got it, and no other (if it was undecided: one of those that were named)
    :raises MachineError: if the kernel's tables cannot be read
    """
    home = sending.namespace_number()
    with netns.entered_namespace(namespace), Tables() as tables:
        packet = view.with_device(packet)
        kind = view.address_kind(packet.destination, packet.device)
        try:
            if off := view.why_not_taken(packet):
                raise CannotSendError(off)
            whole = sending.complete_packet(packet, kind, apart=sending.namespace_number() != home)
            with sending.ready_sender(protocol, whole, kind) as sender:
                return _send_and_see(tables, protocol, sender, kind)
        except (CannotSendError, MachineError) as error:
            return Proof("cannot be proved", reason=str(error.args[0]))


def _send_and_see(tables: Tables, protocol: Protocol, sender: sending.Sender, kind: str) -> Proof:
    packet = sender.packet
    seen = view.read_view(tables, protocol, packet, kind)
    outcome = winner.predict_outcome(seen, packet)
    named = winner.find_entries([seen.on_port], outcome.sockets)
    expected = _receivers(named)
    if protocol == "tcp" and any(entry["state"] != TCP_LISTEN for entry in named):
        raise CannotSendError(
            f"these four values are a connection's ({words.brief(named[0])}), and it is left in peace"
        )
    with Witness(protocol, packet) as witness:
        sent = sender.send(protocol)
        cookies = _wait_for(witness, len(outcome.sockets - {0}) if outcome.every else int(0 not in outcome.sockets))
    there = tables.sockets(protocol, packet.port)
    got = _given(there, protocol, cookies)
    good = judge_delivery(outcome, {int(entry["sk"]) for entry in got})
    return Proof("proved" if good else "refuted", sent, expected, _receivers(list(got)))


def _wait_for(witness: Witness, wanted: int) -> set[int]:
    """Wait until as many sockets were given it as were predicted, and a little longer for others."""
    deadline = time.monotonic() + ARRIVAL
    while len(witness.seen()) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(GRACE)
    return witness.seen()


def _given(there: Entries, protocol: Protocol, cookies: Collection[int]) -> Entries:
    """The sockets of these cookies; of TCP the listener alone, whose child has the connection's later packets."""
    chosen = np.isin(there["cookie"], list(cookies))
    if protocol == "tcp":
        chosen &= there["state"] == TCP_LISTEN
    return there[chosen]


def judge_delivery(outcome: Outcome, got: set[int]) -> bool:
    """Whether the sockets that got a packet are those that were predicted.

    Of an undecided prediction one of those that it names is right, or none if nobody is one of them.
    """
    named = set(outcome.sockets) - {0}
    if outcome.decided:
        return got == named
    return got <= named and (len(got) == 1 or (not got and 0 in outcome.sockets))


def _receivers(entries: list[Entry]) -> list[Receiver]:
    return [Receiver(*words.ends_of(each), words.state_of(each), int(each["inode"])) for each in entries]
