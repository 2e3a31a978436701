"""What those who tell the steps look at: the request, what was found, and the packet's own events."""

from __future__ import annotations

from msgspec import Struct

from hwrx.reception.frame import ETHERNET, Field, read_frame
from hwrx.reception.records import KERNEL_TABLE, Event
from hwrx.reception.scene import Found, Request, names_of
from hwrx.reception.trail import Trail

Facts = dict[str, str | int | bool | None]
Told = tuple[str, Facts]


class View(Struct):
    """One packet's reception, as its tellers see it."""

    request: Request
    found: Found
    trail: Trail
    frame: list[Field]
    names: dict[int, str]

    def get(self, name: str) -> Event | None:
        """Return one of the packet's events, None if it was not seen."""
        return self.trail.get(name)

    @property
    def stack(self) -> Event:
        """The event at which the last network stack took the packet, which is always there."""
        return self.trail.seen["stack"]

    @property
    def length(self) -> int:
        """Bytes of the frame."""
        return ETHERNET + self.stack.values[4]

    def name(self, tid: int, task: str = "") -> str:
        """Say who a task is."""
        return self.names.get(tid) or f"{task or 'the task'} ({tid})"

    def since(self, event: Event) -> int:
        """Return ns since the sender's call."""
        return event.at - self.found.sent


def view_of(request: Request, found: Found, trail: Trail) -> View:
    """Put a view together."""
    stack = trail.seen["stack"]
    length = ETHERNET + stack.values[4]
    frame = read_frame(stack.data[: min(len(stack.data), length)], length)
    return View(request, found, trail, frame, dict(names_of(found)))


def table_name(table: int) -> str:
    """Say which page table it is, by the physical address that CR3 holds."""
    return {0: "not told", KERNEL_TABLE: "the kernel's own, init_mm's"}.get(table, f"{table:#x}")


def microseconds(ns: int) -> str:
    """Say a time."""
    return f"{ns / 1000:,.1f} µs"
