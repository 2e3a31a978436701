"""All that `hwrx memory` measures, in one: here, or in a guest that has the hardware."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from hwrx.control.messages import Clock
from hwrx.errors import GuestError, StandstillError
from hwrx.memory.holding import Holding, hold_pages
from hwrx.memory.limits import Limit, find_limits
from hwrx.memory.measuring import Measured, measure_pages

if TYPE_CHECKING:
    from hwrx.lab.vm import Guest

SILENCE = 240.0  # seconds that a guest has for all of it


class Everything(Struct, frozen=True):
    """`pages`: the whole measurement. `strict`: the compaction again, where locked pages must not be moved.

    `unavailable`: what of holding and limits could not be had, with the reason.
    """

    kernel: str
    clock: str
    pages: Measured
    strict: Measured
    holding: list[Holding]
    limits: list[Limit]
    unavailable: dict[str, str]


def measure_everything(
    *, pages: int = 512, device: str | None = None, nic: str | None = None, own: Collection[str] = (),
    clock: str = "wall", say: Callable[[str], None] = lambda text: None,
) -> Everything:  # fmt: skip
    """Measure all of it on this kernel; arguments are those of `measure`. `clock` is what the times are called."""
    whole = measure_pages(pages=pages, device=device, nic=nic, own=own, say=say)
    say("the same, where compaction must leave locked pages alone")
    strict = measure_pages(pages=pages, device=device, nic=nic, own=own, unevictable=False, pressure=False, say=say)
    say("getting hold of memory")
    held, lacking = hold_pages(device=device)
    say("exceeding limits")
    exceeded, untried = find_limits(device=device, nic=nic, own=own)
    return Everything(os.uname().release, clock, whole, strict, held, exceeded, lacking | untried)


class Request(Struct, frozen=True):
    """What a guest is to measure; `clock` is what its times are called."""

    pages: int
    clock: Clock


def in_guest(request: Request, kernel: str | None, say: Callable[[str, str], None]) -> Everything:
    """Measure all of it in a guest with SoftRoCE and a NIC behind an IOMMU.

    :raises GuestError: if the guest does not live to the end, or says nothing of what it measured
    """
    # this module runs in guests, too, which start no machine
    from hwrx.lab.vm import Guest

    with Guest("pair", beside=["nic"], kernel=kernel, clock=request.clock, progress=say) as machine:
        say("memory", "measuring")
        try:
            return _in_guest(machine, request)
        except StandstillError as error:
            machine.boot_again(error)
            return _in_guest(machine, request)


def _in_guest(machine: Guest, request: Request) -> Everything:
    words = msgspec.json.encode(request)
    for line in machine.lines("hwrx.memory.inside", words, silence=SILENCE, who="the measurement"):
        if line.startswith(b"{"):  # all else a tool has printed
            return msgspec.json.decode(line, type=Everything)
    raise GuestError("the measurement in the guest ended and said nothing")
