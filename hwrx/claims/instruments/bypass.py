"""Whether the kernel, and a CPU, take part at all: counted and timed from outside, whoever's functions they run.

The stages of `journey` are functions of rxe and of the stack; the driver of a verbs NIC has others, and none on the way
of a message. So every way into the kernel is counted here, and the time of all CPUs is taken, whatever they do. Both
are differences of trials of two lengths: what setting a trial up costs is in either.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from hwrx import paths
from hwrx.claims.figures import give_figures
from hwrx.claims.ftrace import Call, Ftrace
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import ROLES, Session
from hwrx.control.messages import Role, Setting
from hwrx.control.places import Place
from hwrx.errors import TrialError
from hwrx.runs import testbed
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed, Wanted
from hwrx.verbs import devices

TRIAL = 5 << 20  # numbers of these trials: away from those of runs
KINDS = {  # event -> what it counts
    "raw_syscalls/sys_enter": "system calls of the two ends",
    "irq/irq_handler_entry": "interrupts of devices",
    "irq/softirq_entry": "softirqs that receive or are a driver's",
    "workqueue/workqueue_execute_start": "work of kernel threads",
}
SOFTIRQS = ("NET_RX", "TASKLET", "HI", "IRQ_POLL")  # where drivers of NICs handle what has come
PROBE = 64 << 20  # bytes copied to learn what copying costs: more than caches hold
LARGE = 1 << 20  # bytes of a message whose way is timed
FEW = 16  # messages of the shorter of two trials that are timed


@give_figures("entries", "control_entries", "delivered")
def entries(
    session: Session,
    path: str = "rdma-write",
    size: int = 1024,
    messages: int = 400,
    device: str = "any",
    rounds: int = 3,
    wait: str = "",
) -> Measurement:
    """Count what the kernel does while messages go to and fro, and the same for UDP over loopback, as a control.

    `device`: see `choose_ports`. `wait`: how the ends wait; "": by event, or as the path must. The round with the
    fewest counts: what else the machine does can only add. Figures, a message: `entries` (system calls of the two ends,
    device interrupts, NET_RX and drivers' softirqs, work items), `control_entries` (over UDP), `delivered`.
    """
    choose_ports(session, device)
    wait = wait or ("poll" if paths.find_path(path).memory_alone else "event")
    ours, delivered = _fewest(session.agents, path, size, messages, wait, rounds)
    with _loopback() as pair:
        control, _ = _fewest(pair, "udp", size, messages, "event", rounds)
    rows = [(f"{path}: {kind}", ours[kind]) for kind in KINDS.values()]
    rows += [(f"udp over lo: {kind}", control[kind]) for kind in KINDS.values()]
    figures: dict[str, float | int | bool | str | None] = {
        "entries": sum(ours.values()), "control_entries": sum(control.values()), "delivered": delivered,
    }  # fmt: skip
    return Measurement(figures, Bars(rows, "times a message", [2] * len(KINDS) + [3] * len(KINDS)))


@give_figures("copies", "control_copies", "copy_ns", "delivered")
def busy(
    session: Session, path: str = "rdma-write-imm", megabytes: int = 4096, device: str = "any", rounds: int = 3
) -> Measurement:
    """Time all CPUs while large messages stream, against what copying so many bytes takes; and TCP over loopback.

    `device`: see `choose`. The round with the least time: what else the machine does can only add. Figures: `copies`
    and `control_copies`, the time that all CPUs were busy for a byte that was delivered over that of one copy of a
    byte, for the path and for TCP; `copy_ns` of a KiB; `delivered` messages.
    """
    choose_ports(session, device)
    copy = _copy_cost()
    ours, delivered = _least(session.agents, path, megabytes, rounds)
    with _loopback() as pair:
        control, _ = _least(pair, "tcp", megabytes, rounds)
    figures: dict[str, float | int | bool | str | None] = {
        "copies": ours / copy, "control_copies": control / copy, "copy_ns": copy * 1024, "delivered": delivered,
    }  # fmt: skip
    rows = [(path, ours / copy), ("tcp over lo", control / copy)]
    return Measurement(figures, Bars(rows, "CPU time for a byte, in copies of a byte", [2, 3]))


def choose_ports(session: Session, device: str) -> None:
    """Let the session's ends be verbs ports: "any": the topology's; "hardware": two of NICs; or "A,B" by name.

    MachineError where the machine has not what is asked for.
    """
    if device == "any":
        return
    if device == "hardware":
        session.over(dict(zip(ROLES, devices.hardware_ends(), strict=True)))
    else:
        session.over(testbed.explicit_bed(Wanted(devices=tuple(device.split(",")))).places)


@contextlib.contextmanager
def _loopback() -> Iterator[Pair]:
    places: dict[Role, Place] = {"client": Place(), "server": Place()}
    with Pair(Bed(places, dict.fromkeys(ROLES, "local"), {"wire": "the loopback device"})) as pair:
        yield pair


# --- what the kernel does --------------------------------------------------------------------------------------------


def _fewest(pair: Pair, path: str, size: int, messages: int, wait: str, rounds: int) -> tuple[dict[str, float], int]:
    """Return the counts a message, by the words of KINDS, of the round that has the fewest; and messages delivered.

    What the machine does in the same time without any message is no message's.
    """
    found = []
    delivered = 0

    def setting_of(many: int) -> Setting:
        return _setting(path=path, size=size, messages=many, wait=wait, warmup=20, cooldown=8)

    pair.measure(TRIAL - 1, setting_of(FEW))  # what the first time costs is in neither of two
    for number in range(rounds):
        counts, took = [], []
        for many in (FEW, FEW + messages):
            setting = setting_of(many)
            tracer = Ftrace([], list(KINDS))
            with tracer:
                began = time.monotonic()
                measured = pair.measure(TRIAL + 2 * number + (many > FEW), setting)
                took.append(time.monotonic() - began)
                threads = _threads()
            counts.append(counted(tracer.calls, threads))
            delivered = measured.tally["delivered"]
        with (idle := Ftrace([], list(KINDS))):
            time.sleep(max(0.0, took[1] - took[0]))
        few, many_ = counts
        beside = counted(idle.calls, threads)
        found.append({kind: max(0.0, (many_[kind] - few[kind] - beside[kind]) / messages) for kind in KINDS.values()})
    return min(found, key=lambda each: sum(each.values())), delivered


def counted(calls: Sequence[Call], threads: set[int]) -> Counter[str]:
    """Count events by the words of KINDS: of system calls those of `threads`, of softirqs those that receive."""
    counts: Counter[str] = Counter()
    by_name = {event.split("/")[1]: words for event, words in KINDS.items()}
    for call in calls:
        if call.name not in by_name:
            continue
        if call.name == "sys_enter" and call.tid not in threads:
            continue
        if call.name == "softirq_entry" and not any(f"action={name}]" in call.detail for name in SOFTIRQS):
            continue
        counts[by_name[call.name]] += 1
    return counts


def _threads() -> set[int]:
    """Return the threads of this process's children: the agents."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    return {int(task.name) for child in children for task in Path("/proc", child, "task").glob("*")}


# --- what CPUs do ----------------------------------------------------------------------------------------------------


def _least(pair: Pair, path: str, megabytes: int, rounds: int) -> tuple[float, int]:
    """Return the ns of all CPUs for each byte of a long stream beyond those of a short one, the least of some rounds.

    And how many messages the long one delivered.
    """
    found = []
    many = FEW + max(1, (megabytes << 20) // LARGE)

    def setting_of(count: int) -> Setting:
        # nothing but header and trailer is written and read by the ends themselves
        return _setting(
            path=path, size=LARGE, messages=count, wait="event", pattern="stream", window=8, batch=1, warmup=4,
            cooldown=4, check_every=1 << 30, limit=30.0,
        )  # fmt: skip

    pair.measure(TRIAL - 1, setting_of(FEW))  # what the first time costs is in neither of two
    for number in range(rounds):
        taken = []
        for count in (FEW, many):
            before = _working()
            measured = pair.measure(TRIAL + 1000 + 2 * number + (count > FEW), setting_of(count))
            taken.append(_working() - before)
        if measured.tally["delivered"] < many:
            raise TrialError(f"{path}: {measured.tally['delivered']} of {many} messages of {LARGE >> 20} MiB came")
        found.append((taken[1] - taken[0]) * 1e9 / ((many - FEW) * LARGE))
    return max(0.0, min(found)), many


def _working() -> float:
    """Return the seconds that all CPUs together have not been idle, from any point on: /proc/uptime has 10 ms."""
    uptime, idle = (float(word) for word in Path("/proc/uptime").read_text(encoding="utf-8").split())
    return uptime * (os.cpu_count() or 1) - idle


def _copy_cost() -> float:
    """Return the ns that copying a byte takes where no cache holds it: the least of some times."""
    source, target = np.ones(PROBE, np.uint8), np.ones(PROBE, np.uint8)
    taken = []
    for _ in range(5):
        before = time.perf_counter_ns()
        np.copyto(target, source)
        taken.append(time.perf_counter_ns() - before)
    return min(taken) / PROBE


def _setting(**words: object) -> Setting:
    # what there is not (a path, a size) gets words from the conversion or from the endpoint
    return msgspec.convert(words, Setting)
