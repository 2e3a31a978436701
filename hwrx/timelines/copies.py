"""The copy ledger: payload bytes copied, passed over and moved by DMA, by stage and side, over the bytes delivered.

Counted in the kernel for every message of a trial, warm-up and cool-down included, whether sampled or not. The books
must balance: what a side copied is what the sizes demand, or the difference is a row of its own (retransmissions;
copies that happened where nobody looked). Beside it stands an estimate from another source: the slope of time over
size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hwrx import paths
from hwrx.stages import BY_NAME, Side, Stage
from hwrx.timelines.actors import actors_in_words

Kind = Literal["copied", "passed", "DMA", "mapped", "balance"]
INLINE = "ibv_post_send inline"
NOTIFIED = "SO_EE_CODE_ZEROCOPY_COPIED"
TINY = 1e-4  # of the bytes delivered: below this a difference is no row


@dataclass(frozen=True)
class Row:
    """Bytes of payload that one stage handled, on one side; `per_byte` is over the bytes delivered, both ways."""

    stage: str
    side: Side
    actor: str
    kind: Kind
    times: int
    bytes: int
    per_byte: float
    words: str = ""


@dataclass(frozen=True)
class Ledger:
    """The rows of a trial, and the copies per byte delivered that they add up to; NaN where nothing counted a side.

    `sender_passes`, `receiver_passes`: how often a CPU read each byte over (checksum, CRC); NaN if a function that does
    so on this path could not be probed.
    """

    path: str
    delivered: int  # bytes
    rows: tuple[Row, ...]
    sender: float
    receiver: float
    balanced: bool
    sender_passes: float = float("nan")
    receiver_passes: float = float("nan")


def reckon_copies(
    path: str,
    totals: npt.NDArray[Any],
    delivered: int,
    *,
    available: Sequence[Stage],
    tally: Mapping[str, int] | None = None,
) -> Ledger:
    """Make the ledger of a trial.

    `totals`: as in a Recording. `delivered`: payload bytes that arrived, in both directions, warm-up included.
    `available`: the stages that had a probe. `tally`: what the endpoints counted, of which the bytes sent and received
    without copying, and those posted inline, are taken.
    """
    tally = tally or {}
    # a probe that another path's messages pass counts nothing of this one's, which is not the same as nothing copied
    names = {stage.name for stage in available if paths.way_of(path) in stage.ways}
    rows = [
        _row(stage, totals[stage.number], delivered)
        for stage in paths.path_stages(path)
        if stage.handles and stage.name in names and int(totals[stage.number]["bytes"])
    ]
    sent = _sent_in_place(path, totals, delivered, names, tally)
    received = _received_in_place(path, totals, delivered, names, tally)
    rows += sent + received
    entries, exit_ = paths.find_path(path).copied_in, paths.find_path(path).copied_out
    entry = next((name for name in entries if name in names), None)
    put_in = _bytes(totals, entry) if entry else None
    if sent and "skb_zerocopy_iter" not in names:
        # the tracepoint of sending counts what a call took, copied or not: with MSG_ZEROCOPY it tells nothing of copies
        rows = [row for row in rows if row.stage not in entries]
        put_in = None if tally.get("zerocopy_untold_bytes") else 0
    taken = _bytes(totals, exit_) if exit_ in names else None
    if entry == "rxe_mr_copy from MR":
        put_in = (put_in or 0) + _bytes(totals, "rxe inline")
        rows += _posted_inline(delivered, tally)
    balance = []
    if put_in is not None and abs(difference := put_in + _mapped(sent) - delivered) > TINY * delivered:
        balance.append(_balance("sender", difference, delivered, _sent_again(path, totals, tally)))
    if taken is not None and abs(difference := taken + _mapped(received) - delivered) > TINY * delivered:
        balance.append(_balance("receiver", difference, delivered))
    rows += balance
    return Ledger(
        path,
        delivered,
        tuple(rows),
        _copies(rows, "sender") if put_in is not None else float("nan"),
        _copies(rows, "receiver") if taken is not None else float("nan"),
        not balance,
        _passes(path, rows, "sender", names),
        _passes(path, rows, "receiver", names),
    )


def reckon_frames(
    path: str, totals: npt.NDArray[Any], delivered: int, *, available: Sequence[Stage], tally: Mapping[str, int]
) -> Ledger:
    """Make the ledger of a trial of whole frames, whose endpoints count for themselves what no kernel probe sees.

    Arguments as for `reckon`; `tally` has what StageStamps and the links counted, of both ends together.
    """
    names = {stage.name for stage in available}
    carried = tally.get("payload_bytes", 0) if tally.get("cpu_copied_bytes", 0) else 0
    counted = {
        "DMA": tally.get("in_place_bytes", 0),
        "parsed": tally.get("checked_bytes", 0),
        "summed": tally.get("summed_bytes", 0),
        "ICRC verified": tally.get("checked_bytes", 0),
        "ICRC computed": tally.get("summed_bytes", 0),
        "fetched": tally.get("fetched_bytes", 0) and tally.get("sent_bytes", 0),
        "copied to the ring": tally.get("sent_bytes", 0) if tally.get("roce_copied_out", 0) else 0,
        "copied into place": _put_into_place(tally),
        "port read": carried,
        "port write": tally.get("sent_bytes", 0) if tally.get("cpu_sent_bytes", 0) else 0,
    }
    rows = []
    for stage in paths.path_stages(path):
        by_endpoint = counted.get(stage.name, 0) if stage.name in names or stage.handles == "DMA" else 0
        count = int(totals[stage.number]["bytes"]) or by_endpoint
        if stage.handles and count:
            rows.append(_row(stage, totals[stage.number], delivered, count))
    entries, seen = paths.find_path(path).copied_in, paths.find_path(path).copied_out
    arrived = sum(row.bytes for row in rows if row.stage in (seen, "copied into place"))
    known = seen in names or seen == "DMA"
    sent_known = not entries or bool(names.intersection(entries))
    if known and abs(difference := arrived - delivered) > TINY * delivered:
        rows.append(_balance("receiver", difference, delivered))
    return Ledger(
        path,
        delivered,
        tuple(rows),
        _copies(rows, "sender") if sent_known else float("nan"),
        _copies(rows, "receiver") if known else float("nan"),
        not rows or rows[-1].kind != "balance",
        _passes(path, rows, "sender", names),
        _passes(path, rows, "receiver", names),
    )


def _put_into_place(tally: Mapping[str, int]) -> int:
    """Payload bytes of our own queue pair that a CPU put where they were delivered; the kernel's ring counts as one."""
    payload = tally.get("payload_bytes", 0)
    if tally.get("cpu_copied_bytes", 0):
        return payload + min(tally.get("roce_copied", 0), payload)
    return payload - min(tally.get("in_place_bytes", 0), payload)


