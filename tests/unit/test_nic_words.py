"""What `hwrx nic` prints and writes: a line a frame, pcapng, and the words of refusals."""

import io
import json
import struct

import pytest
from click.testing import CliRunner

from cython_ext.frames.packet import udp_frame, udp_template
from hwrx.commands.nic import nic as command
from hwrx.errors import MachineError, UsageError
from hwrx.nic import belongings, pci, registers, uses
from hwrx.nic.pcapng import Writer
from hwrx.nic.summary import summarise_frame

FRAME = udp_frame(
    udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.2", 1111, 2222), b"hello"
)


def blocks(data):
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, at + length - 4) == (length,)
        yield kind, data[at + 8 : at + length - 4]
        at += length


def test_pcapng_is_what_the_format_says():
    out = io.BytesIO()
    writer = Writer(out, "0000:00:04.0")
    writer.packet(FRAME, 1_700_000_000_123_456_789)
    writer.packet(FRAME[:-1], 1_700_000_000_123_456_790)
    writer.statistics(2, 1, 1_700_000_001_000_000_000)
    found = list(blocks(out.getvalue()))
    assert [kind for kind, _ in found] == [0x0A0D0D0A, 1, 6, 6, 5]
    assert struct.unpack_from("<IHHq", found[0][1]) == (0x1A2B3C4D, 1, 0, -1)
    assert struct.unpack_from("<HHI", found[1][1]) == (1, 0, 0)
    assert b"\x09\x00\x01\x00\x09" in found[1][1]  # if_tsresol: 10^-9
    interface, high, low, kept, whole = struct.unpack_from("<IIIII", found[2][1])
    assert (interface, high << 32 | low, kept, whole) == (0, 1_700_000_000_123_456_789, 47, 47)
    assert found[2][1][20:67] == FRAME
    assert found[3][1][20:66] == FRAME[:-1]


def test_snapping_keeps_the_true_length():
    out = io.BytesIO()
    Writer(out, "x", snap=20).packet(FRAME, 1)
    _, body = list(blocks(out.getvalue()))[2]
    assert struct.unpack_from("<II", body, 12) == (20, 47)
    assert body[20:] == FRAME[:20]


@pytest.mark.parametrize(
    ("frame", "line"),
    [
        (FRAME, "52:54:00:00:00:01 > 52:54:00:00:00:02, IPv4 192.0.2.1.1111 > 192.0.2.2.2222: UDP, 5 bytes"),
        (FRAME[:-1] + b"?", "IPv4 192.0.2.1 > 192.0.2.2: UDP, 47 bytes, BAD CHECKSUM"),
        (FRAME[:40], "IPv4 192.0.2.1 > 192.0.2.2: UDP, 40 bytes, TRUNCATED"),
        (FRAME[:23] + b"\x06" + FRAME[24:], "BAD HEADER CHECKSUM"),
        (bytes(12) + b"\x12\x34" + bytes(50), "ethertype 0x1234, 64 bytes"),
        (bytes(5), "runt of 5 bytes"),
        (
            b"\xff" * 6 + bytes(6) + bytes.fromhex("0806000108000604 0001 525400000001 c0000201 000000000000 c0000202"),
            "ARP, who has 192.0.2.2? Tell 192.0.2.1",
        ),
        (
            b"\xff" * 6 + bytes(6) + bytes.fromhex("0806000108000604 0002 525400000001 c0000201 000000000000 c0000202"),
            "ARP, 192.0.2.1 is at 52:54:00:00:00:01",
        ),
        (
            bytes(12)
            + bytes.fromhex("0800 4500002800010000400600000a0000010a000002 04d20050")
            + bytes(9)
            + b"\x12" * 7,
            "IPv4 10.0.0.1.1234 > 10.0.0.2.80: TCP [S.], 54 bytes",
        ),
        (
            bytes(12) + bytes.fromhex("0800 4500001c00012000400100000a0000010a000002 0800") + bytes(6),
            "IPv4 10.0.0.1 > 10.0.0.2: ICMP echo request, 42 bytes",
        ),
        (
            bytes(12) + bytes.fromhex("0800 4500001c00010001400100000a0000010a000002 0800") + bytes(6),
            "IPv4 10.0.0.1 > 10.0.0.2: ICMP, 42 bytes",  # a later fragment: what looks like a type is payload
        ),
        (
            bytes(12) + b"\x86\xdd" + bytes.fromhex("6000000000083aff") + bytes(31) + b"\x02" + b"\x85" + bytes(7),
            "IPv6 :: > ::2: ICMPv6 router solicitation, 62 bytes",
        ),
    ],
)
def test_a_line_a_frame(frame, line):
    assert line in summarise_frame(frame)


