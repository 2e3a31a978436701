"""From what was counted to what is told: one `Flood`."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import paths
from hwrx.drops.books import Balance, Books, Drop, Row
from hwrx.drops.places import BY_NAME
from hwrx.flood.model import PATHS, VERBS, Context, Cpu, FirstLoss, Flood, Socket, Spec, Timeline
from hwrx.probes import account
from hwrx.probes.counting import Counts

MOST_BINS = 600  # of a picture
BUSY = 0.1  # share of the CPUs' time that others may have before it is worth a word
OUT_OF_BUFFER = "out_of_buffer"  # of mlx5: datagrams for which no receive request was posted; rxe counts none
RING_SENTENCES = {
    "af-packet": "the packet ring had no block free (tp_drops)",
    "xdp-ring": "the AF_XDP socket had no room: receive ring full, or no chunk in the fill ring",
    "nic-ring": "the NIC had no descriptor (missed packets)",
}


class Raw(Struct, frozen=True):
    """All that a flood left behind."""

    spec: Spec
    wire: str
    counts: Counts
    sent: account.Int64s
    taken: account.Int64s
    posted: int
    reader: list[dict[str, int]]
    told: dict[str, int]
    irqs: list[int]
    watched: int
    limits: dict[str, int]
    counters: dict[str, dict[str, int]]
    ended: str
    own_driver: bool


def assemble_flood(raw: Raw, books: Books, notes: list[str]) -> Flood:
    """Put everything together; `books` are still open."""
    counts, spec = raw.counts, raw.spec
    sent = raw.sent[: raw.posted]
    taken = raw.taken[: raw.posted]
    delivered = int(np.count_nonzero(taken))
    drops = books.drops()
    loss = _balance(raw, books, drops, delivered)
    cpus = counts.cpus
    window = _window(counts, sent, taken)
    if counts.cut:
        notes.append("it lasted longer than there was room for: what came later is not in the CPUs' times")
    if not raw.irqs and not raw.own_driver:
        notes.append("the receiving device has no interrupt: on a veth pair the sender's CPU hands packets over itself")
    if raw.limits.get("receive_queues") == 1:
        notes.append("the receiving device has one receive queue, so there is nothing for RSS to spread")
    cpu_times = _cpus(raw, window)
    whose: tuple[str, ...] = ("others, user", "others, system", "kernel workers of one CPU")
    whose += () if spec.path in VERBS else ("kernel workers",)
    strangers = sum(cpu.ns[name] for cpu in cpu_times for name in whose)
    share = strangers / sum(cpu.total_ns for cpu in cpu_times)
    if share > BUSY:
        notes.append(f"the machine was not idle: others had {share:.0%} of the CPUs' time meanwhile")
    return Flood(
        spec=spec,
        wire=raw.wire,
        sent=raw.posted,
        delivered=delivered,
        sending_ns=int(sent.max() - sent.min()) if raw.posted else 0,
        taking_ns=int(taken.max() - taken[taken > 0].min()) if delivered else 0,
        loss=loss,
        first_loss=_first_loss(sent, taken, drops, loss),
        polls={
            name: account.time_histogram(cpus["polls"][:, number].sum(axis=0, dtype=np.int64))
            for number, name in enumerate(account.POLLERS)
        },
        poll_budget=int(cpus["poll_budget"].max()),
        runs=account.time_histogram(cpus["runs"].sum(axis=0, dtype=np.int64)),
        by_budget=int(cpus["by_budget"].sum()),
        by_time=int(cpus["by_time"].sum()),
        squeezed=counts.squeezed,
        outside=int(cpus["outside_packets"].sum()),
        contexts=_contexts(cpus),
        per_interrupt=account.time_histogram(cpus["per_interrupt"].sum(axis=0, dtype=np.int64)) if raw.irqs else None,
        cpus=cpu_times,
        sockets=_sockets(raw, sent, taken),
        timeline=_timeline(raw, sent, taken, window),
        reader={name: sum(each.get(name, 0) for each in raw.reader) for name in (raw.reader[0] if raw.reader else {})},
        told={name: value for name, value in raw.told.items() if value},
        counters=raw.counters,
        ended=raw.ended,
        machine=raw.limits,
        notes=notes,
    )


def _window(counts: Counts, sent: account.Int64s, taken: account.Int64s) -> slice:
    """Whole bins from the first send to the last send or delivery: the flood, without the quiet around it."""
    whole = (counts.stop - counts.start) // counts.width  # the last one may be begun only
    if not len(sent):
        return slice(0, max(1, whole))
    last = max(int(sent.max()), int(taken.max()))
    end = max(1, min(whole, -(-(last - counts.start) // counts.width)))
    return slice(min((int(sent[0]) - counts.start) // counts.width, end - 1), end)


# --- loss -------------------------------------------------------------------------------------------------------------


def _balance(raw: Raw, books: Books, drops: list[Drop], delivered: int) -> Balance:
    """Every loss at its place. A path with a ring of its own counts what that had no room for."""
    path = PATHS[raw.spec.path]
    if raw.spec.path in VERBS:
        told = {}
        if paths.find_path(raw.spec.path).memory_alone:
            told["overwritten"] = count_overwritten(raw)
        elif path.datagrams:
            told["no-receive"] = sum(each.get(OUT_OF_BUFFER, 0) for each in raw.counters.values())
        found = books.close(raw.posted, delivered, told)
        return _datagrams(found, raw.ended) if path.datagrams else _reliable(found, raw.ended)
    if path.sockets:
        return books.close(raw.posted, delivered)
    own: dict[str, int] = {}
    for name, place in path.losses.items():
        if count := raw.told.get(name, 0):
            own[place] = own.get(place, 0) + count
    rows = [Row(place, RING_SENTENCES[place], count, [], None, "") for place, count in own.items()]
    beside: list[Row] = []
    for drop in drops:
        row = Row(
            drop.place or f"{drop.reason} in {drop.function}",
            BY_NAME[drop.place].sentence if drop.place else "",
            drop.count,
            [f"{drop.reason} in {drop.function}: {drop.count:,}"],
            None,
            "",
        )
        is_told = path.told_twice.get(drop.place) in own
        (beside if drop.place in path.copies or is_told else rows).append(row)
    unexplained = raw.posted - delivered - sum(row.count for row in rows)
    witnessed = books.witnessed()
    # a frame that goes by without an skb, or with one of which nobody has looked at the headers; or never became one
    for place, counter in (("device", "device"), ("nic-ring", "nic-ring")):
        if unexplained > 0 and (counted := witnessed.get(counter, 0)):
            share = min(unexplained, counted)
            rows.append(Row(place, BY_NAME[place].sentence, share, [], counted, counter))
            unexplained -= share
    return Balance(raw.posted, delivered, rows, beside, unexplained, [])


def count_overwritten(raw: Raw) -> int:
    """Of WRITE: messages that a later one was written over.

    Before the reader came to them; while it looked at them (neither whole); or in between, so that it found another.
    """
    torn = sum(each.get(name, 0) for each in raw.reader for name in ("corrupt", "duplicated"))
    return raw.told.get("overtaken", 0) + torn


def _reliable(found: Balance, ended: str) -> Balance:
    """Of a connection that sends again what was dropped: a drop is a loss only where the connection ended.

    Then every message that had not come is lost with it, wherever its packets were dropped on the way. What was written
    over had been delivered to memory.
    """
    rows = [row for row in found.rows if row.place == "overwritten"]
    beside = [
        msgspec.structs.replace(row, how=[*row.how, "packets, sent again"]) for row in found.rows if row not in rows
    ]
    left = found.sent - found.delivered - sum(row.count for row in rows)
    if left > 0 and ended:
        rows.append(_broken(left))
        left = 0
    return msgspec.structs.replace(found, rows=rows, beside=[*beside, *found.beside], unexplained=left)


def _datagrams(found: Balance, ended: str) -> Balance:
    """Of datagrams nothing is sent again; what a queue pair that failed had taken, nobody got."""
    if not ended or found.unexplained <= 0:
        return found
    already = sum(row.count for row in found.rows if row.place == "queue-pair")
    rows = [row for row in found.rows if row.place != "queue-pair"]
    return msgspec.structs.replace(found, rows=[*rows, _broken(already + found.unexplained)], unexplained=0)


def _broken(count: int) -> Row:
    return Row(
        "queue-pair", BY_NAME["queue-pair"].sentence + ": what it had not delivered is lost", count, [], None, ""
    )


def _first_loss(sent: account.Int64s, taken: account.Int64s, drops: list[Drop], loss: Balance) -> FirstLoss | None:
    sequence = account.first_missing(sent, taken)
    if sequence is None:
        return None
    start = int(sent[0])
    lossy = {row.place for row in loss.rows}
    placed = sorted((d for d in drops if d.place in lossy and d.first_ns), key=lambda drop: drop.first_ns)
    at = int(sent[sequence]) - start
    if placed:
        first = placed[0]
        return FirstLoss(sequence, at, first.place, first.first_sequence, first.first_ns - start)
    place = loss.rows[0].place if loss.rows else "unexplained"
    return FirstLoss(sequence, at, place, None, None)


# --- CPUs -------------------------------------------------------------------------------------------------------------


def _contexts(cpus: npt.NDArray[np.void]) -> list[Context]:
    sums = cpus["contexts"]
    return [
        Context(name, *(int(sums[field][:, number].sum()) for field in ("runs", "packets", "ns")))
        for number, name in enumerate(account.CONTEXTS)
    ]


def _cpus(raw: Raw, window: slice) -> list[Cpu]:
    found = []
    for number, stat in sorted(raw.counts.stat.items()):
        ns = raw.counts.time[number, window].sum(axis=0)
        cpu = raw.counts.cpus[number]
        found.append(
            Cpu(
                number=number,
                total_ns=(window.stop - window.start) * raw.counts.width,
                ns=_named(ns),
                recorded=_named(raw.counts.time[number].sum(axis=0)),
                stat=stat,
                packets=int((cpu["polls"] * np.arange(cpu["polls"].shape[1])).sum()),
                calls=int(cpu["calls"]),
                interrupts=int(cpu["interrupts"]) if raw.irqs else None,
            )
        )
    return found


def _named(ns: account.Int64s) -> dict[str, int]:
    return {name: int(value) for name, value in zip(account.ACTORS, ns, strict=True)}


def _sockets(raw: Raw, sent: account.Int64s, taken: account.Int64s) -> list[Socket]:
    spec = raw.spec
    whose = account.socket_of(np.arange(len(sent)), spec.together, spec.sockets)
    offered = np.bincount(whose, minlength=spec.sockets)
    delivered = np.bincount(whose[taken > 0], minlength=spec.sockets)
    return [Socket(number, int(offered[number]), int(delivered[number])) for number in range(spec.sockets)]


def _timeline(raw: Raw, sent: account.Int64s, taken: account.Int64s, window: slice) -> Timeline:
    """Everything over time, coarse enough for a picture."""
    counts = raw.counts
    start = counts.start + window.start * counts.width
    time, together = account.coarser_bins(counts.time[:, window], MOST_BINS)
    width = counts.width * together
    bins = time.shape[1]
    online = sorted(counts.stat)
    polled = account.coarser_bins(counts.bins["packets"][:, window, None].astype(np.int64), MOST_BINS)[0][..., 0]
    interrupts = account.coarser_bins(counts.bins["interrupts"][:, window, None].astype(np.int64), MOST_BINS)[0][..., 0]
    backlog = account.most_of(counts.bins["backlog"][:, window, None], MOST_BINS)[..., 0]
    queues = account.most_of(counts.queues["bytes"][None, window], MOST_BINS)[0]
    verbs = paths.reads_field(raw.spec.path, "stream", "completions") and bool(counts.queues["receives"].any())
    sending = raw.spec.path in VERBS and bool(counts.queues["sends"].any())
    # both are kept with one added; of receive requests the fewest count
    unseen = np.iinfo(np.int64).max
    fewest = np.where(counts.queues["receives"] > 0, counts.queues["receives"].astype(np.int64), unseen)
    fewest = -account.most_of(-fewest[window][:, None], MOST_BINS)[:, 0]
    completions, sends = (
        account.most_of(counts.queues[name][window][:, None].astype(np.int64), MOST_BINS)[:, 0] - 1
        for name in ("completions", "sends")
    )
    lost = sent[taken == 0] if len(sent) else sent
    return Timeline(
        width_ns=width,
        first_ns=int(sent[0]) - start if len(sent) else 0,
        cpu={
            str(cpu): {name: time[cpu, :, number].tolist() for number, name in enumerate(account.ACTORS)}
            for cpu in online
        },
        polled={str(cpu): polled[cpu].tolist() for cpu in online},
        interrupts={str(cpu): interrupts[cpu].tolist() for cpu in online} if raw.irqs else {},
        backlog={str(cpu): backlog[cpu].tolist() for cpu in online},
        queues={str(number): queues[:, number].tolist() for number in range(raw.watched)},
        receives=np.where((fewest == unseen) | (fewest == 0), -1, fewest - 1).tolist() if verbs else [],
        completions=completions.tolist() if verbs else [],
        sent=account.per_bin(sent, start, width, bins).tolist(),
        taken=account.per_bin(taken, start, width, bins).tolist(),
        lost=account.per_bin(lost, start, width, bins).tolist(),
        under_way=account.under_way(sent, taken, start, width, bins).tolist(),
        sends=sends.tolist() if sending else [],
    )
