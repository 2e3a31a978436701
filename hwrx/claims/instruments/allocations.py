"""How e1000e makes an skb of what the NIC wrote: by copying it into a fresh one, or by handing the buffer on."""

from __future__ import annotations

import socket
import time

from hwrx.claims.figures import give_figures
from hwrx.claims.ftrace import Ftrace
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars, Lines
from hwrx.claims.session import GAP, Session
from hwrx.errors import TrialError

SETTLE = 0.2
CLEAN = (
    "e1000_clean_rx_irq"  # the driver's receive loop: what it allocates itself, it copies into (drivers/net/…/netdev.c)
)
HEADERS = 42  # bytes in front of the payload


@give_figures("copied_small", "copied_large", "threshold", "received")
def allocations(
    session: Session,
    sizes: list[int] = [64, 128, 192, 256, 512, 1024, 1400],  # noqa: B006 - a default that says the kind
    messages: int = 40,
) -> Measurement:
    """Send datagrams of several sizes, and count the skbs that the driver allocates to copy a frame into.

    Figures: `copied_small` and `copied_large` (a packet of the first and of the last size), `threshold` (the largest
    size that was copied; 0: none), `received` (packets of the size of which the fewest came).
    """
    wire = session.wire
    shares: list[tuple[float, float]] = []
    fewest = messages
    with wire.socket("server") as reader, wire.socket("client") as sender:
        reader.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        for size in sorted(sizes):
            tracer = Ftrace(["napi_alloc_skb|__napi_alloc_skb", "udp_rcv"])
            with tracer:
                for _ in range(messages):
                    sender.sendto(bytes(size), reader.getsockname())
                    time.sleep(GAP)
                time.sleep(SETTLE)
            received = sum(call.name == "udp_rcv" for call in tracer.calls)
            copied = sum(call.name == "napi_alloc_skb" and call.detail == CLEAN for call in tracer.calls)
            if not received:
                raise TrialError(f"of {messages} datagrams of {size} B none came")
            fewest = min(fewest, received)
            shares.append((float(size), copied / received))
    figures: dict[str, float | int | bool | str | None] = {
        "copied_small": shares[0][1],
        "copied_large": shares[-1][1],
        "received": fewest,
        "threshold": int(max((size for size, share in shares if share >= 0.5), default=0)),
    }
    return Measurement(figures, Lines({"e1000e": shares}, "bytes of payload", "copies a packet, ring to skb"))


@give_figures("tcp_merge", "udp_merge", "tcp_frames", "udp_frames")
def merged(session: Session, kilobytes: int = 512) -> Measurement:
    """Send a TCP stream, and UDP datagrams in bursts, and hold what the driver offers GRO against what protocols see.

    Figures: `tcp_merge` and `udp_merge`, frames that the NIC handed up for each call of the protocol's receive
    function; `tcp_frames` and `udp_frames`, of how many.
    """
    wire = session.wire
    watch = ["napi_gro_receive", "tcp_v4_rcv", "udp_rcv"]
    tracer = Ftrace(watch)
    with wire.socket("server", socket.SOCK_STREAM) as listener, wire.socket("client", socket.SOCK_STREAM) as caller:
        listener.listen(1)
        caller.connect(listener.getsockname())
        with listener.accept()[0] as taken, tracer:
            left = kilobytes << 10
            taken.settimeout(10)
            caller.settimeout(10)
            while left > 0:
                left -= (sent := caller.send(bytes(min(left, 1 << 16))))
                while sent > 0:
                    sent -= len(taken.recv(1 << 16))
    tcp, tcp_frames = _ratio(tracer, "tcp_v4_rcv"), _frames(tracer)
    tracer = Ftrace(watch)
    with wire.socket("server") as reader, wire.socket("client") as sender, tracer:
        reader.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1024)  # UDP_SEGMENT: so many at once
        for _ in range(8):
            sender.sendto(bytes(32 << 10), reader.getsockname())
        time.sleep(SETTLE)
    udp = _ratio(tracer, "udp_rcv")
    rows = [(name, value or 0.0) for name, value in (("TCP", tcp), ("UDP", udp))]
    return Measurement(
        {"tcp_merge": tcp, "udp_merge": udp, "tcp_frames": tcp_frames, "udp_frames": _frames(tracer)},
        Bars(rows, "frames from the NIC for each call of the protocol"),
    )


def _frames(tracer: Ftrace) -> int:
    return sum(call.name == "napi_gro_receive" for call in tracer.calls)


def _ratio(tracer: Ftrace, protocol: str) -> float | None:
    calls = [call.name for call in tracer.calls]
    return calls.count("napi_gro_receive") / calls.count(protocol) if calls.count(protocol) else None
