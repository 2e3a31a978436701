"""The walk in full, in the guest: every step of the articles, of packets over the 82574L, the NE2000 and a router."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwrx.reception.run import follow_here
from hwrx.reception.scene import Request
from hwrx.reception.steps import Reception, Step
from hwrx.wires import guest_nics, router, topology
from hwrx.wires.made import Made


def follow(request: Request) -> Reception:
    return follow_here(request, lambda stage, text: None)


@pytest.fixture(scope="module")
def segment() -> Iterator[Made]:
    """The NICs stay up: an interrupt that is let go has no handler any more."""
    with topology.build_topology("nic") as made:
        yield made


@pytest.fixture(scope="module")
def short(segment: Made) -> Reception:
    return follow(Request("nic", 64))


@pytest.fixture(scope="module")
def tapped(segment: Made) -> Reception:
    return follow(Request("nic", 1400, tap=True))


@pytest.fixture(scope="module")
def carried(segment: Made) -> Reception:
    return follow(Request("nic", 64, pio=True))


@pytest.fixture(scope="module")
def rewritten() -> Reception:
    return follow(Request("router", 64, rewrite=True))


def step(found: Reception, title: str) -> Step:
    (one,) = [each for each in found.steps if each.title == title]
    assert one.seen, one.words
    return one


def test_every_moment_of_the_article_is_seen(short: Reception) -> None:
    seen = {each.clock for each in short.steps if each.seen}
    assert seen >= {f"T+{number}" for number in range(15) if number != 14}
    assert any(each.clock == "T+14" for each in short.steps)
    numbers = {number for each in short.steps if each.seen for number in re.findall(r"\d+", each.step)}
    # 12, the backlog, is not on the way of a NIC without RPS; 15 wants a packet socket
    assert numbers >= {str(number) for number in range(1, 18)} - {"12", "15", "16"}


def test_the_frame_is_told_byte_by_byte(short: Reception) -> None:
    at = 0
    for field in short.frame:
        assert field.offset == at, field
        at += field.length
    assert at == 14 + 20 + 8 + 64
    values = {(field.header, field.name): field.value for field in short.frame}
    assert values["Ethernet", "destination MAC address"] == guest_nics.NIC_HARDWARE["server"]
    assert values["Ethernet", "source MAC address"] == guest_nics.NIC_HARDWARE["client"]
    assert values["IPv4", "destination address"] == guest_nics.NIC_ADDRESSES["server"]
    assert values["IPv4", "header checksum"].endswith("right")


def test_the_nic_wrote_to_a_physical_address_that_the_driver_posted(short: Reception) -> None:
    """The guest has its IOMMU in passthrough: the descriptor's address is the page's own."""
    written = step(short, "the NIC writes it to memory (DMA)").facts
    assert written["dma"] == written["physical"]
    assert written["entries"] == 256
    status = step(short, "the descriptor says: done").facts
    assert status["done"] is True
    assert status["length"] == 14 + 20 + 8 + 64


def test_interrupt_vector_and_handler_are_those_of_the_machine(short: Reception) -> None:
    raised = step(short, "the NIC raises an interrupt").facts
    (line,) = [
        line
        for line in Path("/proc/interrupts").read_text().splitlines()
        if line.lstrip().startswith(f"{raised['irq']}:")
    ]
    handler = step(short, "the driver's handler runs").facts
    assert line.endswith(str(handler["action"]))
    assert str(handler["handler"]).startswith("e1000_intr_msix_rx")
    assert handler["interruptible"] is False
    assert isinstance(raised["vector"], int)
    assert 0x20 <= raised["vector"] < 0xEC  # between the exceptions and the system's own vectors
    assert raised["cpu"] == step(short, "the driver's handler runs").cpu


def test_the_interrupt_found_a_task_and_the_handler_touched_no_packet(short: Reception) -> None:
    stopped = step(short, "the CPU stops what it was doing")
    assert stopped.context == "hard IRQ"
    assert stopped.facts["table"]
    assert step(short, "the handler returns").facts["packet_functions"] == 0
    assert step(short, "a softirq is raised").facts["in"] == "hard IRQ"
    softirq = step(short, "the softirq runs")
    assert softirq.context == "softirq"
    assert softirq.facts["interruptible"] is True


def test_the_mask_is_set_while_it_is_polled_and_gone_afterwards(short: Reception) -> None:
    """The next packet's interrupt may have come at once, and has masked the NIC again: so of several packets."""
    for found in itertools.chain([short], (follow(Request("nic", 64)) for _ in range(8))):
        masked = step(found, "the NIC's interrupt is masked").facts
        assert masked["masked"] is True
        assert masked["by"] == "the NIC"
        later = step(found, "interrupts are let in again").facts
        if later["masked"] is False:
            return
    pytest.fail(f"the NIC's interrupt was masked after each poll: {later}")


