"""What each host of the inventory can do, and whether two of them may be compared: asked of an agent at each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from hwrx.bench.inventory import BenchHost
from hwrx.control.environment import Host
from hwrx.control.messages import Describe, Described
from hwrx.control.peers import ANSWER_WITHIN, Peer, start_peers
from hwrx.errors import HwrxError, PeerError
from hwrx.host.outside import clean_text
from hwrx.machine.placement import show_cpus
from hwrx.machine.timekeeping import timekeeping_words

# of `describe_machine`: what two hosts have to have in common, as (what it is called, where it stands)
Machine = dict[str, Any]  # as `hwrx.machine.description.describe_machine` gives it
Verdict = Literal["yes", "with care", "no"]


class HostReport(Struct, kw_only=True):
    """What a host said, or why it did not."""

    name: str
    reached: bool
    error: str = ""
    remedy: str = ""
    machine: Machine = {}
    noise: list[str] = []
    timekeeping: dict[str, Any] = {}
    lacks: list[str] = []  # of what the inventory says that it has


class PairReport(Struct, kw_only=True):
    """Whether two hosts may be compared, and why not, or what to keep in mind."""

    hosts: tuple[str, str]
    verdict: Verdict
    reasons: list[str]


def check_hosts(hosts: Sequence[BenchHost], limit: float = ANSWER_WITHIN) -> list[HostReport]:
    """Ask all hosts at the same time, a few at once, what they are. None of them ends the others' answers.

    :param limit: seconds that a host has to answer
    """
    started = start_peers({each.host.name: (each.host.agent_command(), each.host.name) for each in hosts}, limit)
    try:
        for name, peer in started.items():
            if isinstance(peer, Peer):
                try:
                    peer.send(Describe(noise=True))
                except PeerError as error:  # it has gone since its greeting
                    peer.kill()
                    started[name] = error
        return [_hear_host(each.host, started[each.host.name], limit) for each in hosts]
    finally:
        for peer in started.values():
            if isinstance(peer, Peer):
                peer.close()


def _hear_host(host: Host, peer: Peer | HwrxError, limit: float) -> HostReport:
    try:
        if not isinstance(peer, Peer):
            raise peer
        told = peer.hear(Described, limit)
    except HwrxError as error:
        words = clean_text(str(error.args[0]))
        return HostReport(name=host.name, reached=False, error=words, remedy=error.remedy or "ssh there and look")
    return HostReport(
        name=host.name,
        reached=True,
        machine=told.machine,
        noise=told.noise,
        timekeeping=told.timekeeping,
        lacks=list(_lacks(host, told.machine)),
    )


def _lacks(host: Host, machine: Machine) -> Iterable[str]:
    """Yield what the inventory says of a host and the host does not have."""
    netdevs = {nic["name"]: nic for nic in machine.get("nics", [])}
    if host.netdev and host.netdev not in netdevs:
        yield f"there is no netdev {host.netdev} (there are: {', '.join(netdevs) or 'none'})"
    elif host.netdev and netdevs[host.netdev]["state"] not in ("up", "unknown"):
        yield f"netdev {host.netdev} is {netdevs[host.netdev]['state']}: ip link set {host.netdev} up"
    devices = [device["name"] for device in machine.get("verbs", [])]
    if host.verbs and host.verbs not in devices:
        yield f"there is no verbs device {host.verbs} (there are: {', '.join(devices) or 'none'})"
    cpu = machine.get("cpu", {})
    # with threads switched off, or a CPU, those that are online are not the first ones
    online = cpu.get("online_cpus") or range(int(cpu.get("online") or 0))
    if missing := [number for number in host.cpus if number not in online]:
        yield f"there is no CPU {missing[0]} (online: {show_cpus(online)})"


def judge_pairs(hosts: Sequence[BenchHost], reports: Sequence[HostReport]) -> list[PairReport]:
    """Say of each two hosts that were reached whether they may be compared."""
    known = {report.name: report for report in reports if report.reached}
    ours = [each.host for each in hosts if each.host.name in known]
    return [_judge_pair(a, b, known[a.name], known[b.name]) for a, b in itertools.combinations(ours, 2)]


def _judge_pair(a: Host, b: Host, first: HostReport, second: HostReport) -> PairReport:
    against = [f"{report.name}: {words}" for report in (first, second) for words in report.lacks]
    care: list[str] = []
    one, two = first.machine, second.machine
    for name, keys in _SAME:
        values = [_find(machine, keys) for machine in (one, two)]
        if values[0] != values[1]:
            care.append(f"{name}: {values[0] or 'unknown'} and {values[1] or 'unknown'}")
    wires = [_wire(host, machine) for host, machine in ((a, one), (b, two))]
    for name, places in (("device", 0), ("MTU", 1), ("speed in Mb/s", 2)):
        values = [wire[places] for wire in wires]
        if values[0] != values[1]:
            (against if name == "MTU" else care).append(f"{name}: {values[0]} and {values[1]}")
    for host in (a, b):
        if not host.address and host.verbs is None:
            against.append(f"{host.name}: the inventory has neither its address nor a verbs device")
        if len(host.cpus) == 0 and host.numa is None and _has_nodes(one if host is a else two):
            care.append(f"{host.name}: several NUMA nodes; give `numa` or `cpus`")
    if a.address and b.address and (":" in a.address) != (":" in b.address):
        against.append("their addresses are of two families")
    verdict: Verdict = "no" if against else "with care" if care else "yes"
    return PairReport(hosts=(a.name, b.name), verdict=verdict, reasons=[*against, *care])


# what a figure depends on, and where `describe_machine` has it
_SAME: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("architecture", ("kernel", "architecture")),
    ("kernel", ("kernel", "release")),
    ("hwrx", ("versions", "hwrx")),
    ("processor", ("cpu", "model")),
    ("clock source", ("kernel", "clocksource")),
    ("governor", ("cpu", "governor")),
    ("libibverbs", ("versions", "libibverbs")),
)


def _find(machine: Machine, keys: Iterable[str]) -> str:
    found: object = machine
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return str(found or "")


def _wire(host: Host, machine: Machine) -> tuple[str, str, str]:
    """Return driver, MTU and speed of the device that the inventory names: of a verbs device its driver."""
    nic: dict[str, Any] = next((nic for nic in machine.get("nics", []) if nic["name"] == host.netdev), {})
    device: dict[str, Any] = next((device for device in machine.get("verbs", []) if device["name"] == host.verbs), {})
    driver = str(device.get("driver") or nic.get("driver") or "not named")
    return driver, str(nic.get("mtu") or "not known"), str(nic.get("speed_mbps") or "not known")


def _has_nodes(machine: Machine) -> bool:
    return int(_find(machine, ("cpu", "nodes")) or 1) > 1


def describe_host(report: HostReport) -> list[str]:
    """Say in a few lines what a host is."""
    machine = report.machine
    verbs = [f"{device['name']} ({device['driver']})" for device in machine["verbs"]] or ["none"]
    found = [nic for nic in machine["nics"] if nic["name"] != "lo"]
    nics = [f"{nic['name']} ({nic['driver']}, MTU {nic['mtu']}, {nic['state']})" for nic in found] or ["none"]
    may = machine.get("privileges", {})
    user = "root" if may.get("root") else "not root: no tracing, and before Linux 5.7 no socket is bound to a netdev"
    lines = [
        f"Linux {_find(machine, ('kernel', 'release'))} on {_find(machine, ('kernel', 'architecture'))}, "
        f"{_find(machine, ('cpu', 'online'))} CPUs, hwrx {_find(machine, ('versions', 'hwrx'))}",
        f"verbs: {', '.join(verbs)}",
        f"netdevs: {', '.join(nics)}",
        f"privileges: {user}; memory that may be locked: {may.get('memlock') or 'unlimited'}",
        f"clock: {_find(machine, ('kernel', 'clocksource'))}, {timekeeping_words(report.timekeeping)}",
    ]
    return [*lines, *(f"lacks: {words}" for words in report.lacks)]
