"""The quick ways of RoceTransport over two modelled NICs: what goes out is right, whatever the ring held before."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
from model82574 import Model

from cython_ext.loops import cost
from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from cython_ext.roce.queue_pair import RoceQueuePair
from cython_ext.roce.roce_path import RoceTransport
from hwrx.control.messages import Prepare, Role, Setting
from hwrx.nic.e1000e import E1000e
from hwrx.paths.roce_port import RocePort

ADDRESSES: dict[Role, str] = {"client": "192.0.2.1", "server": "192.0.2.2"}
OTHER: dict[Role, Role] = {"client": "server", "server": "client"}


class Pair:
    """Both ends of `roce-send`, each on a NIC; `carry` is the wire."""

    def __init__(
        self, size: int, *, pattern: str = "stream", path: str = "roce-send", tx: int = 64, **more: Any
    ) -> None:
        self.models: dict[Role, Model] = {}
        self.ends: dict[Role, RoceTransport] = {}
        self.seen: list[tuple[Role, dict[str, Any]]] = []
        setting = Setting(path=path, size=size, pattern=pattern, **{"window": 8, "limit": 2.0, "patience": 0.5, **more})  # type: ignore[arg-type]
        for role, address in ADDRESSES.items():
            model = self.models[role] = Model()
            nic = E1000e(model, rx=64, tx=tx)
            self.ends[role] = RoceTransport(
                Prepare(trial=1, role=role, setting=setting, here={}, there={}),  # type: ignore[arg-type]
                RocePort(nic.message_link(), address, 1024),
            )
        said = {role: end.describe() for role, end in self.ends.items()}
        for role, end in self.ends.items():
            end.connect(said[OTHER[role]])

    def carry(self, role: Role, lose: int = 0) -> list[bytes]:
        """Take what one end's NIC sends to the other's, but for the first `lose`: the frames."""
        frames = self.models[role].transmit()
        self.seen += [(role, dissect_roce(frame)) for frame in frames]
        for frame in frames[lose:]:
            self.models[OTHER[role]].receive(frame)
        return frames

    def opcodes(self) -> list[tuple[Role, str]]:
        return [(role, found["opcode"].removeprefix("RC_")) for role, found in self.seen]

    def close(self) -> None:
        for end in self.ends.values():
            end.close()
        assert all(model.faults == [] and model.regions == [] for model in self.models.values())


@pytest.fixture
def made() -> Iterator[list[Pair]]:
    pairs: list[Pair] = []
    yield pairs
    for each in pairs:
        each.close()


def payload(size: int, number: int) -> bytes:
    return bytes((number * 31 + k * 7) & 0xFF for k in range(size))


def fill(pair: Pair, first: int, count: int) -> list[bytes]:
    """What the client's next messages are, written where they are sent from."""
    client = pair.ends["client"]
    bodies = [payload(client.size, number) for number in range(first, first + count)]
    stride = max(64, 1 << (client.size - 1).bit_length())
    for k, body in enumerate(bodies):
        at = int(client.chosen()["send_address"], 16) + (first + k) % client.window * stride
        ctypes.memmove(at, body, len(body))
    return bodies


@pytest.mark.parametrize("size", [4, 20, 64, 100, 128, 256, 1000, 1024])
def test_a_run_goes_out_as_single_packets_would(made: list[Pair], size: int) -> None:
    """Every frame's headers, payload, number and ICRC, while the ring goes round."""
    made.append(pair := Pair(size))
    client, server = pair.ends["client"], pair.ends["server"]
    number = 0
    for count in (1, 8, 5, 8, 3, 8, 7, 8, 8, 2, 8, 8):
        bodies = fill(pair, number, count)
        assert cost.post(client, count)[0] == count
        sent = [dissect_roce(frame) for frame in pair.carry("client")]
        assert [each["payload"] for each in sent] == bodies
        assert all(each["icrc"] and each["opcode"] == "RC_SEND_ONLY" and each["ack_request"] for each in sent)
        assert [(each["psn"] - client.end.psn) & 0xFFFFFF for each in sent] == list(range(number, number + count))
        assert cost.receive(server, count, count)[0] == count
        pair.carry("server")
        client.pair.progress()
        assert client.pair.unfinished == 0
        number += count
    counted = client.pair.counters
    assert (counted["gathered"], counted["copied_out"], counted["sent"]) == (number * size, 0, number)
    assert server.pair.counters["in_frames"] == number * size


