"""hwrx's processor time a message against counts that know nothing of its loop.

In a guest that counts instructions, over `pair`: the same trial with a short warm-up, and with one of 60,000 messages
more. What the kernel says of the whole guest (/proc/timer_list: time passed less idle time, read by a process of its
own before and after) then differs by those messages, agents, kernel and all. It is held against `busy` of the measured
messages. A trial before them is thrown away: agents load what a path needs when they first open it.

Then a twin of each is counted by actor, by BPF programs on the tracepoints where a CPU changes hands, and the sum of
all actors but idle and housekeeping is held against `busy` of the meter in the same trial.

On this machine, over two namespaces (root): both ends are threads of their own in a control group, and the observer's
meter reads what the kernel has charged to that group (cpuacct.usage; without one: to both threads, /proc/TID/schedstat)
where it reads its clocks. So both are of the same messages. It is held against `thread`.

Prints a table and writes cpu.json. Nothing here is a test: a missed goal is shown, not raised.

    lab/bench/cpu [--only guest|host] [--pairs N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from msgspec import Struct, structs, to_builtins
from rich.console import Console
from rich.table import Table

from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from hwrx import paths
from hwrx.control.endings import ENDS
from hwrx.control.environment import parse_environment
from hwrx.control.messages import Done, Pattern, Prepare, Role, Setting
from hwrx.host import netns
from hwrx.lab.vm import Guest
from hwrx.paths import cputime
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import GuestBed
from hwrx.timelines import counted
from hwrx.wires import topology
from hwrx.wires.made import Made

GOAL = 0.03
MORE = 60_000
GROUPS = Path("/sys/fs/cgroup/cpuacct")
GUEST: tuple[tuple[str, Pattern], ...] = (
    ("udp", "pingpong"),
    ("tcp", "pingpong"),
    ("rdma-send", "pingpong"),
    ("udp", "stream"),
    ("rdma-send", "stream"),
)
# a CPU's time goes to its group at the latest at the next tick: a trial takes many of them
COUNTS: dict[tuple[str, Pattern], int] = {("udp", "stream"): 400_000, ("tcp", "stream"): 3_000_000}
HOST: tuple[tuple[str, Pattern], ...] = (("udp", "pingpong"), ("tcp", "pingpong"), ("udp", "stream"), ("tcp", "stream"))


class Row(Struct, kw_only=True):
    """What cpu.json holds, one object a comparison: of a message, in guest instructions or ns."""

    where: str
    path: str
    pattern: str
    against: str
    ours: float
    theirs: float
    pairs: int
    by_actor: dict[str, float] = {}

    @property
    def off(self) -> float:
        """By how much ours is larger, as a share."""
        return self.ours / self.theirs - 1


def messages_of(setting: Setting, round_trips: int) -> int:
    return round_trips * (1 if setting.pattern == "stream" else 2)


def in_guest(pairs: int, say: Console) -> Iterator[Row]:
    with Guest("pair", clock="icount") as guest, Pair(GuestBed(guest)) as agents:
        trials = []
        for path, pattern in GUEST:
            # of a stream a window of messages is under way at both readings: it is to be small against all
            count = 20_000 if pattern == "stream" else 4000
            setting = Setting(path=path, pattern=pattern, messages=count, warmup=500, schedule="batch", check_every=0)
            agents.measure(0, setting)
            ours, theirs = [], []
            for number in range(1, 1 + pairs):
                totals = []
                for warmup in (500, 500 + MORE):
                    before = busy(guest)
                    measured = agents.measure(number, structs.replace(setting, warmup=warmup))
                    totals.append(busy(guest) - before)
                    ours.append(measured.cpu["busy"] / messages_of(setting, setting.messages))
                theirs.append((totals[1] - totals[0]) / messages_of(setting, MORE))
            trials.append((setting, counted.loop_seconds(measured, setting)))
            row = Row(
                where="guest, icount", path=path, pattern=pattern, against="the guest's time less its idle time",
                ours=statistics.median(ours), theirs=statistics.median(theirs), pairs=pairs,
            )  # fmt: skip
            say.print(words(row), highlight=False)
            yield row
        counted.attach_counter(agents)
        for number, (setting, seconds) in enumerate(trials):
            found, measured = counted.run_twin(agents, number, setting, seconds, alone=True)
            messages = messages_of(setting, setting.messages)
            by_actor = {actor: value / messages for actor, value in found.items()}
            row = Row(
                where="guest, icount", path=setting.path, pattern=setting.pattern, pairs=1, by_actor=by_actor,
                against=", ".join(f"{actor} {value:,.1f}" for actor, value in by_actor.items() if value),
                ours=measured.cpu["busy"] / messages,
                theirs=sum(ns for actor, ns in by_actor.items() if actor not in ("idle", "housekeeping")),
            )  # fmt: skip
            say.print(words(row), highlight=False)
            yield row


def busy(guest: Guest) -> int:
    """What the guest's one CPU has done since it booted, in instructions, by the kernel."""
    text = guest.run(["cat", cputime.TIMERS]).stdout
    now = next(int(line.split()[2]) for line in text.splitlines() if line.startswith("now at "))
    (idle,) = cputime.idle_times(text)
    return now - idle


