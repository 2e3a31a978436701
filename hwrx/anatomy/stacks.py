"""Who called whom: the stack of each piece of a message, in the order of execution.

A call leaves its return address in a slot on the stack, and its return reads that slot, so both are known by it. A
stack grows downwards: whatever lies at a lower address than a slot that is used again is over, also what never returned
(the kernel empties the processor's return buffer by calls that do not). Tasks have kernel stacks of their own, of
THREAD_SIZE bytes; on which we are is seen by the first slot that is used after `__switch_to_asm`. Agents are forks, so
that their own stacks have equal addresses: a program's frames go with the kernel stack beneath them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx.anatomy.layout import CALLS, RAN, RETURNS, Recording
from hwrx.anatomy.symbols import Function

KERNEL = 1 << 47  # addresses from here on are the kernel's
THREAD_SHIFT = 14  # THREAD_SIZE of arch/x86/include/asm/page_64_types.h
SWITCH = "__switch_to_asm"
# they stand between a call and what is called, or a return and where it returns to
THUNKS = ("__x86_return_thunk", "__x86_indirect_", "srso_", "retbleed_", "__fentry__")
MOVES_RETURN = ("error_entry", "paranoid_entry")
IRET = b"\x48\xcf"


class Piece(Struct):
    """Instructions that ran one after the other with the same stack, the innermost function last."""

    stack: tuple[Function, ...]
    instructions: int


class Frame(Struct):
    """A function that is running; `slot` has its return address, None of one that nobody called."""

    function: Function
    slot: int | None
    region: int
    entry: bool = False  # the kernel was entered by it


class Unwinder:
    """Follows calls and returns through words of a recording."""

    def __init__(
        self, recording: Recording, owners: npt.NDArray[np.int64], functions: Sequence[Function], entries: set[int]
    ) -> None:
        """Take what `Symbols.find` says of the recording's instructions, and where interrupts are taken."""
        self._recording = recording
        self._owners = owners
        self._functions = functions
        self._entries = entries
        self._stacks: dict[int, list[Frame]] = {}
        self._task = 0
        self._frames: list[Frame] = []
        self._called: tuple[int, int] | None = None  # slot and region of a call that is about to arrive
        self._switched = False
        self._last: tuple[int, int] | None = None
        self._ends_with = 0  # CALLS, RETURNS: of the block that runs; 0: neither
        self._name = ""  # of the block that runs
        self._thunk = False
        self._was_kernel = False
        self._interrupt_ended = False  # by the last block
        self.calls = 0
        self.unmatched = 0  # returns from what was never seen called

    def follow(self, first: int, last: int, executed: npt.NDArray[np.int64] | None = None) -> list[Piece]:
        """Follow words `first` to `last`, without it; return the pieces if it is known how many instructions ran.

        :param executed: for each of these words that is a block: how many of its instructions count.
        """
        pieces: list[Piece] = []
        kinds, values = self._recording.kinds[first:last], self._recording.values[first:last]
        number = 0
        for kind, value in zip(kinds.tolist(), values.tolist(), strict=True):
            if kind in (CALLS, RETURNS):
                self._last = (kind, whole_address(value))
            elif kind == RAN:
                # QEMU 7.2 leaves a block's last call armed, so that accesses of the next one are told, too: the last
                # word is the block's own, if it ends with what the word says
                if self._last and self._last[0] == self._ends_with:
                    self._use_slot(*self._last)
                self._last = None
                stack = self._enter(value)
                if executed is not None:
                    _add(pieces, stack, int(executed[number]))
                number += 1
        return pieces

    def _use_slot(self, kind: int, slot: int) -> None:
        region = slot >> THREAD_SHIFT if slot >= KERNEL else 0
        if region and self._switched and region != self._task:
            self._stacks[self._task] = self._frames
            self._task = region
            self._frames = self._stacks.setdefault(region, [])
            self._switched = False
        elif region and not self._task:
            self._task = region
        frames = self._frames
        known = any(frame.slot == slot and frame.region == region for frame in frames)
        for index, frame in enumerate(frames):
            if frame.region == region and frame.slot is not None and frame.slot <= slot:
                del frames[index:]
                break
        # within a thunk (a retpoline) a call is made for its return, and is nobody's
        if kind == CALLS and not self._thunk:
            self.calls += 1
            self._called = (slot, region)
        elif kind == RETURNS and self._called == (slot, region):
            self._called = None  # of a thunk, which arrives nowhere else
        elif kind == RETURNS and not known and not self._thunk:
            # the kernel's entry moves its own return address to another stack (PUSH_AND_CLEAR_REGS save_ret=1)
            if frames and frames[-1].function.name in MOVES_RETURN:
                frames.pop()
            else:
                self.unmatched += 1

    def _enter(self, number: int) -> tuple[Function, ...]:
        """Go into a block; return the stack in it."""
        block = self._recording.blocks[number]
        first, count = int(block["first"]), int(block["count"])
        function = self._functions[int(self._owners[first])]
        thunk = function.name.startswith(THUNKS)
        address = int(block["address"])
        kernel = address >= KERNEL
        frames = self._frames
        if self._called is not None:
            if not thunk:
                frames.append(Frame(function, *self._called))
                self._called = None
        elif address in self._entries or (kernel and not self._was_kernel):
            frames.append(Frame(function, None, -1, entry=True))
        elif not kernel and self._was_kernel:
            while frames and (frames[-1].entry or frames[-1].region):
                frames.pop()
        elif self._interrupt_ended:
            _end_interrupt(frames)
        if not frames and not thunk:
            frames.append(Frame(function, None, -1 if kernel else 0))
        elif frames and not thunk and frames[-1].function != function:
            frames[-1].function = function  # a jump from a function's end into another, or back to where nobody called
        # once: on the new stack the same function may go on, where it fills the processor's return buffer
        if function.name == SWITCH and self._name != SWITCH:
            self._switched = True
        code = self._recording.instructions[first + count - 1]["bytes"].tobytes()
        self._interrupt_ended = kernel and code.startswith(IRET)
        self._ends_with = _end_of(code)
        self._was_kernel, self._thunk, self._name = kernel, thunk, function.name
        stack = tuple(frame.function for frame in frames)
        return stack if stack[-1:] == (function,) else (*stack, function)


