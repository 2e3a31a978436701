"""From the plugin's words to messages: which instructions ran between the two readings of the clock of each.

A block is counted whole when it begins. That is wrong where it is left in the middle, and the next block begins there:
QEMU 7.2 lists an instruction that crosses the end of a page in two blocks, and one that a device has to answer runs in
a block of its own, for which nothing is called. Such a block counts as far as it came; so does one whose last
instruction before that was answered by an interrupt, if that comes back into it. What is still wrong shows: the sum is
not what the clock says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hwrx.anatomy.layout import INDEX, LONGEST, RAN, READS_CLOCK, RECEIVES, SENDS, Recording

Int64s = npt.NDArray[np.int64]
REPEATS = (0xF2, 0xF3)  # prefixes: a repeated instruction is a block that follows itself, once for each time
INDIRECT_JUMP = 4  # of opcode 0xff, Intel SDM, JMP
IRET = b"\x48\xcf"  # Intel SDM, IRETQ
PAIR = 31  # bits of a block's number
SEARCHED = 64  # returns from interrupts among which that of one is sought: another task may run in between


class Trace:
    """A recording, its blocks counted and its messages found."""

    def __init__(self, recording: Recording, entries: npt.NDArray[np.uint64] | None = None) -> None:
        """Count what ran. `entries`: addresses at which the kernel takes interrupts and exceptions."""
        self.recording = recording
        self._entries = np.empty(0, np.uint64) if entries is None else entries
        self._ran = np.flatnonzero(recording.kinds == RAN)
        self._block = recording.values[self._ran].astype(np.int64)
        self._executed = self._count_executed()
        # instructions before each block that ran
        self._before = np.concatenate(([0], np.cumsum(self._executed)))[:-1]
        self._bounds = self._find_bounds()

    def __len__(self) -> int:
        return len(self._bounds)

    @property
    def bounds(self) -> Int64s:
        """The words of each message: that of its first reading of the clock and of its last; shape (messages, 2)."""
        return self._bounds

    def totals(self) -> Int64s:
        """Return the instructions of each message; shape (messages,)."""
        start, end = self._bounds.T
        return self._position(end) - self._position(start)

    def count_instructions(self, messages: Int64s) -> Int64s:
        """Return how often each of the recording's instructions ran in these messages, all of them together.

        :param messages: their numbers, from 0
        :return: shape (instructions,): all that are known, in the recording's order
        """
        blocks = self.recording.blocks
        steps = np.zeros(len(self.recording.instructions) + 1, np.int64)
        bounds = self._bounds[messages]
        ranges = np.searchsorted(self._ran, bounds) - 1
        for first, last in ranges:
            begins = blocks["first"][self._block[first:last]].astype(np.int64)
            np.add.at(steps, begins, 1)
            np.add.at(steps, begins + self._executed[first:last], -1)
        # of the blocks in which the clock was read: not what ran before the first reading, but before the last
        for words, runs, sign in ((bounds[:, 0], ranges[:, 0], -1), (bounds[:, 1], ranges[:, 1], 1)):
            begins = blocks["first"][self._block[runs]].astype(np.int64)
            np.add.at(steps, begins, sign)
            np.add.at(steps, begins + (self.recording.values[words] >> INDEX).astype(np.int64), -sign)
        return np.cumsum(steps)[:-1]

    def span(self, message: int) -> tuple[int, int, Int64s]:
        """Return a message in its order: the words from its first block's to behind its last, and what ran.

        The third is a count of instructions for each block among those words: of the first and the last only what lies
        between the readings of the clock.
        """
        start, end = (int(word) for word in self._bounds[message])
        first, last = (int(run) for run in np.searchsorted(self._ran, [start, end]) - 1)
        executed = self._executed[first : last + 1].copy()
        executed[-1] = int(self.recording.values[end] >> INDEX)
        executed[0] -= int(self.recording.values[start] >> INDEX)
        return int(self._ran[first]), end, executed

    def meets(self, opcode: int) -> npt.NDArray[np.bool_]:
        """Return of each message whether a block that ends with an instruction of this first byte ran in it."""
        blocks = self.recording.blocks
        final = self.recording.instructions["bytes"][blocks["first"].astype(np.int64) + blocks["count"] - 1, 0]
        met = np.concatenate(([0], np.cumsum((final == opcode)[self._block])))
        first, last = (np.searchsorted(self._ran, self._bounds) - 1).T
        return np.asarray(met[last] > met[first])

    def _count_executed(self) -> Int64s:
        """How many instructions of each block ran, in the order in which they did."""
        blocks, instructions = self.recording.blocks, self.recording.instructions
        executed = blocks["count"][self._block].astype(np.int64)
        if len(executed) < 2:
            return executed
        last = instructions["address"][blocks["first"].astype(np.int64) + blocks["count"] - 1]
        this, following = self._block[:-1], blocks["address"][self._block[1:]]
        inside = np.flatnonzero((following > blocks["address"][this]) & (following <= last[this]))
        # few pairs of blocks do it, again and again
        pairs, which = np.unique(this[inside] << PAIR | self._block[1:][inside], return_inverse=True)
        came = [self._left_at(int(pair >> PAIR), int(blocks["address"][pair & (1 << PAIR) - 1])) for pair in pairs]
        executed[inside] = np.array(came, np.int64)[which]
        for index, address in self._resumed(following, last):
            executed[index] = self._left_at(int(this[index]), address)
        return executed

    def _resumed(self, following: npt.NDArray[np.uint64], last: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Yield which blocks were left for an interrupt that came back into them, and where."""
        blocks, instructions = self.recording.blocks, self.recording.instructions
        final = instructions[blocks["first"].astype(np.int64) + blocks["count"] - 1]
        returns = (final["bytes"][:, : len(IRET)] == np.frombuffer(IRET, "u1")).all(axis=1)
        back = np.flatnonzero(returns[self._block[:-1]])
        for index in np.flatnonzero(np.isin(following, self._entries)):
            block = self._block[index]
            first = np.searchsorted(back, index)
            resumed = following[back[first : first + SEARCHED]]
            into = np.flatnonzero((resumed > blocks["address"][block]) & (resumed <= last[block] + LONGEST))
            # behind its end: it had run to that; its own last instruction may be repeated
            if len(into) and resumed[into[0]] <= last[block]:
                yield int(index), int(resumed[into[0]])

    def _left_at(self, number: int, following: int) -> int:
        """How many instructions of a block ran before one began at an address within it."""
        block = self.recording.blocks[number]
        own = self.recording.instructions[int(block["first"]) : int(block["first"]) + int(block["count"])]
        index = np.flatnonzero(own["address"] == following)
        if not len(index) or repeats_or_jumps(own[-1], following):
            return len(own)
        return int(index[0])

    def _find_bounds(self) -> Int64s:
        """Return the words of each message that read the clock for it, at its start and its end: (messages, 2)."""
        kinds = self.recording.kinds
        sends, receives, clock = (np.flatnonzero(kinds == kind) for kind in (SENDS, RECEIVES, READS_CLOCK))
        if not len(sends) or not len(receives):
            return np.empty((0, 2), np.int64)
        # of the readings behind a message's last look, the first: it came
        until = np.append(sends[1:], len(kinds))
        look = np.searchsorted(receives, until) - 1
        first, last = (np.searchsorted(clock, at) for at in (sends, receives[np.maximum(look, 0)]))
        whole = (look >= 0) & (receives[np.maximum(look, 0)] > sends) & (last < len(clock))
        return np.stack([clock[first[whole]], clock[last[whole]]], axis=1)

    def _position(self, words: Int64s) -> Int64s:
        """How many instructions ran before those of these words."""
        block = np.searchsorted(self._ran, words) - 1
        return self._before[block] + (self.recording.values[words] >> INDEX).astype(np.int64)


def repeats_or_jumps(instruction: npt.NDArray[np.void], address: int) -> bool:
    """Whether what stands at `address` may run again for this instruction, as in a loop."""
    code = instruction["bytes"][: int(instruction["size"])].tobytes()
    if int(instruction["address"]) == address:
        return code[0] in REPEATS
    behind = int(instruction["address"]) + len(code)
    code = code.lstrip(bytes([*REPEATS, 0x2E, 0x3E, 0x66]))  # hints to the processor, BND
    if code[:1] == b"\xff":
        return len(code) > 1 and code[1] >> 3 & 7 == INDIRECT_JUMP
    # Jcc, JMP, LOOP and JRCXZ, relative
    short = code[:1] == b"\xeb" or (code and (code[0] & 0xF0 == 0x70 or 0xE0 <= code[0] <= 0xE3))
    near = code[:1] == b"\xe9" or (code[:1] == b"\x0f" and len(code) > 1 and code[1] & 0xF0 == 0x80)
    width = 1 if short else 4 if near else 0
    return width > 0 and behind + int.from_bytes(code[-width:], "little", signed=True) == address
