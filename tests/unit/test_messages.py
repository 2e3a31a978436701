"""Control messages: what is no message ends in a named error, whatever it is and however it is cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrx.control.messages import (
    LARGEST_FRAME,
    SAMPLES_A_CHUNK,
    VERSION,
    Chunk,
    Done,
    Frames,
    Hello,
    Prepare,
    Quit,
    Setting,
    Start,
    frame_message,
    same_version,
)
from hwrx.control.places import Place
from hwrx.errors import PeerError

PREPARE = Prepare(trial=7, role="client", setting=Setting(path="udp"), here=Place(), there=Place(netdev="veth0"))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_messages_survive_any_cutting_of_the_stream(cuts: list[int]) -> None:
    sent = [Hello(), PREPARE, Start(), Quit()]
    stream = b"".join(frame_message(message) for message in sent)
    frames, got, at = Frames("to agent"), [], 0
    for cut in [*cuts, len(stream)]:
        got += frames.feed(stream[at : at + cut])
        at += cut
    assert got == sent
    assert not frames.truncated


@given(st.binary(min_size=4, max_size=300))
def test_garbage_ends_in_a_named_error_or_waits_for_more(garbage: bytes) -> None:
    frames = Frames("from agent")
    try:
        assert frames.feed(garbage) == []
    except PeerError as error:
        assert "hwrx" in str(error)
    else:
        assert frames.truncated


def test_a_login_banner_is_named_as_such() -> None:
    with pytest.raises(PeerError, match=r"no frame of hwrx.*Welcome to") as caught:
        Frames("from agent").feed(b"Welcome to host\r\nYou have mail.\r\n")
    assert "login script" in caught.value.remedy


def test_an_oversized_length_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(PeerError, match=str(LARGEST_FRAME + 1)):
        Frames("from agent").feed(struct.pack(">I", LARGEST_FRAME + 1))


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(PeerError, match="holds no message"):
        Frames("from agent").feed(frame_message(PREPARE))


def test_a_message_too_large_for_a_frame_is_not_sent() -> None:
    with pytest.raises(PeerError, match="does not fit"):
        frame_message(Done(tally={}, ended="error", error="x" * (LARGEST_FRAME + 1)))


def test_the_largest_chunk_fits_a_frame() -> None:
    chunk = Chunk(first=0, data=b"\xff" * (8 * SAMPLES_A_CHUNK))
    assert Frames("from agent").feed(frame_message(chunk)) == [chunk]


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(PeerError, match=rf"version {VERSION + 1}.*version {VERSION}"):
        same_version(Hello(version=VERSION + 1, hwrx="9.9"))
