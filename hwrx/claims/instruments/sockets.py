"""Whose packet it is: the kernel's tables of sockets, what finding one costs, and what a port and an owner are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
from statistics import median

from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars, Cells, Lines
from hwrx.claims.session import PATIENCE, Session
from hwrx.control.messages import Setting
from hwrx.lookup.table import Kind, Tables

TRIAL = 1 << 21


@give_figures("sockets", "agree", "slots", "longest")
def slots(session: Session, sockets: int = 200) -> Measurement:
    """Bind UDP sockets at random, compute each one's slots as the kernel's sources say, and read where each really is.

    Figures: `sockets`, `agree` (both tables), `slots` of a table, `longest` chain in front of one of them, itself
    included.
    """
    wire = session.wire
    chosen = random.Random(1)  # the same sockets in every run; the kernel's seed differs
    with contextlib.ExitStack() as stack, wire.inside("server"):
        for _ in range(sockets):
            address = chosen.choice(["127.0.0.1", "127.9.8.7", wire.places["server"].address])
            one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            one.bind((address, 0))
        tables = stack.enter_context(Tables())
        found = tables.sockets("udp")
        good = [
            all(tables.real("udp", entry)[kind] == slot for kind, slot in tables.computed("udp", entry).items()
                if slot is not None)
            for entry in found
        ]  # fmt: skip
        longest = max((int(count) + 1 for entry in found for count in entry["before"]), default=0)
        size = tables.slots(Kind.UDP_ADDRESS)
    figures: dict[str, float | int | bool | str | None] = {
        "sockets": len(found), "agree": sum(good), "slots": size, "longest": longest,
    }  # fmt: skip
    cells = {f"{len(found)} sockets on a table of {size:,} slots": [int(yes) for yes in good]}
    return Measurement(figures, Cells(cells, ["on another slot than computed", "on the slot that was computed"]))


@give_figures("peers", "udp_slots", "udp_four_slots", "tcp_slots")
def key(session: Session, peers: int = 8) -> Measurement:
    """Connect sockets of one local address and port to several far ends: do they hang on one slot, or on several?

    Figures: `udp_slots` and `tcp_slots`, different slots of `peers` sockets; `udp_four_slots` of the table by four
    values that kernels since 6.13 ask first (0: there is none).
    """
    with contextlib.ExitStack() as stack, session.wire.inside("server"):
        first = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        for number in range(peers):
            one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
            one.connect(("127.0.0.1", 50_000 + number))
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        listener.listen(peers)
        for _ in range(peers):
            caller = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            caller.connect(listener.getsockname())
            stack.enter_context(listener.accept()[0])
        tables = stack.enter_context(Tables())
        udp = [entry for entry in tables.sockets("udp", port) if entry["peer_port"]]
        tcp = [entry for entry in tables.sockets("tcp", listener.getsockname()[1]) if entry["peer_port"]]
        of_udp = {tables.real("udp", entry)[Kind.UDP_ADDRESS] for entry in udp}
        four = [tables.real("udp", entry).get(Kind.UDP_FOUR) for entry in udp]
        of_four = {slot for slot in four if slot is not None}
        of_tcp = {tables.real("tcp", entry)[Kind.TCP_ESTABLISHED] for entry in tcp}
    figures: dict[str, float | int | bool | str | None] = {
        "peers": min(len(udp), len(tcp)), "udp_slots": len(of_udp), "udp_four_slots": len(of_four),
        "tcp_slots": len(of_tcp),
    }  # fmt: skip
    rows = [("UDP", float(len(of_udp))), ("UDP, connected", float(len(of_four))), ("TCP", float(len(of_tcp)))]
    return Measurement(figures, Bars(rows, f"different slots of {peers} sockets that differ in their far end alone"))


@give_figures("alone_ns", "most", "spread_extra", "chain_extra", "spread_each", "chain_each")
def crowd(session: Session, counts: list[int] = [0, 10000, 100000], messages: int = 60, size: int = 64) -> Measurement:  # noqa: B006
    """Measure a ping-pong among other sockets that nobody talks to: spread over the table, and all on one chain.

    Half a round trip is mostly not the lookup, so that its growth in parts of itself would hide the lookup's. Figures:
    `alone_ns` (half a round trip, median, with the smallest crowd), `most` (sockets of the largest); `spread_extra` and
    `chain_extra`: what the largest adds to half a round trip, in ns; `spread_each`, `chain_each`: that for each further
    socket.
    """
    series: dict[str, list[tuple[float, float]]] = {"spread": [], "one chain": []}
    for number, count in enumerate(sorted(counts)):
        for where, name in (("spread", "spread"), ("chain", "one chain")):
            setting = Setting(
                path="udp", size=size, messages=messages, warmup=10, cooldown=4, crowd=count, crowd_on=where,  # type: ignore[arg-type]
                wait="event", limit=60.0,
            )  # fmt: skip
            measured = session.agents.measure(TRIAL + number, setting)
            series[name].append((float(count + 1), median(measured.ns.tolist()) / 2))
    extra = {name: points[-1][1] - points[0][1] for name, points in series.items()}
    further = max(1, max(counts) - min(counts))
    figures: dict[str, float | int | bool | str | None] = {
        "alone_ns": series["spread"][0][1], "most": max(counts), "spread_extra": extra["spread"],
        "chain_extra": extra["one chain"], "spread_each": extra["spread"] / further,
        "chain_each": extra["one chain"] / further,
    }  # fmt: skip
    unit = "guest instructions" if session.clock == "icount" else "ns"
    return Measurement(figures, Lines(series, "sockets", f"{unit}, half a round trip", log=True))


@give_figures("pid", "owner_bound", "owner_told")
def owner(session: Session) -> Measurement:
    """Ask a socket's file for its owner, as the kernel's f_owner has it: when it is fresh, bound, and told one.

    Figures: `pid` of this process, `owner_bound` (F_GETOWN after bind), `owner_told` (after F_SETOWN).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        bound = fcntl.fcntl(sock, fcntl.F_GETOWN)
        fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
        told = fcntl.fcntl(sock, fcntl.F_GETOWN)
    rows = [("this process", float(os.getpid())), ("f_owner after bind", float(bound)), ("after F_SETOWN", float(told))]
    figures: dict[str, float | int | bool | str | None] = {"pid": os.getpid(), "owner_bound": bound, "owner_told": told}
    return Measurement(figures, Bars(rows, "process id", [0, 3, 2]))


