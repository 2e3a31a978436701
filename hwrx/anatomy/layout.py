"""The file that the plugin writes (layout.h): where its parts lie, and how NumPy reads them.

A header of one page, then three arrays with room for more than is in them: the blocks that were translated, their
instructions, and a word for each thing that happened, in its order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx.errors import GuestError

MAGIC = b"HWRXANA3"
PAGE = 4096
LONGEST = 15  # bytes of an instruction, Intel SDM 2.3.11

# struct header, struct block, struct instruction of layout.h
HEADER = np.dtype(
    [("magic", "S8")]
    + [(f"{part}{what}", "u8") for part in ("blocks", "instructions", "words") for what in ("_at", "_room", "")]
    + [("lost", "u8"), ("unknown", "u8"), ("awake", "u8"), ("messages", "u8"), ("wanted", "u8")]
)
BLOCK = np.dtype([("address", "u8"), ("first", "u4"), ("count", "u4")])
INSTRUCTION = np.dtype([("address", "u8"), ("size", "u1"), ("bytes", "u1", LONGEST)])

# a word: what in its upper byte, and a value: of RAN the block's number; of CALLS and RETURNS the address of the slot
# on the stack; of LOADS and STORES a virtual address, and two more words follow: WHERE, the physical address with flags
# and size, and AT (of devices' memory always, of other memory if it is wanted). Of VECTOR the number of an interrupt
# whose INTERRUPTS is about to follow; an exception and the local APIC's own have none. Of AT and all others an
# instruction's place: the block's number and above bit 32 the index in it; of INTERRUPTS one of the kernel's
# entry, of INTERRUPT_ENDS an IRET, of LOADS_CR3 a MOV to CR3, of USES_PORT one of IN, OUT, INS, OUTS
RAN, SENDS, RECEIVES, READS_CLOCK, CALLS, RETURNS = range(1, 7)
FILLS, FILLED, VERIFIES, VERIFIED, LOADS, STORES, WHERE, AT = range(7, 15)
VECTOR, INTERRUPTS, INTERRUPT_ENDS, LOADS_CR3, USES_PORT = range(15, 20)
KIND = np.uint64(56)
VALUE = np.uint64((1 << 56) - 1)
INDEX = np.uint64(32)
# of WHERE
PHYSICAL = (1 << 46) - 1
OF_DEVICE = 1 << 46
NOWHERE = 1 << 47  # the emulator does not know it any more
SIZE_SHIFT = 48  # above it the logarithm of the size


class Recording(Struct, frozen=True):
    """What was written from one word to another.

    `kinds` and `values` are of the same length, one for each word; `blocks` and `instructions` are all that are known.
    `lost`: words for which there was no room.
    """

    kinds: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint64]
    blocks: npt.NDArray[np.void]
    instructions: npt.NDArray[np.void]
    lost: int


def read_header(file: Path) -> dict[str, int]:
    """Return the header's fields by name.

    :raises GuestError: if the plugin has not made the file, or another version of it has.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(HEADER.itemsize)
    except OSError as error:
        raise GuestError(f"the emulator's plugin has made no file: {error.strerror}") from None
    if len(data) < HEADER.itemsize or not data.startswith(MAGIC):
        raise GuestError("what the emulator's plugin has written is not of this version")
    header = np.frombuffer(data, HEADER)[0]
    return {name: int(header[name]) for name in HEADER.names or () if name != "magic"}


def want_memory(file: Path, wanted: bool) -> None:
    """Tell the plugin whether accesses to memory are to be written down; it counts from the next message on."""
    with file.open("r+b") as opened:
        opened.seek(HEADER.fields["wanted"][1])  # type: ignore[index]
        opened.write(int(wanted).to_bytes(8, "little"))


def read_words(file: Path, since: int = 0) -> Recording:
    """Read what was written from word number `since` on. The arrays are copies: the guest may go on.

    :raises GuestError: see `read_header`; or if code was translated for which the file has no room.
    """
    header = read_header(file)
    if header["unknown"]:
        raise GuestError("the plugin met more code than its file has room for", remedy="look at fewer paths at once")

    offset = header["words_at"] + since * np.dtype("u8").itemsize
    words = np.fromfile(file, "u8", count=header["words"] - since, offset=offset)
    return Recording(
        (words >> KIND).astype(np.uint8),
        words & VALUE,
        np.fromfile(file, BLOCK, count=header["blocks"], offset=header["blocks_at"]),
        np.fromfile(file, INSTRUCTION, count=header["instructions"], offset=header["instructions_at"]),
        header["lost"],
    )
