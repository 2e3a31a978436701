"""`hwrx roce dump`: captures of either kind read, packets in words, and what is no capture refused in words."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from cython_ext.roce.packet import address_vector, build_packet
from hwrx.cli import main
from hwrx.errors import UsageError
from hwrx.nic.pcapng import Writer
from hwrx.roce.captures import CapturedFrame, read_capture
from hwrx.roce.decoding import decode_frame, describe_packet

WAY = address_vector("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.2")
WAY6 = address_vector("52:54:00:00:00:01", "52:54:00:00:00:02", "2001:db8::1", "2001:db8::2")
SENT = build_packet(WAY, "RC_SEND_ONLY", qpn=0x11, psn=7, ack_request=True, payload=b"x" * 63)
ARP = bytes(12) + b"\x08\x06" + bytes(46)
AT = 1_700_000_000_123_456_789


def pcapng_file(path: Path, frames: list[bytes], snap: int = 0) -> str:
    with path.open("wb") as out:
        writer = Writer(out, "eth0", snap=snap)
        for number, frame in enumerate(frames):
            writer.packet(frame, AT + number)
    return str(path)


def pcap_file(path: Path, frames: list[bytes], order: str, magic: int, link: int = 1) -> str:
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for frame in frames:
        data += struct.pack(f"{order}IIII", 1_700_000_000, 123, len(frame), len(frame)) + frame
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("frame", "line"),
    [
        (SENT, "192.0.2.1 > 192.0.2.2: RC_SEND_ONLY, qp 0x11, psn 7, ack requested, 63 bytes, ICRC right"),
        (
            build_packet(WAY6, "RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE", qpn=1, psn=2, solicited=True, address=0x7F00,
                         key=0x1234, length=4, immediate=0xABC, payload=b"1234", spoil=True),
            "2001:db8::1 > 2001:db8::2: RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE, qp 0x1, psn 2, solicited, address 0x7f00,"
            " key 0x1234, immediate 0xabc, length 4, 4 bytes, ICRC WRONG",
        ),
        (
            build_packet(WAY, "RC_ACKNOWLEDGE", qpn=1, psn=2, syndrome=0x62, msn=9),
            "192.0.2.1 > 192.0.2.2: RC_ACKNOWLEDGE, qp 0x1, psn 2, NAK, remote access error, msn 9, 0 bytes,"
            " ICRC right",
        ),
        (
            build_packet(WAY, "RC_COMPARE_SWAP", qpn=1, psn=2, address=8, key=9, swap=3, compare=4),
            "192.0.2.1 > 192.0.2.2: RC_COMPARE_SWAP, qp 0x1, psn 2, address 0x8, key 0x9, swap or add 0x3,"
            " compare 0x4, 0 bytes, ICRC right",
        ),
        (
            build_packet(WAY, "UD_SEND_ONLY", qpn=1, psn=2, qkey=0x11, source_qpn=5, payload=b"x"),
            "192.0.2.1 > 192.0.2.2: UD_SEND_ONLY, qp 0x1, psn 2, qkey 0x11, from qp 0x5, 1 bytes, ICRC right",
        ),
        (
            build_packet(WAY, 0x1F, qpn=1, psn=2),
            "192.0.2.1 > 192.0.2.2: opcode 0x1f, qp 0x1, psn 2, ICRC right, UNKNOWN OPCODE",
        ),
    ],
)  # fmt: skip
def test_a_packet_is_one_line(frame: bytes, line: str) -> None:
    found = decode_frame(CapturedFrame(AT, frame, len(frame)))
    assert found is not None
    assert describe_packet(found) == line


def test_a_file_is_dumped_with_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoiled = build_packet(WAY, "RC_SEND_ONLY", qpn=0x11, psn=8, spoil=True)
    file = pcapng_file(tmp_path / "a.pcapng", [SENT, ARP, spoiled])
    assert main(["roce", "dump", file]) == 0
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first.endswith("63 bytes, ICRC right")
    assert ".123456789 192.0.2.1 > " in first
    assert second.endswith("0 bytes, ICRC WRONG")
    assert said.err == "2 packets, 1 with a wrong ICRC, 0 that could not be decoded; 1 other frames\n"
    assert main(["roce", "dump", file, "-n", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_json_has_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roce", "dump", pcapng_file(tmp_path / "a", [SENT]), "--json"]) == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert found == {
        "nanoseconds": AT, "bytes": len(SENT), "verdict": "roce", "source": "192.0.2.1", "destination": "192.0.2.2",
        "source_port": 0xC000, "opcode": "RC_SEND_ONLY", "qpn": 0x11, "psn": 7, "pkey": 0xFFFF, "pad": 1,
        "ack_request": True, "solicited": False, "icrc": True, "payload": 63,
    }  # fmt: skip


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "at"), [(0xA1B2C3D4, 123_000), (0xA1B23C4D, 123)])
def test_pcap_is_read_in_either_byte_order_and_unit(tmp_path: Path, order: str, magic: int, at: int) -> None:
    file = pcap_file(tmp_path / "a.pcap", [SENT, ARP], order, magic)
    assert list(read_capture(file)) == [
        CapturedFrame(1_700_000_000 * 10**9 + at, frame, len(frame)) for frame in (SENT, ARP)
    ]


def test_a_pcapng_of_another_machine_is_read(tmp_path: Path) -> None:
    """Big-endian, microseconds as is the default, an unknown block, and a simple packet."""

    def block(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, 12 + len(body)) + body + struct.pack(">I", 12 + len(body))

    padded = SENT + bytes(-len(SENT) % 4)
    time = 1_700_000_000 * 10**6
    data = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack(">HHI", 1, 0, 0))
    data += block(0xBAD, bytes(8))
    data += block(6, struct.pack(">IIIII", 0, time >> 32, time & 0xFFFFFFFF, len(SENT), len(SENT)) + padded)
    data += block(3, struct.pack(">I", len(SENT)) + padded)
    (tmp_path / "a").write_bytes(data)
    found = list(read_capture(str(tmp_path / "a")))
    assert [(frame.nanoseconds, frame.data) for frame in found] == [(time * 1000, SENT), (0, SENT)]


def test_what_the_capture_cut_off_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roce", "dump", pcapng_file(tmp_path / "a", [SENT, ARP], snap=50)]) == 0
    said = capsys.readouterr()
    assert said.out.endswith(f" cut off by the capture, which has 50 of its {len(SENT)} bytes\n")
    assert said.err.startswith("1 packets, 0 with a wrong ICRC, 1 that could not")


def test_every_cut_of_a_file_is_taken_as_far_as_it_goes_or_refused(tmp_path: Path) -> None:
    for whole in (pcapng_file(tmp_path / "a", [SENT] * 2), pcap_file(tmp_path / "b", [SENT] * 2, "<", 0xA1B2C3D4)):
        data = Path(whole).read_bytes()
        counts = []
        for size in range(len(data) + 1):
            (tmp_path / "cut").write_bytes(data[:size])
            try:
                frames = list(read_capture(str(tmp_path / "cut")))
            except UsageError:
                frames = []
            assert all(frame.data == SENT for frame in frames)
            counts.append(len(frames))
        assert counts == sorted(counts)
        assert counts[-1] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "neither a pcap nor a pcapng"),
        (b"no capture at all", "neither a pcap nor a pcapng"),
        (b"\xd4\xc3\xb2\xa1", "ends within its header"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113), "no Ethernet frames (link type 113)"),
        (
            struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack("<IIII", 0, 0, 1 << 31, 1),
            "a frame of 2147483648 bytes",
        ),
        (struct.pack("<III", 0x0A0D0D0A, 28, 0x12345678), "no byte order"),
        (struct.pack("<III", 0x0A0D0D0A, 0x7FFFFFFC, 0x1A2B3C4D), "a block of 2147483644 bytes"),
        (struct.pack("<III", 0x0A0D0D0A, 0, 0x1A2B3C4D), "a block of 0 bytes"),
    ],
)
def test_what_is_no_capture_is_refused_in_words(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    assert main(["roce", "dump", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "remedy: " in said


def test_a_packet_of_an_interface_that_there_is_not_is_refused(tmp_path: Path) -> None:
    file = Path(pcapng_file(tmp_path / "a", [SENT]))
    data = bytearray(file.read_bytes())
    at = data.index(struct.pack("<I", 6), 28)
    data[at + 8 : at + 12] = struct.pack("<I", 1)
    file.write_bytes(data)
    with pytest.raises(UsageError, match="names an interface"):
        list(read_capture(str(file)))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "a FILE or a --device"),
        (["a", "--device", "lo"], 2, "a FILE or a --device"),
        (["a", "--timeout", "1"], 2, "--timeout is for --device"),
        (["--device", "nowhere0", "--timeout", "1"], 3, "remedy: "),
    ],
)
def test_what_cannot_be_asked_for_is_told(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["roce", "dump", *arguments]) == code
    assert words in capsys.readouterr().err
