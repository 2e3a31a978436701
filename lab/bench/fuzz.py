"""Bytes that nobody meant: what do the readers of control pipes, of a guest's port and of packets do with them?

    lab/bench/fuzz --inputs 20000000
    lab/bench/fuzz --readers to-agent,port --inputs 1000000 --seed 7 --json

Inputs are random bytes, valid messages with single bytes changed, cut, doubled and put together, and JSON of odd values
(strings that are not UTF-8, numbers beyond 64 bits, lists in lists). Each must be taken, or refused with an HwrxError;
anything else is told with its input, and the exit code is 1. A packet ends where a page ends, and the next page cannot
be read, so a reader that looks too far ends the process.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import json
import mmap
import os
import random
import resource
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable

import msgspec

from cython_ext.frames.handed_link import HandedLink
from cython_ext.frames.packet import PortTable, dissect, internet_checksum, udp_frame, udp_template
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import OPCODES, address_vector, build_packet, dissect_roce
from cython_ext.roce.queue_pair import RoceQueuePair
from hwrx.control.messages import (
    Chunk,
    Connect,
    Done,
    Failed,
    Fetch,
    Frames,
    Hello,
    Prepare,
    Prepared,
    Quit,
    Setting,
    TraceOpen,
    frame_message,
)
from hwrx.control.places import Place
from hwrx.errors import HwrxError
from hwrx.lab import guest, mux
from hwrx.lab.mux import Kind, Splitter, pack_frame
from hwrx.lab.port import Port
from hwrx.wires.made import Made

Reader = Callable[[bytes], object]
Source = Callable[[random.Random], bytes]
PAGE = mmap.PAGESIZE
DEEPEST = 3000  # lists in lists: more than Python's stack holds

SETTING = Setting(path="udp", window=8)
TO_AGENT = [
    Hello(),
    Prepare(trial=1, role="client", setting=SETTING, here=Place(), there=Place(netdev="veth0")),
    Connect(remote={"address": "192.0.2.1", "port": 7000, "gid": [1, 2, 3]}),
    Fetch(array="posted", first=0, count=64),
    TraceOpen(ways=["udp"]),
    Quit(),
]
FROM_AGENT = [
    Hello(),
    Prepared(remote={"port": 1, "keys": [1, 2.5, None]}, chosen={"mtu": 1024}),
    Done(tally={"posted": 3}, ended="complete"),
    Chunk(first=0, data=bytes(64)),
    Failed(kind="PathError", message="no", remedy="yes"),
]
PORT = [
    pack_frame(Kind.READY, 0, guest.encode(Made(places={}, peers={}))),
    pack_frame(Kind.FAILED, 0, guest.encode(guest.Problem("GuestError", "what", "how"))),
    pack_frame(Kind.FAILED, 3, guest.encode(guest.Problem("OSError", "what"))),
    pack_frame(Kind.EXIT, 3, (0).to_bytes(4, signed=True) + b"last words"),
    pack_frame(Kind.PONG),
    pack_frame(Kind.DATA, 3, b"output"),
    pack_frame(Kind.EOF, 3),
    pack_frame(Kind.CREDIT, 3, bytes(4)),
]
SUPERVISOR = [
    pack_frame(Kind.OPEN, 3, guest.encode(guest.Open(argv=["true"], environment={"A": "b"}))),
    pack_frame(Kind.KILL, 3, b"\x09"),
    pack_frame(Kind.PING, 0, b"x"),
    pack_frame(Kind.QUIT),
    pack_frame(Kind.DATA, 3, b"input"),
]


# --- readers: each is new for each input, as a pipe is -------------------------------------------------------------


def read_to_agent(data: bytes) -> object:
    return Frames("to agent").feed(data)


def read_from_agent(data: bytes) -> object:
    return Frames("from agent").feed(data)


def read_frames(data: bytes) -> object:
    return Splitter().feed(data)


class OnPort:
    """The host's end of a guest's port, without its thread."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.port = Port(self.ours)
        self.port._mux = mux.Mux(self.ours.fileno(), self.port._on_frame)

    def __call__(self, data: bytes) -> None:
        self.port._mux._splitter = Splitter()
        self.theirs.sendall(data[: 1 << 16])
        self.port._mux._receive()


