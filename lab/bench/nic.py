"""What a received packet costs: on an 82574L by DMA, and on an NE2000 whose every word the CPU carries.

A guest with one CPU whose clock counts instructions (icount) has two NICs on one segment. The sender is the same in
every row: hwrx's own transmit ring on the first NIC, 64 frames at a time. The receiver is the second NIC, in turn
driven by hwrx and by the kernel. For the rows of our driver the frames are in the ring before the clock is read, so the
sender costs nothing; for the kernel's rows all that the CPU does is counted, less what it does when nobody receives.

icount prices an access of a port as one instruction, and DMA as nothing. What a device access takes shows in wall-clock
time (`--clock wall`: nanoseconds of an emulated guest, medians, of our drivers alone), and is meant as a ratio only.

    lab/bench/nic [--clock icount|wall] [--only rows|integrity] [--quick] [--kernel 6.12] [--json bench-nic.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = (64, 1400)
BATCH = 64
DELIVERED = "nic-ring parsed, checksum, lookup, delivered"
GOALS = {
    "nic-ring drained, no parsing": (60, 60),
    DELIVERED: (250, 700),
    "nic-ring views handed to Python": (1500, 1500),
}
PIO_BATCH = 16  # as many frames of 1400 B as an NE2000 holds
PORT = 40_001
SENDER = 40_000
Typical = Callable[[list[float]], float]


# --- in the guest --------------------------------------------------------------------------------------------------


class Rig:
    """The sender's NIC, and the frames that it sends."""

    def __init__(self) -> None:
        import hwrx.nic
        from hwrx.wires import guest_nics

        self.guest_nics = guest_nics
        self.address = guest_nics.NIC_ADDRESSES
        self.sender = hwrx.nic.open_nic(guest_nics.NIC_HARDWARE["client"], own=(self.address["client"],), tx=256, rx=64)

    def frames(self, size: int, mac: str, first: int = 0) -> list[bytes]:
        from cython_ext.core.payload import make
        from cython_ext.frames.packet import udp_frame, udp_template

        template = udp_template(self.sender.mac, mac, self.address["client"], self.address["server"], SENDER, PORT)
        return [udp_frame(template, make(size, first + i, 1)) for i in range(BATCH)]

    def send(self, frames: list[bytes]) -> None:
        """All of them are with the other NIC when this returns: the emulated wire takes no time."""
        if self.sender.tx.send(frames) != len(frames) or not self.sender.flush():
            raise RuntimeError("the sender's ring is full")

    def receiver(self, **options: Any) -> Any:
        import hwrx.nic

        return hwrx.nic.open_nic(
            self.guest_nics.NIC_HARDWARE["server"], own=(self.address["server"],), rx=512, tx=64, **options
        )

    def transport(self, link: Any, size: int, mac: str | None = None, **options: Any) -> Any:
        """A connected end on `link`; `mac` is the sender's."""
        from cython_ext.frames.datagram import DatagramTransport

        end = DatagramTransport(
            link, address=self.address["server"], port=PORT, size=size, window=256, batch=BATCH, stream=False, trial=1,
            patience=1.0, limit=5.0, **options,
        )  # fmt: skip
        end.connect(
            {"address": self.address["client"], "port": SENDER, "mac": mac or self.sender.mac, "receive_frames": 256}
        )
        return end