def test_short_frames_are_copied_from_the_ring_and_long_ones_stay(short: Reception, tapped: Reception) -> None:
    assert step(short, "the skb is made").facts["copied_from_ring"] is True
    assert step(tapped, "the skb is made").facts["copied_from_ring"] is False


def test_a_packet_socket_shares_the_bytes(tapped: Reception) -> None:
    assert step(tapped, "packet sockets get it").facts["shared"] is True
    assert step(tapped, "the socket's queue gets it").facts["skb"]


def test_socket_descriptor_and_process_are_the_readers(short: Reception) -> None:
    found = step(short, "and found").facts
    woken = step(short, "the reader is woken")
    assert found["pid"] == woken.facts["pid"] == step(short, "the payload is copied").tid
    assert isinstance(found["fd"], int)
    assert found["port"] == step(short, "the ports are read").facts["port"]
    assert found["sock"] == step(short, "the socket's queue gets it").facts["sock"]


def test_page_tables_change_at_the_switch_alone(short: Reception) -> None:
    copy = step(short, "the payload is copied")
    assert step(short, "CR3 is loaded").facts["after"] == copy.facts["table"]
    rows = {row.what: row for row in short.tables}
    assert len(rows) == 8
    for what in ("parse headers", "look up the socket", "queue to the socket", "wake the process up"):
        assert rows[what].whose == "another task's"
        assert rows[what].table != copy.facts["table"]
    assert rows["copy to the user's buffer"].whose == "the reader's"


def test_times_go_on_as_the_packet_does(short: Reception) -> None:
    order = [
        "the signal arrives", "the CPU stops what it was doing", "a softirq is raised", "the handler returns",
        "the softirq runs", "the driver is polled", "the driver reads what was written", "the skb is made",
        "the stack takes it", "the IP header is read", "the ports are read", "the socket is looked up", "and found",
        "the socket's queue gets it", "the reader is woken", "the reader takes the skb", "the payload is copied",
        "recv returns",
    ]  # fmt: skip
    times = [step(short, title).at for title in order]
    assert times == sorted(times, key=lambda at: at or 0)


def test_a_nic_without_dma_is_read_in_its_interrupt(carried: Reception) -> None:
    read = step(carried, "the handler reads the frame, word by word").facts
    assert read["in"] == "hard IRQ"
    assert read["bytes"] == 14 + 20 + 8 + 64
    assert step(carried, "it is put on a CPU's backlog").facts["in"] == "hard IRQ"
    assert not next(each for each in carried.steps if each.clock == "T+2").seen


def test_a_router_forwards_without_a_socket(rewritten: Reception) -> None:
    """The address is rewritten before routing, the hop counted, the frame dressed anew for the next wire."""
    changed = step(rewritten, "the router's other device").facts
    assert changed["IPv4 time to live"] == "40 to 3f"
    assert changed["Ethernet destination MAC address"] == (
        f"{router.GATEWAY_HARDWARE['client'].replace(':', '')} to {router.HARDWARE['server'].replace(':', '')}"
    )
    assert changed["IPv4 destination address"] == "c61251fe to c6125202"
    assert "UDP destination port" in changed
    asked = step(rewritten, "the router's PRE_ROUTING hooks").facts["functions"]
    assert isinstance(asked, int)
    assert asked >= 1
    order = [
        "a router's stack has it", "the router's PRE_ROUTING hooks", "it is not for the router", "ip_forward takes it",
        "dst_output sends it", "the router's other device", "the stack takes it", "the socket is looked up",
    ]  # fmt: skip
    times = [step(rewritten, title).at for title in order]
    assert times == sorted(times, key=lambda at: at or 0)


@pytest.mark.parametrize("title", ["the NIC raises an interrupt", "the NIC writes it to memory (DMA)"])
def test_what_a_wire_of_software_has_not_says_so(rewritten: Reception, title: str) -> None:
    (one,) = [each for each in rewritten.steps if each.title == title]
    assert not one.seen
    assert one.words.startswith("not seen: a wire of software")


@pytest.fixture
def links() -> Callable[[], set[str]]:
    return lambda: {path.name for path in Path("/run/netns").glob("*")}


def test_a_router_leaves_nothing(links: Callable[[], set[str]]) -> None:
    before = links()
    with topology.router() as made:
        assert made.middle in links()
    assert links() == before
