"""The walk in full, told from events that two packets left: one over an 82574L, one through a router that rewrites."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import msgspec
import pytest

from hwrx.claims.instruments.reception import reckon_reception
from hwrx.cli import main
from hwrx.errors import TrialError, UsageError
from hwrx.reception import frame, picture, scene, steps, trail
from hwrx.reception.records import KERNEL_TABLE, RECORD, UNTOLD, Event, event_of
from hwrx.reception.scene import Found, Request
from hwrx.reception.steps import Reception, Step

DATA = pathlib.Path(__file__).parents[1] / "data"
USER = 0x33  # the code segment of user programs on x86-64; the kernel's is 0x10


def kept(name: str) -> tuple[Request, Found]:
    return msgspec.json.decode((DATA / f"reception-{name}.json").read_bytes(), type=tuple[Request, Found])


def told(name: str, change: Callable[[Event], Event | None] = lambda event: event) -> Reception:
    """Tell a packet's steps from its events, each of which may be changed, or left out."""
    request, found = kept(name)
    events = [changed for event in found.events if (changed := change(event)) is not None]
    return steps.tell_reception(request, msgspec.structs.replace(found, events=events))


def step(found: Reception, title: str) -> Step:
    (one,) = [each for each in found.steps if each.title == title]
    return one


def with_value(event: Event, at: int, value: int) -> Event:
    return msgspec.structs.replace(event, values=(*event.values[:at], value, *event.values[at + 1 :]))


# --- the steps -------------------------------------------------------------------------------------------------------


def test_every_moment_is_told_and_each_in_its_own_context() -> None:
    found = told("nic")
    assert [each.clock for each in found.steps if each.clock] == [
        "T+0", "T+1", "T+2", "T+3", "T+4", "T+5", "T+6", "T+11", "T+7", "T+8", "T+9", "T+10", "T+12", "T+13", "T+14",
    ]  # fmt: skip
    assert {each.context for each in found.steps if each.clock in ("T+4", "T+5", "T+6")} == {"hard IRQ"}
    assert {each.context for each in found.steps if each.clock in ("T+7", "T+8", "T+9", "T+12")} == {"softirq"}
    assert step(found, "the payload is copied").task == "hwrx-reader"


@pytest.mark.parametrize(
    ("kind", "title", "why"),
    [
        ("ring read", "the NIC writes it to memory (DMA)", "the ring's next descriptor was another frame's"),
        ("irq entry", "the CPU stops what it was doing", "no interrupt was seen to ask for the poll"),
        ("waking", "the reader is woken", "the reader was not asleep"),
        ("mm switched", "CR3 is loaded", "this CPU had the reader's page table already"),
        ("lookup", "the socket is looked up", "early demux had found it before"),
        ("napi polled", "interrupts are let in again", "the kernel told of no poll"),
    ],
)
def test_what_was_not_seen_is_a_step_that_says_why(kind: str, title: str, why: str) -> None:
    assert step(told("nic"), title).seen
    missing = step(told("nic", lambda event: None if event.kind == kind else event), title)
    assert not missing.seen
    assert missing.at is None
    assert missing.words.startswith("not seen: ")
    assert why in missing.words


def test_a_packet_that_no_stack_took_has_no_steps() -> None:
    with pytest.raises(TrialError, match="netif_receive_skb was not seen"):
        told("nic", lambda event: None if event.kind == "stack" else event)


def test_an_iommu_that_translates_shows_in_the_descriptor() -> None:
    plain = step(told("nic"), "the NIC writes it to memory (DMA)")
    assert plain.facts["dma"] == plain.facts["physical"]
    other = step(
        told("nic", lambda event: with_value(event, 4, 0xFFFFF000) if event.kind == "ring read" else event),
        "the NIC writes it to memory (DMA)",
    )
    assert "an IOMMU translates to the physical address" in other.words


def test_who_masks_the_nic_is_told_by_its_mask_at_the_handlers_begin() -> None:
    assert step(told("nic"), "the NIC's interrupt is masked").facts["by"] == "the NIC"
    late = told("nic", lambda e: with_value(e, 9, e.values[9] | 1 << 20) if e.kind == "handler" else e)
    assert step(late, "the NIC's interrupt is masked").facts["by"] == "the driver"
    unread = told("nic", lambda e: with_value(e, 9, UNTOLD) if e.kind == "napi schedule" else e)
    assert "its NIC's mask is not read" in step(unread, "the NIC's interrupt is masked").words


