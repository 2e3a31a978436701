"""`hwrx roce`: RDMA over Ethernet, as its packets show it, and an end of it to test others with."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import click
import msgspec

from hwrx.commands.shared.numbers import BYTES, LONG, real_number, whole_number
from hwrx.commands.shared.roce_ends import (
    Asked,
    accept_client,
    called,
    caller_option,
    check_service,
    connected,
    endpoint_options,
    exchange_client_option,
    exchange_server_option,
    find_listener,
    join_peer,
    key_option,
    manager_option,
    open_datagram_end,
    open_end,
    remote_address_option,
    timeout_option,
)
from hwrx.errors import UsageError
from hwrx.host import strict_json
from hwrx.host.outside import clean_text
from hwrx.roce import Endpoint
from hwrx.roce.captures import CapturedFrame, read_capture
from hwrx.roce.datagrams import SENDS
from hwrx.roce.decoding import decode_frame, describe_packet
from hwrx.roce.management import RPING_PORT
from hwrx.roce.parameters import Parameters
from hwrx.roce.rping import Words, ping_rping, serve_rping
from hwrx.roce.sniffing import Sniffer
from hwrx.roce.talking import (
    DEPTH,
    AnyEndpoint,
    Message,
    RoundTrips,
    Sent,
    Slots,
    check_room,
    make_pattern,
    ping_peer,
    receive_messages,
    send_messages,
)
from hwrx.roce.talking_datagrams import ping_datagrams, send_datagrams

VERBS = ("send", "send-imm", "write", "write-imm", "read", "fetch-add")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
size_option = click.option(
    "--size", type=whole_number(0, BYTES), default=64, show_default=True, help="Bytes of a message."
)


@click.group()
def roce() -> None:
    """RoCEv2, RDMA over UDP port 4791: its packets decoded, and hwrx's own queue pair as a peer for any other.

    A peer is described by one line, which listen, send and ping print of themselves and take of the other end:
    LID 0x0000, QPN 0x000011, PSN 0x9a1b2c, GID ::ffff:192.0.2.1. ibv_rc_pingpong and its kin print such lines.
    """


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


@roce.command()
@endpoint_options
@click.option("--size", type=whole_number(0, BYTES), default=4096, show_default=True, help="Bytes of a receive buffer.")
@click.option("-n", "--count", type=whole_number(1, 2**63 - 1), help="End after so many messages.")
@click.option("--echo", is_flag=True, help="Send each message back, as ibv_rc_pingpong's server does.")
@exchange_server_option
@manager_option
@click.option("--rping", is_flag=True, help="With --cm: answer as rping's server does, until the client leaves.")
@timeout_option
@json_option
def listen(
    size: int, count: int | None, echo: bool, exchange: int | None, manager: int | None, rping: bool,
    timeout: float | None, as_json: bool, **asked: object,
) -> None:  # fmt: skip
    """Receive messages on DEVICE (a network device, or a NIC by its PCI address) and print a line for each.

    Our own line comes first: give it to the other end. It offers as much memory as a receive buffer has, which the
    other end may read and write. As root.

    \b
    Examples:
      hwrx roce listen eth1 --address 192.0.2.70 --peer 'QPN 0x11, PSN 0x1, GID ::ffff:192.0.2.2'
      hwrx roce listen eth1 --address 192.0.2.70 --exchange --echo     # ibv_rc_pingpong -g 1 HOST
      hwrx roce listen eth1 --address 192.0.2.70 --cm --rping          # rping -c -a 192.0.2.70
      hwrx roce listen eth1 --address 192.0.2.70 --service ud          # of whoever sends with our Q_Key
    """
    options = _asked(asked)
    if rping and manager is None:
        raise UsageError("--rping answers a client of RDMA-CM", remedy="add --cm")
    check_service(options, cm=manager)
    if options.datagrams:
        with open_datagram_end(options) as pair:
            slots = _posted_slots(pair, size, DEPTH)
            # whoever only receives need not know who sends
            if echo or exchange is not None or options.peer is not None:
                join_peer(pair, options, exchange, timeout)
            else:
                click.echo(pair.parameters.to_line())
            _print_messages(pair, slots, count, echo, timeout, lambda: False, as_json)
        return
    with open_end(options) as qp:
        if rping:
            _answer_rping(qp, manager or RPING_PORT, timeout)
            return
        slots = _posted_slots(qp, size, DEPTH)
        qp.offer(qp.register(bytearray(max(1, size))))
        client = None if manager is None else accept_client(qp, manager, timeout)
        if client is None:
            join_peer(qp, options, exchange, timeout)
        left = (lambda: client.ended) if client is not None else (lambda: False)
        _print_messages(qp, slots, count, echo, timeout, left, as_json)


def _posted_slots(qp: AnyEndpoint, size: int, most: int) -> Slots:
    """Receive requests for messages of `size` bytes, as many as is useful and no more than fit 64 MiB."""
    slots = Slots(qp, size, min(most, max(1, (1 << 26) // max(1, size))))
    for _ in range(slots.count):
        slots.post()
    return slots


def _print_messages(
    qp: AnyEndpoint, slots: Slots, count: int | None, echo: bool, timeout: float | None, left: Callable[[], bool],
    as_json: bool,
) -> None:  # fmt: skip
    messages = total = 0
    for message in receive_messages(qp, slots, count=count, echo=echo, timeout=timeout, left=left):
        click.echo(strict_json.to_json(_plain(message)) if as_json else _describe(message))
        messages, total = message.number, total + message.size
    click.echo(f"{messages} messages, {total} bytes; {qp.describe_traffic()}", err=True)


def _answer_rping(qp: Endpoint, port: int, timeout: float | None) -> None:
    words = Words(qp)
    client = accept_client(qp, port, timeout)

    def told(number: int, text: bytes) -> None:
        click.echo(f"text {number}: {len(text)} bytes, {clean_text(text[:40].partition(bytes(1))[0])}")

    count = serve_rping(qp, client, words, timeout=timeout, told=told)
    click.echo(f"{count} texts went to and fro", err=True)


@roce.command()
@endpoint_options
@click.option("--verb", type=click.Choice(VERBS), default="send", show_default=True, help="What is asked for.")
@size_option
@click.option("-n", "--count", type=whole_number(1, 10**9), default=1, show_default=True, help="How many messages.")
@key_option
@remote_address_option
@exchange_client_option
@caller_option
@json_option
def send(
    verb: str, size: int, count: int, key: int | None, remote_address: int | None, exchange: str | None,
    listener: str | None, as_json: bool, **asked: object,
) -> None:  # fmt: skip
    """Send messages from DEVICE to any RoCEv2 peer, or write or read its memory, and say how long it took.

    \b
    Examples:
      hwrx roce send eth1 --address 192.0.2.70 --peer @line --size 4096 -n 1000
      hwrx roce send eth1 --address 192.0.2.70 --peer @line --verb read --key 0x1a2b --remote-address 0x7f0000001000
      hwrx roce send eth1 --address 192.0.2.70 --cm 192.0.2.2:7174 -n 1000     # there: hwrx roce listen --cm
      hwrx roce send eth1 --address 192.0.2.70 --service ud --peer @line --verb send-imm
    """
    options = _asked(asked)
    size = 8 if verb == "fetch-add" else size
    where_to = find_listener(options, exchange, listener)
    check_service(options, cm=listener, key=key, **{"remote-address": remote_address})
    body = make_pattern(max(1, size))
    if options.datagrams:
        _check_datagrams(verb, size, options.mtu)
        with open_datagram_end(options) as pair:
            join_peer(pair, options, exchange, None)
            with _progress(count) as told:
                found = send_datagrams(pair, verb, pair.register(body), size, count, told=told)
    else:
        with open_end(options) as qp, connected(qp, options, exchange, where_to) as there:
            where = _remote(verb, size, there, key, remote_address)
            with _progress(count) as told:
                found = send_messages(qp, verb, qp.register(body), size, count, told=told, **where)
    click.echo(strict_json.to_json(_plain(found)) if as_json else _describe_sent(found))


@roce.command()
@endpoint_options
@click.option(
    "--verb",
    type=click.Choice(["send", "write", "read"]),
    default="send",
    show_default=True,
    help="send: the peer sends each message back; write, read: its queue pair answers by itself.",
)
@size_option
@click.option("-n", "--count", type=whole_number(1, 10**9), default=10, show_default=True, help="How many.")
@click.option("--interval", type=real_number(0, LONG), default=0.0, help="Seconds between two of them.")
@key_option
@remote_address_option
@exchange_client_option
@caller_option
@click.option("--rping", is_flag=True, help="With --cm: do as rping's client does; the listener is rping -s.")
@timeout_option
@json_option
def ping(
    verb: str, size: int, count: int, interval: float, key: int | None, remote_address: int | None,
    exchange: str | None, listener: str | None, rping: bool, timeout: float | None, as_json: bool, **asked: object,
) -> None:  # fmt: skip
    """Take the times of round trips from DEVICE to a RoCEv2 peer and back.

    With --verb write --size 0 any peer will do: a WRITE of nothing names no memory, and is acknowledged. With --verb
    send the peer has to send each message back: ibv_rc_pingpong, or hwrx roce listen --echo.

    \b
    Examples:
      hwrx roce ping eth1 --address 192.0.2.70 --peer @line --verb write --size 0
      hwrx roce ping eth1 --address 192.0.2.70 --exchange 192.0.2.2 --size 4096 -n 1000
      hwrx roce ping eth1 --address 192.0.2.70 --cm 192.0.2.2 --rping          # there: rping -s -a 192.0.2.2
      hwrx roce ping eth1 --address 192.0.2.70 --service ud --exchange 192.0.2.2   # there: ibv_ud_pingpong -g 1
    """
    options = _asked(asked)
    where_to = find_listener(options, exchange, listener)
    if rping and where_to is None:
        raise UsageError("--rping talks to a listener of RDMA-CM", remedy="add --cm ADDRESS")
    check_service(options, cm=listener, key=key, **{"remote-address": remote_address})
    pace = _Pace(count, interval, timeout)
    if options.datagrams:
        found = _ping_datagrams(options, verb, size, pace, exchange)
    elif rping and where_to is not None:
        found = _ping_rping(options, size, pace, where_to)
    else:
        with open_end(options) as qp:
            slots = _posted_slots(qp, size, min(DEPTH, count))
            with connected(qp, options, exchange, where_to) as there, _progress(count) as told:
                where = _remote(verb, size, there, key, remote_address)
                found = ping_peer(qp, verb, slots, count, **pace.options(10.0), told=told, **where)
    click.echo(strict_json.to_json(_plain(found)) if as_json else _describe_round_trips(found))


class _Seconds(TypedDict):
    interval: float
    timeout: float


class _Pace(NamedTuple):
    """How many round trips, and seconds: between two of them, and for an answer, if that was said."""

    trips: int
    interval: float
    timeout: float | None

    def options(self, patience: float) -> _Seconds:
        return {"interval": self.interval, "timeout": self.timeout or patience}


def _ping_datagrams(options: Asked, verb: str, size: int, pace: _Pace, exchange: str | None) -> RoundTrips:
    _check_datagrams(verb, size, options.mtu)
    with open_datagram_end(options) as pair:
        slots = _posted_slots(pair, size, min(DEPTH, pace.trips))
        join_peer(pair, options, exchange, None)
        with _progress(pace.trips) as told:
            return ping_datagrams(pair, slots, pace.trips, **pace.options(1.0), told=told)


def _ping_rping(options: Asked, size: int, pace: _Pace, listener: tuple[str, int]) -> RoundTrips:
    with open_end(options) as qp:
        words = Words(qp)
        with called(qp, options, listener) as (caller, _), _progress(pace.trips) as told:
            return ping_rping(qp, caller, words, size, pace.trips, **pace.options(10.0), told=told)


def _check_datagrams(verb: str, size: int, mtu: int) -> None:
    if verb not in SENDS:
        raise UsageError(f"datagrams have no {verb}", remedy="--verb send, or send-imm")
    if size > mtu:
        raise UsageError(
            f"a datagram has at most {mtu} bytes, not {size}", remedy="a smaller --size, or a larger --mtu"
        )


def _asked(options: dict[str, object]) -> Asked:
    return msgspec.convert(options, Asked, strict=False)  # the MTU is a choice of words


def _remote(verb: str, size: int, there: Parameters, key: int | None, address: int | None) -> dict[str, int]:
    """The other end's memory: what the options name, or what its line tells."""
    if key is None and address is None:
        check_room(verb, size, there.size)
    return {"key": there.key if key is None else key, "address": there.address if address is None else address}


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, on standard error; what is yielded is told how many are done."""
    with click.progressbar(length=count, label="messages", file=sys.stderr) as bar:
        if bar.file.isatty():
            yield lambda done: bar.update(1)
        else:
            yield lambda done: None


def _plain(found: Message | Sent | RoundTrips) -> dict[str, object]:
    values = {name: getattr(found, name) for name in found.__struct_fields__}
    if isinstance(found, Message):
        values["text"] = found.text.hex()
    return values


def _describe(message: Message) -> str:
    immediate = "" if message.immediate is None else f", immediate {message.immediate:#010x}"
    return f"message {message.number}: {message.verb}, {message.size} bytes{immediate}"


def _describe_sent(found: Sent) -> str:
    rate = found.messages / max(found.seconds, 1e-9)
    words = f"{found.messages} × {found.verb} of {found.size} bytes in {found.seconds:.6f} s: {rate:,.0f} a second, "
    words += f"{rate * found.size / 1e6:,.1f} MB/s"
    again = found.counters.get("sent_again")  # of a connection
    return words if again is None else f"{words}; {again} packets were sent again"


def _describe_round_trips(found: RoundTrips) -> str:
    ordered = sorted(found.times)
    least, middle, most = (ordered[at] / 1000 for at in (0, len(ordered) // 2, -1))
    words = f"{len(ordered)} round trips of {found.size} bytes ({found.verb}): "
    words += f"least {least:,.1f} µs, median {middle:,.1f}, most {most:,.1f}"
    words += f"; {found.lost} were not answered in time" if found.lost else ""
    return words + (f"; {found.different} answers were not what was sent" if found.different else "")
