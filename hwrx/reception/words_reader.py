"""What the socket, the scheduler and the reader did, in words."""

from __future__ import annotations

from hwrx.reception.records import Event
from hwrx.reception.view import Told, View, microseconds, table_name
from hwrx.reception.words_nic import no_interrupt


def found(view: View, event: Event) -> Told:
    """T+10: the socket; port, descriptor and PID of who has it."""
    owner = next(iter(view.found.owners), None)
    held = "held by nobody in /proc"
    if owner is not None:
        held = f"held by {owner.name}, PID {owner.pid}, fd {owner.descriptor}"
    return (
        f"struct sock at {event.values[0]:#x}, port {event.values[1]}, inode {event.values[2]}, {held}; for what "
        "follows the kernel needs neither PID nor fd",
        {
            "sock": event.values[0], "port": event.values[1], "inode": event.values[2],
            "pid": None if owner is None else owner.pid, "fd": None if owner is None else owner.descriptor,
        },
    )  # fmt: skip


def filtered(view: View, event: Event) -> Told:
    """The filter comes first."""
    return "sk_filter_trim_cap, before the room in the receive buffer is checked; without a filter all may pass", {}


def queued(view: View, event: Event) -> Told:
    """T+12."""
    return (
        f"skb {event.values[8]:#x} to the queue of {event.values[0]:#x} (room for {event.values[4]:,} bytes); UDP has "
        "__udp_enqueue_schedule_skb for it, and calls neither sock_queue_rcv_skb nor __skb_queue_tail",
        {"skb": event.values[8], "sock": event.values[0], "room": event.values[4]},
    )


def announced(view: View, event: Event) -> Told:
    """sk_data_ready."""
    return (
        f"sock_def_readable is this socket's sk_data_ready; packets in its queue: {event.values[3]}",
        {"queued": event.values[3], "in": event.context},
    )


def woken(view: View, event: Event) -> Told:
    """T+13."""
    return (
        f"{event.word(0, 16)}, PID {event.values[0]}, is made runnable in {event.context}; CR3 stays "
        f"({table_name(event.table)})",
        {"pid": event.values[0], "in": event.context, "table": event.table},
    )


def softirq_over(view: View, event: Event) -> Told:
    """The softirq ends."""
    return "there is nothing more to receive", {}


def no_return(view: View) -> str:
    """Say why the interrupted CPU was not seen to go on."""
    if view.get("irq entry") is None:
        return no_interrupt(view)
    irq = view.trail.seen["irq entry"]
    return f"no change of tasks came: CPU {irq.cpu} went on with {view.name(irq.tid, irq.task)}"


def returned(view: View, event: Event) -> Told:
    """T+14: which task has the CPU when the interrupt is over."""
    irq = view.trail.seen["irq entry"]
    whom, word = event.values[1], event.word(0, 16)
    was = view.name(irq.tid, irq.task)
    resumed = _how_resumed(view, irq, event)
    if resumed:
        return f"with {resumed}; then the scheduler gives it to {view.name(whom, word)}", {
            "same": True,
            "next": irq.tid,
        }
    back = view.get("back again")
    again = "" if back is None else f"; {was} had it again {microseconds(back.at - event.at)} later"
    return (
        f"not with {was}: at the interrupt's end the scheduler gives the CPU to {view.name(whom, word)}{again}",
        {"same": False, "next": whom, "next_task": word},
    )


def _how_resumed(view: View, irq: Event, switch: Event) -> str:
    """Say with what the interrupted task went on before the CPU was taken from it, "" if it was taken at once.

    The kernel looks whether another task is to have the CPU on its way out of an interrupt (irqentry_exit): if the
    interrupt came upon user code, and within the kernel only where that may be preempted; sched_switch tells that.
    """
    was = view.name(irq.tid, irq.task)
    state, preempted = switch.values[2], bool(switch.values[4])
    other = view.get("next interrupt")
    if irq.beneath:
        return f"the softirq that it had been at, on top of {was}"
    if other is not None:
        return f"{was}, until the next interrupt, {microseconds(other.at - view.trail.seen['irq exit'].at)} later"
    if not irq.values[4] & 3 and irq.tid and not preempted:
        return f"{was}, in the kernel, until its call was over"
    return f"{was}, until it slept" if state and not preempted else ""


def switched(view: View, event: Event) -> Told:
    """The scheduler's part."""
    wake = view.get("waking")
    waited = "" if wake is None else f", {microseconds(event.at - wake.at)} after it was woken"
    return (
        f"CPU {event.cpu} goes from {view.name(event.values[0], event.task)} to the reader{waited}",
        {"from": event.values[0], "to": event.values[1], "cpu": event.cpu},
    )


def loaded(view: View, event: Event) -> Told:
    """CR3 before and after."""
    before, after = event.values[:2]
    return f"from page table {table_name(before)} to {after:#x}, the reader's", {"before": before, "after": after}


def taken_off(view: View, event: Event) -> Told:
    """In the reader's own call."""
    return (
        f"skb {event.values[0]:#x}, in its own call, with its own page table ({event.table:#x})",
        {"skb": event.values[0], "table": event.table},
    )


def copied(view: View, event: Event) -> Told:
    """The copy to the user."""
    return (
        f"{event.values[9]:,} bytes, by the CPU, to an address that the page table {event.table:#x} (the reader's) "
        "translates; the skb is given back",
        {"bytes": event.values[9], "table": event.table},
    )


def received(view: View, event: Event) -> Told:
    """The call returns."""
    return f"{event.values[0]:,} bytes", {"bytes": event.values[0]}
