"""hwrx against the field's tools: same devices, sizes and options, ours and the peer's turn about, in one guest boot.

First with the `icount` clock: one CPU, waiting by event, where a virtual nanosecond is a guest instruction and repeats
to four digits. Then in wall clock, two CPUs and polling, for RDMA WRITE, whose perftest tools only poll: there the
machine's speed moves within a boot, so only ratios taken pair by pair mean anything; their median and range are given.

Both sides do the same work: with a completion channel each asks for its event (`ibv_req_notify_cq`) within its round
trip, and the sockets' checksums are the veth's to leave out for both. Of our half round trip the instructions in user
space are counted, too (steps.py).

Prints a table for each clock and writes bench.json. Nothing here is a test: a missed goal is shown, not raised.

    lab/bench/peers [--clock icount|wall] [--pairs N] [--only WORD] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import Struct, to_builtins
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from hwrx.control.environment import parse_environment
from hwrx.control.messages import Setting
from hwrx.errors import HwrxError, MachineError
from hwrx.lab.vm import Guest
from hwrx.runs import schedule
from hwrx.runs.testbed import GuestBed

STEPS = Path(__file__).resolve().with_name("steps.py")
STEPPED = 200_000  # messages of the ping-pong whose instructions are counted: more than are waited for
LIMIT = 600.0  # seconds of the host's clock for one measurement; an emulated one takes 5 to 30
GOAL = 1.0  # ours / peer: no figure of ours is above the peer's
LATENCY, COST = "half RTT p50", "cost a message"


class Contest(Struct, frozen=True):
    """One row: a peer's command, what it is to be compared with, and the goal for ours / peer."""

    peer: str
    what: str
    size: int
    clock: Literal["icount", "wall"]
    topology: Literal["pair", "netns"]
    setting: Setting
    server: str  # shell command at the server's end, {address} and {device} filled in
    client: str
    figure: Callable[[str, int], float]  # what the client printed, size -> µs
    package: str
    advantage: str = ""  # of the peer, that ours chose not to take


class Row(Struct, kw_only=True):
    """What bench.json holds, one object a contest; times in µs (virtual ones with icount)."""

    peer: str
    what: str
    size: int
    clock: str
    ours: float
    peer_value: float
    unit: str
    ratio: float
    low: float
    high: float
    pairs: int
    user: float | None = (
        None  # icount, ping-pong: instructions in user space of half a round trip of ours, see steps.py
    )


# --- the peers -----------------------------------------------------------------------------------------------------


def last_row(text: str, size: int) -> list[float]:
    """Return the numbers of perftest's result line for a size."""
    for line in reversed(text.splitlines()):
        words = line.split()
        if words and words[0] == str(size):
            return [float(word) for word in words]
    raise HwrxError(f"perftest printed no line for {size} bytes:\n{text[-1500:]}")


def perftest_latency(text: str, size: int) -> float:
    """t_typical, which is the median of half round trips: the fifth column."""
    return last_row(text, size)[4]


def perftest_cost(text: str, size: int) -> float:
    """µs a message from the average bandwidth, the fourth column, in MiB/s."""
    return size / (last_row(text, size)[3] * 2**20) * 1e6


def sockperf_latency(text: str, size: int) -> float:
    """The median of half round trips."""
    found = re.search(r"percentile 50\.000 =\s*([0-9.]+)", text)
    if not found:
        raise HwrxError(f"sockperf printed no median:\n{text[-1500:]}")
    return float(found[1])


def iperf_cost(text: str, size: int) -> float:
    """µs for `size` bytes, from what the receiver got."""
    report = json.loads(text[text.index("{") :])
    if "error" in report:
        raise HwrxError(f"iperf3: {report['error']}")
    return size * 8 / report["end"]["sum_received"]["bits_per_second"] * 1e6


def perftest(tool: str, size: int, options: str, figure: Callable[[str, int], float]) -> dict[str, Any]:
    common = f"{tool} -s {size} {options} -F -x {{gid}}"
    return {
        "peer": f"{tool} {options}".split(" -n")[0].strip(),
        "size": size,
        "topology": "pair",
        "server": f"{common} -d {{server_device}}",
        "client": f"{common} -d {{client_device}} {{server_address}}",
        "figure": figure,
        "package": "perftest",
    }