def test_decode_names_bits_and_gives_fields_their_values():
    fields = {name: fields for name, _, fields in registers.DUMPED}
    assert registers.decode_register(0x04008002, fields["RCTL"]) == "EN BAM BSIZE=0x0 SECRC"
    assert registers.decode_register(0x00080008, fields["IVAR"]) == "RXQ0=0x8 RXQ1=0x0 TXQ0=0x0 OTHER=0x8"
    assert registers.decode_register(0, fields["CTRL"]) == "SPEED=0x0"


def test_dumped_registers_have_no_side_effects():
    cleared_by_reading = {registers.ICR, *(offset for offset, _ in registers.STATISTICS.values())}
    assert not cleared_by_reading & {offset for _, offset, _ in registers.DUMPED}


# --- a bus made of files -------------------------------------------------------------------------------------------


@pytest.fixture
def bus(tmp_path, monkeypatch):
    devices = tmp_path / "devices"
    monkeypatch.setattr(pci, "DEVICES", devices)
    monkeypatch.setattr(pci, "KEPT", tmp_path / "kept")

    def add(address, *, vendor=0x8086, device=0x10D3, driver="e1000e", netdev=None, mac="52:54:00:00:00:01", group="7"):
        path = devices / address
        path.mkdir(parents=True)
        (path / "vendor").write_text(f"{vendor:#06x}\n")
        (path / "device").write_text(f"{device:#06x}\n")
        (path / "class").write_text("0x020000\n")
        for link, target in (("driver", driver), ("iommu_group", group)):
            if target is not None:
                (tmp_path / link / target).mkdir(parents=True, exist_ok=True)
                (path / link).symlink_to(tmp_path / link / target)
        if netdev:
            (path / "net" / netdev).mkdir(parents=True)
            (path / "net" / netdev / "address").write_text(f"{mac}\n")

    return add


def test_a_nic_is_found_by_address_netdev_and_mac(bus):
    bus("0000:00:04.0", netdev="eth7")
    bus("0000:00:05.0", device=0x1533, netdev="eth8", mac="52:54:00:00:00:02", group=None)
    for name in ("0000:00:04.0", "00:04.0", "eth7", "52:54:00:00:00:01", "52:54:00:00:00:01".upper()):
        assert pci.find_nic(name).address == "0000:00:04.0"
    assert pci.find_nic("eth7").model == "82574L" and pci.find_nic("eth7").supported
    other = pci.find_nic("eth8")
    assert (other.model, other.supported, other.group) == ("8086:1533", False, None)


@pytest.mark.parametrize("name", ["eth9", "0000:00:09.0", "", "../../etc", "52:54:00:00:00:09"])
def test_a_nic_that_is_not_there_is_named_with_those_that_are(bus, name):
    bus("0000:00:04.0", netdev="eth7")
    with pytest.raises(UsageError, match=r"there is no"):
        pci.find_nic(name)


def test_a_machine_without_nics_is_told_of_the_topology_that_has_two(bus):
    with pytest.raises(UsageError, match="there is no NIC 'eth7': this machine has none") as caught:
        pci.find_nic("eth7")
    assert caught.value.remedy == "use the topology nic, whose guest has two"


def test_what_speaks_against_taking_a_nic(bus, monkeypatch):
    bus("0000:00:04.0", netdev="eth7")
    addresses = [
        {"local": "192.0.2.1", "prefixlen": 24, "scope": "global"},
        {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
    ]
    # no device of this machine has these, and no real one may be given them
    tables = belongings.Tables({"ifname": "eth7", "ifindex": 7}, [{"dst": "default"}], addresses, [], [])
    monkeypatch.setattr(pci, "read_tables", lambda netdev: tables)
    monkeypatch.setattr(uses, "_connections", lambda addresses: 3 if "192.0.2.1" in addresses else 0)
    one = pci.find_nic("eth7")
    assert pci.uses_of(one) == [
        "it carries the default route",
        "it has the address 192.0.2.1/24",
        "3 open connections use its address",
    ]
    with pytest.raises(MachineError, match=r"eth7 is in use: it carries the default route; it has the address"):
        pci.take_nic(one, "vfio-pci")
    tables.routes.clear()
    assert pci.uses_of(one, own=["192.0.2.1"]) == []


def test_a_nic_whose_netdev_is_elsewhere_is_not_taken(bus):
    bus("0000:00:04.0")
    with pytest.raises(MachineError, match="another network namespace"):
        pci.take_nic(pci.find_nic("00:04.0"), "vfio-pci")


def test_what_was_kept_and_cannot_be_read_is_named(bus):
    bus("0000:00:04.0")
    pci.KEPT.mkdir()
    (pci.KEPT / "0000:00:04.0.json").write_text("{not json")
    with pytest.raises(MachineError, match="cannot be read"):
        pci.find_nic("00:04.0")


def test_list_as_json(bus):
    bus("0000:00:04.0", driver="vfio-pci")
    shown = CliRunner().invoke(command, ["list", "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.output)[0]["model"] == "82574L"