def ours(rig: Rig, rounds: int, typical: Typical) -> dict[str, dict[int, float]]:
    """Rows of our driver: the frames are there when the clock is read."""
    from cython_ext.core import clock
    from cython_ext.loops import cost
    from cython_ext.nics.e1000e_link import RingLink

    reading = clock.cost()["p50"]
    rows: dict[str, dict[int, float]] = {}

    def put(name: str, size: int, measure: Callable[[], tuple[int, int]], frames: list[bytes]) -> None:
        taken = []
        for _ in range(rounds):
            rig.send(frames)
            count, ns = measure()
            if count != BATCH:
                raise RuntimeError(f"{name}: {count} of {BATCH} packets came")
            taken.append((ns - reading) / count)
        rows.setdefault(name, {})[size] = typical(taken)

    nic = rig.receiver()
    for size in SIZES:
        put("nic-ring drained, no parsing", size, lambda: cost.drain(nic.rx, BATCH), rig.frames(size, nic.mac))

    def views() -> tuple[int, int]:
        before = time.monotonic_ns()
        seen = nic.rx.peek(BATCH)
        after = time.monotonic_ns()
        count = len(seen)
        del seen
        nic.rx.release(count)
        return count, after - before

    def packets() -> tuple[int, int]:
        count = 0
        before = time.monotonic_ns()
        for packet in nic.receive(batch=BATCH, timeout=0):
            count += packet.data is not None
        return count, time.monotonic_ns() - before

    for size in SIZES:
        put("nic-ring views handed to Python", size, views, rig.frames(size, nic.mac))
        put("nic-ring Packets of nic.receive(), with a view each", size, packets, rig.frames(size, nic.mac))
    nic.close()

    for name, verify, look_up, checksums in (
        ("nic-ring parsed, delivered", "none", False, False),
        ("nic-ring parsed, header checksum, delivered", "header", False, False),
        ("nic-ring parsed, checksum, delivered", "all", False, False),
        (DELIVERED, "all", True, False),
        ("nic-ring parsed, checksum by the NIC, lookup, delivered", "all", True, True),
    ):
        nic = rig.receiver(checksums=checksums)
        for size in SIZES:
            end = rig.transport(RingLink(nic), size, verify=verify, look_up=look_up)
            put(name, size, lambda end=end: cost.receive(end, BATCH, BATCH), rig.frames(size, nic.mac))
        nic.close()
    return rows


def by_port(rig: Rig, rounds: int, typical: Typical) -> dict[str, dict[int, float]]:
    """Rows of the NE2000: parsed, summed, looked up and delivered like the best of nic-ring, carried word by word."""
    from cython_ext.core import clock
    from cython_ext.core.payload import make
    from cython_ext.frames.packet import udp_frame, udp_template
    from cython_ext.loops import cost
    from hwrx.nic import ne2k

    reading = clock.cost()["p50"]
    rows: dict[str, dict[int, float]] = {}
    nics, address = rig.guest_nics.PIO_NICS, rig.address
    with ne2k.open_link(nics["client"]) as sender:
        for width in (1, 2, 4):
            for size in SIZES:
                end = rig.transport(ne2k.open_link(nics["server"], width=width), size, mac=sender.mac)  # type: ignore[arg-type]
                template = udp_template(sender.mac, end.link.mac, address["client"], address["server"], SENDER, PORT)
                frames = [udp_frame(template, make(size, i, 1)) for i in range(PIO_BATCH)]
                taken = []
                for _ in range(rounds):
                    for frame in frames:
                        while not sender.send(frame):
                            pass
                    count, ns = cost.receive(end, PIO_BATCH, PIO_BATCH)
                    if count != PIO_BATCH:
                        raise RuntimeError(f"nic-pio: {count} of {PIO_BATCH} packets came")
                    taken.append((ns - reading) / count)
                rows.setdefault(f"nic-pio {8 * width} bits, {DELIVERED.partition(' ')[2]}", {})[size] = typical(taken)
                end.close()
    return rows


def busy_ns() -> int:
    """Nanoseconds that the CPU was not idle since boot, to 10 ms."""
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    return time.monotonic_ns() - (ticks[3] + ticks[4]) * 10_000_000