def contests() -> Iterator[Contest]:
    """Every row of the table, in its order."""
    for size in (64, 4096):
        setting = Setting(path="rdma-send", size=size, messages=2000, window=1, signal_every=1, wait="event")
        yield Contest(
            what=f"RC SEND {LATENCY}", clock="icount", setting=setting,
            **perftest("ib_send_lat", size, "-e -n 2000", perftest_latency),
        )  # fmt: skip
    stream = {"pattern": "stream", "size": 65536, "window": 128, "signal_every": 100, "batch": 1}
    yield Contest(
        what=f"RC SEND stream, {COST}", clock="icount",
        setting=Setting(path="rdma-send", messages=1000, wait="event", **stream),
        **perftest("ib_send_bw", 65536, "-e -n 1000 -t 128 -Q 100", perftest_cost),
    )  # fmt: skip
    for size in (64, 1400):
        yield Contest(
            peer="sockperf ping-pong", what=f"UDP {LATENCY}", size=size, clock="icount", topology="netns",
            setting=Setting(path="udp", size=size, messages=5000, wait="event"),
            server="sockperf server -i {server_address}",
            client=f"sockperf ping-pong -i {{server_address}} -m {size} -t 1",
            figure=sockperf_latency, package="sockperf",
        )  # fmt: skip
    yield Contest(
        peer="iperf3 -l 64K", what=f"TCP stream, {COST}", size=65536, clock="icount", topology="netns",
        setting=Setting(path="tcp", pattern="stream", size=65536, messages=5000, batch=1, wait="event"),
        server="iperf3 -s -1", client="iperf3 -c {server_address} -l 64K -t 2 -J",
        figure=iperf_cost, package="iperf3",
    )  # fmt: skip
    for size in (64, 4096):
        yield Contest(
            what=f"RC WRITE {LATENCY}", clock="wall",
            setting=Setting(path="rdma-write", size=size, messages=2000, window=1, signal_every=1, wait="poll"),
            **perftest("ib_write_lat", size, "-n 2000", perftest_latency),
        )  # fmt: skip
    yield Contest(
        what=f"RC WRITE stream, {COST}", clock="wall",
        setting=Setting(path="rdma-write", messages=1000, wait="poll", **stream),
        **perftest("ib_write_bw", 65536, "-n 1000 -t 128 -Q 100", perftest_cost),
    )  # fmt: skip


# --- measuring -----------------------------------------------------------------------------------------------------


class Ground:
    """A guest in which both sides of a contest are measured."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.bed = GuestBed(guest)
        self._trial = 0
        self._gid: int | None = None

    def ours(self, contest: Contest) -> float:
        """µs: the median half round trip, or the time a message of the stream takes."""
        self._trial += 1
        with schedule.Pair(self.bed) as pair:
            measured = pair.measure(self._trial, contest.setting)
        for end in (measured.client, measured.server):
            if end.ended not in ("complete", "finished"):
                raise HwrxError(f"ours ended with {end.ended}: {end.error}")
        if measured.tally["lost"] or measured.tally["corrupt"]:
            raise HwrxError(f"ours lost or damaged messages: {measured.tally}")
        self._gid = measured.chosen["client"].get("gid_index", self._gid)
        if contest.setting.pattern == "stream":
            return float(measured.ns.sum()) / (len(measured.ns) - 1) / 1000
        return float(np.quantile(measured.ns, 0.5)) / 2000

    def user(self, contest: Contest) -> float | None:
        """Instructions of our half round trip that are executed in user space, bookkeeping beside it included."""
        if contest.clock != "icount" or contest.setting.pattern != "pingpong":
            return None
        setting = replace(contest.setting, messages=STEPPED, check_every=0, limit=LIMIT)
        asked = {"setting": setting, "places": self.bed.places, "peers": self.guest.peers, "trips": 20}
        words = json.dumps(to_builtins(asked))
        done = self.guest.run([sys.executable, str(STEPS), words], {"PYTHONPATH": str(STEPS.parents[2])}, limit=LIMIT)
        if done.returncode != 0:
            raise HwrxError(f"counting user space's instructions failed:\n{done.stdout[-2000:]}")
        ends = json.loads(done.stdout.splitlines()[-1])
        return float(sum(end["instructions"] for end in ends.values())) / 2

    def peer(self, contest: Contest) -> float:
        """Run the peer's server and client, each at its end, and read the client's figure."""
        names = {
            "gid": self._gid,
            **{f"{role}_address": place.address for role, place in self.bed.places.items()},
            **{f"{role}_device": place.verbs for role, place in self.bed.places.items()},
        }
        server, client = (self._at(role, command.format(**names)) for role, command in
                          (("server", contest.server), ("client", contest.client)))  # fmt: skip
        # the server's address is the client's own machine: a port that listens is seen in /proc/net of its namespace
        script = (
            f"{server} >/tmp/peer-server.log 2>&1 & s=$!; sleep 1\n"
            f"{client} 2>&1; code=$?\n"
            "kill $s 2>/dev/null; wait $s 2>/dev/null\n"
            "[ $code = 0 ] || { cat /tmp/peer-server.log; exit $code; }\n"
        )
        done = self.guest.run(["sh", "-c", script], limit=LIMIT)
        if done.returncode != 0:
            raise HwrxError(f"{contest.peer} failed with {done.returncode}:\n{done.stdout[-2000:]}")
        return contest.figure(done.stdout, contest.size)

    def _at(self, role: Literal["client", "server"], command: str) -> str:
        peer = self.guest.peers[role]
        space = parse_environment(peer).netns
        return f"ip netns exec {shlex.quote(space)} {command}" if space else command


@contextmanager
def ground(topology: str, clock: Literal["icount", "wall"], kernel: str | None, console: Console) -> Iterator[Ground]:
    console.print(f"booting a guest: topology {topology}, clock {clock}", style="dim")
    with Guest(topology, clock=clock, cpus=1 if clock == "icount" else 2, kernel=kernel) as guest:
        yield Ground(guest)


def fight(contest: Contest, where: Ground, pairs: int, console: Console) -> Row:
    """Measure ours and the peer's in turn, `pairs` times."""
    ours, theirs = [], []
    for number in range(pairs):
        ours.append(where.ours(contest))
        theirs.append(where.peer(contest))
        console.print(
            f"  {contest.what} {contest.size} B, pair {number + 1} of {pairs}: ours {ours[-1]:.3f} µs, "
            f"{contest.peer} {theirs[-1]:.3f} µs, ratio {ours[-1] / theirs[-1]:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Row(
        peer=contest.peer, what=contest.what, size=contest.size, clock=contest.clock,
        ours=statistics.median(ours), peer_value=statistics.median(theirs),
        unit="virtual µs" if contest.clock == "icount" else "µs",
        ratio=statistics.median(ratios), low=min(ratios), high=max(ratios), pairs=pairs, user=where.user(contest),
    )  # fmt: skip


