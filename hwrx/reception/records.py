"""What the kernel's side leaves: a record for each step while it is armed, decoded to events in the order of time.

The programs are those of `probes/bpf/reception.bpf.c`. What follows knows nothing of them but `Event`, so that events
of another source (an emulator's) can take their place.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from msgspec import Struct

from hwrx import stages
from hwrx.errors import MachineError
from hwrx.probes import attaching, build

if TYPE_CHECKING:
    from cython_ext.bpf.bpf_reader import Reader

LANE, LANES, ROOM = 1024, 3, 112
# struct settings, struct record of the programs
SETTINGS = np.dtype([("page_offset", "u8"), ("constant", "u4"), ("armed", "u4"), ("e1000e", "u4", 2)])
RECORD = np.dtype([
    ("ns", "u8"), ("a", "u8", 10), ("pgd", "u8"), ("flags", "u8"), ("tid", "u4"), ("tgid", "u4"), ("preempt", "u4"),
    ("cpu", "u2"), ("kind", "u2"), ("comm", "S16"), ("bytes", "u1", ROOM),
])  # fmt: skip
# enum kind, in its order, from 1 on
KINDS = (
    "irq entry", "irq exit", "irq event", "softirq raise", "softirq entry", "softirq exit", "napi schedule",
    "napi polled", "poll begins", "poll ends", "ring read", "handler", "handler ends", "allocated", "typed", "gro",
    "stack", "packet_rcv", "cloned", "ip_rcv", "routed", "local", "forwarded", "output", "udp_rcv", "lookup",
    "found sock", "udp queue", "filtered", "enqueued", "ready", "waking", "switched", "mm switched", "cr3 loaded",
    "taken", "copied", "received", "sent call", "device queue", "xmit", "killed", "pio read", "netif_rx", "hook",
    "network rx", "backlog", "vector",
)  # fmt: skip
UNTOLD = (1 << 64) - 1
RXQ0 = 1 << 20  # of the register IMS: the interrupt of receive queue 0 (82574 datasheet, 10.2.4.7)
KERNEL_TABLE = 1  # instead of the physical address of a page table: the one in the kernel's image (init_mm)
INTERRUPT_FLAG = 1 << 9  # of the processor's flags: interrupts are let in (Intel SDM 1, 3.4.3)
HARD, SERVING = 0x000F0000, 0x00000100  # of preempt_count: include/linux/preempt.h


class Event(Struct, frozen=True):
    """One step that the kernel made. `at`: ns of CLOCK_MONOTONIC. `values` and `data`: by kind.

    `context` is "thread", "softirq" or "hard IRQ"; `task` and `tid` are of whoever had the CPU, which in an interrupt
    is somebody who was in its way. `table`: the physical address of the page table that the CPU had loaded (CR3).
    `interruptible`: whether the CPU let interrupts in, None: not told. `beneath`: whether an interrupt came upon a
    softirq.
    """

    kind: str
    at: int
    cpu: int
    context: str
    task: str
    tid: int
    values: tuple[int, ...]
    table: int
    interruptible: bool | None
    data: bytes
    beneath: bool = False

    def word(self, at: int = 0, room: int = 32) -> str:
        """Return a word of the data: the name that stands from byte `at` on."""
        return self.data[at : at + room].split(b"\0", 1)[0].decode(errors="replace")


class Recorder:
    """The programs, loaded and attached; records while `armed`. A context manager; leaving detaches everything.

    `e1000e`: numbers of network devices that this driver has: their ring and mask are read, too. `refused` says which
    programs this kernel does not take, and why. MachineError where it takes none of them.
    """

    def __init__(self, e1000e: tuple[int, ...] = ()) -> None:
        attaching.require_tracer()
        self.refused: dict[str, str] = {}
        self._cpus = os.sysconf("SC_NPROCESSORS_CONF")
        layout = attaching.memory_layout()
        self._settings = np.zeros((), dtype=SETTINGS)
        self._settings["page_offset"] = layout.get("page_offset_base", 0)
        self._settings["constant"] = layout.get("constant", True)
        self._settings["e1000e"][: len(e1000e)] = e1000e
        self._stack = contextlib.ExitStack()
        self._reader = self._load()

    def _load(self) -> Reader:
        """Load all programs that the kernel takes: each that it refuses is left out, and the rest loaded again."""
        from cython_ext.bpf.bpf_reader import Reader
        from cython_ext.bpf.tracer import LoadError, Tracer

        try:
            path = build.find_or_build(stages.stage_header(), "reception")
        except build.BuildError as error:
            raise MachineError(str(error), remedy=error.remedy) from None
        with Tracer(path) as opened:
            self._sections = opened.programs()
        sizes = {"records": self._cpus * LANES * LANE, "used": self._cpus * LANES}
        while True:
            try:
                return self._stack.enter_context(Reader(path, b"", without=tuple(self.refused), sizes=sizes))
            except LoadError as error:
                named = re.findall(r"prog '(\w+)'", error.said)
                word = attaching.last_word(error.said) or str(error.strerror)
                if not named or named[-1] in self.refused:
                    raise MachineError(
                        f"this kernel does not load the programs that follow a packet: {word}",
                        remedy="it needs root, and BTF (/sys/kernel/btf/vmlinux); hwrx doctor says what there is",
                    ) from None
                self.refused[named[-1]] = word

    def __enter__(self) -> Self:
        """Attach each program; MachineError if no function can be probed at all."""
        attached = 0
        try:
            for name, section in self._sections.items():
                if name in self.refused:
                    continue
                try:
                    self._reader.attach(name)
                    attached += "probe/" in section
                except OSError as error:
                    self.refused[name] = str(error.strerror)
        except BaseException:
            self._stack.close()
            raise
        if not attached:
            self._stack.close()
            raise MachineError(
                "this kernel lets none of its functions be probed, and without them a packet's way is not seen in full",
                remedy="leave out --here: a guest's kernel does",
            )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def armed(self) -> Iterator[list[Event]]:
        """Record what is within; the list is filled when it is left. MachineError if there was no room for all."""
        events: list[Event] = []
        for name in ("records", "used"):
            self._reader.clear(name)
        self._switch(on=True)
        try:
            yield events
        finally:
            self._switch(on=False)
        used = np.frombuffer(self._reader.take("used", self._cpus * LANES, 8), dtype="u8")
        if used.max() > LANE:
            raise MachineError(
                f"there was room for {LANE:,} records of a CPU, and more came: {used.max():,}",
                remedy="something else keeps the network busy: repeat it on a quiet machine",
            )
        raw = np.frombuffer(self._reader.take("records", self._cpus * LANES * LANE, RECORD.itemsize), dtype=RECORD)
        raw = raw[raw["ns"] > 0]
        events += map(event_of, raw[np.argsort(raw["ns"], kind="stable")])

    def _switch(self, *, on: bool) -> None:
        self._settings["armed"] = on
        self._reader.put(".data", self._settings.tobytes())


def event_of(record: np.void) -> Event:
    """Decode one record."""
    preempt, flags = int(record["preempt"]), int(record["flags"])
    context = "hard IRQ" if preempt & HARD else "softirq" if preempt & SERVING else "thread"
    return Event(
        KINDS[int(record["kind"]) - 1],
        int(record["ns"]),
        int(record["cpu"]),
        context,
        bytes(record["comm"]).decode(errors="replace"),
        int(record["tid"]),
        tuple(int(value) for value in record["a"]),
        int(record["pgd"]),
        None if flags == UNTOLD else bool(flags & INTERRUPT_FLAG),
        record["bytes"].tobytes(),
        bool(preempt & HARD and preempt & SERVING),
    )


def driver_of(netdev: str) -> str:
    """Return the name of a network device's driver as sysfs has it; "" for one of software."""
    try:
        return (Path("/sys/class/net") / netdev / "device/driver").resolve(strict=True).name
    except OSError:
        return ""
