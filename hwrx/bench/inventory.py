"""The inventory: hosts by name, from a bench.toml, a net.config of the kernel's driver tests, or a labgrid environment.

    [defaults]                       # of every host
    reach = "ssh:{host}"
    hwrx = "/opt/hwrx/bin/hwrx"

    [hosts."node[1-8]"]              # a node set, as ClusterShell and Slurm write it
    address = "192.0.2.[1-8]"        # one for each, in the order in which sets are sorted
    netdev = "eth1"
    verbs = "mlx5_0"

`{host}` in a text is the host's name. Nothing that a file says is executed by reading it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hwrx.bench import labgrid, netconfig
from hwrx.bench.ports import MOST, PortEntry, PortNumber, Text, check_address, check_ports, port_hosts
from hwrx.control.environment import Host, parse_environment
from hwrx.control.nodes import expand_nodes, need_sorted, written_nodes
from hwrx.errors import UsageError
from hwrx.host import toml_text
from hwrx.host.outside import clean_name
from hwrx.runs import checked

FILE = "bench.toml"
VARIABLE = "HWRX_BENCH"
TOP = ("defaults", "hosts")
REACH = "ssh:{host}"
SPREAD = {"address", "netdev", "verbs"}  # what may be a set, of as many values as its table has hosts
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Table = Mapping[str, Any]  # as TOML, or another file, has it
Cpu = Annotated[int, Meta(ge=0, le=8191)]


class Power(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Commands of the user's that switch a host; run only if they are asked for."""

    on: Text | None = None
    off: Text | None = None
    cycle: Text | None = None


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a table of the file says of its hosts."""

    reach: Text = REACH  # local, netns:NAME, ssh:HOST, or a command with {agent}: ssh, srun, mpirun, …
    hwrx: Text | None = None  # the command `hwrx` there
    address: Text | None = None  # of the wire that is measured
    netdev: Text | None = None
    verbs: Text | None = None
    port: PortNumber = 1  # of the verbs device
    ports: Annotated[tuple[PortEntry, ...], Meta(max_length=MOST)] = ()  # each is a host, too: see hwrx.bench.ports
    cpus: Annotated[tuple[Cpu, ...], Meta(max_length=1024)] = ()
    numa: Annotated[int, Meta(ge=0, le=1023)] | None = None
    power: Power = Power()
    console: Text | None = None  # a command of the user's


class BenchHost(Struct, frozen=True, kw_only=True):
    """A host of the inventory, and the commands that only the user runs."""

    host: Host
    power: Power = Power()
    console: str | None = None
    ports: tuple[Host, ...] = ()  # of the machine, each as a host of its own


class Bench(Struct, frozen=True, kw_only=True):
    """The hosts by name, in the order of the file; `source` is what errors call it."""

    source: str
    hosts: dict[str, BenchHost]

    def find_hosts(self, names: Iterable[str]) -> list[BenchHost]:
        """Return hosts by their names, or by sets of names (`node[1-8]`), each once, in the order in which they stand.

        :raises UsageError: if one is not in the inventory.
        """
        found: dict[str, BenchHost] = {}
        for text in names:
            for name in expand_nodes(text, self.source):
                checked.check_known(self.source, "hosts", name, self.hosts)
                found[name] = self.hosts[name]
        return list(found.values())

    def find_host(self, name: str) -> BenchHost:
        """Return one host.

        :raises UsageError: if it is not in the inventory, or the name stands for several.
        """
        found = self.find_hosts([name])
        if len(found) != 1:
            raise UsageError(
                f"{self.source}: '{clean_name(name)}' is {len(found)} hosts, and one is wanted",
                remedy="name one host",
            )
        return found[0]


def load_bench(file: Path | None = None) -> Bench:
    """Read the inventory: of the file that is given, else of $HWRX_BENCH, else of ./bench.toml.

    :raises UsageError: if there is none, or it is not right; it names the file, the key, and what is allowed there.
    """
    chosen = file or Path(os.environ.get(VARIABLE) or FILE)
    try:
        text = chosen.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"there is no inventory {chosen}",
            remedy=f"write {FILE} (hwrx bench --help shows one), or name another: --bench FILE, {VARIABLE}=FILE",
        ) from None
    except IsADirectoryError:
        raise UsageError(f"the inventory {chosen} is a directory", remedy="give the path of a file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the inventory {chosen} cannot be read: {error}") from None
    return parse_bench(text, source=str(chosen), kind=chosen.suffix)


def parse_bench(text: str, *, source: str, kind: str = ".toml") -> Bench:
    """Parse an inventory. `kind`: the file's suffix; .config is the kernel's, .yaml and .yml are labgrid's."""
    if kind == ".config":
        content = netconfig.parse_netconfig(text, source)
    elif kind in (".yaml", ".yml"):
        content = labgrid.parse_labgrid(text, source)
    else:
        content = toml_text.parse_toml(text, source)
    return build_bench(content, source)


