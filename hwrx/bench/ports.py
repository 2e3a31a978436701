"""The ports of a host of the inventory: each is a host of its own, reached in the same way, with its own device.

    [hosts.twin]
    reach = "ssh:twin"
    ports = [{verbs = "mlx5_0"}, {verbs = "mlx5_1", address = "192.0.2.20", netdev = "eth2"}]

has the hosts `twin-port1` and `twin-port2` beside `twin`. So ports are compared as hosts are, in turn or all at once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hwrx.control.environment import Host
from hwrx.errors import UsageError
from hwrx.host.outside import clean_name
from hwrx.runs import checked

Text = Annotated[str, Meta(min_length=1, max_length=4000)]
PortNumber = Annotated[int, Meta(ge=1, le=255)]
MOST = 256  # ports of a host
Entries = Annotated[list[Any], Meta(max_length=MOST, description=f"a list of tables, at most {MOST} of them")]


class PortEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says of one port. `port` is the number within its verbs device."""

    verbs: Text | None = None
    port: PortNumber = 1
    address: Text | None = None
    netdev: Text | None = None


def check_ports(source: str, where: str, ports: object) -> None:
    """UsageError, with the key and what is allowed there, if `ports` is not a list of ports."""
    fields = {field.name: field.type for field in msgspec.structs.fields(PortEntry)}
    checked.convert_field(source, where, ports, Entries)
    for number, port in enumerate(msgspec.convert(ports, list[Any]), 1):
        place = f"{where}[{number}]"  # as the hosts that are made of them are numbered
        checked.convert_field(source, place, port, dict[str, Any])
        for key, value in port.items():
            if key not in fields:
                raise checked.unknown_field(source, f"{place}.{key}", fields, key=key)
            checked.convert_field(source, f"{place}.{key}", value, fields[key])
        if not {"verbs", "address"} & port.keys():
            raise UsageError(
                f"{source}: {place}: it has neither a verbs device nor an address", remedy='{verbs = "mlx5_0"}'
            )
        if "address" in port:
            check_address(source, f"{place}.address", port["address"])


def check_address(source: str, where: str, address: str) -> None:
    """UsageError if that is not an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise UsageError(
            f"{source}: {where}: '{clean_name(address)}' is not an IP address",
            remedy="for example 192.0.2.7 or fe80::7%eth1",
        ) from None


def port_hosts(host: Host, ports: Sequence[PortEntry]) -> list[Host]:
    """Return a host for each port: CPUs and the way there are the machine's, device and address the port's."""
    return [
        msgspec.structs.replace(
            host,
            name=f"{host.name}-port{number}",
            verbs=each.verbs,
            port=each.port,
            address=each.address or "",
            netdev=each.netdev,
        )
        for number, each in enumerate(ports, 1)
    ]
