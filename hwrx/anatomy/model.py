"""What is found of a message when it is taken apart, and how a run keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from hwrx.anatomy.stacks import Piece
from hwrx.anatomy.symbols import Function
from hwrx.control.guest_boot import Boot
from hwrx.errors import StoreError

Side = Literal["sender", "receiver"]
Direction = Literal["there", "back"]
DOCUMENT = "anatomy.json"
FORMAT = 1


class Part(Struct, frozen=True):
    """What one function has of a message: instructions, on average over the messages of the state."""

    function: str
    of: str
    layer: str
    instructions: float


class State(Struct, frozen=True):
    """Messages of the same number of instructions: how many, and the functions in which they differ from most."""

    instructions: float
    messages: int
    moved: list[Part]
    interrupts: list[str] = []  # handlers that ran in them more often than in those of the commonest state


class Handling(Struct, frozen=True):
    """What a function did with the payload on one side: bytes that it copied and passed over, per byte of payload."""

    side: Side
    function: str
    of: str
    copied: float
    passed: float


class ByAddress(Struct, frozen=True):
    """Copies and passes of each byte on either side, by physical address, of a message that was checked in full.

    `messages` were followed; in `in_place` of them every byte was told from where it came, and lay where it belongs;
    `alike` are as this one is, the others are not shown. `landed`: share of the bytes that a device brought.
    """

    messages: int
    in_place: int
    alike: int
    sender: float
    receiver: float
    sender_passes: float
    receiver_passes: float
    landed: float
    handled: list[Handling]


class Stamp(Struct, frozen=True):
    """A stage of one message in one direction: `at` since it was posted, `since` the stage before; instructions."""

    stage: str
    direction: Direction
    at: int
    since: int
    actor: str = ""  # who ran there, as the stack says; "": not known of a run by an earlier version


class Interrupt(Struct, frozen=True):
    """An interrupt or an exception that came while messages were under way.

    `vector`: of a device's. `messages`: in which it came, by their number among those that were taken apart; as often
    as it did.
    """

    vector: int | None
    handler: str
    messages: list[int]


class Touched(Struct, frozen=True):
    """Accesses to an address of a device; `times`: of a message and its answer, on average over the commonest state."""

    address: int  # physical
    device: str  # as /proc/iomem names it
    store: bool
    function: str
    times: float


class MachineEvents(Struct, frozen=True):
    """What of the machine messages met. `cr3_loads`, `ports`: of a message and its answer, as `Touched.times`."""

    cr3_loads: float  # MOV to CR3: another address space
    ports: float  # IN, OUT
    interrupts: list[Interrupt]
    touched: list[Touched]


class Dissection(Struct, frozen=True):
    """A path's message, taken apart. Instructions are of half a round trip, or of a whole one if `whole`.

    `exact`: messages of which the sum over functions is what the guest's clock says has passed, of `awake`, those in
    which the processor did not stop. In the others it did, and the clock went on without instructions: `halted` ns, on
    average over all; of `beyond` of them the sum was more than that.
    """

    label: str  # of the setting, as in a run's report
    path: str
    size: int
    whole: bool
    messages: int
    instructions: float
    named: float  # shares of the instructions
    layered: float
    awake: int
    exact: int
    beyond: int
    halted: float
    lost: int  # words for which there was no room
    parts: list[Part]
    layers: dict[str, float]
    states: list[State]
    # one message of the commonest state, whole: who called whom, in order. Not halved
    pieces: list[Piece]
    calls: int
    unmatched: int  # returns from what was never seen called
    stamps: list[Stamp]  # its stages, not halved either
    copies: ByAddress | None = None  # if they were asked for
    unseen: int = 0  # messages that were measured, and of which the recording has nothing
    boot: Boot = Boot()  # of the guest
    machine: MachineEvents | None = None  # not known of a run by an earlier version


class Kept(Struct, frozen=True, kw_only=True):
    """A run's document. `stacks` has the pieces of each message: numbers of functions, and instructions."""

    format: int
    functions: list[Function]
    messages: list[Dissection]
    stacks: list[list[tuple[list[int], int]]]


def to_document(found: Sequence[Dissection]) -> dict[str, object]:
    """Return what a run keeps: each function's name once, the stacks of a message as numbers of functions."""
    numbers: dict[Function, int] = {}
    stacks = [
        [
            ([numbers.setdefault(function, len(numbers)) for function in piece.stack], piece.instructions)
            for piece in one.pieces
        ]
        for one in found
    ]
    messages = [msgspec.structs.replace(one, pieces=[]) for one in found]
    kept = Kept(format=FORMAT, functions=list(numbers), messages=messages, stacks=stacks)
    content: dict[str, object] = msgspec.to_builtins(kept)
    return content


def from_document(document: Mapping[str, object]) -> list[Dissection]:
    """Return what a run has kept.

    :raises StoreError: if it is of another version, or is not what was written.
    """
    if document.get("format") != FORMAT:
        raise StoreError(f"{DOCUMENT} is of format {document.get('format')}, and this version reads {FORMAT}")
    try:
        kept = msgspec.convert(document, Kept)
        return [
            msgspec.structs.replace(
                one, pieces=[Piece(tuple(kept.functions[each] for each in stack), count) for stack, count in stacks]
            )
            for one, stacks in zip(kept.messages, kept.stacks, strict=True)
        ]
    except (LookupError, ValueError) as error:  # msgspec.ValidationError is a ValueError
        raise StoreError(f"{DOCUMENT} is not what a run keeps: {error}") from None
