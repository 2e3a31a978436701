"""What stands in the tables of a run: each column's unit and meaning, which are in the Parquet files too.

In a file they are the metadata `unit` and `meaning` of each field (`pyarrow.parquet.read_schema(file)` shows them).
`hwrx report RUN --schema` prints them.
"""

from __future__ import annotations

import re
from typing import Literal

import pyarrow as pa
from msgspec import Struct

FORMAT = 2  # of the runs that this version writes; it reads all up to it
MANIFEST = "manifest.json"
Status = Literal["running", "complete", "partial", "interrupted"]

TEXT = pa.dictionary(pa.int8(), pa.string())

SAMPLES = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("path", TEXT, nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pattern", TEXT, nullable=False),
        pa.field("sequence", pa.uint32(), nullable=False),
        pa.field("ns", pa.int64(), nullable=False),
        pa.field("service_ns", pa.int64()),
        pa.field("late", pa.bool_(), nullable=False),
    ]
)

TABLES = {
    "samples": "one row a message that was measured, one or more row groups a trial",
    "trials": "one row a trial: its setting, what was counted, what was chosen",
    "stages": "traced runs: one row a stage that a sampled message passed",
    "copies": "traced runs: one row a trial and place where payload bytes were copied or read",
    "tracing": "traced runs: one row a trial and direction: how complete its timelines are, and what tracing cost",
    "actors": "traced runs: one row a setting's first trial and actor: whose time its measured messages took",
    "connections": "several connections: one row a trial and connection",
    "arrivals": "floods: one row a message",
    "timeline": "floods: one row a bin of time and series",
}