def test_headers_that_stand_in_a_buffer_are_those_of_the_packet(made: list[Pair]) -> None:
    """Another queue pair sends over the same ring in between, and then the first one again."""
    made.append(pair := Pair(64))
    client = pair.ends["client"]
    domain, link = client.domain, client.link
    memory = link.sending_memory(4096)  # type: ignore[attr-defined]
    region = domain.register(memory)
    other = RoceQueuePair(link, domain, qpn=77)
    there = pair.ends["server"].link.mac
    other.connect(address_vector(link.mac, there, "192.0.2.1", "192.0.2.9"), 78, expects=0, begins=0)
    back = address_vector(there, link.mac, "192.0.2.2", "192.0.2.1")
    away = address_vector(there, link.mac, "192.0.2.9", "192.0.2.1")
    psn = 0
    for number in range(60):
        assert cost.post(client, 1)[0] == 1
        # one or two: so that a buffer of the ring is now the one's and now the other's
        for _ in range(1 + number % 2):
            other.post_send("send", region, 0, 64)
        other.progress(0)
        one, *more = (dissect_roce(frame) for frame in pair.models["client"].transmit())
        two = more[-1]
        psn += len(more)
        assert (one["qpn"], one["destination"], one["icrc"]) == (pair.ends["server"].pair.qpn, "192.0.2.2", True)
        assert (two["qpn"], two["destination"], two["icrc"], two["psn"]) == (78, "192.0.2.9", True, psn - 1)
        # both are acknowledged, or their windows would be full
        here = pair.models["client"]
        here.receive(build_packet(back, "RC_ACKNOWLEDGE", qpn=client.pair.qpn, psn=one["psn"], syndrome=0x1F))
        client.pair.progress()
        here.receive(build_packet(away, "RC_ACKNOWLEDGE", qpn=77, psn=psn - 1, syndrome=0x1F))
        other.progress(0)
        assert (client.pair.unfinished, other.unfinished) == (0, 0)
        other.poll_sends()
    region.close()


def test_of_a_ping_pong_the_acknowledgement_goes_with_the_answer(made: list[Pair]) -> None:
    made.append(pair := Pair(64, pattern="pingpong", window=1))
    client, server = pair.ends["client"], pair.ends["server"]
    for _ in range(3):
        cost.post(client, 1)
        pair.carry("client")
        assert cost.receive(server, 1, 1)[0] == 1
        assert pair.models["server"].transmit() == []  # nothing wakes the client before the answer does
        cost.post(server, 1)
        assert len(pair.carry("server")) == 2
        assert cost.receive(client, 1, 1)[0] == 1
        assert client.pair.unfinished == 0
    assert pair.opcodes() == [
        ("client", "SEND_ONLY"), ("server", "ACKNOWLEDGE"), ("server", "SEND_ONLY"),
        *[("client", "ACKNOWLEDGE"), ("client", "SEND_ONLY"), ("server", "ACKNOWLEDGE"), ("server", "SEND_ONLY")] * 2,
    ]  # fmt: skip
    assert all(found["icrc"] for _, found in pair.seen)


def test_an_acknowledgement_that_waits_goes_when_nothing_comes(made: list[Pair]) -> None:
    made.append(pair := Pair(64, pattern="pingpong", window=1, patience=0.01))
    client, server = pair.ends["client"], pair.ends["server"]
    cost.post(client, 1)
    pair.carry("client")
    assert cost.receive(server, 1, 1)[0] == 1
    assert cost.receive(server, 1, 1)[0] == 0  # its patience ends
    assert len(pair.carry("server")) == 1
    client.pair.progress()
    assert client.pair.unfinished == 0


@pytest.mark.parametrize("path", ["roce-send", "roce-write-imm"])
def test_a_timer_counts_although_no_clock_was_read_when_it_was_started(made: list[Pair], path: str) -> None:
    made.append(pair := Pair(64, path=path, patience=1.0))
    client, server = pair.ends["client"], pair.ends["server"]
    cost.post(client, 8)
    pair.carry("client", lose=8)
    # nothing comes: what waits for an acknowledgement sends again
    assert cost.receive(client, 1, 1)[0] == 0
    assert client.pair.counters["timeouts"] >= 1
    pair.carry("client")
    assert cost.receive(server, 8, 8)[0] == 8
    assert server.pair.counters["packets"] >= 8
