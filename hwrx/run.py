"""The schedule of a run: one trial after the other, two agents each, samples into the store.

A failure of a path (no device, a size that is too large) fails its trial, and the run goes on. An agent that dies or
falls silent ends the run: what was measured before stays, marked partial, and the trial is named.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import cputime, placement
from hwrx.errors import HwrxError, PeerError, SilenceError, TrialError
from hwrx.messages import (
    SAMPLES_A_CHUNK,
    Array,
    Chunk,
    Connect,
    Done,
    Fetch,
    LookAround,
    Place,
    Placed,
    Prepare,
    Prepared,
    Ready,
    Release,
    Released,
    Role,
    Setting,
    Start,
    Survey,
    Surveyed,
)
from hwrx.peers import ANSWER_WITHIN, Peer, wait, wait_first
from hwrx.placement import OWN_CPUS, Wish

if TYPE_CHECKING:
    from hwrx.experiment import Trial
    from hwrx.store import Writer

Int64s = npt.NDArray[np.int64]
# Between the end of one endpoint's loop and that of the other lie a few messages in flight; an emulated CPU is slow.
GRACE = 5.0
# each end and its other; the server first, so that it listens when the client calls
ENDS: tuple[tuple[Role, Role], ...] = (("server", "client"), ("client", "server"))


class Testbed(Protocol):
    """Two places with something between them, and a way to start an agent at each."""

    places: Mapping[Role, Place]
    alone: bool  # nobody else uses the machine that both ends are on

    def start(self, role: Role) -> Peer:
        """Start the agent of one end."""

    def manifest(self) -> dict[str, Any]:
        """Describe the machine that the messages cross."""


class Measured(Struct, frozen=True):
    """What one trial brought: for each recorded message its sequence number and times, and what was counted."""

    sequence: npt.NDArray[np.uint32]
    ns: Int64s
    service_ns: Int64s | None
    tally: dict[str, int]
    client: Done
    server: Done
    chosen: dict[str, Any]
    placement: dict[str, Any] = {}  # see hwrx.placement.record
    cpu: dict[str, Any] = {}  # time by actor, and why an actor is missing: see hwrx.cputime.account
    cpu_missing: dict[str, str] = {}


class Pair:
    """The agents of a testbed, two for each sender. A context manager; all are gone when it is left.

    `wish` says which CPUs they run on; what it asks for and cannot be is a UsageError on entering.
    """

    def __init__(self, testbed: Testbed, wish: Wish = OWN_CPUS) -> None:
        self._testbed = testbed
        self._wish = wish
        self._surveys: dict[Role, Survey] = {}
        self._stack = contextlib.ExitStack()
        self._pairs: list[dict[Role, Peer]] = []  # one for each sender; more than one as soon as a trial wants them

    @property
    def peers(self) -> dict[Role, Peer]:
        """The agents of the first sender, of most trials the only one."""
        return self._pairs[0]

    def __enter__(self) -> Pair:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            # an agent in the middle of a loop does not hear Quit
            for peer in self._everybody(len(self._pairs)):
                peer.kill()
        self._stack.close()

    def renew(self) -> None:
        """End all agents and start new ones: what the processes themselves add to every figure is drawn anew.

        The old ones are gone before the first new one starts, so that nothing of either runs beside a trial.
        """
        self._stack.close()
        self._pairs = []
        self._begin()

    def _begin(self) -> None:
        """Start the first sender's agents, and ask them what there is to run on."""
        self._enlarge(1)
        places = self._testbed.places
        self._surveys = {
            role: peer.ask(LookAround(here=places[role]), Surveyed).survey for role, peer in self.peers.items()
        }
        placement.check_wish(self._wish, self._surveys)

    def _enlarge(self, senders: int) -> None:
        while len(self._pairs) < senders:
            more: dict[Role, Peer] = {}
            for role, _ in ENDS:
                more[role] = self._stack.enter_context(self._testbed.start(role))
            self._pairs.append(more)

    def _everybody(self, senders: int) -> list[Peer]:
        return [peer for peers in self._pairs[:senders] for peer in peers.values()]

    def measure(
        self,
        number: int,
        setting: Setting,
        limit: float,
        look: Callable[[Mapping[Role, Peer]], None] = lambda peers: None,
        before: Callable[[Mapping[Role, Peer]], None] = lambda peers: None,
        *,
        repeat: int = 0,
        stamps: bool = False,
    ) -> Measured:
        """Run one trial. `limit` seconds bound its loops; the error of either end is raised as soon as it is known.

        `look` is called with both agents while they still have the trial's arrays, `before` when they are connected.
        Of several senders it is called with the first one's. `stamps`: see Prepare.
        """
        cpus = placement.choose(self._wish, self._surveys, setting)
        self._enlarge(setting.senders)
        places = self._testbed.places
        prepared: dict[Role, Prepared] = {}
        try:
            for sender, (peers, cpu) in enumerate(zip(self._pairs, cpus, strict=False)):
                for role, other in ENDS:
                    message = Prepare(
                        trial=number,
                        role=role,
                        setting=setting,
                        here=msgspec.structs.replace(places[role], cpu=cpu[role]),
                        there=places[other],
                        repeat=repeat,
                        sender=sender,
                        stamps=stamps,
                        alone=self._testbed.alone and role == cputime.observer(setting),
                    )
                    prepared[role] = peers[role].ask(message, Prepared)
                for role, other in ENDS[::-1]:
                    peers[role].send(Connect(remote=prepared[other].remote))
                wait(dict.fromkeys(peers.values(), Ready), ANSWER_WITHIN)
            before(self.peers)
            for role, _ in ENDS:
                for peers in self._pairs[: setting.senders]:
                    peers[role].send(Start())
            done = self._all_done(setting.senders, limit, setting.limit)
            measured = self._collect(setting, done)
            look(self.peers)
        except PeerError:
            raise  # the run ends, and all agents with it
        except HwrxError:
            # one end could not do its part: all are asked to let go, so that the next trial finds them ready. An
            # interrupt does not come here: nobody waits for loops that may take long
            self._release(setting.senders)
            raise
        self._release(setting.senders)
        return measured

    def _all_done(self, senders: int, limit: float, quiet: float) -> dict[Peer, Done]:
        """Wait for all loops to end. One that goes on after its other end has failed is ended with its agent."""
        done: dict[Peer, Done] = {}
        deadline = time.monotonic() + limit
        while missing := [peer for peer in self._everybody(senders) if peer not in done]:
            patience = deadline - time.monotonic()
            left = self._left_alone(senders, done)
            for _, other in left:
                well = done[other].ended in ("complete", "finished")
                patience = min(patience, quiet + GRACE if well else GRACE)
            try:
                peer, reply = wait_first(missing, Done, patience)
            except SilenceError:
                if not left:
                    raise
                silent, first = left[0]
                self._replace(silent)
                raise TrialError(
                    f"{first.name} {_ending(done[first])}, and {silent.name} waited in vain for more; "
                    "its agent was started anew"
                ) from None
            done[peer] = reply
        return done

    def _left_alone(self, senders: int, done: Mapping[Peer, Done]) -> list[tuple[Peer, Peer]]:
        """Those whose other end has ended, each with that end."""
        return [
            (peers[role], peers[other])
            for peers in self._pairs[:senders]
            for role, other in ENDS
            if peers[role] not in done and peers[other] in done
        ]

    def _replace(self, peer: Peer) -> None:
        """Put a new agent into the place of one that cannot be talked to."""
        peer.kill()
        for peers in self._pairs:
            for role, _ in ENDS:
                if peers[role] is peer:
                    peers[role] = self._stack.enter_context(self._testbed.start(role))

    def _collect(self, setting: Setting, done: dict[Peer, Done]) -> Measured:
        """Fetch what all senders' messages met, in the order of their delivery where there are several."""
        seen_by = cputime.observer(setting)
        pairs = self._pairs[: setting.senders]
        arrays = [_times(setting, peers[seen_by], peers["client"]) for peers in pairs]
        sequence, delivered, ns = (np.concatenate(columns) for columns in list(zip(*arrays, strict=True))[:3])
        service = np.concatenate([service for *_, service in arrays]) if setting.pattern == "paced" else None
        if setting.pattern == "stream" or setting.senders > 1:
            order = np.argsort(delivered, kind="stable")
            sequence, delivered, ns = sequence[order], delivered[order], ns[order]
            service = service[order] if service is not None else None
        client, server = (together([done[peers[role]] for peers in pairs]) for role in ("client", "server"))
        by_actor, missing = cputime.account(setting, client, server, self._testbed.alone)
        return Measured(
            sequence=sequence.astype(np.uint32),
            ns=np.diff(delivered, prepend=delivered[:1]) if setting.pattern == "stream" else ns,
            service_ns=service,
            tally={**merged(client.tally, server.tally, seen_by), "resent": client.resent + server.resent},
            client=client,
            server=server,
            chosen={"client": client.chosen, "server": server.chosen},
            placement=placement.record(self._wish, self._surveys, [_placed(peers, done) for peers in pairs]),
            cpu=by_actor,
            cpu_missing=missing,
        )

    def _release(self, senders: int) -> None:
        """All ends let go. Replies of a trial that was broken off may stand before the one that is waited for."""
        for peer in self._everybody(senders):
            peer.send(Release())
        for peer in self._everybody(senders):
            peer.settle(Released, ANSWER_WITHIN)