@give_figures("second_refused", "receivers", "received")
def sharing(session: Session, senders: int = 64) -> Measurement:
    """Bind two sockets to one port, with SO_REUSEPORT and without, and send to it from many ports.

    Figures: `second_refused` (1: bind without SO_REUSEPORT failed), `receivers` (sockets that got something, with it),
    `received` in all.
    """
    with contextlib.ExitStack() as stack:
        plain = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        plain[0].bind(("127.0.0.1", 0))
        try:
            plain[1].bind(plain[0].getsockname())
            refused = 0
        except OSError:
            refused = 1
        group = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        for one in group:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(group[0].getsockname() if one is not group[0] else ("127.0.0.1", 0))
            one.settimeout(PATIENCE if one is group[0] else 0.2)
        for _ in range(senders):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"whose", group[0].getsockname())
        counts = [_count(one) for one in group]
    figures: dict[str, float | int | bool | str | None] = {
        "second_refused": refused, "receivers": sum(count > 0 for count in counts), "received": sum(counts),
    }  # fmt: skip
    rows = [("first socket", float(counts[0])), ("second socket", float(counts[1]))]
    return Measurement(figures, Bars(rows, f"of {senders} datagrams to one port, with SO_REUSEPORT"))


def _count(sock: socket.socket) -> int:
    sock.settimeout(0.2)
    count = 0
    with contextlib.suppress(TimeoutError):
        while sock.recv(64):
            count += 1
    return count
