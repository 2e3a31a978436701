"""What an article calculates by hand, calculated: the hash of an address and a port, and the port of a connection."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from pathlib import Path

from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars, Cells
from hwrx.claims.session import Session
from hwrx.lookup import hashes
from hwrx.lookup.table import Kind, Tables

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOCALHOST = ipaddress.IPv4Address("127.0.0.1")


@give_figures("sockets", "agree", "total", "total_hex")
def jhash_start(session: Session, seed: int = 0x12345678, sockets: int = 32) -> Measurement:
    """Add up what jhash_1word begins with: a seed, JHASH_INITVAL and 4, as 32 bits have it.

    The same function places `sockets` on the kernel's table: `agree` are where it says. Figures: `total`, `total_hex`.
    """
    steps = hashes.Steps()
    hashes.jhash_1word(0, seed, steps)
    total = steps[0].value  # "start = initval + JHASH_INITVAL + 4"
    _, agree, _ = _placed(session, sockets)
    figures: dict[str, float | int | bool | str | None] = {
        "sockets": sockets, "agree": sum(agree), "total": total, "total_hex": f"0x{total:08X}",
    }  # fmt: skip
    return Measurement(figures, Cells({"sockets": [int(each) for each in agree]}, ["elsewhere", "where it says"]))


@give_figures("sockets", "as_in_memory", "as_written", "slot_in_memory", "slot_as_written")
def address_order(session: Session, sockets: int = 32, port: int = 9999, table: int = 256) -> Measurement:
    """Hash 127.0.0.1 as its bytes stand in memory, and as it is written (0x7F000001): which one does the kernel take?

    Figures: `as_in_memory` and `as_written`, of `sockets` bound to 127.0.0.1 those that are on the slot that the one or
    the other gives; `slot_in_memory` and `slot_as_written` of `port` with the seed 0 in a table of `table` slots.
    """
    entries, agree, written = _placed(session, sockets)
    figures: dict[str, float | int | bool | str | None] = {
        "sockets": entries, "as_in_memory": sum(agree), "as_written": sum(written),
        "slot_in_memory": (hashes.jhash_1word(_in_memory(), 0) ^ port) & table - 1,
        "slot_as_written": (hashes.jhash_1word(int(LOCALHOST), 0) ^ port) & table - 1,
    }  # fmt: skip
    cells = {"as in memory": [int(each) for each in agree], "as written": [int(each) for each in written]}
    return Measurement(figures, Cells(cells, ["on another slot", "on the slot that was computed"]))


def _in_memory() -> int:
    """127.0.0.1 as this machine reads the four bytes that stand in the header."""
    return int(struct.unpack("=I", LOCALHOST.packed)[0])


def _placed(session: Session, sockets: int) -> tuple[int, list[bool], list[bool]]:
    """Bind sockets to 127.0.0.1: how many, and whether each is where the address in memory, or as written, puts it."""
    with contextlib.ExitStack() as stack, session.wire.inside("server"):
        ports = set()
        for _ in range(sockets):
            one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            one.bind((str(LOCALHOST), 0))
            ports.add(one.getsockname()[1])
        tables = stack.enter_context(Tables())
        seed, mask = tables.hash_mix, tables.mask(Kind.UDP_ADDRESS)
        real = {int(entry["port"]): tables.real("udp", entry)[Kind.UDP_ADDRESS] for entry in tables.sockets("udp")
                if int(entry["port"]) in ports}  # fmt: skip
    agree, written = (
        [(hashes.jhash_1word(word, seed) ^ port) & mask == slot for port, slot in real.items()]
        for word in (_in_memory(), int(LOCALHOST))
    )
    return len(real), agree, written


@give_figures("connections", "port_before", "in_range", "low", "high", "first_parity", "bound_first_parity")
def ephemeral(session: Session, connections: int = 200) -> Measurement:
    """Connect sockets that are not bound, and bind others to port 0: which ports does the kernel choose?

    Figures: `port_before` (the largest port before connect), `in_range` (of `connections` those between `low` and
    `high`, net.ipv4.ip_local_port_range), `first_parity` (share of them that are even if `low` is, odd if it is odd),
    `bound_first_parity` (the same of the ports that bind chose).
    """
    with contextlib.ExitStack() as stack, session.wire.inside("server"):
        low, high = map(int, RANGE.read_text(encoding="utf-8").split())
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((str(LOCALHOST), 0))
        listener.listen(connections)
        before, ports, bound = [], [], []
        for _ in range(connections):
            caller = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            before.append(caller.getsockname()[1])
            caller.connect(listener.getsockname())
            ports.append(caller.getsockname()[1])
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            other.bind((str(LOCALHOST), 0))
            bound.append(other.getsockname()[1])
    figures: dict[str, float | int | bool | str | None] = {
        "connections": connections, "port_before": max(before), "low": low, "high": high,
        "in_range": sum(low <= port <= high for port in ports),
        "first_parity": sum((port ^ low) & 1 == 0 for port in ports) / connections,
        "bound_first_parity": sum((port ^ low) & 1 == 0 for port in bound) / connections,
    }  # fmt: skip
    rows = [("connect", float(figures["first_parity"] or 0)), ("bind", float(figures["bound_first_parity"] or 0))]
    return Measurement(figures, Bars(rows, f"share of the ports with the parity of {low}"))
