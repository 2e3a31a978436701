"""Frames from a host's program to a guest's NIC and back, and what `hwrx nic recv` makes of them."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cython_ext.frames.packet import udp_frame, udp_template
from hwrx.errors import UsageError
from hwrx.lab.vm import Guest
from hwrx.nic.segment import Segment
from hwrx.wires import guest_nics, topology

COUNT = 40
STRANGER = "02:00:00:00:00:42"
OURS = guest_nics.NIC_HARDWARE["server"]
FRAMES = [
    udp_frame(udp_template(STRANGER, OURS, "192.0.2.1", "192.0.2.2", 1111, 2000 + i), bytes([i]) * (18 + 37 * i))
    for i in range(COUNT)
]


def packets(pcapng: bytes) -> Iterator[bytes]:
    """The frames of a pcapng file: its enhanced packet blocks."""
    at = 0
    while at < len(pcapng):
        kind, length = struct.unpack_from("<II", pcapng, at)
        if kind == 6:
            (kept,) = struct.unpack_from("<I", pcapng, at + 20)
            yield pcapng[at + 28 : at + 28 + kept]
        at += length


def test_a_frame_that_cannot_be_is_refused() -> None:
    with Segment() as wire, pytest.raises(UsageError, match="of 13 bytes cannot be"):
        wire.send(bytes(13))


def test_frames_cross_in_order_and_recv_keeps_them(needs: Callable[..., None], tmp_path: Path) -> None:
    needs("guest", "tcpdump")
    file, shared = tmp_path / "packets.pcapng", str(Path(topology.__file__).parents[2])
    with Segment() as wire, Guest("nic", qemu=wire.qemu, descriptors=wire.descriptors, writable=[tmp_path]) as guest:
        # to hwrx's own driver, which writes them down
        command = [sys.executable, "-m", "hwrx", "nic", "recv", OURS, "--force", "--own", "-n", str(COUNT)]
        pipe = guest.command([*command, "-w", str(file)], {"PYTHONPATH": shared}, errors="merged")
        pipe.settimeout(120)
        said = pipe.recv(200).decode()
        assert f"{OURS}, link 1000 Mb/s" in said, said + pipe.epitaph()
        assert wire.send(*FRAMES) == COUNT
        while more := pipe.recv(1 << 12):
            said += more.decode()
        assert f"{COUNT} packets, 0 lost in the NIC" in said
        assert pipe.wait(20) == 0
        pipe.close()
        # and from the kernel's driver to the host: it answers who asks for its address
        question = b"\xff" * 6 + bytes.fromhex(STRANGER.replace(":", "")) + bytes.fromhex("08060001080006040001")
        question += bytes.fromhex(STRANGER.replace(":", "")) + bytes([198, 18, 78, 99]) + bytes(6)
        heard: list[bytes] = []
        listener = threading.Thread(target=lambda: heard.extend(wire.receive(200, 5.0)))
        listener.start()
        wire.send(question + bytes(map(int, guest_nics.NIC_ADDRESSES["client"].split("."))) + bytes(18))
        listener.join()
        answers = [frame for frame in heard if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2"]
        assert bytes.fromhex(guest_nics.NIC_HARDWARE["client"].replace(":", "")) in {frame[22:28] for frame in answers}
    assert list(packets(file.read_bytes())) == FRAMES
    # and somebody else's reader says the same
    read = subprocess.run(["tcpdump", "-nn", "-q", "-r", file], capture_output=True, text=True, check=True).stdout
    assert [line.split(" IP ")[1] for line in read.splitlines()] == [
        f"192.0.2.1.1111 > 192.0.2.2.{2000 + i}: UDP, length {18 + 37 * i}" for i in range(COUNT)
    ]
