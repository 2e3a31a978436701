"""The one payload: layout, pattern, and what is found wrong with a damaged message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cython_ext.core import payload

SIZES = st.integers(min_value=8, max_value=4096)
SEQUENCES = st.integers(min_value=0, max_value=(1 << 64) - 1)
SEND_TIMES = st.integers(min_value=0, max_value=(1 << 63) - 1)
TRIALS = st.integers(min_value=0, max_value=(1 << 32) - 1)


@given(SIZES, SEQUENCES, TRIALS)
def test_a_message_is_good_and_carries_its_number(size: int, sequence: int, trial: int) -> None:
    message = payload.make(size, sequence, trial)
    assert len(message) == size
    assert payload.check(message, trial) == "good"
    assert payload.sequence(message) == (sequence if size >= 12 else sequence % (1 << 32))


@given(st.integers(min_value=33, max_value=2048), SEQUENCES, SEND_TIMES, st.data())
def test_every_bit_is_guarded(size: int, sequence: int, send_ns: int, data: st.DataObject) -> None:
    message = bytearray(payload.make(size, sequence, 5, send_ns=send_ns))
    message[data.draw(st.integers(min_value=0, max_value=size - 1))] ^= 1 << data.draw(
        st.integers(min_value=0, max_value=7)
    )
    # another number makes another pattern and, 254 times in 255, another trailer
    assert payload.check(message, 5) != "good"


@pytest.mark.parametrize("size", [*range(9, 70), 1400])
def test_every_byte_but_those_of_the_number_alone_is_guarded_in_messages_of_any_size(size: int) -> None:
    """A message without pattern or trailer cannot tell one number from another: of 8, 12 and 16 bytes."""
    sent = payload.make(size, 9, 5, send_ns=(1 << 62) + 12345)
    for at in range(size):
        for bit in (1, 0x80):
            message = bytearray(sent)
            message[at] ^= bit
            if size not in (12, 16) or not 4 <= at < 12:
                assert payload.check(message, 5) != "good", (at, bit)


def test_the_layout_is_the_one_that_is_documented() -> None:
    message = payload.make(64, 0x0102030405060708, 0x0A0B0C0D, send_ns=77)
    assert struct.unpack_from("<IQIq", message) == (0x78727768, 0x0102030405060708, 0x0A0B0C0D, 77)
    assert message[:4] == b"hwrx"
    assert message[-1] == 1 + 0x0102030405060708 % 255


@pytest.mark.parametrize(
    ("size", "at", "verdict"),
    [
        (8, 0, "bad magic"),
        (64, 3, "bad magic"),
        (16, 12, "other trial"),
        (64, 63, "bad trailer"),
        (64, 40, "bad pattern"),
    ],
)
def test_each_kind_of_damage_has_its_name(size: int, at: int, verdict: str) -> None:
    message = bytearray(payload.make(size, 9, 1))
    message[at] ^= 0xFF
    assert payload.check(message, 1) == verdict


def test_no_finished_message_is_all_zero() -> None:
    assert payload.check(bytes(64)) == "bad magic"
    assert all(payload.make(17, sequence)[-1] for sequence in range(600))


@given(st.binary(max_size=200), TRIALS)
def test_noise_is_never_good(noise: bytes, trial: int) -> None:
    assert payload.check(noise, trial) != "good"


@pytest.mark.parametrize("size", [0, 7])
def test_what_cannot_hold_a_number_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 8 bytes"):
        payload.make(size, 1)
    with pytest.raises(ValueError, match="at least 8 bytes"):
        payload.sequence(bytes(size))
    assert payload.check(bytes(size)) == "bad magic"


@pytest.mark.parametrize(("size", "fields"), [(9, 8), (10, 8), (11, 8), (13, 12), (14, 12), (15, 12)])
def test_bytes_that_belong_to_no_field_carry_the_pattern(size: int, fields: int) -> None:
    """And nothing of what the memory held before."""
    assert {payload.make(size, 3)[fields:] for _ in range(100)} == {payload.make(size, 3)[fields:]}
    assert payload.make(size, 3)[fields:] != payload.make(size, 4)[fields:]
