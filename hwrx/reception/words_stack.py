"""What the network stack did with the packet, in words: of a router on the way, and of the host that it is for."""

from __future__ import annotations

from hwrx.reception.frame import ETHERNET, compare_frames
from hwrx.reception.records import Event
from hwrx.reception.view import Told, View, microseconds


def joined(view: View, event: Event) -> Told:
    """Step 11."""
    return "napi_gro_receive has it; a datagram of no UDP tunnel and no GRO socket is not joined with others", {}


def backlog(view: View, event: Event) -> Told:
    """Step 12."""
    return "enqueue_to_backlog: a softirq of its CPU takes it from there (process_backlog)", {"in": event.context}


def taken(view: View, event: Event) -> Told:
    """Steps 13 and 14."""
    return (
        f"skb {event.values[0]:#x}, {event.values[4]:,} bytes behind the Ethernet header, on CPU {event.cpu} in "
        f"{event.context}",
        {"skb": event.values[0], "in": event.context},
    )


def no_tap(view: View) -> str:
    """Say why no packet socket had it."""
    return "packet_rcv was not seen" if view.found.tapped else "no packet socket listens (--tap opens one)"


def tapped(view: View, event: Event) -> Told:
    """Step 15: a clone, or a copy, told by where its bytes are."""
    clone = view.get("cloned")
    if clone is None:
        return f"packet_rcv is given the same skb {event.values[0]:#x}", {"shared": True}
    shares = clone.values[1] == view.stack.values[1]
    where = "where the first one's are, shared and not copied" if shares else "elsewhere, a copy"
    return (
        f"packet_rcv has it, and skb_clone makes skb {clone.values[0]:#x} of it, whose bytes are at "
        f"{clone.values[1]:#x}: {where}",
        {"shared": shares, "skb": clone.values[0], "bytes_at": clone.values[1]},
    )


def read_header(view: View, event: Event) -> Told:
    """T+7: the IP header."""
    values = {field.name: field.value for field in view.frame}
    kind = event.values[7] & 255
    return (
        f"from {values.get('source address', '?')} to {values.get('destination address', '?')}, in {event.context}; "
        f"its packet type is {kind} (0: for this host by its MAC address; 3: for another, and dropped here)",
        {"destination": values.get("destination address"), "type": kind, "in": event.context},
    )


def routed(view: View, event: Event) -> Told:
    """The destination is ours."""
    return "ip_route_input_noref: the destination is an address of this host", {}


def local(view: View, event: Event) -> Told:
    """The packet is for this host."""
    return "ip_local_deliver: the hooks of LOCAL_IN are asked here, if there are any", {}


def ports(view: View, event: Event) -> Told:
    """T+8."""
    values = {field.name: field.value.split(" ")[0] for field in view.frame if field.header == "UDP"}
    return (
        f"from port {values.get('source port')} to port {values.get('destination port')}, in {event.context}",
        {"port": int(values.get("destination port", 0)), "in": event.context},
    )


def looked_up(view: View, event: Event) -> Told:
    """T+9: by which four values, and how long it took."""
    found = view.get("found sock")
    source, destination = (value.to_bytes(4, "little") for value in (event.values[1], event.values[3]))
    near, far = (int.from_bytes((event.values[at] & 0xFFFF).to_bytes(2, "little"), "big") for at in (4, 2))
    took = "" if found is None else f", in {microseconds(found.at - event.at)}, the probes' own cost included"
    return (
        f"from {'.'.join(map(str, source))}:{far} to {'.'.join(map(str, destination))}:{near}{took}; `hwrx lookup` "
        "shows the hash and the chain",
        {"port": near, "address_as_hashed": event.values[3]},
    )


# --- a router on the way ------------------------------------------------------------------------------------------


def hooked(view: View, event: Event) -> Told:
    """Steps 20 and 23: functions of netfilter are asked."""
    count = event.values[9] >> 8
    return f"functions registered there: {count}; each may change the packet, or discard it", {"functions": count}


def not_local(view: View, event: Event) -> Told:
    """Step 21."""
    return "the destination is not one of the router's addresses, and forwarding is on (net.ipv4.ip_forward)", {}


def forwarded(view: View, event: Event) -> Told:
    """Step 22."""
    ttl = event.data[ETHERNET + 8]
    return f"its time to live, {ttl}, is lowered, and then FORWARD is asked; no socket is looked up", {"ttl": ttl}


def sent_on(view: View, event: Event) -> Told:
    """Step 24."""
    return "dst_output calls ip_output, as for a packet of the router's own", {}


def rewritten(view: View, event: Event) -> Told:
    """What of the frame's bytes is not as it came."""
    changes = compare_frames(view.trail.seen["router: stack"].data, event.data)
    words = "; ".join(f"{name} {old} to {new}" for name, old, new in changes)
    return f"changed on the way through: {words}", {name: f"{old} to {new}" for name, old, new in changes}
