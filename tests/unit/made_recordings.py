"""Recordings of the emulator's plugin, made by hand: blocks of code, and the words of what happened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwrx.anatomy import layout

Block = tuple[int, Sequence[bytes]]  # its address, and the instructions' bytes


def recorded(blocks: Sequence[Block], words: Sequence[tuple[int, int]]) -> layout.Recording:
    made = np.zeros(len(blocks), layout.BLOCK)
    instructions: list[tuple[int, int, bytes]] = []
    for number, (address, code) in enumerate(blocks):
        made[number] = (address, len(instructions), len(code))
        for each in code:
            instructions.append((address, len(each), each))
            address += len(each)
    kept = np.zeros(len(instructions), layout.INSTRUCTION)
    for number, (address, size, code_of) in enumerate(instructions):
        kept[number]["address"], kept[number]["size"] = address, size
        kept[number]["bytes"][:size] = np.frombuffer(code_of, "u1")
    kinds = np.array([kind for kind, _ in words], np.uint8)
    return layout.Recording(kinds, np.array([value for _, value in words], np.uint64), made, kept, 0)


def place(block: int, index: int) -> int:
    return index << 32 | block
