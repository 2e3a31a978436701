"""What the commands that open an endpoint of RoCEv2 have in common: their options, and how both ends are joined."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from msgspec import Struct

from hwrx.commands.shared.numbers import LONG, real_number, whole_number
from hwrx.errors import UsageError
from hwrx.roce import DatagramEndpoint, Endpoint, Parameters, datagram_endpoint, endpoint
from hwrx.roce.calling import Caller
from hwrx.roce.connecting import Manager
from hwrx.roce.datagrams import QKEY
from hwrx.roce.exchange import PORT, exchange_as_client, exchange_as_server, wait_readable
from hwrx.roce.management import RPING_PORT
from hwrx.roce.parameters import LARGEST_NUMBER, gid_of, read_parameters

if TYPE_CHECKING:
    from hwrx.nic.driver import Driver

Command = TypeVar("Command", bound=Callable[..., Any])
PCI_ADDRESS = re.compile(r"([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Hexadecimal(click.IntRange):
    """A range of numbers, decimal or with 0x."""

    name = "number"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; a usage error names the range."""
        try:
            number = int(value, 0) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"'{value}' is not a number.", param, ctx)
        return int(super().convert(number, param, ctx))


class Asked(Struct, frozen=True):
    """The options that every such command has."""

    device: str
    address: str
    mac: str
    qpn: int | None
    psn: int | None
    mtu: int
    peer: str | None
    peer_mac: str
    force: bool
    ack_timeout: int
    retries: int
    service: Literal["rc", "ud"]
    qkey: int | None

    @property
    def datagrams(self) -> bool:
        """Whether messages are unreliable datagrams, and not a connection's."""
        return self.service == "ud"


_OPTIONS = (
    click.argument("device", metavar="DEVICE"),
    click.option("--address", required=True, help="IP address of our end; a free one of DEVICE's network."),
    click.option("--mac", default="", help="MAC address of our end [made of the address]."),
    click.option("--qpn", type=Hexadecimal(2, LARGEST_NUMBER - 1), help="Number of our queue pair [a free one]."),
    click.option("--psn", type=Hexadecimal(0, LARGEST_NUMBER), help="Number of our first packet [by chance]."),
    click.option(
        "--mtu",
        type=click.Choice(["256", "512", "1024", "2048", "4096"]),
        default="1024",
        show_default=True,
        help="Bytes of payload of a whole packet.",
    ),
    click.option("--peer", metavar="LINE", help="The other end's line, or @FILE that has it [asked for]."),
    click.option("--peer-mac", default="", help="Its MAC address, or its router's [asked for by ARP]."),
    click.option(
        "--force", is_flag=True, help="Take a NIC although it carries the default route, an address or a connection."
    ),
    click.option(
        "--ack-timeout",
        type=whole_number(1, 31),  # with 0 a packet that is lost would be waited for without end
        default=14,
        show_default=True,
        help="A packet is sent again after 4.096 µs times 2 to this.",
    ),
    click.option("--retries", type=whole_number(0, 7), default=7, show_default=True, help="How often."),
    click.option(
        "--service",
        type=click.Choice(["rc", "ud"]),
        default="rc",
        show_default=True,
        help="rc: a reliable connection; ud: unreliable datagrams, of one packet each.",
    ),
    click.option(
        "--qkey", type=Hexadecimal(0, (1 << 32) - 1), help=f"ud: our Q_Key [{QKEY:#x}, as ibv_ud_pingpong's]."
    ),
)


def endpoint_options(command: Command) -> Command:
    """Give a command the options of `Asked`, which it takes as `**asked`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


exchange_server_option = click.option(
    "--exchange",
    type=whole_number(1, 65535),
    is_flag=False,
    flag_value=PORT,
    metavar="[PORT]",
    help=f"Exchange lines over TCP as ibv_rc_pingpong does, as its server; port {PORT} if none is given.",
)
manager_option = click.option(
    "--cm",
    "manager",
    type=whole_number(1, 65535),
    is_flag=False,
    flag_value=RPING_PORT,
    metavar="[PORT]",
    help=f"Be connected by RDMA-CM's messages, as its server; port {RPING_PORT} (rping's) if none is given.",
)
caller_option = click.option(
    "--cm",
    "listener",
    metavar="ADDRESS[:PORT]",
    help=f"Connect by RDMA-CM's messages, as its client; port {RPING_PORT} (rping's) if none is given.",
)
exchange_client_option = click.option(
    "--exchange",
    metavar="HOST[:PORT]",
    help=f"Exchange lines over TCP as ibv_rc_pingpong does, as its client; port {PORT} if none is given.",
)
key_option = click.option("--key", type=Hexadecimal(0, (1 << 32) - 1), help="Of the other end's memory [its line's].")
remote_address_option = click.option(
    "--remote-address", type=Hexadecimal(0, (1 << 64) - 1), help="Of the other end's memory [its line's]."
)
timeout_option = click.option(
    "--timeout", type=real_number(0.001, LONG), help="Give up after so many seconds without a message."
)


@contextlib.contextmanager
def open_end(asked: Asked) -> Iterator[Endpoint]:
    """Open a connection's endpoint on a network device, or on a NIC by its PCI address, which hwrx drives meanwhile."""
    with (
        _open_device(asked) as device,
        endpoint(device, asked.address, mac=asked.mac, qpn=asked.qpn, psn=asked.psn, mtu=asked.mtu) as made,
    ):
        yield made


