"""`hwrx roce`: RDMA over Ethernet, as its packets show it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import click

from hwrx.commands.shared.numbers import LONG, real_number, whole_number
from hwrx.errors import UsageError
from hwrx.host import strict_json
from hwrx.roce.captures import CapturedFrame, read_capture
from hwrx.roce.decoding import decode_frame, describe_packet
from hwrx.roce.sniffing import Sniffer


@click.group()
def roce() -> None:
    """Packets of RoCEv2: RDMA over UDP port 4791."""


@roce.command()
@click.argument("file", required=False)
@click.option("--device", metavar="NETDEV", help="Listen to a network device, both ways, as root.")
@click.option("-n", "--count", type=whole_number(1, 2**63 - 1), help="End after so many packets of RoCEv2.")
@click.option("--timeout", type=real_number(0, LONG), help="With --device: end after so many seconds without a frame.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def dump(file: str | None, device: str | None, count: int | None, timeout: float | None, as_json: bool) -> None:
    """Print a line for each packet of RoCEv2 in FILE (pcap or pcapng; - is standard input), or on a network device.

    Addresses, opcode, destination queue pair, PSN, the fields of its headers, bytes of payload, and whether the
    invariant CRC is right. Other frames are counted, and so is what is damaged; both are told at the end, on standard
    error. A wrong CRC is no failure of this command.

    \b
    Examples:
      hwrx roce dump packets.pcapng
      hwrx roce dump --device eth1 --timeout 5 --json
    """
    if (file is None) == (device is None):
        raise UsageError("there is a FILE or a --device, and not both", remedy="hwrx roce dump packets.pcapng")
    if timeout is not None and device is None:
        raise UsageError("--timeout is for --device: a file ends by itself", remedy="leave it out")
    packets = wrong = damaged = others = 0
    with _source(file, device, timeout) as frames:
        for frame in frames:
            found = decode_frame(frame)
            if found is None:
                others += 1
                continue
            click.echo(
                strict_json.to_json(found) if as_json else f"{_clock(frame.nanoseconds)}{describe_packet(found)}"
            )
            packets += 1
            wrong += found.get("icrc") is False
            damaged += found["verdict"] != "roce"
            if packets == count:
                break
    click.echo(
        f"{packets} packets, {wrong} with a wrong ICRC, {damaged} that could not be decoded; {others} other frames",
        err=True,
    )


@contextlib.contextmanager
def _source(file: str | None, device: str | None, timeout: float | None) -> Iterator[Iterator[CapturedFrame]]:
    if file is not None:
        yield read_capture(file)
        return
    with Sniffer(str(device)) as sniffer:
        yield sniffer.frames(timeout)
        if lost := sniffer.count_lost():
            click.echo(f"{lost} frames were lost: they came faster than they were printed", err=True)


def _clock(nanoseconds: int) -> str:
    if not nanoseconds:
        return ""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest:09} "