def _posted_inline(delivered: int, tally: Mapping[str, int]) -> list[Row]:
    """The copy into the work request, which the driver's library makes in the poster's own thread.

    No kernel probe sees it: the endpoint counts what it posted with IBV_SEND_INLINE.
    """
    count = tally.get("inline_bytes", 0)
    words = "posted inline: ibv_post_send copies the payload into the send queue, in the poster's thread"
    return [Row(INLINE, "sender", "user thread", "copied", 0, count, _over(count, delivered), words)] if count else []


def _sent_in_place(
    path: str, totals: npt.NDArray[Any], delivered: int, names: set[str], tally: Mapping[str, int]
) -> list[Row]:
    """MSG_ZEROCOPY: bytes that travelled in the user's pages, and what the kernel's notifications say became of them.

    Over loopback and veth the kernel copies them after all, where the receiver's stack takes the packet over
    (skb_orphan_frags_rx); skb_copy_ubufs counts that where it can be probed, and elsewhere the notification tells.
    """
    asked, copied = tally.get("zerocopy_bytes", 0), tally.get("zerocopy_copied_bytes", 0)
    if not asked:
        return []
    stage = BY_NAME["skb_zerocopy_iter"]
    counted = stage.name in names
    pinned = _bytes(totals, stage.name) if counted else asked
    words = (
        "asked to be sent in the user's own pages; this kernel does not say what it copied after all"
        if tally.get("zerocopy_untold_bytes")
        else f"sent in the user's own pages; for {copied / asked:.1%} of the bytes the kernel's notifications say"
        " that it copied them after all (SO_EE_CODE_ZEROCOPY_COPIED; of io_uring IORING_NOTIF_USAGE_ZC_COPIED)"
    )
    times = int(totals[stage.number]["count"]) if counted else 0
    rows = [Row(stage.name, "sender", stage.actor, "mapped", times, pinned, _over(pinned, delivered), words)]
    if copied and "skb_copy_ubufs" not in names:
        words = "what the kernel's notifications say it copied after all; no probe counts it here"
        rows.append(Row(NOTIFIED, "sender", "kernel", "copied", 0, copied, _over(copied, delivered), words))
    return rows


