"""The steps of a packet's reception as two articles count them, each in words, with its time and where it was read.

`clock` is the moment in the article that counts T+0 to T+14; `step` is the number in the one that counts 17 steps, or
behind them the function that it names. A step that was not seen is there all the same, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from hwrx.reception import words_nic as nic
from hwrx.reception import words_reader as reader
from hwrx.reception import words_stack as stack
from hwrx.reception.frame import Field
from hwrx.reception.records import Event
from hwrx.reception.scene import Found, Request
from hwrx.reception.tables import TableUse, table_uses
from hwrx.reception.trail import find_trail, page_table_loads
from hwrx.reception.view import Facts, Told, View, view_of

MELTDOWN = Path("/sys/devices/system/cpu/vulnerabilities/meltdown")


class Step(Struct, frozen=True):
    """One step. `at`: ns since the sender's call; `seen`: whether it was observed, and if not `words` say why."""

    clock: str
    step: str
    title: str
    words: str
    source: str
    seen: bool
    at: int | None = None
    cpu: int | None = None
    context: str = ""
    task: str = ""
    tid: int | None = None
    facts: Facts = {}


class Reception(Struct, frozen=True):
    """All that was found out about one packet. `took`: ns from the sender's call to the reader's having it."""

    request: Request
    kernel: str
    frame: list[Field]
    steps: list[Step]
    tables: list[TableUse]
    notes: list[str]
    refused: dict[str, str]
    took: int


class Row(NamedTuple):
    """How a step is told: which event it is, what says it in words, where it is read, why it may not be there."""

    clock: str
    step: str
    title: str
    event: str
    tell: Callable[[View, Event], Told]
    source: str
    why: str | Callable[[View], str] = ""
    where: str = ""  # "router", "pio": a way on which it is asked for


NO_POLL = "no poll function that hwrx probes brought it (e1000e_poll, virtnet_poll, process_backlog)"
OWN_SKB = "the skb is the sender's own: over a wire of software it is handed on"
ROWS = (
    Row("T+0", "1", "the signal arrives", "xmit", nic.arrived, "net_dev_start_xmit"),
    Row("T+1", "1", "the NIC has bytes", "stack", nic.decoded, "the frame, as netif_receive_skb has it"),
    Row("", "routing", "a router's stack has it", "router: stack", stack.taken, "netif_receive_skb", where="router"),
    Row("", "PRE_ROUTING", "the router's PRE_ROUTING hooks", "router: before routing", stack.hooked, "nf_hook_slow",
        "no function is registered there (--rewrite registers some)", "router"),
    Row("", "routing", "it is not for the router", "router: routed", stack.not_local, "ip_route_input_noref",
        where="router"),
    Row("", "ip_forward", "ip_forward takes it", "forwarded", stack.forwarded, "ip_forward", where="router"),
    Row("", "FORWARD", "the router's FORWARD hooks", "router: forward", stack.hooked, "nf_hook_slow",
        "no function is registered there: ip_forward goes on at once", "router"),
    Row("", "dst_output_sk", "dst_output sends it", "router: output", stack.sent_on, "ip_output", where="router"),
    Row("", "dst_output_sk", "the router's other device", "router: xmit", stack.rewritten, "net_dev_start_xmit",
        where="router"),
    Row("T+2", "2", "the NIC writes it to memory (DMA)", "ring read", nic.written, "e1000_ring: buffer_info, desc",
        nic.no_ring),
    Row("T+3", "2", "the descriptor says: done", "ring read", nic.status, "the descriptor, as the NIC wrote it back",
        nic.no_ring),
    Row("T+4", "3", "the NIC raises an interrupt", "irq event", nic.vector, "irq_desc, apic_chip_data",
        nic.no_interrupt),
    Row("T+5", "3", "the CPU stops what it was doing", "irq entry", nic.stopped, "irq_handler_entry; __irq_regs",
        nic.no_interrupt),
    Row("T+6", "4", "the driver's handler runs", "irq entry", nic.handler, "irq_handler_entry: irqaction; EFLAGS",
        nic.no_interrupt),
    Row("", "5", "the NIC's interrupt is masked", "napi schedule", nic.masked, "the register IMS, in __napi_schedule",
        nic.no_mask),
    Row("", "6", "a softirq is raised", "softirq raise", nic.raised, "softirq_raise", nic.no_interrupt),
    Row("A4", "", "the handler reads the frame, word by word", "pio read", nic.words_read, "ne2k_pci_block_input",
        where="pio"),
    Row("", "", "the handler returns", "irq exit", nic.over, "irq_handler_exit", nic.no_interrupt),
    Row("", "7", "the softirq runs", "softirq entry", nic.softirq, "softirq_entry; EFLAGS in net_rx_action",
        "no softirq: the packet went up in the context that is named"),
    Row("", "8", "the driver is polled", "poll begins", nic.polled, "napi_struct, at the poll's entry", NO_POLL),
    Row("", "9", "the driver reads what was written", "ring read", nic.ring_read, "e1000_clean_rx_irq", nic.no_ring),
    Row("T+11", "10", "the skb is made", "allocated", nic.skb_made, "the allocator's return", OWN_SKB),
    Row("", "11", "GRO looks at it", "gro", stack.joined, "napi_gro_receive", "this driver does not call it"),
    Row("", "12", "it is put on a CPU's backlog", "backlog", stack.backlog, "enqueue_to_backlog",
        "RPS is off, and the driver's poll hands the packet on"),
    Row("", "13-14", "the stack takes it", "stack", stack.taken, "netif_receive_skb"),
    Row("", "15", "packet sockets get it", "packet_rcv", stack.tapped, "packet_rcv, skb_clone", stack.no_tap),
    Row("T+7", "ip_rcv", "the IP header is read", "ip_rcv", stack.read_header, "ip_rcv"),
    Row("", "routing", "it is routed", "routed", stack.routed, "ip_route_input_noref",
        "early demux had the route from the socket"),
    Row("", "ip_local_deliver", "it is for this host", "local", stack.local, "ip_local_deliver"),
    Row("T+8", "udp_rcv", "the ports are read", "udp_rcv", stack.ports, "udp_rcv"),
    Row("T+9", "lookup", "the socket is looked up", "lookup", stack.looked_up, "__udp4_lib_lookup",
        "early demux had found it before"),
    Row("T+10", "lookup", "and found", "found sock", reader.found, "the sock that is returned; /proc"),
    Row("", "sk_filter", "the socket's filter is asked", "filtered", reader.filtered, "sk_filter_trim_cap"),
    Row("T+12", "sock_queue_rcv_skb", "the socket's queue gets it", "enqueued", reader.queued,
        "__udp_enqueue_schedule_skb"),
    Row("", "sk_data_ready", "the socket tells its reader", "ready", reader.announced, "sock_def_readable"),
    Row("T+13", "sk_data_ready", "the reader is woken", "waking", reader.woken, "sched_waking",
        "nobody had to be woken: the reader was not asleep"),
    Row("", "17", "interrupts are let in again", "napi polled", nic.unmasked, "napi_poll; the register IMS",
        "the kernel told of no poll"),
    Row("", "", "the softirq is over", "softirq exit", reader.softirq_over, "softirq_exit", "there was no softirq"),
    Row("T+14", "", "the interrupted CPU goes on", "goes on", reader.returned, "sched_switch", reader.no_return),
    Row("", "", "a CPU is given to the reader", "switched", reader.switched, "sched_switch"),
    Row("", "", "CR3 is loaded", "mm switched", reader.loaded, "switch_mm_irqs_off",
        "this CPU had the reader's page table already"),
    Row("", "", "the reader takes the skb", "taken", reader.taken_off, "__skb_recv_udp's return"),
    Row("", "", "the payload is copied", "copied", reader.copied, "skb_consume_udp"),
    Row("", "", "recv returns", "received", reader.received, "udp_recvmsg's return"),
)  # fmt: skip


