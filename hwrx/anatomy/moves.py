"""What an instruction does with bytes that it finds in memory or in a register: moves them, or makes others of them.

For whoever follows a byte: a MOV leaves it as it is, an ADD does not. Registers are told by the widest that they are
part of; of a register's bytes the lowest is number 0.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from enum import IntEnum

from iced_x86 import (
    Decoder,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)
from msgspec import Struct

WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
# those of which each byte keeps its place
_MOVE_NAMES = re.compile(
    r"V?MOV(ZX|SX|SXD|NTI|[DQ]|[AU]P[SD]|DQ[AU](8|16|32|64)?|NT(DQA?|P[SD])|[LH]P[SD]|S[SD])?|V?LDDQU"
)
_MOVES = frozenset(
    number
    for name, number in vars(Mnemonic).items()
    if re.fullmatch(
        r"V?MOV(ZX|SX|SXD|NTI|[DQ]|[AU]P[SD]|DQ[AU](8|16|32|64)?|NT(DQA?|P[SD])|[LH]P[SD]|S[SD])?|V?LDDQU", name
    )
)
_UPPER = frozenset((Mnemonic.MOVHPS, Mnemonic.MOVHPD))
_STRINGS = frozenset((Mnemonic.MOVSB, Mnemonic.MOVSW, Mnemonic.MOVSD, Mnemonic.MOVSQ))  # MOVSD is SSE's, too
_HIGH_BYTES = frozenset((Register.AH, Register.BH, Register.CH, Register.DH))
HALF = 8  # bytes of an XMM register


class Does(IntEnum):
    """What becomes of the bytes."""

    MAKES = 0  # others, if it writes at all
    LOADS = 1  # memory -> register
    STORES = 2  # register -> memory
    COPIES = 3  # memory -> memory (MOVS)
    MOVES = 4  # register -> register
    SPILLS = 5  # as STORES, by PUSH: to keep a register, not to bring a message further
    RESTORES = 6  # as LOADS, by POP


class Step(Struct, frozen=True):
    """An instruction. `register`: that is loaded, stored or moved to, from byte `at` of it; `source`: moved from.

    `writes`: the registers that hold something else afterwards, that one included. `width`: bytes that are moved
    between registers.
    """

    does: Does
    register: int
    source: int
    at: int
    width: int
    writes: tuple[int, ...]


@functools.cache
def _factory() -> InstructionInfoFactory:
    return InstructionInfoFactory()


def decode_steps(codes: Sequence[bytes]) -> list[Step]:
    """Decode a block's instructions, each given by its bytes (64-bit mode)."""
    return [decode_step(code) for code in codes]


@functools.lru_cache(1 << 16)
def decode_step(code: bytes) -> Step:
    """Decode one instruction; what is not one makes other bytes and writes nothing."""
    instruction = Decoder(64, code).decode()
    written = {
        RegisterExt.full_register(used.register)
        for used in _factory().info(instruction).used_registers()
        if used.access in WRITES
    }
    does, register, source, width = _move_of(instruction)
    at = HALF if instruction.mnemonic in _UPPER else 0
    return Step(does, register, source, at, width, tuple(sorted(written)))


def _move_of(instruction: Instruction) -> tuple[Does, int, int, int]:
    mnemonic = instruction.mnemonic
    if mnemonic in _STRINGS and instruction.is_string_instruction:
        return Does.COPIES, Register.NONE, Register.NONE, 0
    if mnemonic == Mnemonic.PUSH and instruction.op0_kind == OpKind.REGISTER:
        return Does.SPILLS, _full(instruction, 0), Register.NONE, 0
    if mnemonic == Mnemonic.POP and instruction.op0_kind == OpKind.REGISTER:
        return Does.RESTORES, _full(instruction, 0), Register.NONE, 0
    if mnemonic not in _MOVES or {instruction.op0_register, instruction.op1_register} & _HIGH_BYTES:
        return Does.MAKES, Register.NONE, Register.NONE, 0
    into, of = instruction.op0_kind, instruction.op1_kind
    if into == OpKind.REGISTER and of == OpKind.MEMORY:
        return Does.LOADS, _full(instruction, 0), Register.NONE, 0
    if into == OpKind.MEMORY and of == OpKind.REGISTER:
        return Does.STORES, _full(instruction, 1), Register.NONE, 0
    if into == of == OpKind.REGISTER:
        width = min(RegisterExt.size(instruction.op0_register), RegisterExt.size(instruction.op1_register))
        return Does.MOVES, _full(instruction, 0), _full(instruction, 1), width
    return Does.MAKES, Register.NONE, Register.NONE, 0


def _full(instruction: Instruction, operand: int) -> int:
    return int(RegisterExt.full_register(instruction.op_register(operand)))
