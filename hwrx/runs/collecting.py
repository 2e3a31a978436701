"""What the ends of a trial tell when it has ended, fetched and put together: times, counts, processor time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from hwrx.control.messages import SAMPLES_A_CHUNK, Array, Chunk, Done, Fetch, Role, Setting
from hwrx.control.peers import Peer
from hwrx.control.places import Placed
from hwrx.errors import PeerError
from hwrx.paths import cputime
from hwrx.runs.by_connection import ByConnection, account_connections

Int64s = npt.NDArray[np.int64]
OF_PORT = "hw_"  # what begins so is counted by a port of a verbs device, for all that use it


def placed_of(peers: Mapping[Role, Peer], done: Mapping[Peer, Done]) -> dict[Role, Placed]:
    """Return where both ends of a sender ran."""
    found: dict[Role, Placed] = {}
    for role, peer in peers.items():
        placed = done[peer].placed
        if placed is None:
            raise PeerError(f"peer {peer.name} does not say which CPU it ran on")
        found[role] = placed
    return found


class Times(Struct, frozen=True):
    """Of the recorded messages that came, in order: number, and ns when each was due, sent, delivered.

    `posted` is when all were sent, those that were lost, too.
    """

    sequence: npt.NDArray[np.intp]
    intended: Int64s
    sent: Int64s
    delivered: Int64s
    posted: Int64s


class Fetched(Struct, frozen=True):
    """What was fetched of one sender: `known` is its setting, with the number of messages that it measured."""

    known: Setting
    times: Times
    connections: ByConnection | None  # of several


def fetch_sender(setting: Setting, peers: Mapping[Role, Peer], done: Mapping[Peer, Done], setup: float) -> Fetched:
    """Fetch what one sender's messages met.

    :param setup: seconds that it took to set all connections up
    :raises PeerError: if one of its ends is gone
    """
    known = setting if setting.duration is None else known_setting(setting, done[peers["client"]])
    times = fetch_times(known, peers[cputime.observing_end(setting)], peers["client"])
    connections = fetch_connections(known, peers, times, setup) if setting.connections > 1 else None
    return Fetched(known, times, connections)


def fetch_times(setting: Setting, observer: Peer, client: Peer) -> Times:
    """Fetch the times of one sender's messages."""
    delivered = fetch_array(observer, "delivered", setting.messages)
    posted = fetch_array(client, "posted", setting.messages)
    got = np.flatnonzero(delivered)
    intended = fetch_array(client, "intended", setting.messages) if setting.pattern == "paced" else posted
    return Times(got, intended[got], posted[got], delivered[got], posted[posted > 0])


def known_setting(setting: Setting, client: Done) -> Setting:
    """Return the setting of a trial that went on for a time with the number of messages that it measured."""
    return structs.replace(setting, messages=max(1, client.tally["expected"] - setting.warmup - setting.cooldown))


def closed_account(done: Mapping[Peer, Done], peers: Mapping[Role, Peer]) -> Done:
    """Return what the server of such a trial says, held against the messages that its client says there were."""
    client, server = done[peers["client"]], done[peers["server"]]
    expected = client.tally["expected"]
    lost = max(0, expected - server.tally["delivered"])
    return structs.replace(server, tally={**server.tally, "expected": expected, "lost": lost})


def close_accounts(
    setting: Setting, done: Mapping[Peer, Done], pairs: Sequence[Mapping[Role, Peer]]
) -> dict[Peer, Done]:
    """Return what all ends say; if the trial went on for a time, the servers' accounts are closed."""
    if setting.duration is None:
        return dict(done)
    return {**done, **{peers["server"]: closed_account(done, peers) for peers in pairs}}


def join_times(times: Sequence[Times]) -> Times:
    """Join several senders' messages in the order of their delivery."""
    joined = [np.concatenate(columns) for columns in zip(*(structs.astuple(one) for one in times), strict=True)]
    order = np.argsort(joined[3], kind="stable")
    sequence, intended, sent, delivered = (column[order] for column in joined[:4])
    return Times(sequence, intended, sent, delivered, np.sort(joined[4]))


class Answered(Struct, frozen=True):
    """How many messages of a ping-pong were answered, and how fast: `per_s` is that of all its senders together."""

    messages: int
    per_s: float


def answered_rate(ends: Sequence[Times]) -> Answered | None:
    """Return what was answered from each sender's first delivery to its last; None if that is no time.

    What a round trip takes tells it only where one is always under way: a lost message holds its connection for the
    whole patience and is no sample, and of many connections not each has one under way.
    """
    spans = [(len(times.delivered) - 1, int(np.ptp(times.delivered))) for times in ends if len(times.delivered) > 1]
    rate = sum(count / span * 1e9 for count, span in spans if span)
    return Answered(sum(len(times.delivered) for times in ends), rate) if rate else None


