"""Counting what is dropped, and closing the balance.

Every skb that carries a message of ours and is freed as dropped is counted by reason and function (tracepoint
kfree_skb). What no skb tells of, the reader counts (truncated) or a device (its ring). The kernel's own counters stand
beside as witnesses: they count everybody's packets, so on a quiet machine they agree.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from msgspec import Struct

from hwrx import stages
from hwrx.drops.places import BY_NAME, PLACES, Fate, Place, place_of
from hwrx.errors import MachineError
from hwrx.host import netns, tools
from hwrx.probes import attaching, build

PREFIX = "SKB_DROP_REASON_"
STRUCTURES = ("where", "dropped", "settings", "machine")  # of probes/bpf/drops.bpf.c and message.h
ROUTED, QUEUE_PAIR, RELIABLE, STARVED, BROKEN = 1, 2, 4, 8, 16  # flags of struct where
RING_COUNTERS = ("missed", "fifo", "over_errors", "length_errors")  # of `ip -s -s -j link`: no skb ever existed
QUIET = 0.3  # seconds without a drop after which none is to come
XDP_GENERIC = 2  # XDP_FLAGS_SKB_MODE


class Drop(Struct, frozen=True):
    """Messages that the kernel dropped at one function for one reason. `place` is "" where the catalogue has none.

    `first_ns` (CLOCK_MONOTONIC) and `first_sequence` are of the first one.
    `again`: they were packets of a reliable transport, which sends them again: no message is lost by that.
    """

    reason: str
    function: str
    routed: bool
    count: int
    place: str
    first_ns: int = 0
    first_sequence: int = 0
    again: bool = False


class Row(Struct, frozen=True):
    """One place of the balance. `witness`: what the kernel's own counter says; None: there is none."""

    place: str
    sentence: str
    count: int
    how: list[str]
    witness: int | None
    counter: str


Told = Callable[[int], None]  # hears how many messages have been sent


def tell_nobody(sent: int) -> None:
    """Nobody listens."""


class Balance(Struct, frozen=True):
    """sent = delivered + the rows' counts + unexplained. `beside`: drops that lost no message."""

    sent: int
    delivered: int
    rows: list[Row]
    beside: list[Row]
    unexplained: int
    notes: list[str]

    @property
    def lost(self) -> int:
        """Messages that were sent and not delivered whole."""
        return self.sent - self.delivered


class Books:
    """Counts drops from entering to leaving. A context manager; MachineError where the kernel names no drops.

    `trial` is the number that the messages carry. `spaces` are the network namespaces whose counters are witnesses.
    """

    def __init__(self, trial: int, spaces: Sequence[str | None] = (None,)) -> None:
        attaching.require_tracer()
        from cython_ext.bpf.bpf_reader import Reader, enumeration
        from cython_ext.bpf.object_btf import structures
        from cython_ext.bpf.tracer import LoadError

        try:
            path = build.find_or_build(stages.stage_header(), "drops")
            self._types = {name: np.dtype(form) for name, form in structures(path, STRUCTURES).items()}
            self.reader = Reader(path, bytes(self._types["machine"].itemsize))
        except build.BuildError as error:
            raise MachineError(str(error), remedy=error.remedy) from None
        except LoadError as error:
            raise MachineError(
                f"this kernel does not tell what it drops: {attaching.last_word(error.said) or error.strerror}",
                remedy="it needs the tracepoint kfree_skb with a reason, Linux 5.17 or newer with BTF",
            ) from None
        self._names = {value: name.removeprefix(PREFIX) for value, name in enumeration("skb_drop_reason").items()}
        settings = np.zeros((), dtype=self._types["settings"])
        settings["trial"] = trial
        self.reader.put(".data", settings.tobytes())
        self._spaces = tuple(spaces)
        self._before: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._before = read_witnesses(self._spaces)
        self.reader.attach("message_dropped")
        return self

    def __exit__(self, *exc: object) -> None:
        self.reader.close()

    def settle(self) -> None:
        """Wait until nothing more is dropped: some of it is freed later, by a worker or a callback of RCU."""
        before = -1
        while (now := sum(drop.count for drop in self.drops())) != before:
            before = now
            time.sleep(QUIET)

    def drops(self) -> list[Drop]:
        """Return what has been dropped since entering."""
        found = []
        for key, value in self.reader.items("drops"):
            where = np.frombuffer(key, dtype=self._types["where"])[0]
            dropped = np.frombuffer(value, dtype=self._types["dropped"])[0]
            if not dropped["count"]:
                continue
            reason = self._names.get(int(where["reason"]), str(where["reason"]))
            function = dropped["function"].decode(errors="replace")
            flags = int(where["flags"])
            routed, again = bool(flags & ROUTED), bool(flags & RELIABLE)
            fate: Fate = "starved" if flags & STARVED else "broken" if flags & BROKEN else ""
            place = place_of(reason, function, routed, bool(flags & QUEUE_PAIR), fate)
            first = int(dropped["first_ns"]), int(dropped["first_sequence"])
            count = int(dropped["count"])
            found.append(Drop(reason, function, routed, count, place.name if place else "", *first, again))
        return found

    def witnessed(self) -> dict[str, int]:
        """Return by how much the kernel's own counters have grown since entering."""
        now = read_witnesses(self._spaces)
        return {name: value - self._before.get(name, 0) for name, value in now.items()}

    def close(self, sent: int, delivered: int, told: Mapping[str, int] = MappingProxyType({})) -> Balance:
        """Balance what was sent against what came whole, and what was dropped on the way.

        `told`: place to the count of a loss that no skb tells of: the reader's, a packet socket's, a queue pair's.
        """
        return close_balance(sent, delivered, told, self.drops(), self.witnessed())


