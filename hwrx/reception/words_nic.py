"""What the NIC, the interrupt and the driver did with the packet, in words."""

from __future__ import annotations

from hwrx.reception.records import RXQ0, UNTOLD, Event
from hwrx.reception.trail import PACKET_KINDS
from hwrx.reception.view import Facts, Told, View, microseconds, table_name

DONE, LAST_PIECE = 1, 2  # of a descriptor's status: DD and EOP (82574 datasheet, 7.1.4)
PAGE = 4096


def no_ring(view: View) -> str:
    """Say why no descriptor was seen."""
    driver = view.found.ends["server"].driver
    if view.request.pio:
        return "this NIC writes nothing to memory: the CPU fetches each word (the article's mechanism A)"
    if driver != "e1000e":
        return f"{driver or 'a wire of software'} has no ring that hwrx reads; it reads those of the driver e1000e"
    return "the ring's next descriptor was another frame's"


def no_interrupt(view: View) -> str:
    """Say why no interrupt was seen."""
    if view.found.ends["server"].driver:
        return "no interrupt was seen to ask for the poll: the packet came while the CPU was polling for another"
    return "a wire of software raises none: the sender's own call, or its softirq, hands the packet on"


def no_mask(view: View) -> str:
    """Say why the NIC's mask was not seen."""
    return "the mask is read of NICs that the driver e1000e has" if view.get("irq entry") else no_interrupt(view)


def arrived(view: View, event: Event) -> Told:
    """T+0: of what comes before the NIC this machine has the sender's driver."""
    return (
        "this machine has no radio, the frame comes over an Ethernet: the sender's driver was given it on "
        f"CPU {event.cpu}, {microseconds(view.since(event))} after the call",
        {},
    )


def decoded(view: View, event: Event) -> Told:
    """T+1: which bytes are which header's."""
    spans = []
    for header in dict.fromkeys(field.header for field in view.frame):
        fields = [field for field in view.frame if field.header == header]
        spans.append(f"{header} {fields[0].offset}-{fields[-1].offset + fields[-1].length - 1}")
    return (
        f"{view.length:,} bytes: {', '.join(spans)} (the table of the frame has each field); how a NIC decodes the "
        "signal no program sees",
        {"bytes": view.length},
    )


def written(view: View, event: Event) -> Told:
    """T+2: the descriptor's DMA address, and whose memory it is."""
    dma, physical = event.values[4], event.values[7]
    same = (
        "which is the buffer's physical address: nothing translates between the NIC and memory"
        if dma == physical
        else f"which an IOMMU translates to the physical address {physical:#x}"
    )
    return (
        f"descriptor {event.values[2]} of {event.values[3]} names the DMA address {dma:#x}, {same}; the driver "
        f"allocated the buffer (page {physical // PAGE:#x}) and posted it, and the frame's bytes stand there",
        {"dma": dma, "physical": physical, "descriptor": event.values[2], "entries": event.values[3]},
    )


def status(view: View, event: Event) -> Told:
    """T+3: what the NIC wrote back into the descriptor."""
    word, length = event.values[6] & 0xFFFFFFFF, event.values[6] >> 32 & 0xFFFF
    return (
        f"status 0x{word:08x}: DD (descriptor done) is {word & DONE}, EOP (end of packet) {(word & LAST_PIECE) >> 1}; "
        f"length {length}; it is the poll that reads it, not the interrupt's handler",
        {"status": word, "done": bool(word & DONE), "length": length},
    )


def vector(view: View, event: Event) -> Told:
    """T+4: number, vector and CPU of the interrupt."""
    number, entry, cpu, hops = event.values[:4]
    by = event.word(0) + (f" and {event.word(40)}" if hops else "")
    words = f"IRQ {number}, by {by}; the vector is not told on this processor"
    if entry:
        words = f"IRQ {number} is entry 0x{entry:02x} of CPU {cpu}'s interrupt table (its vector), by {by}"
    return words, {"irq": number, "vector": entry or None, "cpu": cpu if entry else event.cpu, "chip": event.word(0)}