def theirs(rig: Rig, rounds: int) -> dict[str, dict[int, float]]:
    """Rows in which the kernel drives the receiving NIC: all that the CPU does, less the sender's part."""
    from cython_ext.frames.packet_ring import PacketRing
    from cython_ext.frames.xdp_ring import XdpRing
    from cython_ext.loops import cost

    netdev, mac = rig.guest_nics.NICS["server"], rig.guest_nics.NIC_HARDWARE["server"]

    def total(frames: list[bytes], receive: Callable[[], int]) -> float:
        for _ in range(20):  # warm: slabs, caches of the stack, the interrupt moderation's guess
            rig.send(frames)
            receive()
        before = busy_ns()
        for _ in range(rounds):
            rig.send(frames)
            count = receive()
            if count != BATCH:
                raise RuntimeError(f"{count} of {BATCH} packets came")
        return (busy_ns() - before) / (rounds * BATCH)

    alone: dict[int, float] = {}
    stranger = "02:00:00:00:00:99"  # the NIC's filter drops these
    for size in SIZES:
        alone[size] = total(rig.frames(size, stranger), lambda: BATCH)

    rows: dict[str, dict[int, float]] = {}
    for name, open_end in (
        ("kernel socket, recvmmsg", lambda size: kernel_socket(rig, size)),
        ("TPACKET_V3", lambda size: rig.transport(PacketRing(netdev, "02:28:77:72:78:11", block_ms=1), size)),
        ("AF_XDP, copy mode", lambda size: rig.transport(XdpRing(netdev, mac, PORT), size)),
    ):
        for size in SIZES:
            end = open_end(size)
            target = end.link.mac if hasattr(end, "link") else mac

            def receive(end: Any = end) -> int:
                got = 0
                while got < BATCH:
                    more, _ = cost.receive(end, BATCH - got, BATCH)
                    if more == 0:
                        break
                    got += more
                return got

            rows.setdefault(name, {})[size] = total(rig.frames(size, target), receive) - alone[size]
            end.close()
    rows["(the sender's part, taken away from these three)"] = alone
    return rows


def kernel_socket(rig: Rig, size: int) -> Any:
    import socket

    from cython_ext.sockets.udp import UdpTransport

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, rig.guest_nics.NICS["server"].encode())
    sock.bind((rig.address["server"], PORT))
    end = UdpTransport(
        sock, size=size, window=256, batch=BATCH, stream=False, trial=1, manner="block", patience=1.0, limit=5.0
    )
    end.connect({"address": rig.address["client"], "port": SENDER, "receive_buffer": 1 << 20})
    return end


def integrity(rig: Rig, counts: dict[int, int]) -> dict[int, dict[str, int]]:
    """A stream from ring to ring, every byte of every message verified: what was lost, doubled or damaged."""
    from cython_ext.core.trial import Trial
    from cython_ext.frames.datagram import DatagramTransport
    from cython_ext.loops import loop
    from cython_ext.nics.e1000e_link import RingLink

    found = {}
    rig.sender.close()
    for size, count in counts.items():
        ends = []
        for side in ("client", "server"):
            import hwrx.nic

            nic = hwrx.nic.open_nic(
                rig.guest_nics.NIC_HARDWARE[side], own=(rig.address[side],), rx=1024, tx=256, interrupt="auto"
            )
            ends.append(
                DatagramTransport(
                    RingLink(nic),
                    address=rig.address[side],
                    port=PORT,
                    size=size,
                    window=256,
                    batch=BATCH,
                    stream=True,
                    trial=1,
                    patience=1.0,
                    limit=30.0,
                )
            )
        ends[0].connect(ends[1].describe())
        ends[1].connect(ends[0].describe())
        trials = [
            Trial(messages=count, size=size, trial=1, batch=BATCH, check_every=1, limit_ns=30_000_000_000) for _ in ends
        ]
        server = threading.Thread(target=loop.run, args=(trials[1], ends[1], "stream", "server"))
        server.start()
        loop.run(trials[0], ends[0], "stream", "client")
        server.join()
        found[size] = {**trials[1].counts(), **ends[1].counts()}
        for end in ends:
            end.close()
    return found