def _placed(peers: Mapping[Role, Peer], done: Mapping[Peer, Done]) -> dict[Role, Placed]:
    """Return where both ends of a sender ran."""
    found: dict[Role, Placed] = {}
    for role, peer in peers.items():
        placed = done[peer].placed
        if placed is None:
            raise PeerError(f"peer {peer.name} does not say which CPU it ran on")
        found[role] = placed
    return found


def _times(setting: Setting, observer: Peer, client: Peer) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Of the messages that came: sequence number, delivery, time from the intended and from the actual send.

    Zeros stand for the times of a stream, whose ends may have two clocks, and for the last but in an open loop.
    """
    delivered = fetch(observer, "delivered", setting.messages)
    got = np.flatnonzero(delivered)
    ns = service = np.zeros(len(got), np.int64)
    if setting.pattern != "stream":
        ns = (delivered - fetch(client, "intended", setting.messages))[got]
    if setting.pattern == "paced":
        service = (delivered - fetch(client, "posted", setting.messages))[got]
    return got, delivered[got], ns, service


def together(done: Sequence[Done]) -> Done:
    """Several senders' (or their receivers') ends as one: counts and processor time added, the worst of the endings.

    What was chosen is the first one's.
    """
    worst = next((one for one in done if one.ended not in ("complete", "finished")), done[0])
    return Done(
        tally=added([one.tally for one in done]),
        ended=worst.ended,
        error=worst.error,
        resent=sum(one.resent for one in done),
        cpu=cputime.together([one.cpu for one in done]),
        resident=max(one.resident for one in done),
        chosen=done[0].chosen,
    )


def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add what several ends counted, name by name; an end counts only what it met, so that not each has every name."""
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def fetch(peer: Peer, array: Array, count: int) -> Int64s:
    """Fetch a whole array of the trial that the peer has just run, a bounded chunk at a time."""
    values = np.empty(count, dtype=np.int64)
    for first in range(0, count, SAMPLES_A_CHUNK):
        here = min(SAMPLES_A_CHUNK, count - first)
        chunk = peer.ask(Fetch(array=array, first=first, count=here), Chunk)
        if len(chunk.data) != 8 * here or chunk.first != first:
            raise PeerError(f"peer {peer.name} sent {len(chunk.data)} bytes of samples instead of {8 * here}")
        values[first : first + here] = np.frombuffer(chunk.data, dtype="<i8")
    return values