def test_an_interrupt_that_comes_while_the_nic_is_polled_has_it_polled_again() -> None:
    """e1000e_poll writes the mask only when napi_complete_done says that no interrupt was missed."""
    request, found = kept("nic")
    (at,) = [number for number, event in enumerate(found.events) if event.kind == "napi polled"]
    last = found.events[at]
    first = with_value(last, 9, last.values[9] & ~(1 << 20))
    over = msgspec.structs.replace(last, at=last.at + 1_000_000)

    def let_in(*polls: Event) -> Step:
        events = [*found.events[:at], *polls, *found.events[at + 1 :]]
        whole = steps.tell_reception(request, msgspec.structs.replace(found, events=events))
        return step(whole, "interrupts are let in again")

    again = let_in(first, with_value(over, 3, 0))
    assert again.facts == let_in(last).facts | {"polled_again": True}
    assert "polled again, 1,000.0 µs later" in again.words
    assert let_in(first).facts["masked"] is True, "a poll that goes on when the recording ends"
    assert let_in(first).words.endswith(": the poll goes on")


def test_which_task_goes_on_depends_on_where_the_interrupt_came() -> None:
    """Within the kernel the task goes on; out of its own code it loses the CPU to whoever is to have it."""
    assert step(told("nic"), "the interrupted CPU goes on").facts["same"] is True

    def in_user_code(event: Event) -> Event:
        return with_value(event, 4, USER) if event.kind == "irq entry" else event

    user = told("nic", lambda event: None if event.kind == "vector" else in_user_code(event))
    assert step(user, "the CPU stops what it was doing").facts["user_mode"] is True
    switch = trail.find_trail(kept("nic")[1]).seen["goes on"]
    assert switch.values[2] == 0, "the sender was running, and did not sleep"
    assert step(user, "the interrupted CPU goes on").facts["same"] is False
    slept = told("nic", lambda e: with_value(in_user_code(e), 2, 1) if e.kind == "switched" else in_user_code(e))
    assert step(slept, "the interrupted CPU goes on").facts["same"] is True
    beneath = told("nic", lambda e: msgspec.structs.replace(e, beneath=True) if e.kind == "irq entry" else e)
    assert step(beneath, "the interrupted CPU goes on").words.startswith("with the softirq that it had been at")


def test_the_copy_from_the_ring_is_told_by_where_the_bytes_are() -> None:
    assert step(told("nic"), "the skb is made").facts["copied_from_ring"] is True
    _, found = kept("nic")
    ring = next(event for event in found.events if event.kind == "ring read")

    def in_place(event: Event) -> Event | None:
        if event.kind == "allocated" and event.values[5]:
            return None
        return with_value(event, 8, ring.values[5]) if event.kind == "stack" else event

    stays = step(told("nic", in_place), "the skb is made")
    assert stays.facts["copied_from_ring"] is False
    assert "nothing is copied" in stays.words


def test_the_eight_rows_of_the_table_follow_cr3() -> None:
    rows = {row.what: row for row in told("nic").tables}
    assert len(rows) == 8
    assert rows["copy to the user's buffer"].whose == "the reader's"
    assert rows["queue to the socket"].whose == "another task's"
    assert rows["radio to bytes"].table == 0
    own = told("nic", lambda e: msgspec.structs.replace(e, table=KERNEL_TABLE) if e.kind == "lookup" else e)
    assert {row.what: row for row in own.tables}["look up the socket"].whose == "the kernel's own"
    wrong = told("nic", lambda e: msgspec.structs.replace(e, table=4096) if e.kind == "enqueued" else e)
    assert {row.what: row for row in wrong.tables}["queue to the socket"].table == 4096


def test_a_router_shows_what_it_rewrote() -> None:
    found = told("router")
    changed = step(found, "the router's other device").facts
    assert changed["IPv4 time to live"] == "40 to 3f"
    assert changed["IPv4 destination address"] == "c61251fe to c6125202"
    assert step(found, "the NIC raises an interrupt").words.startswith("not seen: a wire of software raises none")
    assert not [each for each in told("nic").steps if "router" in each.title]


