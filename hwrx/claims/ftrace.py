"""Which kernel functions ran, in what order, on which CPU and in whose context: the kernel's own function tracer.

The tracer of `hwrx.probes` follows single messages by what they carry. What serves many messages at once (an
interrupt, a poll), or reads no message (a driver's allocation), it cannot tell; this can, on an otherwise quiet
machine. It runs in an instance of its own (tracefs, instances/), so it disturbs nobody else's tracing, and is gone
when the context is left. The context is what the kernel notes with each event (Documentation/trace/ftrace.rst,
"latency trace format").
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct

from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.host.undo import Undo

ROOT = Path("/sys/kernel/tracing")
BUFFER_KB = 8192  # a CPU
LINE = re.compile(r"^\s*(.+)-(\d+)\s+\[(\d+)\]\s+(\S+)\s+(\d+\.\d+): (\w+)(?:: (.*)| <-(.*))$")
CONTEXTS = {"h": "hard IRQ", "H": "hard IRQ", "s": "softirq", "z": "NMI", "Z": "NMI"}


class Call(Struct, frozen=True):
    """One call of a function, or one event. `at`: µs of CLOCK_MONOTONIC; `detail`: the caller, or the event's words.

    `task` and `tid` are of whoever had the CPU, which in an interrupt is somebody who was in its way.
    """

    name: str
    at: float
    cpu: int
    context: str  # hard IRQ, softirq, NMI or thread
    task: str
    tid: int
    detail: str


class Kept:
    """Events that stay switched on until the process ends, in an instance of their own that records nothing.

    An event, and the names of tasks that every tracer has noted (tracing_start_cmdline_record: sched_switch and
    sched_wakeup), are switched by patching the kernel's code in places that all CPUs pass all the time. Software
    emulation of several CPUs may translate such a place while it is being patched, and keep what it read. All CPUs
    then meet an int3 that is not in memory any more, for ever (exc_int3, kprobe_int3_handler: so the registers of a
    guest of QEMU 7.2 that stood still), and nothing in the guest runs. So each is switched on once, not for each
    experiment, which makes that some twenty times less likely.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._path: Path | None = None
        self._on: set[str] = set()

    def add(self, events: Iterable[str]) -> None:
        """Switch on what is not on yet; MachineError for what this kernel does not have."""
        if self._path is None:
            undo = self._stack.enter_context(Undo("tracing of the kernel's events"))
            self._path = ROOT / "instances" / f"hwrx-kept-{undo.token}"
            undo.plan("rmdir", str(self._path))
            self._path.mkdir()
            (self._path / "tracing_on").write_text("0")
            (self._path / "buffer_size_kb").write_text("4")
            atexit.register(self.close)
        for event in events:
            if event in self._on:
                continue
            if not (self._path / "events" / event).exists():
                raise MachineError(f"this kernel has no event {event}")
            (self._path / "events" / event / "enable").write_text("1")
            self._on.add(event)

    def close(self) -> None:
        """Switch all of them off; harmless when nothing is on."""
        self._stack.close()
        self._path = None
        self._on.clear()


KEPT = Kept()
ALWAYS = "sched/sched_waking"  # with any event on, the names of tasks are noted


class Ftrace:
    """Records calls of `functions` and `events` ("group/name") while it is entered; `calls` afterwards, in time order.

    A function may be several alternatives, "new_name|old_name", of which the first that exists is traced and goes by
    the first name. MachineError where none of them can be traced here, or without privilege.
    """

    def __init__(self, functions: Sequence[str], events: Sequence[str] = ()) -> None:
        tools.need_root("the kernel's function tracer")
        if not (ROOT / "instances").exists():
            raise MachineError("tracefs is not mounted", remedy=f"mount -t tracefs tracefs {ROOT}")
        self._names = dict(_choose(functions))
        self._events = list(events)
        self._path = ROOT / "instances" / f"hwrx-{os.getpid()}"
        self.calls: list[Call] = []

    def __enter__(self) -> Self:
        try:
            KEPT.add([ALWAYS, *self._events])
            self._path.mkdir()
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(BUFFER_KB))
            if self._names:
                self._write("set_ftrace_filter", " ".join(self._names))
                self._write("current_tracer", "function")
            for event in self._events:
                self._write(f"events/{event}/enable", "1")
            self._write("trace", "")  # what came while it was set up
        except OSError as error:
            self._remove()
            raise MachineError(f"the function tracer cannot be set up: {error.strerror} ({error.filename})") from None
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._write("tracing_on", "0")
            if exc[0] is None:
                self.calls = self._read()
        finally:
            self._remove()

    def _write(self, name: str, value: str) -> None:
        (self._path / name).write_text(value)

    def _read(self) -> list[Call]:
        text = (self._path / "trace").read_text(encoding="utf-8")
        found = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text)
        if found and found[1] != found[2]:
            raise MachineError(f"the function tracer kept {found[1]} of {found[2]} events", remedy="--set messages=100")
        return list(parse_stack(text, self._names))

    def _remove(self) -> None:
        if self._path.exists():
            (self._path / "current_tracer").write_text("nop")
            self._path.rmdir()


def parse_stack(text: str, names: dict[str, str]) -> Iterator[Call]:
    """Read the tracer's lines; `names` are the functions' names by what the kernel calls them."""
    for line in text.splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        task, tid, cpu, flags, at, name, words, caller = found.groups()
        context = CONTEXTS.get(flags[2:3], "thread")
        detail = words if words is not None else caller
        yield Call(names.get(name, name), float(at) * 1e6, int(cpu), context, task.strip(), int(tid), detail)


def _choose(functions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what to trace, and what it goes by."""
    if not functions:
        return
    known = {
        line.split(maxsplit=1)[0]
        for line in (ROOT / "available_filter_functions").read_text(encoding="utf-8").splitlines()
    }
    for function in functions:
        ways = function.split("|")
        there = next((way for way in ways if way in known), None)
        if there is None:
            what = " or ".join(ways)
            raise MachineError(f"this kernel does not let {what} be traced: inlined, or its module is not there")
        yield there, ways[0]