def merged(client: Mapping[str, int], server: Mapping[str, int], seen_by: Role) -> dict[str, int]:
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


def _ending(done: Done) -> str:
    """Say how a loop ended."""
    words = {
        "complete": "got all it expected",
        "finished": "was told that no more comes",
        "limit": "saw nothing move for the time limit",
        "error": f"failed: {done.error}",
    }
    return words[done.ended]


class Outcome(Struct):
    """How a run went: trials that were measured, and what became of the others."""

    measured: int = 0
    failed: list[str] = []  # label and reason of each trial that failed


def execute(
    trials: Sequence[Trial],
    testbed: Testbed,
    writer: Writer,
    *,
    wish: Wish = OWN_CPUS,
    trial_limit: float = 120.0,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    twin: Callable[[Pair, Trial, Measured, Writer], None] = lambda pair, trial, measured, writer: None,
) -> Outcome:
    """Run `trials` in the given order and write each as it ends, the trials of every repeat with agents of their own.

    `progress` is called with trials done, trials in all and the next one's label. Raises TrialError when an agent died
    or fell silent: it names the trial; the writer then marks the run partial. A path's own failure is recorded with its
    trial and in the outcome, and the run goes on. `twin` is called after each trial that was measured and written, for
    what is to be measured beside it (tracing).
    """
    outcome = Outcome()
    with Pair(testbed, wish) as pair:
        for index, trial in enumerate(trials):
            progress(index, len(trials), trial.label)
            with _named(trial, writer):
                if index and trial.repeat != trials[index - 1].repeat:
                    pair.renew()
                try:
                    measured = pair.measure(trial.number, trial.setting, trial_limit, repeat=trial.repeat)
                except PeerError:
                    raise
                except HwrxError as error:
                    writer.add_trial(trial, status="failed", error=str(error))
                    writer.log(f"trial {trial.number} {trial.label}: failed: {error}")
                    outcome.failed.append(f"{trial.label}: {error}")
                    continue
            write(trial, measured, writer, outcome)
            if "placement" not in writer.manifest:  # of the first trial; each has its own in the journal
                writer.note(placement=measured.placement)
            twin(pair, trial, measured, writer)
        progress(len(trials), len(trials), "")
    return outcome