def stopped(view: View, event: Event) -> Told:
    """T+5: which task the interrupt came upon."""
    at, segment = event.values[3], event.values[4]
    user = bool(segment & 3)
    where = f"in its own code at {at:#x}" if user else f"in the kernel, in {event.word(80) or hex(at)}"
    softirq = "a softirq, on top of " if event.beneath else ""
    return (
        f"CPU {event.cpu} was at {softirq}{view.name(event.tid, event.task)}, {where}; CR3 stays as it was "
        f"({table_name(event.table)})",
        {"task": event.task, "pid": event.tid, "user_mode": user, "in_softirq": event.beneath, "table": event.table},
    )


def handler(view: View, event: Event) -> Told:
    """T+6: the function that is registered for the interrupt."""
    reads = view.get("handler") or view.get("irq event")
    lets = None if reads is None else reads.interruptible
    said = "not told" if lets is None else "yes" if lets else "no"
    return (
        f"{event.word(0)}, registered for '{event.word(40)}'; does the CPU let other interrupts in meanwhile: {said}",
        {"handler": event.word(0), "action": event.word(40), "interruptible": lets},
    )


def masked(view: View, event: Event) -> Told:
    """Step 5: the NIC's mask, in the handler; IMS tells which causes interrupt, whoever has written IMC."""
    mask = event.values[9]
    if mask == UNTOLD:
        return "the driver has asked for the poll; its NIC's mask is not read (only e1000e's is)", {"ims": None}
    first = view.get("handler")
    before = UNTOLD if first is None else first.values[9]
    itself = before != UNTOLD and not before & RXQ0
    whose = (
        ", and was so at the handler's first instruction: the driver writes no IMC, the NIC has masked itself as it "
        "raised the interrupt (EIAC)"
        if itself
        else ""
    )
    return (
        f"IMS is 0x{mask:08x}: the bit of receive queue 0 (0x{RXQ0:08x}) is {bool(mask & RXQ0):d}{whose}",
        {"ims": mask, "masked": not mask & RXQ0, "by": "the NIC" if itself else "the driver"},
    )


def raised(view: View, event: Event) -> Told:
    """Step 6."""
    return f"NET_RX, in {event.context}: what takes long is left to it", {"softirq": "NET_RX", "in": event.context}


def over(view: View, event: Event) -> Told:
    """The handler returns: what of the network stack it had called."""
    irq = view.trail.seen["irq entry"]
    within = [
        each.kind
        for each in view.found.events
        if each.cpu == event.cpu and irq.at <= each.at <= event.at and each.context == "hard IRQ"
        and each.kind in PACKET_KINDS
    ]  # fmt: skip
    had = ", ".join(dict.fromkeys(within)) or "none"
    return (
        f"it took {microseconds(event.at - irq.at)}; of the network stack's functions it called: {had}",
        {"ns": event.at - irq.at, "packet_functions": len(within)},
    )


def softirq(view: View, event: Event) -> Told:
    """Step 7: who runs net_rx_action."""
    thread = event.task.startswith("ksoftirqd")
    rx = view.get("network rx")
    lets = None if rx is None else rx.interruptible
    said = {None: "", True: "; interrupts are let in", False: "; interrupts are held off"}[lets]
    who = (
        f"in the kernel thread {event.task}"
        if thread
        else f"on top of {view.name(event.tid, event.task)}, not in ksoftirqd"
    )
    return f"net_rx_action {who}{said}", {"ksoftirqd": thread, "on_top_of": event.tid, "interruptible": lets}