class OnSupervisor:
    """The guest's end. What would start a process is only decoded: thousands of processes would tell no more."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.supervisor = guest.Supervisor(self.ours.fileno())
        self.supervisor._open = lambda channel, what: None

    def __call__(self, data: bytes) -> None:
        self.supervisor.mux._splitter = Splitter()
        self.supervisor.mux._out.clear()
        self.theirs.sendall(data[: 1 << 16])
        self.supervisor.mux._receive()


class OnPackets:
    """Frames that end where a page ends; the page behind it may not be touched."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4 * PAGE)
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        if libc.mprotect(ctypes.c_void_p(start + 3 * PAGE), PAGE, 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect")
        self.end = memoryview(self.memory)[: 3 * PAGE]
        self.table = PortTable()
        self.table.add(2222, local="192.0.2.2")

    def __call__(self, data: bytes) -> None:
        size = min(len(data), 3 * PAGE)
        if size:
            frame = self.end[-size:]
            frame[:] = data[:size]
            self.look(frame)

    def look(self, frame: memoryview) -> None:
        dissect(frame, checksum=False)
        dissect(frame)
        self.table.lookup(frame)


class OnRoce(OnPackets):
    """The same for packets of RoCEv2."""

    def look(self, frame: memoryview) -> None:
        dissect_roce(frame)


class OnQueuePair:
    """A queue pair with requests posted both ways, new for each input: packets of any kind, one after the other.

    Its memory ends where a page ends; the page before it and the page behind it may not be touched. What lies in front
    of the part that the other end may write stays as it was.
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4 * PAGE)
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for page in (0, 3):
            if libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        self.open = memoryview(self.memory)[PAGE : 3 * PAGE]
        self.secret = self.open[:PAGE]
        self.domain = ProtectionDomain()
        self.own = self.domain.register(self.secret, access=())
        self.offered = self.domain.register(self.open[PAGE:])
        FUZZED.update(key=self.offered.key, address=self.offered.address)
        self.way = address_vector("52:54:00:00:00:02", "52:54:00:00:00:01", "192.0.2.2", "192.0.2.1")

    def __call__(self, data: bytes) -> None:
        link = HandedLink(slots=32, largest=1514)
        pair = RoceQueuePair(link, self.domain, qpn=17)
        pair.connect(self.way, 18, expects=5, begins=5)
        pair.post_receive(self.offered, 96)
        pair.post_receive(self.offered, 0, 100)
        pair.post_send("send", self.own)
        pair.post_send("read", self.offered, 0, 3000, key=1, address=0)
        pair.post_send("fetch-add", self.offered, 0, 8, key=1, address=0)
        at = 0
        while len(data) - at > 2:
            size = int.from_bytes(data[at : at + 2], "big")
            link.hand_in(data[at + 2 : at + 2 + size][:1514])
            at += 2 + size
            pair.progress(1)
            link.take_out()
        pair.close()
        pair.poll_sends()
        pair.poll_receives()
        if any(self.secret):
            raise AssertionError("memory was written that was not offered")


# --- inputs ----------------------------------------------------------------------------------------------------------


def odd_json(draw: random.Random, depth: int = 0) -> bytes:
    """Some JSON, or nearly."""
    kind = draw.randrange(12)
    if kind == 0 and not depth:
        return b"[" * draw.randrange(DEEPEST) + b"]" * draw.randrange(DEEPEST)
    if kind == 1 and not depth:
        deep = draw.randrange(DEEPEST)
        return b'{"a":' * deep + b"0" + b"}" * deep
    if kind < 4 and depth < 4:
        return b"[" + b",".join(odd_json(draw, depth + 1) for _ in range(draw.randrange(4))) + b"]"
    if kind < 6 and depth < 4:
        keys = (b'"type"', b'"remote"', b'"kind"', b'"setting"', b'"\xff"', b'""')
        inner = (draw.choice(keys) + b":" + odd_json(draw, depth + 1) for _ in range(draw.randrange(4)))
        return b"{" + b",".join(inner) + b"}"
    return draw.choice(
        (
            b"null", b"true", b"-1", b"1e999", b"-0.0", b"NaN", b"9" * 400, b"18446744073709551616", b'"\xff\xfe"',
            b'"\\ud800"', b'"\\u0000"', b'"\x1b[31m"', b'"connect"', b'"prepare"', b'"a' + draw.randbytes(3) + b'"',
        )
    )  # fmt: skip


def changed(draw: random.Random, valid: bytes) -> bytes:
    """Change a byte or several, cut, double, or put something in."""
    data = bytearray(valid)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(data)) if data else 0
        match draw.randrange(5):
            case 0 | 1 if data:
                data[at] = draw.randrange(256)
            case 2:
                del data[at:]
            case 3:
                data[at:at] = data[at : at + draw.randrange(64)]
            case 4:
                data[at:at] = draw.randbytes(draw.randrange(8))
    return bytes(data)


def messages_of(valid: list[bytes], framed: Callable[[random.Random, bytes], bytes]) -> Source:
    def some(draw: random.Random) -> bytes:
        kind = draw.randrange(10)
        if kind == 0:
            return draw.randbytes(draw.randrange(64))
        if kind < 3:
            return framed(draw, odd_json(draw))
        if kind < 5:
            return framed(draw, changed(draw, draw.choice(valid)[8:]))
        return changed(draw, b"".join(draw.choices(valid, k=draw.choice((1, 1, 2)))))

    return some


def framed_pipe(draw: random.Random, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def framed_mux(draw: random.Random, body: bytes) -> bytes:
    return pack_frame(draw.choice(list(Kind)), draw.choice((0, 3, 4)), body[: mux.LARGEST])


def packets(draw: random.Random) -> bytes:
    """Frames whose headers are nearly right, of any length down to none."""
    template = udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.2", 1111, 2222)
    frame = bytearray(udp_frame(template, bytes(draw.randrange(80))))
    kind = draw.randrange(8)
    if kind == 0:
        return draw.randbytes(draw.randrange(120))
    if kind < 4:  # IPv4 options, a length to go with them
        words = draw.randrange(16)
        frame[14] = 0x40 | words
        frame[16:18] = struct.pack(">H", draw.choice((4 * words, 4 * words + 8, len(frame) - 14, draw.randrange(1600))))
    elif kind == 4:
        frame[12:14] = b"\x81\x00"
    elif kind == 5:
        frame[12:15] = b"\x86\xdd\x60"
        frame[20] = 17
        frame[18:20] = struct.pack(">H", draw.randrange(90))
    frame = bytearray(changed(draw, bytes(frame)) if draw.random() < 0.5 else frame)
    return bytes(frame[: draw.choice((len(frame), draw.randrange(len(frame) + 1), 74, 78, 54))])


def roce_packets(draw: random.Random) -> bytes:
    """Packets of RoCEv2 of which some bytes are wrong, and IP's checksum is right: what is wrong shall be reached."""
    ends = draw.choice((("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")))
    headers = address_vector("52:54:00:00:00:01", "52:54:00:00:00:02", *ends)
    opcode = draw.randrange(256) if draw.random() < 0.3 else draw.choice(list(OPCODES))
    payload = bytes(draw.randrange(1 << draw.randrange(1, 11)))
    frame = bytearray(build_packet(headers, opcode, qpn=draw.randrange(1 << 24), psn=0, payload=payload))
    bth = len(headers)
    for _ in range(draw.randrange(3)):
        frame[draw.randrange(bth, len(frame))] = draw.randrange(256)
    if draw.random() < 0.5:  # a datagram that ends anywhere, and says so
        del frame[draw.randrange(bth, len(frame)) :]
        frame[bth - 4 : bth - 2] = struct.pack(">H", len(frame) - bth + 8)
        at = 16 if bth == 42 else 18
        frame[at : at + 2] = struct.pack(">H", len(frame) - (14 if bth == 42 else 54))
    if bth == 42:
        frame[24:26] = bytes(2)
        frame[24:26] = struct.pack(">H", internet_checksum(frame[14:34]))
    return changed(draw, bytes(frame)) if draw.random() < 0.2 else bytes(frame)


FUZZED = {"key": 0, "address": 0}  # what the queue pair offers


def conversations(draw: random.Random) -> bytes:
    """Packets for the queue pair, most of them with numbers and keys that are nearly right; each with its length."""
    way = address_vector("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.2")
    names = [name for name in OPCODES if name.startswith("RC")]
    data, psn = b"", 5
    for _ in range(draw.randrange(1, 9)):
        size = draw.choice((0, 1, 8, 96, 1024, 1024, draw.randrange(1100)))
        length = draw.choice((size, size, 1024 + size, 2048, draw.randrange(1 << 32)))
        away = draw.choice((0, 0, 0, 8, PAGE - size, PAGE, -1, -size, 1 << 63))
        frame = build_packet(
            way,
            draw.choice(names) if draw.random() < 0.95 else draw.randrange(256),
            qpn=17,
            psn=psn % (1 << 24),
            ack_request=draw.random() < 0.5,
            payload=draw.randbytes(size) if draw.random() < 0.9 else b"",
            address=(FUZZED["address"] + away) % (1 << 64),
            key=FUZZED["key"] if draw.random() < 0.8 else draw.randrange(1 << 32),
            length=length,
            syndrome=draw.choice((0x1F, 0x60, 0x20, 0x61, draw.randrange(256))),
        )
        frame = changed(draw, frame) if draw.random() < 0.1 else frame
        data += len(frame).to_bytes(2, "big") + frame
        psn += draw.choice((1, 1, 1, 1, 0, 2, 3, -1, 1 << 23))
    return data


READERS: dict[str, tuple[Callable[[], Reader], Source]] = {
    "to-agent": (lambda: read_to_agent, messages_of([frame_message(each) for each in TO_AGENT], framed_pipe)),
    "from-agent": (lambda: read_from_agent, messages_of([frame_message(each) for each in FROM_AGENT], framed_pipe)),
    "frames": (lambda: read_frames, messages_of(PORT + SUPERVISOR, framed_mux)),
    "port": (OnPort, messages_of(PORT, framed_mux)),
    "supervisor": (OnSupervisor, messages_of(SUPERVISOR, framed_mux)),
    "packets": (OnPackets, packets),
    "roce": (OnRoce, roce_packets),
    "queue-pair": (OnQueuePair, conversations),
}


# --- trying ----------------------------------------------------------------------------------------------------------


def try_reader(name: str, inputs: int, seed: int) -> dict[str, object]:
    """Feed a reader; return how many inputs were taken and refused, and those at which something else happened."""
    make, source = READERS[name]
    reader, draw = make(), random.Random(f"{name} {seed}")
    counts: collections.Counter[str] = collections.Counter()
    faults: list[dict[str, str]] = []
    began = time.monotonic()
    for _ in range(inputs):
        data = source(draw)
        try:
            reader(data)
            counts["taken"] += 1
        except HwrxError:
            counts["refused"] += 1
        except Exception as error:
            counts[type(error).__name__] += 1
            if len(faults) < 5:
                faults.append({"input": data[:200].hex(), "trace": traceback.format_exc()})
    spent = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"inputs": inputs, **counts, "seconds": round(spent, 1), "peak MiB": peak, "faults": faults}


def try_in_child(name: str, inputs: int, seed: int) -> dict[str, object]:
    """Do it in a process of its own, whose death is a fault too."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with contextlib.suppress(BaseException), os.fdopen(writing, "w") as out:
            json.dump(try_reader(name, inputs, seed), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not said:
        return {"inputs": inputs, "faults": [{"input": "", "trace": f"the process ended with {status}"}]}
    return dict(msgspec.json.decode(said))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", default=",".join(READERS), help="some of: %(default)s")
    parser.add_argument("--inputs", type=int, default=600_000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = options.readers.split(",")
    if unknown := set(names) - set(READERS):
        parser.error(f"there is no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    found = {name: try_in_child(name, options.inputs // len(names), options.seed) for name in names}
    if options.json:
        print(json.dumps(found))
    for name, of in found.items() if not options.json else ():
        print(f"{name:11}", *(f"{key} {value}" for key, value in of.items() if key != "faults"), sep="  ")
        for fault in of["faults"]:  # type: ignore[attr-defined]
            print(f"  {fault['input']}\n{fault['trace']}")
    return int(any(of["faults"] for of in found.values()))


if __name__ == "__main__":
    sys.exit(main())
