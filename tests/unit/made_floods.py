"""Makes floods, and runs of them, out of nothing, for tests of what reads them. Nothing here was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwrx.drops.books import Balance, Row
from hwrx.flood import keep
from hwrx.flood.model import Context, Cpu, FirstLoss, Flood, Socket, Spec, Timeline
from hwrx.probes import account

BINS = 20
WIDTH = 1 << 20


def made(rate: float | None, lost: int, *, rps: bool = False, verbs: bool = False) -> Flood:
    """A flood of 100 messages of which so many were lost at the socket."""
    spec = Spec(path="rdma-send" if verbs else "udp", burst=100, rate=rate, rps=rps, sockets=1 if verbs else 2)
    first = FirstLoss(100 - lost, 3_000_000, "receive-buffer", 100 - lost, 3_100_000) if lost else None
    rows = [Row("receive-buffer", "full", lost, ["SOCKET_RCVBUFF"], lost, "UdpRcvbufErrors")] if lost else []
    shares = dict.fromkeys(account.ACTORS, 0) | {"idle": WIDTH // 4, "sender, system": WIDTH - WIDTH // 4}
    whole = {name: BINS * value for name, value in shares.items()}
    even = [5] * BINS
    return Flood(
        spec=spec, wire="a wire", sent=100, delivered=100 - lost, sending_ns=BINS * WIDTH, taking_ns=BINS * WIDTH,
        loss=Balance(100, 100 - lost, rows, [], 0, []), first_loss=first, polls={"backlog": {1: 36, 64: 1}},
        poll_budget=64, runs={1: 36, 64: 1}, by_budget=0, by_time=1, squeezed=1, outside=0,
        contexts=[Context("task", 36, 36, 1000), Context("ksoftirqd", 1, 64, 1000)], per_interrupt={1: 3, 97: 1},
        cpus=[Cpu(number, BINS * WIDTH, whole, whole, {"user": 10**7}, 50, 3, 4) for number in (0, 1)],
        sockets=[Socket(0, 50, 50), Socket(1, 50, 50 - lost)],
        timeline=Timeline(
            WIDTH, 100, {str(cpu): {name: [value] * BINS for name, value in shares.items()} for cpu in (0, 1)},
            {"0": even, "1": even}, {"0": even, "1": even}, {"0": even, "1": [0] * BINS},
            {} if verbs else {"0": [1000] * BINS}, [3, -1] * (BINS // 2) if verbs else [], even if verbs else [],
            even, even, [0] * BINS, even,
        ),
        reader={"taken": 100 - lost}, told={"tp_packets": 7}, counters={"rxe0": {"rcvd_rnr_err": 4}}, ended="",
        machine={"netdev_budget": 300, "receive_buffer": 2000}, notes=["the length of nothing"],
    )  # fmt: skip


FLOODS = [made(1000.0, 0), made(2000.0, 10), made(None, 40, rps=True), made(None, 0, verbs=True)]
KEPT = FLOODS[2:]


def make_floods(root: Path, manifest: dict[str, Any] | None = None) -> Path:
    """Write a run of the floods that are KEPT, without its page, and return its directory."""
    times = np.arange(1, 101) * 1_000_003
    with keep.create_run(root, [flood.spec for flood in KEPT], manifest or {"emulated": False}) as writer:
        for number, flood in enumerate(KEPT):
            taken = np.where(np.arange(100) < flood.delivered, times + 77, 0)
            crossed = keep.unpack_flood(keep.pack_flood(flood, times, taken))
            assert crossed.flood == flood
            assert (crossed.sent == times).all()
            assert (crossed.taken == taken).all()
            keep.add_flood(writer, number, flood, crossed.sent, crossed.taken)
            keep.finish_run(writer, KEPT[: number + 1])
    return writer.path