# unit and meaning, the same in whatever table a column stands; what means something else in one is "table.column"
COLUMNS: dict[str, tuple[str, str]] = {
    "trial": ("", "number of the trial, from 0 in the order of the run"),
    "repeat": ("", "which repeat of its setting the trial is, from 0"),
    "label": ("", "the trial's setting in words"),
    "status": ("", "ok, or failed"),
    "error": ("", "why a trial failed"),
    "ended": ("", "when the trial was recorded (ISO 8601, UTC)"),
    "samples": ("messages", "rows that the trial has in samples.parquet"),
    "part": ("", "number of the trial's first part: what has a lower one is of an earlier try"),
    "path": ("", "delivery path"),
    "pattern": ("", "pingpong, stream or paced"),
    "size": ("bytes", "payload of a message"),
    "mix": ("", "sizes and their weights, with their name in front, that each message's size is drawn from"),
    "moved_bytes": ("bytes", "tcp, of messages that differ in size: parts of them, within the receiving ring"),
    "sequence": ("", "number of the message; the first one that is measured comes after the warm-up"),
    "ns": (
        "ns",
        "pingpong: the full round trip; stream: since the delivery before, 0 for a trial's first; "
        "paced: from the intended send to the answer",
    ),
    "service_ns": ("ns", "paced: from the actual send to the answer; otherwise null"),
    "late": ("", "whether the answer came after the path's patience had ended"),
    "messages": ("messages", "that the trial measures, after `warmup` and before `cooldown`"),
    "tracing.messages": ("messages", "that were sampled"),
    "duration": ("s", "that the measured messages went on; null: there was a number of them"),
    "warmup": ("messages", "sent before the first that is measured"),
    "cooldown": ("messages", "sent after the last that is measured"),
    "wait": ("", "how a receiver waits"),
    "window": ("messages", "most that may be outstanding"),
    "batch": ("messages", "most in one post or receive"),
    "rate": ("messages/s", "paced: at which messages are due"),
    "signal_every": ("messages", "verbs: one signalled send in so many"),
    "inline": ("bytes", "verbs: up to which a send is inline; null: as far as the device allows"),
    "check_every": ("messages", "each so many-th is compared in full; 0: headers alone"),
    "socket_buffer": ("bytes", "SO_SNDBUF, SO_RCVBUF; null: the kernel's default"),
    "mtu": ("bytes", "verbs: path MTU that was asked for"),
    "receives": ("requests", "verbs: receive requests that are kept posted; null: as the pattern needs"),
    "completions": ("entries", "verbs: size of the completion queue; null: as many as it can need"),
    "crowd": ("sockets", "bound at the server beside the one that is measured"),
    "senders": ("connections", "at the same time"),
    "limit": ("s", "nothing received for so long ends the trial"),
    "patience": ("s", "after which an answer is late"),
    "arrivals": ("", "paced: whether messages are due evenly or at random (poisson)"),
    "zerocopy_send": ("", "whether sockets send with MSG_ZEROCOPY, and io_uring with SEND_ZC"),
    "multishot": ("", "udp-uring: whether one request receives all datagrams, into a ring of provided buffers"),
    "threaded_napi": ("", "whether each end's device is polled by a thread of its own; null: as it was"),
    "napi_defer_hard_irqs": ("polls", "that find nothing before the device's interrupt is on again; null: as it was"),
    "gro_flush_timeout": ("ns", "after which a device whose interrupt is put off is polled again; null: as it was"),
    "zerocopy_receive": ("", "tcp: whether pages are mapped (TCP_ZEROCOPY_RECEIVE) instead of copied"),
    "gid_index": ("", "verbs: which GID was asked for; null: the one that hwrx chooses"),
    "gid": ("", "verbs: address or network that the GID was to be of; null: the one that hwrx chooses"),
    "traffic_class": ("", "of sockets and verbs: the DSCP and ECN of the IP header, or a route header's"),
    "service_level": ("", "verbs: InfiniBand's; RoCE makes the priority of a VLAN tag of it"),
    "pkey_index": ("", "verbs: entry of the port's table of partition keys"),
    "ack_timeout": ("", "verbs RC: an unanswered packet is sent again after 4.096 µs times 2 to this power; 0: never"),
    "retry_count": ("", "verbs RC: how often"),
    "connect": ("", "verbs RC: who connects: pipe (what the agents tell each other), cm (RDMA-CM)"),
    "counter": ("operations", "atomics: what the counter said at the end; the sum over connections"),
    "connections": ("connections", "of one process, a message under way on each"),
    "srq": ("", "verbs: whether connections share their receive requests"),
    "strayed": ("messages", "answers that came on another connection than their question"),
    "foreign": ("messages", "rdma-ud, several connections: datagrams that the other end did not send"),
    "connection": ("", "number of the connection, from 0; the next sender's follow behind one sender's"),
    "sent": ("messages", "by the client, warm-up and cool-down among them"),
    "received": ("messages", "by the server; null: one-sided, it has no part"),
    "answered": ("messages", "late ones among them"),
    "unanswered": ("messages", "lost, there or back"),
    "connections.p50_ns": ("ns", "half of its measured round trips were shorter; null: it had none"),
    "rnr_retry": ("", "verbs RC: how often for want of a receive request; 7: for ever"),
    "huge_pages": ("", "whether buffers are in huge pages"),
    "xdp_mode": ("", "xdp: zero-copy, copy; auto: zero-copy where the driver has it"),
    "mr": ("", "verbs: kind of memory region: pinned, odp (faulted in on demand), implicit-odp, dmabuf"),
    "registration": ("", "verbs: of what goes out: once, or of each message before it is sent (message)"),
    "registered": ("regions", "verbs: buffers that both ends registered for a message, one by one"),
    "deregistered": ("regions", "verbs: of these, deregistered when they were sent"),
    "odp_pages": ("pages", "verbs, on demand: of the ring in which messages land, that came into memory in the trial"),
    "link": ("", "roce: what was to carry the frames: nic, uio, packet-ring or xdp; auto: see Setting"),
    "crowd_on": ("", "spread: over the table's slots; chain: all before the server's own"),
    "schedule": ("", "normal, or batch: who is woken never interrupts who runs"),
    "settle": ("ns", "that a stream's sender sleeps before the first measured message, and after the last"),
    "rest": ("instructions", "that a client executes before each message of a ping-pong, outside of what is timed"),
    "copies_priced": ("", "by what the guest's processor counts a copy: byte or word"),
    "iommu": ("", "off, passthrough, lazy, strict: of the guest's kernel; null: as the topology has it"),
    "mitigations": ("", "off or auto: of the guest's kernel; null: the kernel's default"),
    "init_on_alloc": ("", "whether the guest's kernel fills what it allocates with zeros; null: its default"),
    "hook": ("", "what is put on the way in of both ends"),
    "flows": ("", "hosts: which of them sent to which at the same time"),
    "by_flow": ("", "JSON, hosts: what became of the messages of each flow, and which of its ends was lost"),
    "by_host": ("", "JSON, hosts: packets that network devices and the wire dropped meanwhile, by their counters"),
    "flow_count": ("flows", "hosts: whose both ends lived to the end; the trial's figures are of these"),
    "start_within_ns": ("ns", "hosts: within which all senders were told to begin, at most: a bound from round trips"),
    "start_longest_round_trip_ns": ("ns", "hosts: of a control message, before the start"),
    "start_senders": ("flows", "hosts: that were told to begin"),
    "netem": ("", "what is done to the wire, in both directions"),
    "placement": ("", "JSON: on which CPUs the ends ran, and where the device's interrupts went"),
    "posted": ("messages", "sent, warm-up and cool-down among them"),
    "expected": ("messages", "that the observing end was to receive"),
    "delivered": ("messages", "that it received"),
    "bytes": ("bytes", "payload delivered"),
    "stages.bytes": ("bytes", "that the stage handled"),
    "copies.bytes": ("bytes", "copied or read there"),
    "trials.late": ("messages", "whose answer came after the path's patience had ended"),
    "unchecked": ("messages", "that were only to be checked, and were lost"),
    "slides": ("waits", "of a sender, for a credit of our own flow control that got lost"),
    "sent_late": ("messages", "paced: sent more than 100 µs behind their time though there was room"),
    "window_full": ("messages", "paced: that had to wait for room"),
    "steady_from_ns": ("ns", "stream: since the first recorded delivery, from when on its rate is taken"),
    "steady_to_ns": ("ns", "stream: until when"),
    "answered_messages": ("messages", "ping-pong of several connections or with losses: measured ones with an answer"),
    "answered_per_s": ("messages/s", "of these, from the first answer to the last, all senders together"),
    "offered_messages": ("messages", "paced: that were sent"),
    "offered_ns": ("ns", "paced: from the first of them to the last"),
    "lost": ("messages", "expected, and not delivered"),
    "tracing.lost": ("events", "for want of room in the ring"),
    "duplicated": ("messages", "that came again"),
    "reordered": ("messages", "that came after a later one"),
    "corrupt": ("messages", "whose payload was not what was sent"),
    "stale": ("messages", "of an earlier trial"),
    "wrong_size": ("messages", "of another size than was sent"),
    "checked": ("messages", "compared in full"),
    "resent": ("packets", "that the path's own recovery sent again; of SoftRoCE, whatever the device did so for"),
    "chosen": ("", "JSON: what each end chose, after connecting (MTU, inline limit, socket buffers, …)"),
    "direction": ("", "there: client to server; back"),
    "name": ("", "of the stage: what it is known by"),
    "at_ns": ("ns", "CLOCK_MONOTONIC"),
    "actors.ns": ("ns", "of all measured messages, with what counting costs (icount: instructions)"),
    "actors.actor": (
        "",
        "user and system of both ends' threads, softirq, interrupt, worker, other, housekeeping, idle",
    ),
    "actors.messages": ("messages", "that were measured, answers among them"),
    "stages.ns": ("ns", "since the stage before; a message's add up to its one-way time"),
    "cpu": ("", "number of the CPU; null: a stamp of user space"),
    "tid": ("", "thread"),
    "stage": ("", "where the bytes were copied or read, by name"),
    "side": ("", "sender or receiver"),
    "actor": ("", "by whom"),
    "kind": ("", "copied, passed (read alone), DMA, mapped, balance"),
    "times": ("calls", "how often"),
    "per_byte": ("bytes/byte", "for each byte delivered"),
    "words": ("", "what is done there"),
    "complete": ("messages", "whose timeline has every stage"),
    "missing": ("", "JSON: first missing stage to messages"),
    "disordered": ("", "JSON: stage to messages whose stamps were not in order"),
    "missed": ("", "JSON: program to calls for which it was not run"),
    "delivered_bytes": ("bytes", "payload delivered while it was traced"),
    "sender_copies": ("bytes/byte", "copied by the sender for each byte delivered; null: nothing counted it"),
    "receiver_copies": ("bytes/byte", "copied by the receiver for each byte delivered; null: nothing counted it"),
    "sender_passes": ("bytes/byte", "read over by the sender for each byte delivered; null: nothing counted it"),
    "receiver_passes": ("bytes/byte", "read over by the receiver for each byte delivered; null: nothing counted it"),
    "flood": ("", "number of the flood"),
    "socket": ("", "number of the socket that the message was sent to"),
    "sent_ns": ("ns", "when the message was sent, since the flood began"),
    "taken_ns": ("ns", "when the reader took it; null: it never did"),
    "series": ("", "what is counted"),
    "from_ns": ("ns", "beginning of the bin"),
    "value": ("", "in this bin"),
}
PATTERNS: tuple[tuple[str, str, str], ...] = (
    (r"cpu_ns", "ns", "processor time of one end's thread"),
    (r"cpu_", "ns", "processor time over the measured messages, by end and actor (icount: instructions)"),
    (r"resident", "bytes", "peak resident memory of one end"),
    (r"by_connection_setup_s", "s", "that both ends took to make all connections"),
    (r"by_connection_answered_", "messages", "answered on the connection with the least, the middle one, the most"),
    (r"by_connection_p50_", "ns", "median round trip of the fastest, the middle, the slowest connection"),
    (r"(p\d+|mean)_(off|on)_ns$", "ns", "a quantile or the mean with tracing off and on"),
    (r".*_ns$", "ns", ""),
)


