"""A labgrid environment (its YAML file of targets and their resources), as an inventory.

Taken are the resources NetworkService (how the target is reached: address, username, port) and NetworkInterface (the
device of the wire: ifname). A RemotePlace is known to labgrid's coordinator only, which is not asked.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from hwrx.control.environment import SSH_OPTIONS
from hwrx.errors import UsageError
from hwrx.host.outside import clean_name

Tables = dict[str, Any]  # of an inventory, as its TOML would have it
MOST = 1 << 20  # characters of a file


# plain data only; what labgrid marks `!template` is taken as it stands
_Loader: Any = type("_Loader", (yaml.SafeLoader,), {})


def _take_template(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Loader.add_constructor("!template", _take_template)


def parse_labgrid(text: str, source: str) -> Tables:
    """Return the file's targets as the tables of an inventory.

    :raises UsageError: if it is not such a file, or a target has nothing that it can be reached by.
    """
    if len(text) > MOST:
        raise UsageError(f"{source}: {len(text)} characters are too many for a labgrid environment")
    try:
        # a subclass of the safe loader, which makes plain data alone
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{source}: not valid YAML: {clean_name(str(error))}") from None
    targets = content.get("targets") if isinstance(content, dict) else None
    if not isinstance(targets, dict) or not targets:
        raise UsageError(
            f"{source}: it has no targets", remedy="a labgrid environment, with `targets:`; or a bench.toml"
        )
    return {"hosts": {str(name): _read_target(source, str(name), target) for name, target in targets.items()}}


def _read_target(source: str, name: str, target: object) -> Tables:
    table: dict[str, Any] = {}
    for kind, given in _resources(target):
        if kind == "NetworkService":
            address = str(given.get("address", ""))
            user = f"{given['username']}@" if given.get("username") else ""
            port = given.get("port", 22)
            if not address or address.startswith("-"):
                raise UsageError(f"{source}: targets.{clean_name(name)}: NetworkService has no address")
            table |= _reach(f"{user}{address}", port)
        elif kind == "NetworkInterface":
            table["netdev"] = str(given.get("ifname", ""))
        elif kind == "RemotePlace":
            raise UsageError(
                f"{source}: targets.{clean_name(name)}: a RemotePlace is known to labgrid's coordinator only",
                remedy="labgrid-client -p PLACE show says where it is; write that into a bench.toml",
            )
    if "reach" not in table:
        raise UsageError(
            f"{source}: targets.{clean_name(name)}: nothing says how it is reached",
            remedy="a resource NetworkService with address and username",
        )
    return table


def _reach(where: str, port: object) -> Tables:
    if port == 22:
        return {"reach": f"ssh:{where}"}
    if ":" in where:  # ssh's form of a port has no place for an IPv6 address
        command = ["ssh", *SSH_OPTIONS, "-p", str(port), "--", where, "{agent}"]
        return {"reach": shlex.join(command), "hwrx": "hwrx"}  # that of the PATH there, as behind ssh:
    return {"reach": f"ssh:ssh://{where}:{port}"}


def _resources(target: object) -> Iterator[tuple[str, Tables]]:
    """Yield the kind of each resource and what it says: a table, or a list of tables of one each, or with `cls`."""
    resources = target.get("resources") if isinstance(target, dict) else None
    listed = resources if isinstance(resources, list) else [resources]
    for table in listed:
        if not isinstance(table, dict):
            continue
        if isinstance(table.get("cls"), str):
            yield table["cls"], table
            continue
        for kind, given in table.items():
            yield str(kind), given if isinstance(given, dict) else {}