def inside(clock: str, only: str | None, quick: bool) -> None:
    """Measure, and print the results as one line of JSON."""
    rounds = 50 if quick else 400
    rig = Rig()
    result: dict[str, Any] = {"rows": {}, "integrity": {}}
    typical = statistics.median if clock == "wall" else statistics.fmean
    if only != "integrity":
        result["rows"] = {**ours(rig, rounds, typical), **by_port(rig, rounds, typical)}
        if clock == "icount":  # on a busy host, what the kernel's rows count in wall-clock time is the host
            result["rows"].update(theirs(rig, rounds * 4))
    if only != "rows" and clock == "icount":
        result["integrity"] = integrity(rig, {64: 20_000, 1400: 5_000} if quick else {64: 1_000_000, 1400: 100_000})
    print("RESULT " + json.dumps(result), flush=True)


# --- on the host ---------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer messages")
    parser.add_argument("--clock", choices=("icount", "wall"), default="icount")
    parser.add_argument("--only", choices=("rows", "integrity"), help="half of it")
    parser.add_argument("--kernel", help="of the guest")
    parser.add_argument("--json", type=Path, default=Path("bench-nic.json"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.clock, options.only, options.quick)
        return 0

    from hwrx.lab.vm import Guest

    with Guest("nic", kernel=options.kernel, clock=options.clock, limit=600) as guest:
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", "--clock", options.clock]
        words += ["--quick"] * options.quick + (["--only", options.only] if options.only else [])
        done: subprocess.CompletedProcess[str] = guest.run(
            words, {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}, limit=7200, folder=Path.cwd()
        )
        about = guest.describe()
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        print(done.stdout, file=sys.stderr)
        return 1
    result = json.loads(line.removeprefix("RESULT "))
    show(result, about)
    options.json.write_text(json.dumps(records(result, options.clock), indent=2) + "\n")
    return 0


def show(result: dict[str, Any], about: dict[str, Any]) -> None:
    what = "Guest instructions" if about["clock"] == "icount" else "Nanoseconds of an emulated guest (wall clock)"
    cpus = "one CPU" if about["cpus"] == 1 else f"{about['cpus']} CPUs"
    print(f"\n{what} a received packet ({cpus}, batch {BATCH}), kernel {about['kernel']}, QEMU's e1000e and ne2k_pci\n")
    if result["rows"]:
        print(f"{'':58}{'64 B':>10}{'1400 B':>10}")
    for name, values in result["rows"].items():
        goal = GOALS.get(name)
        words = ""
        if goal and about["clock"] == "icount":
            met = all(values[str(size)] <= limit for size, limit in zip(SIZES, goal, strict=True))
            words = f"   goal {goal[0]} / {goal[1]}: {'met' if met else 'NOT met'}"
        print(f"{name:58}{values['64']:10,.0f}{values['1400']:10,.0f}{words}")
    show_ratio(result["rows"])
    if result["integrity"]:
        print("\nA stream from ring to ring, every byte verified")
    for size, counts in result["integrity"].items():
        words = ", ".join(
            f"{name} {counts[name]:,}" for name in ("delivered", "lost", "duplicated", "reordered", "corrupt")
        )
        print(f"{size:>6} B: {words}")


def show_ratio(rows: dict[str, Any]) -> None:
    """Programmed I/O over DMA, with the same work behind it."""
    for name, values in rows.items():
        if name.startswith("nic-pio"):
            ratios = [values[str(size)] / rows[DELIVERED][str(size)] for size in SIZES]
            print(f"{name.partition(',')[0]} over nic-ring: {ratios[0]:.1f} x at 64 B, {ratios[1]:.1f} x at 1400 B")


def records(result: dict[str, Any], clock: str) -> list[dict[str, Any]]:
    rows = []
    for name, values in result["rows"].items():
        for index, size in enumerate(SIZES):
            goal = GOALS.get(name) if clock == "icount" else None
            rows.append(
                {
                    "what": name,
                    "size": size,
                    "clock": clock,
                    "value": values[str(size)],
                    "unit": "guest instructions a packet" if clock == "icount" else "ns a packet",
                    "goal": goal[index] if goal else None,
                }
            )
    for size, counts in result["integrity"].items():
        rows.append({"what": "integrity", "size": int(size), "clock": "icount", **counts})
    return rows


if __name__ == "__main__":
    sys.exit(main())