def polled(view: View, event: Event) -> Told:
    """Step 8, and what the driver registered with the network module."""
    device, operations = event.word(72, 16), event.word(40)
    whose = f"device {device}, whose operations are {operations}" if device else "the CPU's own, of no device"
    return (
        f"{event.word(0)} (NAPI instance {event.values[0]:#x}, weight {event.values[2]}; registered for: {whose})",
        {"poll": event.word(0), "weight": event.values[2], "operations": operations, "napi": event.values[0]},
    )


def unmasked(view: View, event: Event) -> Told:
    """Step 17: the poll is over, and the mask as it is then.

    An interrupt that came while the NIC was being polled (napi_schedule_prep: NAPIF_STATE_MISSED) has the driver polled
    once more, with the mask left as it is; it is the last of these polls that lets interrupts in.
    """
    words = f"{event.word(0)} has handled {event.values[3]} packets of at most {event.values[4]}"
    facts: Facts = {"packets": event.values[3], "budget": event.values[4]}
    last = view.get("let in") or event
    mask = last.values[9]
    if mask == UNTOLD:
        return words, facts
    masked = not mask & RXQ0
    again = last is not event
    if again:
        words += f"; interrupts were not let in yet, and it was polled again, {microseconds(last.at - event.at)} later"
    words += f"; IMS is 0x{mask:08x}, the bit of receive queue 0 is {not masked:d}"
    facts |= {"ims": mask, "masked": masked, "polled_again": again, "interrupted_again": _interrupted_again(view)}
    if masked:
        words += " again: the next interrupt has come" if facts["interrupted_again"] else ": the poll goes on"
    return words, facts


def _interrupted_again(view: View) -> bool:
    """Whether the same interrupt came once more when the poll had found nothing more to do."""
    first, done = view.get("irq event"), view.get("poll ends")
    return first is not None and done is not None and any(
        each.kind == "irq event" and each.values[0] == first.values[0] and each.at > done.at
        for each in view.found.events
    )  # fmt: skip


def ring_read(view: View, event: Event) -> Told:
    """Step 9: the driver reads memory."""
    length = event.values[6] >> 32 & 0xFFFF
    return (
        f"{length:,} bytes at {event.values[5]:#x}, from memory, not from the NIC",
        {"length": length, "virtual": event.values[5]},
    )


def words_read(view: View, event: Event) -> Told:
    """Mechanism A: the CPU carries the frame."""
    count = event.values[1]
    return (
        f"{count:,} bytes through the NIC's port into the skb, {count // 4:,} words of 4 bytes and {count % 4} bytes, "
        f"in {event.context}",
        {"bytes": count, "words": count // 4, "in": event.context},
    )


def skb_made(view: View, event: Event) -> Told:
    """T+11: a new skb, with the frame in it, or copied to it."""
    ring = view.get("ring read")
    data = view.stack.values[8]
    physical = data - view.stack.values[2] + view.stack.values[3]
    where = f"skb {event.values[0]:#x}, its bytes at {data:#x} (physical {physical:#x})"
    if ring is None:
        return where, {"skb": event.values[0], "data": data, "copied_from_ring": None}
    copied = data != ring.values[5]
    how = (
        f": not where the NIC wrote them ({ring.values[5]:#x}), so the CPU has copied the frame (copybreak: short "
        "frames are, and the buffer goes back to the ring)"
        if copied
        else ": where the NIC wrote them; nothing is copied"
    )
    return where + how, {"skb": event.values[0], "data": data, "copied_from_ring": copied}


def skb_kept(view: View, event: Event) -> Told:
    """T+11: the skb was made when the driver posted the buffer."""
    stack = view.stack
    same = stack.values[8] == event.values[5]
    where = (
        f"stand where the NIC wrote them ({event.values[5]:#x}): nothing is copied"
        if same
        else f"stand at {stack.values[8]:#x}, not where the NIC wrote them ({event.values[5]:#x})"
    )
    return (
        f"skb {stack.values[0]:#x} was made when the driver posted the buffer; its bytes {where}",
        {"skb": stack.values[0], "data": stack.values[8], "copied_from_ring": not same},
    )