def build_bench(content: Table, source: str) -> Bench:
    """Check the tables of an inventory, and spread those of node sets over their hosts."""
    for key, value in content.items():
        if key not in TOP:
            raise checked.unknown_field(source, key, TOP)
        checked.convert_field(source, key, value, dict[str, Any])
    defaults = content.get("defaults", {})
    _check_entry(source, "defaults", defaults)
    hosts: dict[str, BenchHost] = {}
    for nodes, table in content.get("hosts", {}).items():
        where = f"hosts.{nodes}"
        checked.convert_field(source, where, table, dict[str, Any])
        _check_entry(source, where, table)
        names = expand_nodes(nodes, source)
        merged = {**defaults, **table}
        if any("[" in merged[key] for key in merged.keys() & SPREAD):
            need_sorted(f"{source}: {where}", written_nodes(nodes, source))
        spread = {key: _spread(source, where, key, merged[key], names) for key in merged.keys() & SPREAD}
        for place, name in enumerate(names):
            if not NAME.fullmatch(name):
                raise UsageError(
                    f"{source}: '{clean_name(name)}' is not the name of a host",
                    remedy="letters, digits, '.', '_', '-'; a node set: node[1-8]",
                )
            if name in hosts:
                raise UsageError(f"{source}: the host '{name}' stands in two tables", remedy="give each host one table")
            entry = {**merged, **{key: values[place] for key, values in spread.items()}}
            hosts[name] = _build_host(source, where, name, entry)
    for host in list(hosts.values()):
        for port in host.ports:
            if port.name in hosts:
                raise UsageError(
                    f"{source}: '{port.name}' is a port of '{host.host.name}', and a host of its own",
                    remedy="give that host another name",
                )
            hosts[port.name] = BenchHost(host=port)
    if not hosts:
        raise UsageError(f"{source}: it has no hosts", remedy='[hosts.NAME], with reach = "ssh:HOST"')
    return Bench(source=source, hosts=hosts)


def _check_entry(source: str, where: str, table: Table) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(Entry)}
    for key, value in table.items():
        if key not in fields:
            raise checked.unknown_field(source, f"{where}.{key}", fields, key=key)
        if key == "ports":
            check_ports(source, f"{where}.ports", value)
            continue
        if key == "power" and isinstance(value, dict):
            inner = {field.name: field.type for field in msgspec.structs.fields(Power)}
            for name, command in value.items():
                if name not in inner:
                    raise checked.unknown_field(source, f"{where}.power.{name}", inner, key=name)
                checked.convert_field(source, f"{where}.power.{name}", command, inner[name])
            continue
        checked.convert_field(source, f"{where}.{key}", value, fields[key])


def _spread(source: str, where: str, key: str, text: str, names: list[str]) -> list[str]:
    """Return a value for each host: the set of a text that is one, else the same text."""
    if "[" not in text:
        return [text] * len(names)
    values = written_nodes(text, f"{source}: {where}.{key}")
    if len(values) != len(names):
        raise UsageError(
            f"{source}: {where}.{key}: '{clean_name(text)}' is {len(values)} values for {len(names)} hosts",
            remedy="give as many as there are hosts, or one without [ ] for all",
        )
    need_sorted(f"{source}: {where}.{key}", values)
    return values


def _build_host(source: str, where: str, name: str, table: Table) -> BenchHost:
    # strings alone have a place for the name; what is checked already is converted as it is
    given = {"reach": REACH, **table}
    filled = {key: value.replace("{host}", name) if isinstance(value, str) else value for key, value in given.items()}
    entry = msgspec.convert(filled, Entry, strict=True)
    try:
        parse_environment(entry.reach)
    except UsageError as error:
        raise UsageError(f"{source}: {where}.reach: {error.args[0]}", remedy=error.remedy) from None
    if entry.address is not None:
        check_address(source, f"{where}.address", entry.address)
    host = Host(
        name=name,
        reach=entry.reach,
        hwrx=entry.hwrx or "",
        address=entry.address or "",
        netdev=entry.netdev,
        verbs=entry.verbs,
        port=entry.port,
        cpus=entry.cpus,
        numa=entry.numa,
    )
    commands = {key: words for key, words in msgspec.to_builtins(entry.power).items() if words is not None}
    return BenchHost(
        host=host,
        ports=tuple(port_hosts(host, entry.ports)),
        power=Power(**{key: words.replace("{host}", name) for key, words in commands.items()}),
        console=entry.console,
    )