@contextlib.contextmanager
def open_datagram_end(asked: Asked) -> Iterator[DatagramEndpoint]:
    """As `open_end`, for datagrams."""
    qkey = QKEY if asked.qkey is None else asked.qkey
    with (
        _open_device(asked) as device,
        datagram_endpoint(device, asked.address, mac=asked.mac, qpn=asked.qpn, qkey=qkey, mtu=asked.mtu) as made,
    ):
        yield made


@contextlib.contextmanager
def _open_device(asked: Asked) -> Iterator[str | Driver]:
    if not PCI_ADDRESS.fullmatch(asked.device):
        yield asked.device
        return
    # a command that shares a network device needs no driver
    from hwrx.nic import open_nic

    with open_nic(asked.device, interrupt="auto", force=asked.force) as driver:
        yield driver


def check_service(asked: Asked, **connections: object) -> None:
    """Raise UsageError if an option is given that the service does not have.

    :param connections: options of reliable connections alone, and what was given for them; None, False: nothing
    """
    if not asked.datagrams and asked.qkey is not None:
        raise UsageError("a reliable connection has no Q_Key", remedy="--service ud, or leave --qkey out")
    given = [f"--{name}" for name, value in connections.items() if value not in (None, False)]
    if asked.datagrams and asked.psn is not None:
        given.append("--psn")
    if asked.datagrams and given:
        raise UsageError(f"datagrams have no {given[0]}", remedy="--service rc, or leave it out")


def join_peer(
    qp: Endpoint | DatagramEndpoint, asked: Asked, exchange: str | int | None, patience: float | None
) -> Parameters:
    """Tell our line and hear the other end's, as the options say, and connect with it.

    :param exchange: a port to be the TCP server on, or HOST[:PORT] to be the client of
    :param patience: seconds that an exchange may take; None: for ever as the server, 10 as the client
    """

    def connect(there: Parameters) -> None:
        if isinstance(qp, Endpoint):
            qp.connect(there, mac=asked.peer_mac, timeout=asked.ack_timeout, retry_count=asked.retries)
        else:
            qp.connect(there, mac=asked.peer_mac)

    click.echo(qp.parameters.to_line())
    if exchange is not None:
        if asked.peer is not None:
            raise UsageError("the other end's line is given by --peer or by --exchange", remedy="leave one out")
        if isinstance(exchange, int):
            return exchange_as_server(exchange, qp.parameters, connect, idle=qp.idle, patience=patience)
        host, port = _host_and_port(exchange, PORT, "--exchange HOST")
        there = exchange_as_client(host, port, qp.parameters, idle=qp.idle, patience=patience or 10.0)
    else:
        if asked.peer is None:
            click.echo("the other end's line, and Enter:", err=True)
            wait_readable(sys.stdin, None, qp.idle)
        there = read_parameters(sys.stdin.readline(4096) if asked.peer is None else asked.peer)
    connect(there)
    return there


def accept_client(qp: Endpoint, port: int, patience: float | None) -> Manager:
    """Wait for a client of RDMA-CM, and say who it is.

    :param port: of RDMA-CM's TCP port space
    :param patience: seconds; None: for ever
    """
    click.echo(qp.parameters.to_line())
    manager = Manager(qp, port)
    there = manager.accept(patience)
    click.echo(f"connected by {there.ip}, queue pair {there.qpn:#x}", err=True)
    return manager


def find_listener(asked: Asked, exchange: str | None, listener: str | None) -> tuple[str, int] | None:
    """Return address and port of a listener of RDMA-CM; None if --cm is not given.

    :param listener: ADDRESS[:PORT]
    :raises UsageError: if it is not one, or another way to know the other end is given too
    """
    if listener is None:
        return None
    if asked.peer is not None or exchange is not None:
        raise UsageError("the other end is described by --peer, --exchange or --cm", remedy="leave two of them out")
    address, port = _host_and_port(listener, RPING_PORT, "--cm ADDRESS")
    gid_of(address)
    return address, port


@contextlib.contextmanager
def connected(
    qp: Endpoint, asked: Asked, exchange: str | None, listener: tuple[str, int] | None
) -> Iterator[Parameters]:
    """Connect as a client, by whatever the options say; yield what the other end says of itself, and take leave of it.

    :param exchange: see `join_peer`
    :param listener: of RDMA-CM, which is told when we leave
    """
    if listener is None:
        yield join_peer(qp, asked, exchange, None)
        return
    with called(qp, asked, listener) as (_, there):
        yield there


@contextlib.contextmanager
def called(qp: Endpoint, asked: Asked, listener: tuple[str, int]) -> Iterator[tuple[Caller, Parameters]]:
    """As `connected`, with a listener of RDMA-CM."""
    caller = Caller(qp, *listener)
    click.echo(qp.parameters.to_line())
    there = caller.connect(mac=asked.peer_mac, ack_timeout=asked.ack_timeout, retries=asked.retries)
    click.echo(f"connected with {there.ip}, queue pair {there.qpn:#x}", err=True)
    try:
        yield caller, there
    finally:
        if not caller.disconnect():
            click.echo("the other end did not answer that we leave", err=True)


def _host_and_port(text: str, otherwise: int, usage: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        return text.strip("[]"), otherwise
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"'{port}' is not a port", remedy=f"{usage}, or {usage.split()[1]}:{otherwise}")
    return host.strip("[]"), int(port)
