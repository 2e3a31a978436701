"""Bytes followed by their physical address: what is a copy, a pass, or a device's doing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_recordings import place, recorded

from hwrx.anatomy import followed, layout
from hwrx.anatomy.layout import AT, FILLED, FILLS, LOADS, OF_DEVICE, RAN, SENDS, STORES, VERIFIED, VERIFIES, WHERE
from hwrx.anatomy.moves import Does, decode_step

KERNEL = 0xFFFF_8000_0000_0000
USER = 0x7000_0000
SIZE = 8
RAM = 1 << 20  # of what is virtual here the physical address is so much further, unless it is said
NOP, LOAD, STORE, MOVSB, CHANGE = "90", "488b06", "488907", "f3a4", "480fc8"
PUSH, POP, MOVE, STORE_RBX = "50", "58", "4889c3", "48891f"
USER_BLOCK, KERNEL_BLOCK, CROSSING = 0, 1, 2
Words = list[tuple[int, int]]


class Made:
    """Words as the plugin writes them: one block of user's code, one of the kernel's, and that of a crossing."""

    def __init__(self, code: Sequence[str]) -> None:
        self.code = [bytes.fromhex(each) for each in code]
        self.words: Words = []

    def ran(self, block: int) -> Made:
        self.words.append((RAN, block))
        return self

    def mark(self, kind: int) -> Made:
        self.words.append((kind, place(0, 0)))
        return self

    def access(self, kind: int, virtual: int, at: tuple[int, int], physical: int | None = None, size: int = 8) -> Made:
        where = (physical if physical is not None else (virtual & 0xFFFFFF) + RAM) | (size.bit_length() - 1 << 48)
        self.words += [(kind, virtual & (1 << 56) - 1), (WHERE, where), (AT, place(*at))]
        return self

    def filled(self, at: int = USER) -> Made:
        self.ran(USER_BLOCK).mark(FILLS).access(LOADS, at, (0, 0), size=1)
        return self.access(STORES, at, (0, 0)).mark(FILLED)

    def verified(self, at: int) -> Made:
        return (
            self.ran(USER_BLOCK)
            .mark(VERIFIES)
            .access(LOADS, at, (0, 0), size=1)
            .access(LOADS, at, (0, 0))
            .mark(VERIFIED)
        )

    def followed(self, source: dict[int, int] | None = None, size: int = SIZE) -> followed.Followed:
        recording = recorded([(0x1000, self.code), (KERNEL, self.code), (KERNEL + 0x1000, [b"\x90"])], self.words)
        owners = np.array([0] * len(self.code) + [1] * len(self.code) + [2])
        found = followed.Follower(recording, owners, size, crossings={2}, own=set()).follow(
            0, len(self.words), source or {}
        )
        assert found is not None
        return found


def handled(found: followed.Followed) -> set[tuple[str, int, int, int]]:
    return {(one.side, one.function, one.copied, one.passed) for one in found.handled}


def test_a_message_goes_through_the_kernel_by_two_copies() -> None:
    made = Made([MOVSB]).filled()
    made.ran(KERNEL_BLOCK).access(LOADS, USER, (1, 0)).access(STORES, KERNEL + 0x5000, (1, 0))
    made.ran(CROSSING).ran(KERNEL_BLOCK)
    made.access(LOADS, KERNEL + 0x5000, (1, 0)).access(STORES, USER + 0x9000, (1, 0))
    found = made.verified(USER + 0x9000).followed()
    assert (found.arrived, found.landed, found.elsewhere) == (SIZE, 0, 0)
    assert handled(found) == {("sender", 1, SIZE, 0), ("receiver", 1, SIZE, 0)}
    assert (found.copies("sender"), found.copies("receiver"), found.passes("sender")) == (1.0, 1.0, 0.0)


def test_what_no_store_follows_is_a_pass_on_the_side_where_the_packet_is() -> None:
    made = Made([LOAD, STORE, LOAD]).filled()
    made.ran(KERNEL_BLOCK).access(LOADS, USER, (1, 0)).access(STORES, KERNEL + 0x5000, (1, 1))
    made.access(LOADS, KERNEL + 0x5000, (1, 2)).ran(CROSSING)
    made.ran(KERNEL_BLOCK).access(LOADS, KERNEL + 0x5000, (1, 2))
    made.ran(KERNEL_BLOCK).access(LOADS, KERNEL + 0x5000, (1, 0)).access(STORES, USER + 0x9000, (1, 1))
    found = made.verified(USER + 0x9000).followed()
    assert handled(found) == {("sender", 1, SIZE, SIZE), ("receiver", 1, SIZE, SIZE)}


def test_a_byte_that_is_read_again_and_again_is_waited_for_and_passed_once() -> None:
    made = Made([LOAD]).filled()
    for _ in range(9):
        made.ran(KERNEL_BLOCK).access(LOADS, USER, (1, 0))
    assert handled(made.verified(USER).followed()) == {("sender", 1, 0, SIZE)}


def test_what_an_instruction_makes_of_a_byte_is_another_byte() -> None:
    made = Made([LOAD, CHANGE, STORE]).filled()
    made.ran(KERNEL_BLOCK).access(LOADS, USER, (1, 0)).access(STORES, KERNEL + 0x5000, (1, 2))
    found = made.verified(KERNEL + 0x5000 & 0xFFFFFF).followed()
    assert (found.arrived, found.elsewhere) == (0, SIZE)


def test_a_byte_goes_on_through_registers_and_a_saved_register_is_no_copy() -> None:
    made = Made([LOAD, MOVE, PUSH, POP, STORE_RBX]).filled()
    made.ran(KERNEL_BLOCK).access(LOADS, USER, (1, 0)).access(STORES, KERNEL + 0x7000, (1, 2))
    made.access(LOADS, KERNEL + 0x7000, (1, 3)).access(STORES, KERNEL + 0x5000, (1, 4))
    found = made.verified(KERNEL + 0x5000 & 0xFFFFFF).followed()
    assert (found.arrived, found.elsewhere) == (SIZE, 0)
    assert [(one.copied, one.function) for one in found.handled] == [(SIZE, 1)]


def test_where_no_cpu_has_stored_a_device_did() -> None:
    made = Made([LOAD, STORE]).filled()
    made.ran(KERNEL_BLOCK).access(LOADS, USER + 0x4000, (1, 0))  # a checksum over what has come
    found = made.verified(USER + 0x4000).followed()
    assert (found.arrived, found.landed) == (SIZE, SIZE)
    assert handled(found) == {("receiver", 1, 0, SIZE)}


def test_what_was_stored_before_a_device_was_told_may_be_its_own_now() -> None:
    poisoned = Made([NOP, STORE]).filled().ran(USER_BLOCK).access(STORES, USER + 0x4000, (0, 1))
    assert poisoned.verified(USER + 0x4000).followed().elsewhere == SIZE
    told = Made([NOP, STORE]).filled().ran(USER_BLOCK).access(STORES, USER + 0x4000, (0, 1))
    told.access(STORES, KERNEL, (0, 1), physical=OF_DEVICE, size=4)
    assert told.verified(USER + 0x4000).followed().landed == SIZE


def test_a_wide_register_is_filled_and_stored_in_parts() -> None:
    made = Made(["c5fe6f06", "c5fe7f07"]).filled()  # VMOVDQU, 32 bytes
    for part in range(0, 32, 8):
        made.access(LOADS, USER + part, (0, 0))
    for part in range(0, 32, 8):
        made.access(STORES, USER + 0x4000 + part, (0, 1))
    found = made.verified(USER + 0x4000).followed()
    assert (found.arrived, found.elsewhere, found.handled[0].copied) == (SIZE, 0, SIZE)


def test_an_access_over_the_end_of_a_page_goes_on_where_the_next_page_is() -> None:
    end = USER + 0x1000
    made = Made([LOAD, STORE])
    for _ in range(9):  # another process has it, too, but somewhere else
        made.ran(USER_BLOCK).access(LOADS, end, (0, 0), physical=0x70_0000)
    made.ran(USER_BLOCK).access(LOADS, end, (0, 0), physical=0x90_0000)  # so the next page is known
    made.mark(FILLS).access(LOADS, end - 4, (0, 0), physical=0x50_0FFC, size=1)
    made.access(STORES, end - 4, (0, 0), physical=0x50_0FFC).mark(FILLED)
    made.ran(USER_BLOCK).mark(VERIFIES).access(LOADS, end - 4, (0, 0), physical=0x50_0FFC, size=1)
    made.access(LOADS, end - 4, (0, 0), physical=0x50_0FFC, size=4).access(
        LOADS, end, (0, 0), physical=0x90_0000, size=4
    )
    found = made.mark(VERIFIED).followed()
    assert (found.arrived, found.landed, found.elsewhere) == (SIZE, 0, 0)


def test_what_is_fetched_lay_there_before_and_is_the_senders_until_it_is_copied() -> None:
    made = Made([MOVSB]).filled(USER)
    recording = recorded([(0x1000, made.code)], made.words)
    source = followed.find_sources(recording, 0, len(made.words), SIZE)
    assert source == {(USER & 0xFFFFFF) + RAM + number: number for number in range(SIZE)}
    asked = Made([MOVSB]).mark(SENDS).ran(CROSSING)
    asked.ran(KERNEL_BLOCK).access(LOADS, USER, (1, 0)).access(STORES, KERNEL + 0x5000, (1, 0)).ran(CROSSING)
    asked.ran(KERNEL_BLOCK).access(LOADS, KERNEL + 0x5000, (1, 0)).access(STORES, KERNEL + 0x6000, (1, 0))
    found = asked.verified(KERNEL + 0x6000 & 0xFFFFFF).followed(source)
    assert handled(found) == {("sender", 1, SIZE, 0), ("receiver", 1, SIZE, 0)}


def test_messages_are_found_from_where_they_begin_to_where_they_are_verified() -> None:
    made = Made([NOP]).filled().mark(SENDS).verified(USER).filled().verified(USER).mark(SENDS)
    recording = recorded([(0x1000, made.code)], made.words)
    kinds = recording.kinds
    assert [(kinds[first], kinds[last - 1]) for first, last in followed.find_messages(recording, False)] == [
        (FILLS, VERIFIED)
    ] * 2
    assert [kinds[first] for first, _ in followed.find_messages(recording, True)] == [SENDS]
    empty = recorded([(0x1000, made.code)], [(RAN, 0)])
    assert followed.find_messages(empty, False) == []


@pytest.mark.parametrize(
    ("code", "does"),
    [
        ("f3a4", Does.COPIES),
        ("48a5", Does.COPIES),
        ("488b06", Does.LOADS),
        ("480fbe06", Does.LOADS),
        ("c5fe6f06", Does.LOADS),
        ("f20f1001", Does.LOADS),
        ("488907", Does.STORES),
        ("660fd607", Does.STORES),
        ("c5fe7f07", Does.STORES),
        ("4889d8", Does.MOVES),
        ("50", Does.SPILLS),
        ("58", Does.RESTORES),
        ("480306", Does.MAKES),  # ADD
        ("0f38f006", Does.MAKES),  # MOVBE: each byte at another place
        ("f2480f38f1c8", Does.MAKES),  # CRC32
        ("8a26", Does.MAKES),  # MOV to AH
        ("06", Does.MAKES),  # none in 64-bit mode
    ],
)
def test_moves_are_told_from_what_makes_other_bytes(code: str, does: Does) -> None:
    assert decode_step(bytes.fromhex(code)).does == does


def test_upper_halves_and_written_registers_are_known() -> None:
    upper = decode_step(bytes.fromhex("0f1607"))  # MOVHPS
    assert (upper.does, upper.at) == (Does.LOADS, 8)
    popped = decode_step(bytes.fromhex(POP))
    assert popped.register in popped.writes and len(popped.writes) == 2  # and RSP
    assert decode_step(bytes.fromhex(STORE)).writes == ()


def test_words_are_as_the_plugin_counts_them() -> None:
    source = Path(layout.__file__).with_name("layout.h").read_text(encoding="utf-8")
    words = re.search(r"enum \{\s+(RAN = 1,[A-Z0-9_,\s]+)\};", source)
    assert words is not None
    for number, name in enumerate(re.findall(r"[A-Z][A-Z0-9_]*", words[1]), 1):
        assert getattr(layout, name) == number
    for name in ("PHYSICAL", "OF_DEVICE", "NOWHERE", "SIZE_SHIFT"):
        value = re.search(rf"#define {name} (.*)", source)
        assert value is not None
        assert eval(value[1].replace("ULL", "")) == getattr(layout, name)
