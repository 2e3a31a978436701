"""All that `hwrx memory` measures, in one: here, or in a guest that has the hardware."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from hwrx.errors import GuestError
from hwrx.memory.holding import Holding, hold_pages
from hwrx.memory.limits import Limit, find_limits
from hwrx.memory.measuring import Measured, measure_pages
from hwrx.wires import topology


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


def in_guest(
    kernel: str | None, clock: Literal["wall", "icount"], pages: int, say: Callable[[str, str], None]
) -> Everything:
    """Measure all of it in a guest with SoftRoCE and a NIC behind an IOMMU."""
    from hwrx.lab.vm import Guest

    nic = topology.NIC_HARDWARE["server"]
    words = ["memory", "--json", "--pages", str(pages), "--nic", nic, "--clock", clock]
    load = f"modprobe -a {' '.join(topology.NIC_MODULES)} && exec {sys.executable} -m hwrx {' '.join(words)}"
    with Guest("pair", beside=["nic"], kernel=kernel, clock=clock, progress=say) as machine:
        say("memory", "measuring")
        done: subprocess.CompletedProcess[str] = machine.run(["sh", "-c", load], limit=240.0, folder=Path.cwd())
        try:
            return msgspec.json.decode(done.stdout[done.stdout.find("{\n") :], type=Everything)
        except msgspec.MsgspecError:
            raise GuestError(f"the measurement in the guest failed: {done.stdout.strip()}") from None
