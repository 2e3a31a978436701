"""Guests on one wire as a testbed: each is a host whose agents are reached over its port. See `hwrx.runs.hosts`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hwrx.control.environment import Host
from hwrx.control.guest_boot import Boot
from hwrx.control.messages import ENDS
from hwrx.control.peers import Peer, Way
from hwrx.errors import MachineError, PeerError, SilenceError, StandstillError, UsageError
from hwrx.host.outside import check_name
from hwrx.runs.hosts import End, HostsBed, Manifest
from hwrx.runs.lanes import available_memory
from hwrx.wires import stations

if TYPE_CHECKING:
    from hwrx.lab.cable import Cable
    from hwrx.lab.vm import Guest

MEMORY = 1 << 30  # bytes of a guest on the wire
USED = 512 << 20  # bytes that one comes to use of this machine's, emulated: 500 MB were seen with agents in it


class GuestsBed(HostsBed):
    """Guests by name, which boot together. See `hwrx.runs.hosts.HostsBed`.

    A guest that is gone, or stands still, is booted once more when it is wanted next, as an agent is started anew.
    """

    def __init__(self, guests: Mapping[str, Guest], cable: Cable, boot: Boot) -> None:
        places = {name: guest.places["client"] for name, guest in guests.items()}
        super().__init__([
            Host(name=name, reach="local", address=place.address, netdev=place.netdev, verbs=place.verbs)
            for name, place in places.items()
        ])  # fmt: skip
        if set(ENDS) <= places.keys():
            self.places = {role: places[role] for role in ENDS}
        self.guests = guests
        self.boot = boot
        self._cable = cable
        self._still: dict[str, StandstillError] = {}

    def try_ends(self, ends: Sequence[End]) -> dict[End, Peer | PeerError]:
        """See HostsBed."""
        for name in dict.fromkeys(end[1] for end in ends):
            self._revive(name)
        return super().try_ends(ends)

    def need_answer(self, trouble: SilenceError) -> None:
        """See `hwrx.runs.beds.Testbed`."""
        for name, guest in self.guests.items():
            try:
                guest.need_answer(trouble)
            except StandstillError as error:
                self._still[name] = error
                raise

    def describe(self) -> Manifest:
        """Return what is to be known of the guests themselves, by their names."""
        boot = msgspec.to_builtins(self.boot)
        return {name: {**guest.describe(), "boot": boot} for name, guest in self.guests.items()}

    def manifest(self) -> Manifest:
        """See `hwrx.runs.beds.Testbed`: as of hosts, and what each guest was booted with."""
        # pyverbs and pyudev: not needed where only a guest is measured
        from hwrx.machine import description

        guests, hosts = self.describe(), self._describe_hosts()
        first = next(iter(guests))
        return {
            "wire": wire_words(len(guests)),
            "guest": guests[first],
            "guests": guests,
            "emulated": guests[first]["emulated"],
            "machine": hosts["host machines"][first],
            "host": description.describe_machine(),
            **hosts,
        }

    def wire_drops(self) -> dict[str, int]:
        """See HostsBed; empty between two guests, where nothing stands that could drop a frame."""
        return {name: counts["dropped"] for name, counts in zip(self.guests, self._cable.counts(), strict=False)}

    def _way_to(self, end: End) -> Way:
        role, name, _ = end
        guest = self.guests[name]
        return lambda: guest.agent(role)

    def _revive(self, name: str) -> None:
        self._find(name)
        guest, still = self.guests[name], self._still.pop(name, None)
        gone = still or guest.why_gone()
        if gone is not None:
            guest.boot_again(gone)


def wire_words(guests: int) -> str:
    """Say what the wire between guests is."""
    if guests == 2:
        return "between two guests: each frame is a datagram from one emulator to the other, and none is lost"
    return f"between {guests} guests: a switch in hwrx hands each frame from one emulator to another"


@contextlib.contextmanager
def guests_on_a_wire(
    names: Sequence[str],
    say: Callable[[str, str], None],
    *,
    boot: Boot,
    kernel: str | None = None,
    append: Sequence[str] = (),
    options: Mapping[str, int] | None = None,
    log: Path | None = None,
    held: Callable[[Guest], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[GuestsBed]:
    """Boot guests, all at the same time, with a wire between them.

    :param names: what they are called, each once
    :param say: is told how far they are
    :param boot, append, kernel: what each is booted with
    :param options: of the wire: see `hwrx.wires.topology.wire`
    :param log: file that takes what the first guest prints; the others' have their names in it
    :param held: a context that each guest is within until it has ended
    :raises UsageError: if there are too many
    :raises MachineError: if this machine has no memory for so many
    :raises GuestError: if one does not come up: none is left then
    """
    check_count(names)
    need_memory(names)
    # what runs in a guest imports this module, too, and starts no machine
    from hwrx.lab.cable import Cable
    from hwrx.lab.vm import BOOT_LIMIT, Guest

    with contextlib.ExitStack() as stack:
        cable = stack.enter_context(Cable([stations.station_hardware(number) for number in _numbers(names)]))
        guests: dict[str, Guest] = {}
        for number, name, plug in zip(_numbers(names), names, cable.plugs, strict=True):
            guests[name] = guest = Guest(
                "wire",
                kernel=kernel,
                cpus=1,
                memory=f"{MEMORY >> 20}M",
                append=append,
                qemu=stations.station_words(number, plug),
                descriptors=[plug],
                options={**(options or {}), "number": number, "guests": len(names)},
                log=log if log is None or number == 1 else log.with_name(f"{log.stem}-{name}{log.suffix}"),
                limit=BOOT_LIMIT * (1 + len(names) / 2),
                progress=_teller(name, say, first=number == 1),
            )
            stack.enter_context(held(guest))
            stack.push(guest)
            guest.begin()
            say("guests", f"{number} of {len(names)} begin to boot")
        for number, guest in enumerate(guests.values()):
            say("guests", f"{number} of {len(names)} are up")
            guest.wait_until_up()
        say("guests", f"all {len(names)} are up")
        yield GuestsBed(guests, cable, boot)


def check_guests(topology: str, clock: str, names: Sequence[str], *, here: bool) -> None:
    """UsageError if something is asked for that several guests cannot have in common, or cannot be at all."""
    if here:
        raise UsageError(
            f"the topology '{topology}' is between guests, and --here boots none", remedy="leave out --here"
        )
    if clock == "icount":
        raise UsageError(
            f"the clock icount counts one guest's instructions, and the topology '{topology}' is between several: what"
            " one counts while the other works says nothing",
            remedy="--clock wall; or --topology pair, which has both ends in one guest",
        )
    for name in names:
        check_name(name, "guest", remedy="guest1, sink, …: a file may get that name (--log)")
    check_count(names)


def check_count(names: Sequence[str]) -> None:
    """UsageError if they are more guests than a wire can have."""
    if len(names) > stations.MOST:
        raise UsageError(
            f"{len(names)} guests are more than the {stations.MOST} that a wire can have", remedy="fewer clients"
        )


def need_memory(names: Sequence[str]) -> None:
    """MachineError if this machine has not the memory that so many guests take when they are booted."""
    if (there := available_memory()) < len(names) * USED:
        raise MachineError(
            f"{len(names)} guests use some {len(names) * USED >> 20} MiB of memory, and this machine has"
            f" {there >> 20} left",
            remedy=f"at most {there // USED} guests, or end what else runs",
        )


def _numbers(names: Sequence[str]) -> range:
    return range(1, len(names) + 1)


def _teller(name: str, say: Callable[[str, str], None], *, first: bool) -> Callable[[str, str], None]:
    """Tell of one guest what is of it alone; of the kernel, which all have, the first one's word is enough."""

    def tell(stage: str, text: str) -> None:
        if stage == "guest" or (first and stage != "agents"):
            say(stage, f"{name}: {text}" if stage == "guest" else text)

    return tell