def user_share(row: Row) -> str:
    """Of our half round trip: virtual µs in user space, at most, and their share of it."""
    return "" if row.user is None else f"{row.user / 1000:.3f} ({row.user / 10 / row.ours:.1f} %)"


def table(clock: str, rows: list[Row]) -> Table:
    unit = "virtual µs" if clock == "icount" else "µs, emulated: only the ratios mean anything"
    shown = Table(title=f"clock {clock} ({unit})", title_justify="left")
    for name in ("what", "bytes", "peer"):
        shown.add_column(name)
    for name in ("ours", "in user space", "peer's", "ours/peer", "range", "pairs", "goal"):
        shown.add_column(name, justify="right")
    for row in rows:
        verdict = "met" if row.ratio <= GOAL else "MISSED"
        shown.add_row(
            row.what, str(row.size), row.peer, f"{row.ours:.3f}", user_share(row), f"{row.peer_value:.3f}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} to {row.high:.3f}", str(row.pairs), verdict,
        )  # fmt: skip
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clock", choices=["icount", "wall"], help="only this clock")
    parser.add_argument("--pairs", type=int, help="pairs of measurements (default: 3 with icount, 7 in wall clock)")
    parser.add_argument("--only", default="", help="only rows whose name holds this word, for example 'WRITE'")
    parser.add_argument("--kernel", help="kernel of the guest, for example 6.12")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the rows go")
    asked = parser.parse_args()
    console = Console(stderr=True)
    chosen = [
        contest for contest in contests()
        if asked.only in contest.what and asked.clock in (None, contest.clock)
    ]  # fmt: skip
    for contest in chosen:
        if shutil.which(contest.client.split()[0]) is None:
            raise MachineError(f"the peer `{contest.client.split()[0]}` is missing",
                               remedy=f"apt install {contest.package}")  # fmt: skip
    rows: list[Row] = []
    for clock in ("icount", "wall"):
        for topology in ("pair", "netns"):
            here = [contest for contest in chosen if (contest.clock, contest.topology) == (clock, topology)]
            if not here:
                continue
            with ground(topology, clock, asked.kernel, console) as where:
                for contest in here:
                    rows.append(fight(contest, where, asked.pairs or (3 if clock == "icount" else 7), console))
    out = Console(width=None if sys.stdout.isatty() else 140)
    for clock in ("icount", "wall"):
        if at := [row for row in rows if row.clock == clock]:
            out.print(table(clock, at))
    asked.json.write_text(json.dumps(to_builtins(rows), indent=1) + "\n")
    out.print(f"written to {asked.json}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HwrxError as problem:
        sys.exit(f"bench: {problem}")