def tell_reception(request: Request, found: Found) -> Reception:
    """Put the steps in order. TrialError if the packet was not seen at all."""
    trail = find_trail(found)
    view = view_of(request, found, trail)
    steps = [_step(view, row) for row in ROWS if _is_asked(view, row)]
    return Reception(
        request, os.uname().release, view.frame, steps, table_uses(trail, found), list(_notes(view)), found.refused,
        found.received - found.sent,
    )  # fmt: skip


def _is_asked(view: View, row: Row) -> bool:
    """Whether a row belongs to the way that the packet was to take."""
    if row.where == "router":
        return view.get("forwarded") is not None
    return row.where != "pio" or view.request.pio


def _step(view: View, row: Row) -> Step:
    event, tell, source = view.get(row.event), row.tell, row.source
    if row.event == "allocated" and event is None and view.get("ring read") is not None:
        # the driver had made it when it posted the buffer
        event, tell, source = view.get("ring read"), nic.skb_kept, "e1000_buffer.skb"
    if event is None:
        why = row.why if isinstance(row.why, str) else row.why(view)
        probed = f"{row.source} was not seen"
        return Step(row.clock, row.step, row.title, f"not seen: {why or probed}", source, seen=False)
    words, facts = tell(view, event)
    return Step(
        row.clock, row.step, row.title, words, source, True, view.since(event), event.cpu, event.context, event.task,
        event.tid, facts,
    )  # fmt: skip


def _notes(view: View) -> Iterator[str]:
    """Yield what holds of the whole."""
    loads = len(page_table_loads(view.trail, view.found))
    why = "the kernel is mapped in every page table" if not loads else "the scheduler ran in between"
    yield f"between arrival and queueing CR3 was loaded {loads} times on CPU {view.trail.cpu}: {why}"
    if MELTDOWN.exists() and "PTI" in MELTDOWN.read_text(encoding="utf-8"):
        yield "this kernel isolates its page tables (PTI): entering it from user code loads CR3, too, unseen here"
    else:
        yield "this kernel does not isolate its page tables (no PTI): entering it does not load CR3"
    yield "the times are those of a machine with some 60 probes attached: they mean something against each other only"
