"""Each byte of a message, followed from the sender's memory to the receiver's: copied where, by which function.

By physical address, from what the emulator says of every access to memory. A byte is known from where it was written as
part of a message; loads and stores carry it on, through registers, and where the receiver verifies the message it is
looked up whose byte lies there. What a device writes the emulator's plugin does not see: a byte that no CPU has stored
at its place since a device was last told something came by DMA.

A copy is a store of the byte on its way; a pass is a load of it that no such store follows from (a checksum). Saving
registers (PUSH) brings no message further and is neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx.anatomy.layout import (
    AT,
    FILLED,
    FILLS,
    INDEX,
    LOADS,
    NOWHERE,
    OF_DEVICE,
    PAGE,
    PHYSICAL,
    RAN,
    SENDS,
    SIZE_SHIFT,
    STORES,
    VERIFIED,
    VERIFIES,
    WHERE,
    Recording,
)
from hwrx.anatomy.model import Side
from hwrx.anatomy.moves import Does, Step, decode_steps
from hwrx.anatomy.stacks import whole_address

KERNEL = 1 << 47  # addresses from here on are the kernel's
BLOCK = (1 << 32) - 1
PAGE_SHIFT = 12
# a packet goes over to the receiving side here: a CPU's backlog, and rxe's short-cut between queue pairs of a device
CROSSINGS = ("enqueue_to_backlog", "rxe_rcv")
SENT = 1 << 62  # root of the message's bytes: this and their number
MADE = 1 << 63  # and of those that an instruction made


class Handled(Struct, frozen=True):
    """What a function did with payload on one side: bytes that it copied, or passed over."""

    side: Side
    function: int  # its number in the symbols
    copied: int = 0
    passed: int = 0


class Followed(Struct, frozen=True):
    """One message, by its bytes. `arrived`: that lie at the receiver where they belong, whatever way they took.

    `landed`: of these, that a device wrote there or at the first place of the receiving side. `elsewhere`: of which the
    way could not be told. All three in bytes; `arrived` + `elsewhere` is the message's size.
    """

    size: int
    arrived: int
    landed: int
    elsewhere: int
    handled: tuple[Handled, ...]

    def copies(self, side: Side) -> float:
        """Return how often the CPU copied each byte on this side."""
        return sum(each.copied for each in self.handled if each.side == side) / self.size

    def passes(self, side: Side) -> float:
        """Return how often the CPU read each byte on this side, but for what it copied."""
        return sum(each.passed for each in self.handled if each.side == side) / self.size


class Node(Struct):
    """A byte at a place: when it was put there, and what it was before any was recorded (`root`)."""

    root: int  # SENT + its number in the message, MADE, or the physical address where it was found
    word: int  # of the store; NEVER of the sender's own memory, which no packet takes away
    side: Side


class Load(Struct):
    """Bytes that an instruction read from `place` on; `copied`: how many were then stored elsewhere."""

    function: int
    place: int
    nodes: list[tuple[Side, Node]]
    copied: int = 0


class Access(Struct):
    """A load or a store of an instruction: its block, and its index there. `physical`: None of a device, or unknown."""

    store: bool
    virtual: int
    physical: int | None
    device: bool
    size: int
    block: int
    index: int


Held = list["tuple[Node, Load] | None"]  # bytes in a register, the lowest first
OTHER = Node(MADE, -1, "sender")
NEVER = 1 << 60  # a word that no crossing lies behind


class Follower:
    """Goes through the words of a message, with what each place in memory and each register holds."""

    def __init__(
        self,
        recording: Recording,
        owners: npt.NDArray[np.int64],
        size: int,
        crossings: Collection[int],
        own: Collection[int],
    ) -> None:
        """Take a recording with accesses to memory.

        :param owners: number of the function of each of its instructions
        :param size: of a message, in bytes
        :param crossings: numbers of the functions in which a packet goes over to the receiving side
        :param own: numbers of those of the measuring loop: its looks at a message are none of the path's
        """
        self._recording = recording
        self._owners = owners
        self._size = size
        self._crossings = crossings
        self._own = own
        self._pages = find_pages(recording)
        self._steps: dict[int, list[Step]] = {}
        self._forget()

    def _forget(self) -> None:
        self._memory: dict[int, Node] = {}
        self._registers: dict[int, Held] = {}
        self._read: Held = []  # by MOVS, which stores it next
        self._loads: list[Load] = []
        self._copies: list[tuple[int, Node]] = []  # function, and the byte at its new place
        self._block, self._index = -1, 0  # up to which instruction registers were followed
        self._crossed = -1  # word of the last crossing
        self._last: Access | None = None  # since the block began
        self._part = 0  # bytes of the same access before it: the emulator makes several of a wide one

    def follow(self, first: int, last: int, source: Mapping[int, int]) -> Followed | None:
        """Follow the message of the words `first` to `last`, without it; None if none was verified there.

        :param source: physical address -> number of a byte, of a message that lay there before
        """
        self._forget()
        self._memory.update({place: Node(SENT + number, NEVER, "sender") for place, number in source.items()})
        delivered: dict[int, Node] = {}
        for phase, word, what in events(self._recording, first, last, self._size, self._pages):
            if isinstance(what, int):
                self._enter(word, what)
            elif phase is None:
                self._use(word, what[0])
            elif phase == FILLS and what[0].store:
                for number, place in what[1]:
                    self._memory[place] = Node(SENT + number, NEVER, "sender")
            elif phase == VERIFIES and not what[0].store:
                for number, place in what[1]:
                    delivered.setdefault(number, self._node_at(place))
        return self._result(delivered) if delivered else None

    def _enter(self, word: int, block: int) -> None:
        """Go into a block: what was left of the one before has run."""
        self._advance(len(self._steps_of(self._block)) if self._block >= 0 else 0)
        self._block, self._index, self._last = block, 0, None
        if int(self._owners[int(self._recording.blocks["first"][block])]) in self._crossings:
            self._crossed = word

    def _steps_of(self, block: int) -> list[Step]:
        if block not in self._steps:
            one = self._recording.blocks[block]
            own = self._recording.instructions[int(one["first"]) : int(one["first"]) + int(one["count"])]
            self._steps[block] = decode_steps([each["bytes"][: each["size"]].tobytes() for each in own])
        return self._steps[block]

    def _advance(self, until: int) -> None:
        """Let the instructions of the block up to `until` change registers."""
        if self._registers:
            for step in self._steps_of(self._block)[self._index : until]:
                if step.does == Does.MOVES:
                    held = self._registers.get(step.source, [])[: step.width]
                    for register in step.writes:
                        self._registers.pop(register, None)
                    if held:
                        self._registers[step.register] = held
                    continue
                for register in step.writes:
                    # what was loaded has been put there when it was read
                    if step.does not in (Does.LOADS, Does.RESTORES) or register != step.register:
                        self._registers.pop(register, None)
        self._index = max(self._index, until)

    def _use(self, word: int, access: Access) -> None:
        if access.block != self._block:  # code that a device or a fault had run again
            self._block, self._index = access.block, access.index
        self._advance(access.index)
        last = self._last
        further = (
            last is not None
            and (last.index, last.store) == (access.index, access.store)
            and last.virtual + last.size == access.virtual
        )
        self._part = self._part + last.size if last is not None and further else 0
        self._last = access
        step = self._steps_of(access.block)[access.index]
        function = int(self._owners[int(self._recording.blocks["first"][access.block]) + access.index])
        if access.store:
            self._store(word, access, step, function)
        else:
            self._load(word, access, step, function)

    def _load(self, word: int, access: Access, step: Step, function: int) -> None:
        if access.physical is None:
            held: Held = [None] * access.size
        else:
            nodes = [self._node_at(place) for place in range(access.physical, access.physical + access.size)]
            load = Load(function, access.physical, [(self._side(node, word), node) for node in nodes])
            self._loads.append(load)
            held = [(node, load) for node in nodes]
        if step.does == Does.COPIES:
            self._read = held
        elif step.does in (Does.LOADS, Does.RESTORES):
            at = step.at + self._part
            before = self._registers.get(step.register, []) if at else []
            self._registers[step.register] = [*before[:at], *[None] * (at - len(before)), *held]

    def _store(self, word: int, access: Access, step: Step, function: int) -> None:
        held: Held = []
        if step.does == Does.COPIES:
            held = self._read
        elif step.does in (Does.STORES, Does.SPILLS):
            held = self._registers.get(step.register, [])[step.at + self._part :]
        if access.device:
            # a device was told something: what it writes from now on is no instruction's
            self._memory = {place: node for place, node in self._memory.items() if node.root != MADE}
        if access.physical is None:
            return
        for number in range(access.size):
            item = held[number] if number < len(held) else None
            place = access.physical + number
            if item is None:
                self._memory[place] = OTHER
            elif step.does == Does.SPILLS:
                self._memory[place] = item[0]
            else:
                node, load = item
                to_user = access.virtual < KERNEL <= self._address(access)
                side: Side = "receiver" if to_user else self._side(node, word)
                self._memory[place] = new = Node(node.root, word, side)
                self._copies.append((function, new))
                load.copied += 1

    def _address(self, access: Access) -> int:
        return int(self._recording.blocks["address"][access.block])

    def _node_at(self, place: int) -> Node:
        return self._memory.get(place) or Node(place, -1, "receiver")

    def _side(self, node: Node, word: int) -> Side:
        """On which side a byte is handled that is at this node now."""
        return "receiver" if node.side == "receiver" or node.word < self._crossed < word else "sender"

    def _result(self, delivered: Mapping[int, Node]) -> Followed:
        sent = range(SENT, SENT + self._size)
        found = {node.root for node in delivered.values()}
        landed = {root for root in found if root < SENT}
        payload = landed.union(sent)
        handled: Counter[tuple[Side, int, str]] = Counter()
        for function, node in self._copies:
            if node.root in payload and function not in self._own:
                handled[node.side, function, "copied"] += 1
        seen: set[tuple[Side, int, int, int]] = set()  # a byte that is read again and again is waited for: one pass
        for load in self._loads:
            for number, (side, node) in enumerate(load.nodes):
                look = side, load.function, node.root, load.place + number
                if (
                    number >= load.copied
                    and node.root in payload
                    and load.function not in self._own
                    and look not in seen
                ):
                    seen.add(look)
                    handled[side, load.function, "passed"] += 1
        arrived = sum(node.root in (SENT + number,) or node.root < SENT for number, node in delivered.items())
        return Followed(
            size=self._size,
            arrived=arrived,
            landed=len(landed),
            elsewhere=self._size - arrived,
            handled=tuple(
                Handled(side, function, handled[side, function, "copied"], handled[side, function, "passed"])
                for side, function in sorted({(side, function) for side, function, _ in handled}, reverse=True)
            ),
        )


Pages = Mapping[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]]


def find_pages(recording: Recording) -> Pages:
    """Return which physical pages were behind a virtual one, and at which words; of those that are needed.

    Of an access that goes over the end of a page the emulator says only where it begins. Where the next page is,
    another access tells: the nearest, as two processes may have the same virtual page.
    """
    at = np.flatnonzero(recording.kinds == WHERE)
    where = recording.values[at]
    at, where = (each[where & np.uint64(OF_DEVICE | NOWHERE) == 0] for each in (at, where))
    begins = recording.values[at - 1]
    virtual, size = begins >> np.uint64(PAGE_SHIFT), np.uint64(1) << (where >> np.uint64(SIZE_SHIFT))
    beyond = (begins & np.uint64(PAGE - 1)) + size > PAGE
    physical = (where & np.uint64(PHYSICAL)) >> np.uint64(PAGE_SHIFT)
    wanted = np.unique(virtual[beyond]) + np.uint64(1)
    return {int(page): (at[virtual == page], physical[virtual == page]) for page in wanted}


def _page_at(pages: Pages, page: int, word: int) -> int | None:
    """Return the physical page behind a virtual one at a word, by the access that is nearest to it."""
    words, physical = pages.get(page, (np.empty(0, np.int64), np.empty(0, np.uint64)))
    return int(physical[np.argmin(np.abs(words - word))]) if len(words) else None


def events(
    recording: Recording, first: int, last: int, size: int, pages: Pages
) -> Iterator[tuple[int | None, int, int | tuple[Access, list[tuple[int, int]]]]]:
    """Yield blocks and accesses of the words `first` to `last` in their order, with the phase that they are in.

    The phase is FILLS or VERIFIES while a message is filled or verified, else None. Of a block comes its number; of an
    access itself, and in a phase the bytes of the message that it touches: (number in the message, physical address).
    """
    kinds = recording.kinds[first:last].tolist()
    values = recording.values[first:last].tolist()
    phase: int | None = None
    base: int | None = None
    for number, kind in enumerate(kinds):
        if kind == RAN:
            yield None, first + number, values[number]
        elif kind in (FILLS, VERIFIES):
            phase, base = kind, None
        elif kind in (FILLED, VERIFIED):
            phase = None
        elif kind in (LOADS, STORES) and kinds[number + 1 : number + 3] == [WHERE, AT]:
            for access in _accesses(kind == STORES, first + number, values[number : number + 3], pages):
                bytes_: list[tuple[int, int]] = []
                if phase is not None and access.virtual < KERNEL and access.physical is not None:
                    base = access.virtual if base is None else base  # the mark reads the first byte itself
                    at = range(max(access.virtual, base), min(access.virtual + access.size, base + size))
                    bytes_ = [(each - base, access.physical + each - access.virtual) for each in at]
                yield phase, first + number, (access, bytes_)


def _accesses(store: bool, number: int, words: list[int], pages: Pages) -> Iterator[Access]:
    """Yield an access, of one over the end of a page both parts."""
    virtual, where, at = whole_address(words[0]), words[1], words[2]
    place = (at & BLOCK, at >> int(INDEX))
    size = 1 << (where >> SIZE_SHIFT)
    if where & (OF_DEVICE | NOWHERE):
        yield Access(store, virtual, None, bool(where & OF_DEVICE), size, *place)
        return
    room = min(size, PAGE - (virtual & PAGE - 1))
    yield Access(store, virtual, where & PHYSICAL, False, room, *place)
    if room < size:
        page = _page_at(pages, (words[0] >> PAGE_SHIFT) + 1, number)
        yield Access(store, virtual + room, None if page is None else page << PAGE_SHIFT, False, size - room, *place)


def find_sources(recording: Recording, first: int, last: int, size: int) -> dict[int, int]:
    """Return where messages lie that were filled between two words: physical address -> number of the byte."""
    return {
        place: number
        for phase, _, what in events(recording, first, last, size, find_pages(recording))
        if phase == FILLS and not isinstance(what, int) and what[0].store
        for number, place in what[1]
    }


def find_messages(recording: Recording, pull: bool) -> list[tuple[int, int]]:
    """Return the words of each message that was verified: from where it was filled to behind its verification.

    :param pull: it was not sent but fetched: it begins where it was asked for
    """
    begins = np.flatnonzero(recording.kinds == (SENDS if pull else FILLS))
    ends = np.flatnonzero(recording.kinds == VERIFIED)
    which = np.searchsorted(begins, ends) - 1
    found = dict(zip(which.tolist(), ends.tolist(), strict=True)) if len(begins) else {}
    return [(int(begins[number]), end + 1) for number, end in found.items() if number >= 0]