@contextlib.contextmanager
def _named(trial: Trial, writer: Writer) -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        writer.add_trial(trial, status="failed", error=str(error))
        writer.log(f"trial {trial.number} {trial.label}: {error}")
        raise TrialError(
            f"trial {trial.number} ({trial.label}) broke off: {Exception.__str__(error)}",
            remedy=error.remedy or "what was measured before it is in the run directory, marked partial",
        ) from error


def write(trial: Trial, measured: Measured, writer: Writer, outcome: Outcome) -> None:
    """Store what a trial brought. One whose loop did not come to its end is a failed trial with samples."""
    problems = [
        f"{role} {_ending(done)}"
        for role, done in (("client", measured.client), ("server", measured.server))
        if done.ended not in ("complete", "finished")
    ]
    error = "; ".join(problems)
    if error:
        outcome.failed.append(f"{trial.label}: {error}")
        writer.log(f"trial {trial.number} {trial.label}: {error}")
    else:
        outcome.measured += 1
    writer.add_trial(
        trial,
        status="failed" if error else "ok",
        error=error,
        tally=measured.tally,
        sequence=measured.sequence,
        ns=measured.ns,
        service_ns=measured.service_ns,
        extra={
            "chosen": measured.chosen,
            "placement": measured.placement,
            "cpu": measured.cpu,
            "cpu_missing": measured.cpu_missing,
            "resident": {"client": measured.client.resident, "server": measured.server.resident},
        },
    )