def close_balance(
    sent: int, delivered: int, told: Mapping[str, int], drops: Sequence[Drop], witnessed: Mapping[str, int]
) -> Balance:
    """Put every loss at its place; `told` are those of which no skb tells.

    What no place can have is `unexplained`; below 0, something was counted twice.
    """
    rows, beside, notes = [], [], []
    explained = 0
    for place in PLACES:
        ours = [drop for drop in drops if drop.place == place.name and not drop.again]
        count = sum(drop.count for drop in ours) + told.get(place.name, 0)
        if not count:
            continue
        row = _row(place, count, [f"{drop.reason} in {drop.function}: {drop.count:,}" for drop in ours], witnessed)
        if place.kind == "loss":
            rows.append(row)
            explained += count
        else:
            beside.append(row)
    for drop in drops:
        if drop.place and not (drop.again and BY_NAME[drop.place].kind == "loss"):
            continue
        # a reason and a function are a place too, one that the catalogue has no sentence for
        place = BY_NAME.get(drop.place) or Place(
            f"{drop.reason} in {drop.function}", "a place that the catalogue has no sentence for"
        )
        if drop.again:
            words = [f"{drop.reason} in {drop.function}: {drop.count:,}, which their sender sends again"]
            beside.append(_row(place, drop.count, words, witnessed))
        else:
            rows.append(_row(place, drop.count, [], witnessed))
            explained += drop.count
    unexplained = sent - delivered - explained
    ring = witnessed.get("nic-ring")
    if unexplained > 0 and ring:
        share = min(unexplained, ring)
        rows.append(_row(BY_NAME["nic-ring"], share, [f"the device counted {ring:,}"], {}))
        unexplained -= share
    if unexplained and ring is None:
        notes.append("no device here counts what its ring had no room for, so such a loss would be unexplained")
    order = {place.name: number for number, place in enumerate(PLACES)}
    rows.sort(key=lambda row: order.get(row.place, len(order)))
    return Balance(sent, delivered, rows, beside, unexplained, notes)


def _row(place: Place, count: int, how: list[str], witnessed: Mapping[str, int]) -> Row:
    return Row(place.name, place.sentence, count, how, witnessed.get(place.witness), place.witness)


# --- the kernel's own counters ----------------------------------------------------------------------------------------


def read_witnesses(spaces: Sequence[str | None]) -> dict[str, int]:
    """Return the counters that `Place.witness` names, added up over the namespaces. One that is missing is left out."""
    total: dict[str, int] = {"softnet": softnet_dropped()}
    for space in spaces:
        with netns.entered_namespace(space):
            found = _snmp()
            found |= _devices()
        for name, value in found.items():
            total[name] = total.get(name, 0) + value
    return total


def softnet_dropped() -> int:
    """Return the second column of /proc/net/softnet_stat over all CPUs: what the backlogs had no room for."""
    lines = Path("/proc/net/softnet_stat").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def _snmp() -> dict[str, int]:
    """The MIB counters; /proc/thread-self, because the namespace is the thread's."""
    wanted = {
        ("Ip", "InAddrErrors"): "IpInAddrErrors",
        ("Udp", "NoPorts"): "UdpNoPorts",
        ("Udp", "InCsumErrors"): "UdpInCsumErrors",
        ("Udp", "RcvbufErrors"): "UdpRcvbufErrors",
        ("Udp", "MemErrors"): "UdpMemErrors",
        ("TcpExt", "IPReversePathFilter"): "IpReversePathFilter",
    }
    found = {}
    for file in ("snmp", "netstat"):
        lines = Path("/proc/thread-self/net", file).read_text(encoding="utf-8").splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group = names.split(":")[0]
            for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
                if (group, name) in wanted:
                    found[wanted[group, name]] = int(value)
    return found


def _devices() -> dict[str, int]:
    """Drops of queueing disciplines and devices. `ip` and `tc` run in the calling thread's namespace."""
    found = {"qdisc": 0, "device": 0}
    for each in json.loads(tools.run_tool("tc", "-s", "-j", "qdisc", "show") or "[]"):
        found["qdisc"] += int(each.get("drops", 0))
    for link in json.loads(tools.run_tool("ip", "-s", "-s", "-j", "link", "show") or "[]"):
        stats = link.get("stats64", {})
        found["device"] += int(stats.get("tx", {}).get("dropped", 0))
        if not re.match(r"veth|lo$", link.get("linkinfo", {}).get("info_kind", link["ifname"])):
            rx = stats.get("rx", {})
            found["nic-ring"] = found.get("nic-ring", 0) + sum(int(rx.get(name, 0)) for name in RING_COUNTERS)
    return found