def _received_in_place(
    path: str, totals: npt.NDArray[Any], delivered: int, names: set[str], tally: Mapping[str, int]
) -> list[Row]:
    """TCP_ZEROCOPY_RECEIVE: bytes whose pages were mapped, and those that the endpoint then copied itself."""
    stage = BY_NAME["tcp_zerocopy_receive"]
    counted = stage.name in names
    mapped = _bytes(totals, stage.name) if counted else tally.get("mapped_bytes", 0)
    rows = []
    if mapped:
        times = int(totals[stage.number]["count"]) if counted else 0
        share = _over(mapped, delivered)
        rows.append(Row(stage.name, stage.side, stage.actor, "mapped", times, mapped, share, stage.sentence))
    if gathered := tally.get("gathered_bytes", 0):
        words = "copied by the endpoint, so that a message that could be mapped only in part is in one piece"
        rows.append(Row("gathered", stage.side, stage.actor, "copied", 0, gathered, _over(gathered, delivered), words))
    return rows


def _mapped(rows: Sequence[Row]) -> int:
    return sum(row.bytes for row in rows if row.kind == "mapped")


def _row(stage: Stage, total: np.void, delivered: int, counted: int = 0) -> Row:
    """A stage's row. `total`: its TOTALS; `counted`: bytes that the endpoint has counted instead."""
    count = counted or int(total["bytes"])
    kind: Kind = "passed" if stage.handles == "passed" else "DMA" if stage.handles == "DMA" else "copied"
    # what an endpoint counts of its own work stands in no context of the kernel's
    actor = actors_in_words(total["by"]) if "by" in (total.dtype.names or ()) else ""
    return Row(
        stage.name,
        stage.side,
        actor or stage.actor,
        kind,
        int(total["count"]),
        count,
        _over(count, delivered),
        stage.sentence,
    )


def _sent_again(path: str, totals: npt.NDArray[Any], tally: Mapping[str, int]) -> str:
    """Why a verbs sender copied more than was delivered, in the driver's own counters; "" where they say nothing.

    rxe copies a packet's payload anew each time that it sends it.
    """
    repeated = [name for name in ("duplicate_request", "out_of_seq_request") if tally.get(f"hw_{name}")]
    if "rxe_mr_copy from MR" not in paths.find_path(path).copied_in or not repeated:
        return ""
    more = int(totals[BY_NAME["rxe_mr_copy from MR"].number]["count"]) - int(
        totals[BY_NAME["rxe_mr_copied"].number]["count"]
    )
    said = " and ".join(f"{tally[f'hw_{name}']:,} {name}" for name in repeated)
    return (
        f"more than was delivered: {more:,} packets were sent again, and copied again; the device's counters say {said}"
    )


def _balance(side: Side, difference: int, delivered: int, why: str = "") -> Row:
    words = {
        ("sender", True): "more than was delivered: packets or messages that were sent again or lost",
        (
            "sender",
            False,
        ): "less than was delivered: bytes that nobody counted as they entered (inline, or where functions cannot be "
        "probed what a thread sent before it was known)",
        ("receiver", True): "more than was delivered: bytes that were received and did not count as delivered",
        ("receiver", False): "less than was delivered: bytes that left by a way that nobody counted",
    }[side, difference > 0]
    words = why if why and difference > 0 else words
    return Row("difference", side, "", "balance", 0, difference, _over(difference, delivered), words)


def _bytes(totals: npt.NDArray[Any], name: str) -> int:
    return int(totals[BY_NAME[name].number]["bytes"])


def _over(count: int, delivered: int) -> float:
    return count / delivered if delivered else float("nan")


def _copies(rows: Sequence[Row], side: Side) -> float:
    return sum(row.per_byte for row in rows if row.side == side and row.kind == "copied")


def _passes(path: str, rows: Sequence[Row], side: Side, names: set[str]) -> float:
    wanted = {s.name for s in paths.path_stages(path) if s.handles == "passed" and s.side == side}
    if not wanted <= names:
        return float("nan")
    return sum(row.per_byte for row in rows if row.side == side and row.kind == "passed")


@dataclass(frozen=True)
class Slope:
    """Nanoseconds (or instructions) a byte, from medians of several sizes: what handling a byte costs in all."""

    ns_per_byte: float
    ns_fixed: float
    sizes: tuple[int, ...]
    residual: float  # the largest distance of a median from the line, over that median


def fit_slope(sizes: Sequence[int], medians: Sequence[float]) -> Slope | None:
    """Fit a line through median times over sizes, each weighted by its inverse; None with fewer than two sizes."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(medians, dtype=float)
    if len(np.unique(x)) < 2:
        return None
    per_byte, fixed = np.polyfit(x, y, 1, w=1 / y)
    residual = float(np.max(np.abs(per_byte * x + fixed - y) / y))
    return Slope(float(per_byte), float(fixed), tuple(int(size) for size in sizes), residual)
