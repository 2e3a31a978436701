"""The kernel's side of a flood: the programs of probes/bpf/flood.bpf.c, told what to count and read when it is over."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import stages
from hwrx.errors import MachineError
from hwrx.probes import account, attaching, build

if TYPE_CHECKING:
    from cython_ext.bpf.bpf_reader import Reader

SOCKETS, IRQS = 16, 8
POLL_MOST, RUN_MOST, IRQ_MOST = 256, 1024, 1024
ACTORS, CONTEXTS, POLLERS = len(account.ACTORS), len(account.CONTEXTS), len(account.POLLERS)
FINEST = 20  # as a shift: a bin of 1.05 ms
BINS, BINS_OF_ALL = 20_000, 500_000  # of one CPU, of all together
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
STAT = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # of proc_stat(5)

# struct settings, struct bin, struct cpu, struct descriptor of the programs
SETTINGS = np.dtype([
    ("start", "u8"), ("device", "S16"), ("sockets", "u8", SOCKETS), ("irqs", "u4", IRQS), ("enabled", "u4"),
    ("shift", "u4"), ("bins", "u4"), ("cpus", "u4"), ("budget", "u4"), ("budget_us", "u4"),
])  # fmt: skip
BIN = np.dtype([
    ("ns", "i8", ACTORS), ("whole", "i4", ACTORS), ("polls", "u4"), ("packets", "u4"), ("runs", "u4"),
    ("interrupts", "u4"), ("backlog", "u4"),
])  # fmt: skip
CONTEXT = np.dtype([("runs", "u8"), ("packets", "u8"), ("ns", "u8")])
CPU = np.dtype([
    ("last", "u8"), ("looked", "u8"), ("run_began", "u8"), ("by_budget", "u8"), ("by_time", "u8"),
    ("interrupts", "u8"), ("calls", "u8"), ("outside", "u8"), ("outside_packets", "u8"),
    ("contexts", CONTEXT, CONTEXTS), ("poll_budget", "u8"), ("known", "u4"), ("role", "u4"), ("kernel", "u4"),
    ("softirq", "u4"), ("irqs", "u4"), ("raised", "u4"), ("context", "u4"), ("run_polls", "u4"),
    ("run_packets", "u4"), ("since_interrupt", "u4"), ("had_interrupt", "u4"), ("busy", "u4"),
    ("polls", "u4", (POLLERS, POLL_MOST + 1)), ("runs", "u4", RUN_MOST + 1), ("per_interrupt", "u4", IRQ_MOST + 1),
    ("unused_either", "u4"),
])  # fmt: skip
QUEUES = np.dtype([
    ("bytes", "u4", SOCKETS), ("receives", "u4"), ("completions", "u4"), ("sends", "u4"), ("unused", "u4"),
])  # fmt: skip
DESCRIPTOR = np.dtype([("sock", "u8"), ("fd", "u4"), ("unused", "u4")])

ALWAYS = (
    "task_changes", "call_begins", "call_ends", "device_interrupt_begins", "device_interrupt_ends",
    "softirq_is_raised", "softirq_begins", "softirq_ends", "device_is_polled",
)  # fmt: skip
VECTORS = tuple(
    f"vector_{name}_{end}"
    for name in ("local_timer", "reschedule", "irq_work", "call_function", "call_function_single")
    for end in ("begins", "ends")
)
BACKLOG = ("backlog_is_seen",)
RXE = ("request_is_queued", "sends_are_posted")
# what a kernel may lack: programs, and what is not seen without them
Lack = tuple[tuple[str, ...], str]
OPTIONAL: tuple[Lack, ...] = (
    (BACKLOG, "the length of the CPUs' backlogs: this kernel does not tell where softnet_data is"),
    (
        VECTORS,
        "interrupts of timers and other CPUs: no tracepoints tell of them here; theirs is the task's time",
    ),
)


QUEUE_PAIRS: Lack = (RXE, "the depth of verbs queues: functions of rdma_rxe cannot be probed here")


class Counts(Struct, frozen=True):
    """What was counted between `start` and `stop` (CLOCK_MONOTONIC ns). Arrays of CPUs, or CPUs by bins."""

    start: int
    stop: int
    width: int
    time: account.Int64s  # CPUs, bins, actors
    bins: npt.NDArray[Any]  # CPUs, bins of BIN
    queues: npt.NDArray[Any]  # bins of QUEUES
    cpus: npt.NDArray[Any]  # of CPU
    stat: dict[int, dict[str, int]]
    squeezed: int
    cut: bool  # it lasted longer than there were bins


class Counter:
    """Counts from `begin` to `end`, any number of times. A context manager: leaving it detaches everything.

    `seconds` is how long a flood may take at most; `rxe`: look at the depth of verbs queues, too. What this kernel does
    not show is in `lacks`. MachineError where it shows too little.
    """

    def __init__(self, seconds: float, *, rxe: bool = False) -> None:
        attaching.require_tracer()
        self.lacks: list[str] = []
        self._optional: tuple[Lack, ...] = (*OPTIONAL, *([QUEUE_PAIRS] if rxe else []))
        self._never = () if rxe else RXE
        self.cpus = possible_cpus()
        self._bins = max(100, min(BINS, BINS_OF_ALL // self.cpus))
        self._settings = np.zeros((), dtype=SETTINGS)
        self._settings["bins"] = self._bins
        self._settings["cpus"] = self.cpus
        self.reach(seconds)
        self._stack = contextlib.ExitStack()
        self._reader = self._stack.enter_context(self._load())
        self._before: tuple[dict[int, dict[str, int]], int] = ({}, 0)

    def _load(self) -> Reader:
        from cython_ext.bpf.bpf_reader import Reader
        from cython_ext.bpf.tracer import LoadError

        sizes = {"timeline": self.cpus * self._bins, "queues": self._bins, "cpus": self.cpus}
        left_out = list(self._never)
        while True:
            try:
                path = build.find_or_build(stages.stage_header(), "flood")
                reader = Reader(path, b"", left_out, sizes)
                break
            except build.BuildError as error:
                raise MachineError(str(error), remedy=error.remedy) from None
            except LoadError as error:
                said = attaching.last_word(error.said) or error.strerror or ""
                refused = set(re.findall(r"prog '(\w+)'", error.said))
                lack = next((each for each in self._optional if refused & set(each[0]) - set(left_out)), None)
                if lack is None:
                    raise MachineError(
                        f"this kernel does not let a flood be counted: {said}",
                        remedy="it needs BPF on tracepoints and task storage, Linux 5.11 or newer with BTF",
                    ) from None
                self.lacks.append(f"{lack[1]} ({said})")
                left_out += lack[0]
        try:
            for program in (*ALWAYS, *(name for programs, _ in self._optional for name in programs)):
                if program not in left_out:
                    reader.attach(program)
        except OSError as error:
            reader.close()
            raise MachineError(
                f"this kernel does not let a flood be counted: {error.filename}: {error.strerror}",
                remedy="it needs BPF programs on tracepoints (tp_btf)",
            ) from None
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def reach(self, seconds: float, finest: int = FINEST) -> None:
        """Make the bins, from the next `begin` on, as wide as so many seconds need, at least `1 << finest` ns."""
        shift = finest
        while self._bins << shift < seconds * 1e9:
            shift += 1
        self._settings["shift"] = shift

    def aim(self, device: str, irqs: Sequence[int], limits: Mapping[str, int]) -> None:
        """Say which network device receives, which interrupts are its own, and what `sysctls` says."""
        self._settings["device"] = device.encode()
        self._settings["irqs"] = 0
        self._settings["irqs"][: len(irqs[:IRQS])] = irqs[:IRQS]
        self._settings["budget"] = limits.get("netdev_budget", 300)
        self._settings["budget_us"] = limits.get("netdev_budget_usecs", 2000)

    def watch(self, descriptors: Sequence[int]) -> int:
        """Look at the receive queues of this process's sockets, as many as there is room for; return how many."""
        self._settings["sockets"] = 0
        if not descriptors:
            return 0
        raw = self._reader.iterate("sockets_of_reader")
        found = {int(each["fd"]): int(each["sock"]) for each in np.frombuffer(raw, dtype=DESCRIPTOR)}
        addresses = [found[fd] for fd in descriptors if fd in found][:SOCKETS]
        self._settings["sockets"][: len(addresses)] = addresses
        return len(addresses)

    def begin(self) -> int:
        """Start to count from nothing; return when that was."""
        self._settings["enabled"] = 0  # a flood that broke off may have left it at that
        self._reader.put(".bss", self._settings.tobytes())
        for name in ("timeline", "queues", "cpus"):
            self._reader.clear(name)
        self._before = read_stat(), time_squeeze()
        self._settings["start"] = start = time.monotonic_ns()
        self._settings["enabled"] = 1
        self._reader.put(".bss", self._settings.tobytes())
        return start

    def end(self) -> Counts:
        """Stop to count, and return what was."""
        stop = time.monotonic_ns()
        after = read_stat(), time_squeeze()
        self._settings["enabled"] = 0
        self._reader.put(".bss", self._settings.tobytes())
        start, shift = int(self._settings["start"]), int(self._settings["shift"])
        width = 1 << shift
        cpus, bins = self._settled()
        stop = max(stop, int(cpus["last"].max()))
        cut = stop - start > self._bins * width
        stop = min(stop, start + self._bins * width)
        used = min(self._bins, -(-(stop - start) // width))
        bins = bins[:, :used]
        spans = account.spread_time(bins["ns"], bins["whole"].astype(np.int64), width)
        for number in range(self.cpus):
            last = int(cpus[number]["last"]) or start
            account.close_account(spans[number], last, stop, actor_of(cpus[number]), start, width)
        queues = np.frombuffer(self._reader.take("queues", used, QUEUES.itemsize), dtype=QUEUES)
        before, squeezed = self._before
        ticks = {
            cpu: {name: value - before.get(cpu, {}).get(name, 0) for name, value in each.items()}
            for cpu, each in after[0].items()
        }
        return Counts(start, stop, width, spans, bins, queues, cpus, ticks, after[1] - squeezed, cut)

    def _settled(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """What stands in `cpus` and `timeline` when no program is in the middle of either any more."""
        while True:
            time.sleep(0.002)
            cpus = np.frombuffer(self._reader.take("cpus", self.cpus, CPU.itemsize), dtype=CPU)
            raw = self._reader.take("timeline", self.cpus * self._bins, BIN.itemsize)
            after = np.frombuffer(self._reader.take("cpus", self.cpus, CPU.itemsize), dtype=CPU)
            # a program that an emulated CPU has stopped in the middle of goes on later
            if not after["busy"].any() and (after["last"] == cpus["last"]).all():
                return cpus, np.frombuffer(raw, dtype=BIN).reshape(self.cpus, self._bins)


def actor_of(cpu: np.void) -> int:
    """Whose a CPU's time is now: actor_of of the programs. A CPU on which nothing happened at all has been idle."""
    if not cpu["known"]:
        return 0
    if cpu["irqs"]:
        return 10
    if cpu["role"] == 4:
        return 7
    if cpu["softirq"]:
        return 8 if cpu["softirq"] == 1 else 9
    if cpu["role"] in (5, 6):
        return 6 + int(cpu["role"])
    if cpu["role"] == 0:
        return 0
    return 2 * int(cpu["role"]) - 1 + (1 if cpu["kernel"] else 0)


# --- the kernel's own counters ----------------------------------------------------------------------------------------


def possible_cpus() -> int:
    """Return one more than the highest CPU number that this machine may have."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="utf-8")
    return 1 + max(int(number) for number in re.findall(r"\d+", text))


def read_stat() -> dict[int, dict[str, int]]:
    """Return what /proc/stat says of each CPU, in ns; its grain is a tick of 10 ms."""
    found = {}
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        if matched := re.match(r"cpu(\d+) (.*)", line):
            values = [int(word) * TICK_NS for word in matched[2].split()]
            found[int(matched[1])] = dict(zip(STAT, values, strict=False))
    return found


def time_squeeze() -> int:
    """Return the third column of /proc/net/softnet_stat over all CPUs: runs that ended with work left."""
    lines = Path("/proc/net/softnet_stat").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[2], 16) for line in lines)


def interrupts_of(device: str) -> list[int]:
    """Return the interrupts that tell of packets received by a device, by its name in /proc/interrupts.

    A device with one interrupt for everything has that one; a virtio device calls its own `virtioN-input`.
    """
    names = {device}
    with contextlib.suppress(OSError):
        names.add(Path(f"/sys/class/net/{device}/device").resolve(strict=True).name)
    return interrupts_in(Path("/proc/interrupts").read_text(encoding="utf-8"), names)


def interrupts_in(text: str, names: Collection[str]) -> list[int]:
    """The same, of what /proc/interrupts says, for a device that may be called by several names there."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        matched = re.match(r"\s*(\d+):.*\s(\S+)$", line)
        if matched and any(re.match(rf"{re.escape(name)}($|[-.@:])", matched[2]) for name in names):
            found[int(matched[1])] = matched[2]
    receiving = [number for number, name in found.items() if re.search(r"-(rx|input|TxRx)", name, re.IGNORECASE)]
    return receiving or list(found)


def cpus_of(irqs: Sequence[int]) -> set[int]:
    """Return the CPUs that interrupts go to; of one whose CPU the machine does not tell, all that it may go to."""
    found: set[int] = set()
    for irq in irqs:
        for name in ("effective_affinity_list", "smp_affinity_list"):
            with contextlib.suppress(OSError):
                if words := Path(f"/proc/irq/{irq}/{name}").read_text(encoding="utf-8").strip():
                    for part in words.split(","):
                        first, _, last = part.partition("-")
                        found |= set(range(int(first), int(last or first) + 1))
                    break
    return found


def read_sysctls() -> Mapping[str, int]:
    """Return the limits that a flood meets."""
    names = ("netdev_budget", "netdev_budget_usecs", "dev_weight", "netdev_max_backlog", "rmem_default", "rmem_max")
    found = {}
    for name in names:
        # those of memory are the initial network namespace's alone
        with contextlib.suppress(OSError, ValueError):
            found[name] = int(Path("/proc/sys/net/core", name).read_text(encoding="utf-8"))
    return found
