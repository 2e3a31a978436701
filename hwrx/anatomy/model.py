"""What is found of a message when it is taken apart, and how a run keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from hwrx.anatomy.stacks import Piece
from hwrx.anatomy.symbols import Function
from hwrx.errors import StoreError

Side = Literal["sender", "receiver"]
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
    copies: ByAddress | None = None  # if they were asked for


def to_document(found: Sequence[Dissection]) -> dict[str, Any]:
    """Return what a run keeps: each function's name once, the stacks of a message as numbers of functions."""
    numbers: dict[Function, int] = {}
    content = []
    for one in found:
        kept = msgspec.to_builtins(msgspec.structs.replace(one, pieces=[]))
        kept["pieces"] = [
            [[numbers.setdefault(function, len(numbers)) for function in piece.stack], piece.instructions]
            for piece in one.pieces
        ]
        content.append(kept)
    return {"format": FORMAT, "functions": [[each.name, each.of] for each in numbers], "messages": content}


def from_document(document: dict[str, Any]) -> list[Dissection]:
    """Return what a run has kept.

    :raises StoreError: if it is of another version, or is not what was written.
    """
    try:
        if document["format"] != FORMAT:
            raise StoreError(f"{DOCUMENT} is of format {document['format']}, and this version reads {FORMAT}")
        functions = [Function(*each) for each in document["functions"]]
        found = []
        for kept in document["messages"]:
            pieces = [Piece(tuple(functions[each] for each in stack), count) for stack, count in kept["pieces"]]
            one = msgspec.convert({**kept, "pieces": []}, Dissection)
            found.append(msgspec.structs.replace(one, pieces=pieces))
    except (LookupError, TypeError, msgspec.ValidationError) as error:
        raise StoreError(f"{DOCUMENT} is not what a run keeps: {error}") from None
    return found
