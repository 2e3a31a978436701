"""Putting a queue pair to the drills: hwrx's own in this process, or that of a verbs device, here or in a guest."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from cython_ext.frames.packet_ring import PacketRing
from hwrx.drill.ends import OwnEnd
from hwrx.drill.model import Drill, Result
from hwrx.drill.scene import ADDRESSES, MACS, LinkWire, Scene, judge_drill, play_in_memory
from hwrx.drill.verbs_peer import VerbsDevice, VerbsPeer
from hwrx.errors import HwrxError, StandstillError
from hwrx.host import tools
from hwrx.host.undo import Undo
from hwrx.roce.opening import ROCE_PORT
from hwrx.wires.topology import ADDRESSES as PAIR
from hwrx.wires.topology import DEVICES, LINKS

if TYPE_CHECKING:
    from hwrx.lab.vm import Guest

SILENCE = 300.0  # seconds in which an emulated guest on a busy machine says how far it has come
Say = Callable[[str, str], None]


class Request(Struct, frozen=True):
    """What is to be done: drills, with a verbs device as the peer, and the network device that leads to it.

    `address` is an IPv4 address of the verbs device, `beneath` the network device that it stands on.
    """

    drills: list[Drill]
    device: str = DEVICES["server"]
    address: str = PAIR["server"]
    beneath: str = LINKS["server"]
    netdev: str = LINKS["client"]


class Line(Struct, frozen=True, omit_defaults=True):
    """What the guest says: the kernel, how far it has come, or a result."""

    kernel: str = ""
    say: str = ""
    result: Result | None = None


def drills_in_memory(drills: list[Drill]) -> Iterator[Result]:
    """Put hwrx's own queue pair to the drills, in virtual time."""
    for drill in drills:
        yield play_in_memory(drill)


def drills_here(request: Request, say: Say) -> Iterator[Result]:
    """Put a verbs device of this machine to the drills. Needs root; its kernel gets an entry for our address meanwhile.

    :raises MachineError: if the device cannot be opened, or there is no packet ring on the network device
    """
    tools.need_root("a packet ring, and an entry for its address")
    with contextlib.ExitStack() as stack:
        device = VerbsDevice(request.device, request.address)
        stack.callback(device.close)
        ring = stack.enter_context(PacketRing(request.netdev, MACS["us"], only_port=ROCE_PORT))
        undo = stack.enter_context(Undo("a neighbour for drills"))
        entry = (ADDRESSES["us"], "dev", request.beneath)
        undo.plan("ip", "neighbour", "delete", *entry)
        tools.run_tool("ip", "neighbour", "replace", *entry, "lladdr", MACS["us"], "nud", "permanent")
        mac = _mac_of(request.beneath)
        for number, drill in enumerate(request.drills):
            say("drilling", drill.name)
            yield _play(drill, device, ring, mac, number)


def _play(drill: Drill, device: VerbsDevice, ring: PacketRing, mac: str, number: int) -> Result:
    begun = time.monotonic()
    us = OwnEnd("us", MACS["us"], ADDRESSES["us"], drill.us, number)
    try:
        peer = VerbsPeer(device, drill.peer)
    except Exception as error:  # PyverbsError is no common base of what 44.0 raises
        us.close()
        return Result(drill.name, "not tested", f"the device made no queue pair: {error}", {})
    try:
        us.connect(peer.own, mac, drill.us)
        peer.connect(us.own, MACS["us"], drill.peer)
        figures = Scene(drill, us, peer, LinkWire(ring)).play()
    except HwrxError as error:
        return Result(drill.name, "not tested", str(error.args[0]).splitlines()[0], {})
    finally:
        us.close()
        peer.close()
    return judge_drill(drill, figures, time.monotonic() - begun)


def _mac_of(netdev: str) -> str:
    return Path(f"/sys/class/net/{netdev}/address").read_text(encoding="ascii").strip()


def in_guest(request: Request, kernel: str | None, say: Say, about: dict[str, str]) -> Iterator[Result]:
    """Put rxe in a virtual machine to the drills.

    :param about: gets what the guest is: `kernel`, and `emulated` if it is
    :raises GuestError: if it does not live to their end
    """
    # this module runs in guests, too, which start no machine
    from hwrx.lab.vm import Guest

    with Guest("pair", kernel=kernel, progress=say) as guest:
        about |= {"emulated": "yes"} if guest.describe()["emulated"] else {}
        left = list(request.drills)
        try:
            for result in _in_guest(guest, request, say, about):
                left = [drill for drill in left if drill.name != result.name]
                yield result
        except StandstillError as error:
            guest.boot_again(error)
            yield from _in_guest(guest, msgspec.structs.replace(request, drills=left), say, about)


def _in_guest(guest: Guest, request: Request, say: Say, about: dict[str, str]) -> Iterator[Result]:
    words = msgspec.json.encode(request)
    for text in guest.lines("hwrx.drill.inside", words, silence=SILENCE, who="the drill"):
        if not text.startswith(b"{"):
            continue  # something that a tool printed
        line = msgspec.json.decode(text, type=Line)
        if line.result is not None:
            yield line.result
        elif line.kernel:
            about["kernel"] = line.kernel
        else:
            say("drilling", line.say)


def kernel_here() -> str:
    """Return the running kernel's version."""
    return os.uname().release