def test_the_picture_has_each_step_and_is_well_formed() -> None:
    import xml.etree.ElementTree as tree

    found = told("nic")
    root = tree.fromstring(picture.draw_reception(found))
    text = " ".join("".join(node.itertext()) for node in root.iter())
    assert all(each.title in text for each in found.steps)


def test_figures_of_claims_are_shares_of_what_was_seen() -> None:
    request, found = kept("nic")
    dark = msgspec.structs.replace(found, events=[event for event in found.events if event.kind != "ring read"])
    figures = reckon_reception(request, [found, dark]).figures
    assert figures["packets"] == 2
    assert figures["dma_physical"] == 1.0
    assert figures["interruptible"] == 0.0
    assert figures["tap_shares"] is None
    assert figures["copy_in_readers"] == 1.0
    assert figures["masked"] == 1.0
    assert figures["masked_by_driver"] == 0.0


# --- records and frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preempt", "context", "beneath"),
    [(0, "thread", False), (0x200, "thread", False), (0x100, "softirq", False), (0x10000, "hard IRQ", False),
     (0x10100, "hard IRQ", True)],
)  # fmt: skip
def test_a_record_tells_its_context(preempt: int, context: str, beneath: bool) -> None:
    import numpy as np

    record = np.zeros((), dtype=RECORD)
    record["kind"], record["preempt"], record["flags"] = 1, preempt, 1 << 9
    event = event_of(record[()])
    assert (event.context, event.beneath, event.interruptible) == (context, beneath, True)
    record["flags"] = UNTOLD
    assert event_of(record[()]).interruptible is None


def test_a_frame_is_told_without_a_gap_and_a_spoiled_header_is_seen() -> None:
    stack = next(event for event in kept("nic")[1].events if event.kind == "stack")
    whole = stack.data[:106]
    fields = frame.read_frame(whole)
    at = 0
    for field in fields:
        assert field.offset == at
        at += field.length
    assert at == len(whole)
    checksum = next(field for field in fields if field.name == "header checksum")
    assert checksum.value.endswith("right")
    spoiled = frame.read_frame(whole[:22] + b"\x01" + whole[23:])
    assert next(field for field in spoiled if field.name == "header checksum").value.endswith("wrong")
    padded = frame.read_frame(whole + bytes(6))
    assert (padded[-1].name, padded[-1].length) == ("padding", 6)
    assert [field.name for field in frame.read_frame(b"short")] == ["cut short"]
    arp = frame.read_frame(whole[:12] + b"\x08\x06" + whole[14:])
    assert [field.header for field in arp] == ["Ethernet", "Ethernet", "Ethernet", "payload"]


def test_tcps_header_is_told_too() -> None:
    ip = bytes.fromhex("45000028000040004006000001020304050607080050d431000000010000000250100400abcd0000")
    names = [field.name for field in frame.read_frame(bytes(12) + b"\x08\x00" + ip) if field.header == "TCP"]
    assert names[:4] == ["source port", "destination port", "sequence number", "acknowledgement"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (Request(size=15), "16 to 1,472 bytes"),
        (Request(size=1473), "16 to 1,472 bytes"),
        (Request(topology="pair", pio=True), "no NIC without DMA"),
        (Request(topology="nic", rewrite=True), "nothing rewrites packets in the topology nic"),
    ],
)
def test_a_request_that_does_not_go_together_is_refused(request_: Request, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        scene.check_request(request_)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["tcp", "--full"], "follows a datagram through the kernel, not tcp"),
        (["udp", "rdma-send", "--full"], "not udp, rdma-send"),
        (["udp", "--tap"], "--tap is for the walk in every step"),
        (["udp", "--rewrite"], "--rewrite is for the walk in every step"),
        (["udp", "--full", "--messages", "5"], "it takes no --messages"),
        (["udp", "--full", "--wait", "poll"], "it takes no --wait"),
        (["udp", "--full", "--size", "9000"], "16 to 1,472 bytes"),
        (["udp", "--full", "--here", "--kernel", "6.1"], "--kernel is for a guest"),
        (["udp", "--full", "--topology", "ring"], "no topology 'ring'"),
    ],
)
def test_the_command_says_what_it_does_not_take(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["walk", *words]) == 2
    assert what in capsys.readouterr().err
