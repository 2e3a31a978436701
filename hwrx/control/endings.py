"""Waiting for the loops of a trial to end: as long as something moves, however slow the machine, and no longer.

The loops themselves end when nothing has moved for the setting's `limit`. What is watched over here is the rest: an
agent that does not answer any more, a loop whose other end has ended without its knowing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from hwrx.control.messages import Done, Look, Moved, Role, Setting, Stop
from hwrx.control.peers import ANSWER_WITHIN, Peer
from hwrx.errors import HwrxError, PeerError, SilenceError, TrialError
from hwrx.host.waiting import wait_to_read

# Between the end of one endpoint's loop and that of the other lie a few messages in flight; an emulated CPU is slow.
GRACE = 5.0
LOOK_EVERY = 5.0  # seconds between two questions how far a loop has come
# where the question, whose answer takes a few 100,000 instructions, would be among what is measured
LOOK_SELDOM = 60.0
LONGEST_GAP = 40  # mean distances: two messages of a Poisson process lie further apart once in 10^17
# each end and its other; the server first, so that it listens when the client calls
ENDS: tuple[tuple[Role, Role], ...] = (("server", "client"), ("client", "server"))


class LeftAloneError(TrialError):
    """A loop goes on though its other end has ended: `silent` is its agent, `first` the other one."""

    def __init__(self, silent: Peer, first: Peer, done: Done) -> None:
        super().__init__(
            f"{first.name} {ending_words(done)}, and {silent.name} waited in vain for more; its agent was started anew"
        )
        self.silent = silent


class Pulse(Struct):
    """What is known of a loop that runs. Times are seconds of time.monotonic."""

    moved: float  # when it was seen to have come further
    looked: float  # when it was asked last
    count: int = -1
    asked: bool = False  # and has not answered


def ending_words(done: Done) -> str:
    """Say how a loop ended."""
    words = {
        "complete": "got all it expected",
        "finished": "was told that no more comes",
        "limit": "saw nothing move for the time limit",
        "nothing": "got not one message: all were lost on the way",
        "error": f"failed: {done.error}",
    }
    return words[done.ended]


def all_done(
    pairs: Sequence[Mapping[Role, Peer]],
    setting: Setting,
    look_every: float | None = None,
    bereave: Callable[[Peer, HwrxError], None] | None = None,
) -> dict[Peer, Done]:
    """Wait until every loop of a trial has ended, and return what each says.

    An end whose other end has ended is told so. Raises LeftAloneError if it does not end by that; SilenceError if an
    agent does not answer, or no loop comes further though none ends; what an agent reports, or its death, as `wait`.
    `look_every`: seconds between two questions how far the loops have come; None: LOOK_EVERY.
    `bereave` is told of a peer that died, reported an error or was left alone, instead of an exception: the others go
    on, that one is not in what is returned, and its other end is told that no more comes.
    """
    look_every = LOOK_EVERY if look_every is None else look_every
    others = {peers[role]: peers[other] for peers in pairs for role, other in ENDS}
    clients = {peers["client"] for peers in pairs}
    now = time.monotonic()
    pulses = {peer: Pulse(now, now) for peer in others}
    done: dict[Peer, Done] = {}
    lost: dict[Peer, Done] = {}

    def lose(peer: Peer, error: HwrxError) -> None:
        if bereave is None:
            raise error
        bereave(peer, error)
        lost[peer] = Done(tally={}, ended="error", error=str(error.args[0]))

    def tell_other(peer: Peer) -> None:
        other = others[peer]
        pulses[other].moved = time.monotonic()  # the time that the other end has from now on
        if other not in done and other not in lost:
            try:
                ended = done.get(peer)
                total = ended.tally["expected"] if ended and setting.duration and peer in clients else 0
                other.send(Stop(total=total))
            except PeerError as error:
                lose(other, error)

    while missing := [peer for peer in others if peer not in done and peer not in lost]:
        for peer, error in _hear(missing, 0.2 if done or lost else look_every):
            lose(peer, error)
            tell_other(peer)
        for peer in missing:
            try:
                if peer not in lost and peer.has_reply and (ended := _take(peer, pulses[peer])) is not None:
                    done[peer] = ended
                    tell_other(peer)
            except HwrxError as error:
                lose(peer, error)
                tell_other(peer)
        for peer in missing:
            try:
                if peer not in done and peer not in lost:
                    _ask(peer, pulses[peer], look_every)
                    _judge(peer, others[peer], {**done, **lost}, pulses, setting)
            except SilenceError as error:
                # a host that answers no more is lost; two loops that stand still are an error of hwrx
                if not pulses[peer].asked:
                    raise
                lose(peer, error)
                tell_other(peer)
            except (PeerError, LeftAloneError) as error:
                lose(peer, error)
                tell_other(peer)
    for peer, pulse in pulses.items():
        if pulse.asked and peer not in lost:
            try:
                peer.settle(Moved, ANSWER_WITHIN)
            except PeerError as error:
                lose(peer, error)
                del done[peer]
    return done


def _hear(peers: list[Peer], seconds: float) -> list[tuple[Peer, PeerError]]:
    """Read what comes, if nothing has been read yet; return the peers of which no more will come."""
    if any(peer.has_reply for peer in peers):
        return []
    gone = []
    for peer in wait_to_read(peers, seconds):
        try:
            peer.receive()
        except PeerError as error:
            gone.append((peer, error))
    return gone


def _take(peer: Peer, pulse: Pulse) -> Done | None:
    """Take a reply of a peer whose loop runs: Done, or None if it only says how far it has come."""
    reply = peer.reply(Struct)
    if isinstance(reply, Done):
        return reply
    if not isinstance(reply, Moved):
        raise PeerError(f"peer {peer.name} answered with {type(reply).__name__} while its loop ran")
    pulse.asked = False
    if reply.count != pulse.count:
        pulse.count, pulse.moved = reply.count, time.monotonic()
    return None


def _ask(peer: Peer, pulse: Pulse, look_every: float) -> None:
    now = time.monotonic()
    if not pulse.asked and now - pulse.looked >= look_every:
        peer.send(Look())
        pulse.asked, pulse.looked = True, now


def _judge(peer: Peer, other: Peer, done: Mapping[Peer, Done], pulses: Mapping[Peer, Pulse], setting: Setting) -> None:
    """Raise if a loop that has not ended will not."""
    now, pulse = time.monotonic(), pulses[peer]
    gap = LONGEST_GAP / setting.rate if setting.rate else 0.0
    if pulse.asked and now - pulse.looked > ANSWER_WITHIN:
        raise SilenceError(
            f"{peer.name} has not answered for {ANSWER_WITHIN:g} s in the middle of a trial",
            remedy="is its machine still there, and the link to it up?",
        )
    if other in done:
        well = done[other].ended in ("complete", "finished", "nothing")
        if now - pulse.moved > (setting.limit + gap + GRACE if well else GRACE):
            raise LeftAloneError(peer, other, done[other])
        return
    if now - max(pulse.moved, pulses[other].moved) > setting.limit + gap + ANSWER_WITHIN:
        raise SilenceError(
            f"neither {peer.name} nor {other.name} has come further for {now - pulse.moved:.0f} s, nor gives up",
            remedy="this is an error of hwrx: please report it with the setting of the trial",
        )