def steady_part(delivered: Int64s, posted: Int64s | None) -> tuple[int, int]:
    """Between which times of a stream its rate may be taken: neither while buffers fill nor while they drain.

    `delivered` and `posted` are ns, ascending; `posted` is None if the ends have two clocks. Buffers hold no more than
    were ever under way at once: when as many have been delivered, those that follow find them full; and they drain when
    the last one has been sent. Returned are ns from the first delivery; both 0 if there is no such interval.
    """
    if not len(delivered):
        return 0, 0
    first, last = int(delivered[0]), int(delivered[-1])
    if posted is None or not len(posted):
        return 0, last - first
    under_way = np.arange(1, len(posted) + 1) - np.searchsorted(delivered, posted)
    full = int(under_way.max())
    begin = int(delivered[full]) if full < len(delivered) else last
    end = min(int(posted[-1]), last)
    return (begin - first, end - first) if begin < end else (0, 0)


def join_ends(done: Sequence[Done], measured: Sequence[int]) -> Done:
    """Several senders' (or their receivers') ends as one: counts and processor time added, the worst of the endings.

    `measured`: messages that were measured of each.

    What was chosen, where it ran and when is the first one's.
    """
    worst = next((one for one in done if one.ended not in ("complete", "finished")), done[0])
    boots = {one.boot for one in done}
    return Done(
        tally=add_counts([one.tally for one in done]) | device_counts(done),
        ended=worst.ended,
        error=worst.error,
        resent=join_resent(done),
        cpu=cputime.add_ends([one.cpu for one in done], measured),
        resident=max(one.resident for one in done),
        chosen=done[0].chosen,
        boot=boots.pop() if len(boots) == 1 else "",
        placed=done[0].placed,
        between=done[0].between,
        filled=any(one.filled for one in done),
    )


def add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add what several ends counted, name by name; an end counts only what it met, so that not each has every name."""
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def device_counts(ends: Sequence[Done]) -> dict[str, int]:
    """What ports of verbs devices counted of all that used them, once for each, however many of the ends it serves.

    Each of its ends says by how much it grew meanwhile, which is the same growth: the largest counts.
    """
    names = dict.fromkeys(name for end in ends for name in end.tally if name.startswith(OF_PORT))
    return {name: _by_port([(end, end.tally[name]) for end in ends if name in end.tally]) for name in names}


def join_resent(ends: Sequence[Done]) -> int:
    """Add the packets that several ends' paths sent again: once for each device, where it is that which counts them."""
    shared = [any(name.startswith(OF_PORT) for name in end.tally) for end in ends]
    own = sum(end.resent for end, by_device in zip(ends, shared, strict=True) if not by_device)
    return own + _by_port([(end, end.resent) for end, by_device in zip(ends, shared, strict=True) if by_device])


def _by_port(values: Sequence[tuple[Done, int]]) -> int:
    """Add the largest value of each device's port, of those that its ends tell."""
    found: dict[tuple[object, ...], int] = {}
    for end, value in values:
        key = end.boot, end.chosen.get("device"), end.chosen.get("port")
        found[key] = max(value, found.get(key, 0))
    return sum(found.values())


def fetch_array(peer: Peer, array: Array, count: int) -> Int64s:
    """Fetch a whole array of the trial that the peer has just run, a bounded chunk at a time."""
    values = np.empty(count, dtype=np.int64)
    for first in range(0, count, SAMPLES_A_CHUNK):
        here = min(SAMPLES_A_CHUNK, count - first)
        chunk = peer.ask(Fetch(array=array, first=first, count=here), Chunk)
        if len(chunk.data) != 8 * here or chunk.first != first:
            raise PeerError(f"peer {peer.name} sent {len(chunk.data)} bytes of samples instead of {8 * here}")
        values[first : first + here] = np.frombuffer(chunk.data, dtype="<i8")
    return values


def fetch_connections(setting: Setting, peers: Mapping[Role, Peer], times: Times, setup: float) -> ByConnection:
    """Fetch what both ends counted of each connection, and put it beside the measured times.

    :param setup: seconds that it took to set all of them up.
    """
    count, client = setting.connections, peers["client"]
    passive = cputime.is_passive(setting, "server")
    found = account_connections(
        fetch_array(client, "connection", setting.messages), times.sequence, times.delivered - times.sent,
        sent=fetch_array(client, "sent", count), answered=fetch_array(client, "taken", count),
        received=None if passive else fetch_array(peers["server"], "taken", count),
    )  # fmt: skip
    return structs.replace(found, setup_s=setup)


def merge_tallies(client: Mapping[str, int], server: Mapping[str, int], seen_by: Role) -> dict[str, int]:
    """Merge both ends' counts: delivered and lost as the observing end saw it, the faults that either saw added."""
    observer = client if seen_by == "client" else server
    tally = {name: observer[name] for name in ("expected", "delivered", "bytes", "lost")}
    tally["posted"] = client["posted"]
    for name in ("duplicated", "reordered", "corrupt", "stale", "wrong_size", "checked"):
        tally[name] = client[name] + server[name]
    # what a path counts of its own, such as bytes that were mapped instead of copied
    for name in sorted((client.keys() | server.keys()) - tally.keys()):
        tally[name] = client.get(name, 0) + server.get(name, 0)
    return tally