def column_of(table: str, name: str) -> tuple[str, str]:
    """Return the unit and the meaning of a column; empty words if nothing is known of it."""
    for key in (f"{table}.{name}", name):
        if key in COLUMNS:
            return COLUMNS[key]
    for pattern, unit, meaning in PATTERNS:
        if re.match(pattern, name):
            return unit, meaning
    return "", ""


class Column(Struct, frozen=True):
    """One column of a table."""

    table: str
    name: str
    type: str
    unit: str
    meaning: str


def columns_of(table: str, schema: pa.Schema) -> list[Column]:
    """Return what is to be known of each column of a table."""
    return [Column(table, field.name, _type(field.type), *column_of(table, field.name)) for field in schema]


def _type(kind: pa.DataType) -> str:
    return str(kind.value_type) if pa.types.is_dictionary(kind) else str(kind)


def describe_schema(table: str, schema: pa.Schema) -> pa.Schema:
    """Return the schema of a table with unit and meaning of each column in its metadata."""
    fields = []
    for field in schema:
        unit, meaning = column_of(table, field.name)
        about = {key: words for key, words in (("unit", unit), ("meaning", meaning)) if words}
        fields.append(field.with_metadata(about or None))
    return pa.schema(fields, metadata={"table": TABLES.get(table, table)})
