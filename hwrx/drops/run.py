"""Provoking any number of places, on this kernel or in a guest: each balance as soon as it is closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from hwrx.drops import provoke
from hwrx.drops.books import Balance
from hwrx.errors import MachineError, StandstillError, UsageError

if TYPE_CHECKING:
    from hwrx.lab.vm import Guest

SILENCE = 300.0  # seconds in which an emulated guest on a busy machine says how far it has come
EVERY = 10.0  # seconds between two words about one experiment
Say = Callable[[str, str], None]


class Request(Struct, frozen=True):
    """What is to be provoked, each place with so many messages."""

    places: list[str]
    messages: int


class Provoked(Struct, frozen=True, omit_defaults=True):
    """One place's experiment: its balance, or under `refused` why it cannot be provoked here."""

    place: str
    seconds: float
    balance: Balance | None = None
    refused: str = ""


class Line(Struct, frozen=True, omit_defaults=True):
    """What the guest says: how far it has come, or one result."""

    say: str = ""
    provoked: Provoked | None = None


def check_place(places: Sequence[str], messages: int) -> None:
    """UsageError where there is no such place, or nothing to send."""
    if unknown := [place for place in places if place not in provoke.PLACES]:
        raise UsageError(f"'{unknown[0]}' cannot be provoked", remedy=f"choose of: {', '.join(provoke.PLACES)}")
    if messages < 1:
        raise UsageError("at least one message has to be sent")


def drops_here(request: Request, say: Say) -> Iterator[Provoked]:
    """Provoke the places on this kernel, one after the other, on a wire that is made for it. Needs root."""
    with provoke.drop_wire() as names:
        for place in request.places:
            say("provoking", place)
            since = time.monotonic()
            balance, refused = None, ""
            try:
                trial = provoke.PLACES.index(place) + 1
                balance = provoke.provoke_drops(
                    place, names, request.messages, trial, _pace(place, request.messages, say)
                )
            except MachineError as error:
                refused = error.args[0].splitlines()[0]
            yield Provoked(place, round(time.monotonic() - since, 3), balance, refused)


def in_guest(request: Request, kernel: str | None, say: Say) -> Iterator[Provoked]:
    """The same in a virtual machine that has what every place needs. GuestError where it does not live to their end."""
    # this module runs in guests, too, which start no machine
    from hwrx.lab.vm import Guest

    with Guest("pair", beside=["nic"], kernel=kernel, progress=say) as guest:
        left = list(request.places)
        try:
            for provoked in _in_guest(guest, request, say):
                left.remove(provoked.place)
                yield provoked
        except StandstillError as error:
            guest.boot_again(error)
            yield from _in_guest(guest, msgspec.structs.replace(request, places=left), say)


def _in_guest(guest: Guest, request: Request, say: Say) -> Iterator[Provoked]:
    words = msgspec.json.encode(request)
    for text in guest.lines("hwrx.drops.inside", words, silence=SILENCE, who="the experiment"):
        if not text.startswith(b"{"):
            continue  # something that a tool printed
        line = msgspec.json.decode(text, type=Line)
        if line.provoked is not None:
            yield line.provoked
        else:
            say("provoking", line.say)


def _pace(place: str, messages: int, say: Say) -> Callable[[int], None]:
    """Return what is told how many messages have been sent, and says so now and then."""
    last = time.monotonic()

    def told(sent: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say("provoking", f"{place}, {sent:,} of {messages:,}")

    return told
