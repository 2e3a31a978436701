"""Following one packet on this kernel, or in a virtual machine that has a NIC for it."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from hwrx.errors import GuestError
from hwrx.reception.scene import Request, Say, check_request, follow_packet
from hwrx.reception.steps import Reception, tell_reception

SILENCE = 300.0  # seconds in which an emulated guest on a busy machine says how far it has come


class Line(Struct, frozen=True, omit_defaults=True):
    """What the guest says: how far it has come, or the result."""

    say: str = ""
    reception: Reception | None = None


def follow_here(request: Request, say: Say) -> Reception:
    """Follow a packet on this kernel. Needs root; raises as `scene.follow_packet` does."""
    return tell_reception(request, follow_packet(request, say))


def follow_in_guest(request: Request, kernel: str | None, say: Say) -> Reception:
    """Follow a packet in a virtual machine with the topology's hardware.

    :raises UsageError: if the request does not go together
    :raises GuestError: if the machine does not live to the end
    """
    check_request(request)
    # this module runs in guests, too, which start no machine
    from hwrx.lab.vm import Guest

    found = None
    with Guest(request.topology, kernel=kernel, progress=say) as guest:
        words = msgspec.json.encode(request)
        for text in guest.lines("hwrx.reception.inside", words, silence=SILENCE, who="the walk"):
            if not text.startswith(b"{"):
                continue  # something that a tool printed
            line = msgspec.json.decode(text, type=Line)
            if line.say:
                say("trace", line.say)
            found = line.reception or found
    if found is None:
        raise GuestError("the walk in the guest ended without a result", remedy="try it again")
    return found
