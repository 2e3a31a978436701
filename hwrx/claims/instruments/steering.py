"""On which CPU packets are handled: one queue, RPS switched off and on, and the queues that the NIC has."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from pathlib import Path

from hwrx.claims.figures import give_figures
from hwrx.claims.ftrace import Ftrace
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Cells
from hwrx.claims.session import Session
from hwrx.paths import hooks

SETTLE = 0.2


@give_figures("flows", "queues", "machine_cpus", "cpus_off", "cpus_on", "busiest_off", "busiest_on")
def steering(session: Session, flows: int = 32, packets: int = 4) -> Measurement:
    """Send packets of many flows and see on which CPU UDP has each, without RPS and with it.

    Figures: `cpus_off`, `cpus_on` that handled any, `busiest_off`, `busiest_on` (the share of the CPU that handled
    most), `queues` that the receiving NIC has, `machine_cpus`.
    """
    wire, device = session.wire, session.wire.netdev("server")
    rows: dict[str, list[int]] = {}
    counts: dict[str, Counter[int]] = {}
    for state in ("off", "on"):
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(wire.socket("server"))
            reader.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
            if state == "on":
                hooks.put_hook("rps", reader, device, stack, first=True)
            tracer = Ftrace(["udp_rcv"])
            with tracer:
                for _ in range(flows):
                    with wire.socket("client") as sender:
                        for _ in range(packets):
                            sender.sendto(bytes(64), reader.getsockname())
                            time.sleep(0.0005)
                time.sleep(SETTLE)
            cpus = [call.cpu for call in tracer.calls]
            counts[state] = Counter(cpus)
            rows[f"RPS {state}: packets in the order in which UDP had them"] = cpus[:400]
    figures: dict[str, float | int | bool | str | None] = {
        "flows": flows,
        "queues": len(list(Path("/sys/class/net", device, "queues").glob("rx-*"))),
        "machine_cpus": len(os.sched_getaffinity(0)),
    }
    for state, count in counts.items():
        figures[f"cpus_{state}"] = len(count)
        figures[f"busiest_{state}"] = max(count.values()) / count.total() if count else None
    return Measurement(figures, Cells(rows, [f"CPU {number}" for number in range(6)]))