def _end_interrupt(frames: list[Frame]) -> None:
    while frames and not frames[-1].entry:
        frames.pop()
    if frames:
        frames.pop()


def _end_of(code: bytes) -> int:
    """Whether an instruction calls or returns; as `follow_stack` of plugin.c."""
    code = code.lstrip(b"\x66\xf2\xf3\x2e\x3e" + bytes(range(0x40, 0x50)))
    if code[:1] == b"\xe8" or (code[:1] == b"\xff" and code[1] >> 3 & 7 == 2):
        return CALLS
    return RETURNS if code[:1] in (b"\xc3", b"\xc2") else 0


def whole_address(value: int) -> int:
    """A slot's address: a word has 56 bits of it."""
    return value | 0xFF << 56 if value >> 55 else value


def _add(pieces: list[Piece], stack: tuple[Function, ...], instructions: int) -> None:
    if pieces and pieces[-1].stack == stack:
        pieces[-1].instructions += instructions
    elif instructions:
        pieces.append(Piece(stack, instructions))


def fold_pieces(root: str, pieces: Sequence[Piece]) -> str:
    """Return the pieces as folded stacks, a line for each: as flamegraph.pl, inferno and speedscope read them.

    :param root: what all of them stand upon
    """
    sums: dict[str, int] = {}
    for piece in pieces:
        key = ";".join([root, *(function.name for function in piece.stack)])
        sums[key] = sums.get(key, 0) + piece.instructions
    return "".join(f"{key} {count}\n" for key, count in sums.items())
