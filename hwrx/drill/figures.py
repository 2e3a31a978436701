"""What a drill's predicate is about: figures of what the peer sent, of completions at both ends, and of memory."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from cython_ext.roce.packet import syndrome_name
from hwrx.drill.ends import (
    COUNTER,
    RESULT,
    SLOTS,
    STRIDE,
    Completed,
    OwnEnd,
    Peer,
    Requests,
    count_changed,
    worst_status,
)
from hwrx.drill.tampering import Seen

Figures = dict[str, int | float | str | bool]
SUCCESS = "IBV_WC_SUCCESS"


class Observed(Struct):
    """A packet of the peer, and when it came, in nanoseconds."""

    at: int
    seen: Seen


def collect_figures(
    observed: Sequence[Observed], damaged: int, asked: int | None, us: OwnEnd, peer: Peer, ours: Requests,
    theirs: Requests,
) -> Figures:  # fmt: skip
    """Return every figure by its name.

    :param observed: what the peer sent, before anything was done to it
    :param damaged: how many of its packets were not valid, or had a wrong ICRC
    :param asked: when our first RNR NAK went, in nanoseconds; None: none did
    """
    figures: Figures = {"damaged": damaged}
    figures |= _answers([each.seen for each in observed if not each.seen.request])
    figures |= _requests([each for each in observed if each.seen.request], asked)
    for name, end, requests, other in (("our", us, ours, peer), ("peer", peer, theirs, us)):
        figures |= _completions(name, end.sends, end.receives)
        figures[f"{name}_delivered"] = requests.count_delivered(end, other)
    figures["changed"] = count_changed(peer)
    figures["our_changed"] = count_changed(us)
    figures["counter"] = int.from_bytes(peer.read(COUNTER, 8), "little")
    figures["our_counter"] = int.from_bytes(us.read(COUNTER, 8), "little")
    figures["fetched"] = _fetched(us, ours)
    figures["our_again"] = us.pair.counters["sent_again"]
    return figures


def _answers(seen: Sequence[Seen]) -> Figures:
    """Figures of the peer's answers to us."""
    acks = [each for each in seen if each.syndrome == "ACK"]
    naks = [each for each in seen if each.syndrome == "NAK"]
    rnr = [each for each in seen if each.syndrome == "RNR NAK"]
    data = [each for each in seen if each.opcode.startswith("RDMA_READ_RESPONSE")]
    return {
        "answers": len(seen),
        "acks": len(acks),
        "ack_psn": acks[-1].psn if acks else -1,
        "naks": len(naks),
        "nak": syndrome_name(_int(naks[0], "syndrome")).removeprefix("NAK, ") if naks else "",
        "nak_psn": naks[0].psn if naks else -1,
        "nak_msn": _int(naks[0], "msn") if naks else -1,
        "rnr_naks": len(rnr),
        "rnr_psn": rnr[0].psn if rnr else -1,
        "rnr_timer": _int(rnr[0], "syndrome") & 0x1F if rnr else -1,
        "msn": next((_int(each, "msn") for each in reversed(seen) if "msn" in each.found), -1),
        "reserved_syndromes": sum(each.syndrome == "reserved" for each in seen),
        "read_answers": len(data),
        "read_opcodes": " ".join(each.opcode.removeprefix("RDMA_READ_RESPONSE_") for each in data),
        "read_psns": " ".join(str(each.psn) for each in data),
        "atomic_answers": sum(each.opcode == "ATOMIC_ACKNOWLEDGE" for each in seen),
    }


def _requests(observed: Sequence[Observed], asked: int | None) -> Figures:
    """Figures of the peer's requests to us."""
    seen = [each.seen for each in observed]
    first = [each for each in seen if not each.again]
    again = [each for each in seen if each.again]
    known = {each.psn: each for each in first}
    back = [each.at for each in observed if each.seen.again and asked is not None and each.at >= asked]
    return {
        "requests": len(seen),
        "again": len(again),
        "again_psn": again[0].psn if again else -1,
        "again_psns": " ".join(str(each.psn) for each in again),
        "again_changed": sum(_told(each) != _told(known[each.psn]) for each in again if each.psn in known),
        "request_opcodes": " ".join(each.opcode for each in first),
        "request_psns": " ".join(str(each.psn) for each in first),
        "request_sizes": " ".join(str(len(_bytes(each))) for each in first),
        "last_asks": bool(first and first[-1].found["ack_request"]),
        "immediate": _int(first[-1], "immediate") if first and "immediate" in first[-1].found else -1,
        "pause_ms": (back[0] - asked) / 1e6 if back and asked is not None else -1.0,
    }


def _completions(name: str, sends: Sequence[Completed], receives: Sequence[Completed]) -> Figures:
    good = [each for each in receives if each.status == SUCCESS]
    return {
        f"{name}_ok": sum(each.status == SUCCESS for each in sends),
        f"{name}_bad": sum(each.status != SUCCESS for each in sends),
        f"{name}_status": worst_status(sends),
        f"{name}_flushed": sum(each.status == "IBV_WC_WR_FLUSH_ERR" for each in sends),
        f"{name}_received": len(good),
        f"{name}_sizes": " ".join(str(each.size) for each in good),
        f"{name}_receive_status": worst_status(receives),
        f"{name}_immediate": next((each.immediate for each in good if each.immediate is not None), -1),
    }


def _fetched(us: OwnEnd, ours: Requests) -> str:
    """What our atomics found, in their order."""
    atomics = [each for each in ours.posted if each.verb in ("compare-swap", "fetch-add")]
    places = (RESULT + each.slot % SLOTS * STRIDE for each in atomics)
    return " ".join(str(int.from_bytes(us.read(at, 8), "little")) for at in places)


def _told(seen: Seen) -> tuple[object, ...]:
    """What of a request must be the same when it is sent again; a READ that is resumed asks for less."""
    return (seen.opcode, _bytes(seen), seen.found.get("key"))


def _bytes(seen: Seen) -> bytes:
    payload = seen.found.get("payload", b"")
    return payload if isinstance(payload, bytes) else b""


def _int(seen: Seen, name: str) -> int:
    value = seen.found[name]
    assert isinstance(value, int)
    return value