def on_host(pairs: int, say: Console) -> Iterator[Row]:
    with topology.build_topology("netns") as made, control_group() as group:
        against = "cpuacct.usage" if group else "schedstat of both threads"
        for path, pattern in HOST:
            setting = Setting(
                path=path, pattern=pattern, messages=COUNTS.get((path, pattern), 60_000), warmup=10_000, check_every=0
            )
            found = [compare(made, setting, number, group) for number in range(pairs)]
            ours, theirs = sorted(found, key=lambda two: two[0] / two[1])[pairs // 2]
            row = Row(
                where="here, netns", path=path, pattern=pattern, against=against, ours=ours, theirs=theirs, pairs=pairs
            )
            say.print(words(row), highlight=False)
            yield row


class End(threading.Thread):
    """One end of a trial, a thread in the group whose time the kernel adds up."""

    def __init__(
        self, role: Role, setting: Setting, number: int, cpu: int, group: Path | None, at: threading.Barrier
    ) -> None:
        super().__init__(daemon=True)
        self.role: Role = role
        self.setting, self.number, self.cpu, self.group = setting, number, cpu, group
        self.endpoint: Any = None
        self.counters: list[str] = []
        self.at = at
        self.done = Done(tally={}, ended="error")
        self.said: dict[str, tuple[bytes, bytes]] = {}

    def run(self) -> None:
        setting = self.setting
        os.sched_setaffinity(0, {self.cpu})
        if self.group:
            (self.group / "tasks").write_text(str(threading.get_native_id()))
        self.at.wait(30)
        trial = Trial(
            messages=setting.messages,
            warmup=setting.warmup,
            cooldown=setting.cooldown,
            size=setting.size,
            trial=self.number,
            batch=setting.batch,
            counters=self.counters if self.role == cputime.observing_end(setting) else [],
        )
        self.at.wait(30)
        status = loop.run(trial, self.endpoint, setting.pattern, self.role)
        self.done = Done(
            tally={}, ended=loop.ENDED.get(status, "error"), cpu=cputime.time_used(trial.meter, alone=False)
        )
        self.said = trial.meter.said()


def compare(made: Made, setting: Setting, number: int, group: Path | None) -> tuple[float, float]:
    """One trial: ns a message that we say, and that the kernel charged to both threads between the same two messages.

    The observer's meter reads the kernel's count with its own clocks, so that nothing but the loop is in either.
    """
    cpus = sorted(os.sched_getaffinity(0))
    on: dict[Role, int] = {"client": cpus[-1], "server": cpus[0]}
    at = threading.Barrier(3)
    ends = {role: End(role, setting, number, on[role], group, at) for role, _ in ENDS}
    with connected(made, setting, number) as endpoints:
        for role, end in ends.items():
            end.endpoint = endpoints[role]
            end.start()
        threads = [Path(f"/proc/{end.native_id}/schedstat") for end in ends.values()]
        files = [group / "cpuacct.usage"] if group else threads
        for end in ends.values():
            end.counters += map(str, files)
        at.wait(30)  # they make their trials
        at.wait(30)
        for end in ends.values():
            end.join(120)
    by_actor, missing = cputime.account_time(setting, ends["client"].done, ends["server"].done, alone=False)
    observer = ends[cputime.observing_end(setting)]
    if "thread" not in by_actor or len(observer.said) != len(files):
        raise SystemExit(
            f"{setting.path} {setting.pattern}: nothing to compare: {missing.get('thread', 'no counters')}"
        )
    charged = sum(int(after.split()[0]) - int(before.split()[0]) for before, after in observer.said.values())
    messages = messages_of(setting, setting.messages)
    return by_actor["thread"] / messages, charged * setting.messages / observer.done.cpu["messages"] / messages


@contextlib.contextmanager
def connected(made: Made, setting: Setting, number: int) -> Iterator[dict[Role, Any]]:
    """Yield both ends' endpoints, each opened in its own namespace, connected."""
    spaces = {role: parse_environment(made.peers[role]).name for role, _ in ENDS}
    ends: dict[Role, Any] = {}

    def connect(role: Role, remote: dict[str, Any]) -> None:
        with netns.entered_namespace(spaces[role]):
            ends[role].connect(remote)

    with contextlib.ExitStack() as stack:
        for role, other in ENDS:
            places = made.places
            prepare = Prepare(trial=number, role=role, setting=setting, here=places[role], there=places[other])
            with netns.entered_namespace(spaces[role]):
                ends[role] = paths.open_endpoint(prepare)
            stack.callback(ends[role].close)
        told = {role: end.describe() for role, end in ends.items()}
        with ThreadPoolExecutor(2) as pool:  # a TCP server waits for its client
            for future in [pool.submit(connect, role, told[other]) for role, other in ENDS]:
                future.result(30)
        yield ends


@contextlib.contextmanager
def control_group() -> Iterator[Path | None]:
    """Yield an empty group of the v1 cpuacct hierarchy; None if there is none to be had."""
    group = GROUPS / f"hwrx-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def words(row: Row) -> str:
    return f"{row.path} {row.pattern}: ours {row.ours:,.1f}, theirs {row.theirs:,.1f}, {100 * row.off:+.2f} %"


def table(rows: list[Row]) -> Table:
    shown = Table(title="processor time a message (guest: instructions; here: ns)", title_justify="left")
    for name in ("where", "path", "pattern", "against"):
        shown.add_column(name)
    for name in ("ours", "theirs", "off", "pairs", "goal"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row.where, row.path, row.pattern, row.against, f"{row.ours:,.1f}", f"{row.theirs:,.1f}",
            f"{100 * row.off:+.2f} %", str(row.pairs), "met" if abs(row.off) <= GOAL else "MISSED",
        )  # fmt: skip
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", choices=["guest", "host"], help="only there")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of measurements (default: 3)")
    parser.add_argument("--json", type=Path, default=Path("cpu.json"), help="where the rows go")
    asked = parser.parse_args()
    console = Console(stderr=True)
    rows: list[Row] = []
    if asked.only != "host":
        rows += in_guest(asked.pairs, console)
    if asked.only != "guest":
        rows += on_host(asked.pairs, console)
    asked.json.write_text(json.dumps(to_builtins(rows), indent=1) + "\n")
    Console(width=140).print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
