"""The parameters of both ends exchanged over TCP, as the examples of libibverbs do it (`ibv_rc_pingpong` and its kin).

Each end sends one message of 52 bytes, LID, QPN, PSN and GID in hexadecimal; the client speaks first, and says "done"
when it is ready (examples/rc_pingpong.c of rdma-core, pp_client_exch_dest and pp_server_exch_dest).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable
from typing import IO

from hwrx.errors import MachineError, PeerError
from hwrx.host.waiting import wait_to_read
from hwrx.roce.parameters import Parameters

PORT = 18515  # of ibv_rc_pingpong
_MESSAGE = 52  # bytes, with the 0 at the end
_DONE = b"done\0"
_PATTERN = re.compile(rb"([0-9a-f]{4}):([0-9a-f]{6}):([0-9a-f]{6}):([0-9a-f]{32})\0")


def encode_parameters(own: Parameters) -> bytes:
    """Return the message for the other end."""
    gid = ipaddress.IPv6Address(own.gid).packed.hex()
    return f"{own.lid:04x}:{own.qpn:06x}:{own.psn:06x}:{gid}\0".encode()


def decode_parameters(message: bytes) -> Parameters:
    """Read the other end's message.

    :raises PeerError: if it is anything else
    """
    found = _PATTERN.fullmatch(message)
    if found is None:
        raise PeerError(
            f"the other end sent {message[:60]!r} instead of its LID, QPN, PSN and GID",
            remedy="it has to be ibv_rc_pingpong, or hwrx roce with --exchange",
        )
    lid, qpn, psn, gid = (int(part, 16) for part in found.groups())
    return Parameters(gid=str(ipaddress.IPv6Address(gid)), qpn=qpn, psn=psn, lid=lid)


def exchange_as_client(
    host: str, port: int, own: Parameters, *, idle: Callable[[], None], patience: float = 10.0
) -> Parameters:
    """Tell a server our parameters, and return its own. Who calls has posted its receive requests.

    :param idle: called time and again while we wait: the server's machine may ask who has our address before it answers
    :param patience: seconds for the server to be there, and to answer
    :raises PeerError: if there is none, or it says something else
    """
    deadline = time.monotonic() + patience
    with _connect(host, port, deadline, idle) as connection:
        try:
            connection.sendall(encode_parameters(own))
            there = decode_parameters(_read_exactly(connection, _MESSAGE, deadline, idle))
            connection.sendall(_DONE)
        except OSError as error:
            raise _broken_off(error) from error
    return there


def _connect(host: str, port: int, deadline: float, idle: Callable[[], None]) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(
                    f"nobody exchanges parameters at {host}, port {port}: {error}",
                    remedy="start the other end first: ibv_rc_pingpong, or hwrx roce listen --exchange",
                ) from error
            idle()
            time.sleep(0.05)


def exchange_as_server(
    port: int,
    own: Parameters,
    connect: Callable[[Parameters], None],
    *,
    idle: Callable[[], None],
    patience: float | None = None,
) -> Parameters:
    """Wait for one client, connect with it, and tell it our parameters: it sends as soon as it has them.

    :param connect: connects our end; called between what the client says and our answer
    :param idle: as above
    :param patience: seconds for a client to come; None: for ever
    :raises MachineError: if the port is taken
    :raises PeerError: if no client comes, or it says something else
    """
    try:
        listening = socket.create_server(("", port), family=_family(), dualstack_ipv6=socket.has_dualstack_ipv6())
    except OSError as error:
        raise MachineError(
            f"TCP port {port} cannot be listened to: {os.strerror(error.errno or 0)}", remedy="--exchange another port"
        ) from error
    with listening:
        if not wait_readable(listening, None if patience is None else time.monotonic() + patience, idle):
            raise PeerError(f"nobody came to TCP port {port} within {patience:g} s", remedy="start the client")
        connection, _ = listening.accept()
    deadline = time.monotonic() + 30.0
    with connection:
        try:
            there = decode_parameters(_read_exactly(connection, _MESSAGE, deadline, idle))
            connect(there)
            connection.sendall(encode_parameters(own))
            if _read_exactly(connection, len(_DONE), deadline, idle) != _DONE:
                raise PeerError("the other end did not say that it is done", remedy="see what it says")
        except OSError as error:
            raise _broken_off(error) from error
    return there


def wait_readable(file: socket.socket | IO[str], deadline: float | None, idle: Callable[[], None]) -> bool:
    """Wait until a file can be read, calling `idle` again and again.

    :param deadline: of CLOCK_MONOTONIC, in seconds; None: none
    :return: False if it came first
    """
    while not wait_to_read([file], 0.02):
        if deadline is not None and time.monotonic() > deadline:
            return False
        idle()
    return True


def _family() -> socket.AddressFamily:
    return socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET


def _read_exactly(connection: socket.socket, size: int, deadline: float, idle: Callable[[], None]) -> bytes:
    found = b""
    while len(found) < size:
        if not wait_readable(connection, deadline, idle):
            raise TimeoutError("the other end says nothing")
        piece = connection.recv(size - len(found))
        if not piece:
            break
        found += piece
    return found


def _broken_off(error: OSError) -> PeerError:
    return PeerError(f"the exchange of parameters broke off: {error}", remedy="see what the other end says")
