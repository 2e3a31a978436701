"""The schedule of a run: one trial after the other, two agents each, samples into the store.

A failure of a path (no device, a size that is too large) fails its trial, and the run goes on. An agent that dies or
falls silent ends the run: what was measured before stays, marked partial, and the trial is named.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from hwrx import paths
from hwrx.control import endings
from hwrx.control.endings import ENDS, LeftAloneError, ending_words
from hwrx.control.messages import (
    SAMPLES_A_CHUNK,
    Array,
    Chunk,
    Connect,
    Done,
    Fetch,
    LookAround,
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
from hwrx.control.peers import ANSWER_WITHIN, Peer, wait_for_replies
from hwrx.errors import HwrxError, PeerError, SilenceError, TrialError
from hwrx.machine import placement
from hwrx.machine.placement import OWN_CPUS, Wish
from hwrx.paths import cputime
from hwrx.runs.beds import Testbed
from hwrx.runs.by_connection import ByConnection, account_connections

if TYPE_CHECKING:
    from hwrx.runs.store import Writer
    from hwrx.runs.trials import Trial

Int64s = npt.NDArray[np.int64]


class Measured(Struct, frozen=True):
    """What one trial brought: for each recorded message its sequence number and times, and what was counted."""

    sequence: npt.NDArray[np.uint32]
    ns: Int64s
    service_ns: Int64s | None
    tally: dict[str, int]
    client: Done
    server: Done
    chosen: dict[str, Any]
    placement: dict[str, Any] = {}  # see hwrx.machine.placement.record_placement
    cpu: dict[str, Any] = {}  # time by actor, and why an actor is missing: see hwrx.paths.cputime.account_time
    cpu_missing: dict[str, str] = {}
    late: npt.NDArray[np.bool_] | None = None  # answers that came after the client's patience; None of a stream
    steady: tuple[int, int] | None = None  # stream: ns from the first recorded delivery between which its rate is taken
    offered: tuple[int, int] | None = None  # paced: messages that were sent, and ns from the first to the last of them
    by_connection: ByConnection | None = None  # of several


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
            # an agent in the middle of a loop does not hear Quit, but the end of its pipe
            for peer in self._everybody(len(self._pairs)):
                peer.hang_up()
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
        look: Callable[[Mapping[Role, Peer]], None] = lambda peers: None,
        before: Callable[[Mapping[Role, Peer]], None] = lambda peers: None,
        *,
        repeat: int = 0,
        seed: int = 0,
        stamps: bool = False,
        stamped: bool = False,
        counted: float = 0.0,
        hold: bool = False,
    ) -> Measured:
        """Run one trial, for as long as its messages move; the error of either end is raised as soon as it is known.

        `look` is called with both agents while they still have the trial's arrays, `before` when they are connected.
        Of several senders it is called with the first one's. The other names: see Prepare.
        """
        cpus = placement.choose_cpus(self._wish, self._surveys, setting)
        self._enlarge(setting.senders)
        places = self._testbed.places
        prepared: dict[Role, Prepared] = {}
        began = time.monotonic()
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
                        seed=seed,
                        stamps=stamps,
                        alone=self._testbed.alone and (role == cputime.observing_end(setting) or setting.settle > 0),
                        stamped=stamped,
                        counted=counted,
                        hold=hold,
                    )
                    prepared[role] = peers[role].ask(message, Prepared)
                for role, other in ENDS[::-1]:
                    peers[role].send(Connect(remote=prepared[other].remote))
                wait_for_replies(dict.fromkeys(peers.values(), Ready), ANSWER_WITHIN)
            setup = time.monotonic() - began
            before(self.peers)
            for role, _ in ENDS:
                for peers in self._pairs[: setting.senders]:
                    peers[role].send(Start())
            done = self._all_done(setting)
            measured = self._collect(setting, done, setup)
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

    def _all_done(self, setting: Setting) -> dict[Peer, Done]:
        """Wait for all loops to end. One that goes on after its other end has ended is ended with its agent."""
        try:
            look_every = endings.LOOK_SELDOM if self._testbed.alone else endings.LOOK_EVERY
            return endings.all_done(self._pairs[: setting.senders], setting, look_every)
        except LeftAloneError as left:
            self._replace(left.silent)
            raise

    def _replace(self, peer: Peer) -> None:
        """Put a new agent into the place of one that cannot be talked to."""
        peer.kill()
        for peers in self._pairs:
            for role, _ in ENDS:
                if peers[role] is peer:
                    peers[role] = self._stack.enter_context(self._testbed.start(role))

    def _collect(self, setting: Setting, done: dict[Peer, Done], setup: float) -> Measured:
        """Fetch what all senders' messages met, in the order of their delivery where there are several."""
        seen_by = cputime.observing_end(setting)
        pairs = self._pairs[: setting.senders]
        ends = [_times(setting, peers[seen_by], peers["client"]) for peers in pairs]
        stream, paced = setting.pattern == "stream", setting.pattern == "paced"
        times = _joined(ends) if stream or len(ends) > 1 else ends[0]
        client, server = (join_ends([done[peers[role]] for peers in pairs]) for role in ("client", "server"))
        by_actor, missing = cputime.account_time(setting, client, server, self._testbed.alone)
        one_clock = client.boot == server.boot != ""
        return Measured(
            sequence=times.sequence.astype(np.uint32),
            ns=np.diff(times.delivered, prepend=times.delivered[:1]) if stream else times.delivered - times.intended,
            service_ns=times.delivered - times.sent if paced else None,
            late=None if stream else times.delivered - times.sent > round(setting.patience * 1e9),
            steady=steady_part(times.delivered, times.posted if one_clock else None) if stream else None,
            offered=(len(times.posted), int(np.ptp(times.posted))) if paced and len(times.posted) else None,
            tally={**merge_tallies(client.tally, server.tally, seen_by), "resent": client.resent + server.resent},
            client=client,
            server=server,
            chosen={"client": client.chosen, "server": server.chosen},
            placement=placement.record_placement(self._wish, self._surveys, [_placed(peers, done) for peers in pairs]),
            cpu=by_actor,
            cpu_missing=missing,
            by_connection=_connections(setting, self.peers, ends[0], setup) if setting.connections > 1 else None,
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


class _Times(Struct, frozen=True):
    """Of the recorded messages that came, in order: number, and ns when each was due, sent, delivered.

    `posted` is when all were sent, those that were lost, too.
    """

    sequence: npt.NDArray[np.intp]
    intended: Int64s
    sent: Int64s
    delivered: Int64s
    posted: Int64s


def _times(setting: Setting, observer: Peer, client: Peer) -> _Times:
    """Fetch the times of one sender's messages."""
    delivered = fetch_array(observer, "delivered", setting.messages)
    posted = fetch_array(client, "posted", setting.messages)
    got = np.flatnonzero(delivered)
    intended = fetch_array(client, "intended", setting.messages) if setting.pattern == "paced" else posted
    return _Times(got, intended[got], posted[got], delivered[got], posted[posted > 0])


def _joined(times: Sequence[_Times]) -> _Times:
    """Join several senders' messages in the order of their delivery."""
    joined = [np.concatenate(columns) for columns in zip(*(structs.astuple(one) for one in times), strict=True)]
    order = np.argsort(joined[3], kind="stable")
    sequence, intended, sent, delivered = (column[order] for column in joined[:4])
    return _Times(sequence, intended, sent, delivered, np.sort(joined[4]))


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


def join_ends(done: Sequence[Done]) -> Done:
    """Several senders' (or their receivers') ends as one: counts and processor time added, the worst of the endings.

    What was chosen, where it ran and when is the first one's.
    """
    worst = next((one for one in done if one.ended not in ("complete", "finished")), done[0])
    boots = {one.boot for one in done}
    return Done(
        tally=add_counts([one.tally for one in done]),
        ended=worst.ended,
        error=worst.error,
        resent=sum(one.resent for one in done),
        cpu=cputime.add_ends([one.cpu for one in done]),
        resident=max(one.resident for one in done),
        chosen=done[0].chosen,
        boot=boots.pop() if len(boots) == 1 else "",
        placed=done[0].placed,
        between=done[0].between,
    )


def add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add what several ends counted, name by name; an end counts only what it met, so that not each has every name."""
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


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


def _connections(setting: Setting, peers: Mapping[Role, Peer], times: _Times, setup: float) -> ByConnection:
    """Fetch what both ends counted of each connection, and put it beside the measured times."""
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


class Outcome(Struct):
    """How a run went: trials that were measured, and what became of the others."""

    measured: int = 0
    failed: list[str] = []  # label and reason of each trial that failed


def execute_trials(
    trials: Sequence[Trial],
    testbed: Testbed,
    writer: Writer,
    *,
    wish: Wish = OWN_CPUS,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    twin: Callable[[Pair, Trial, Measured, Writer], None] = lambda pair, trial, measured, writer: None,
    stopped: Callable[[], bool] = lambda: False,
    outcome: Outcome | None = None,
) -> Outcome:
    """Run `trials` in the given order and write each as it ends, the trials of every repeat with agents of their own.

    `progress` is called with trials done, trials in all and the next one's label. Raises TrialError when an agent died
    or fell silent: it names the trial; the writer then marks the run partial. StandstillError if a whole guest fell
    silent: another one can go on with that trial. A path's own failure is recorded with its
    trial and in the outcome, and the run goes on. `twin` is called after each trial that was measured and written, for
    what is to be measured beside it (tracing). `stopped` tells whether an agent's death is our own doing, from another
    thread: then no trial is to blame. `outcome` is what is added to and returned: it is known after an error, too.
    """
    outcome = Outcome() if outcome is None else outcome
    seed = int(writer.manifest.get("seed") or 0)
    with Pair(testbed, wish) as pair:
        for index, trial in enumerate(trials):
            progress(index, len(trials), trial.label)
            with _named(trial, testbed, writer, stopped):
                if index and trial.repeat != trials[index - 1].repeat:
                    pair.renew()
                try:
                    hold = holds_for_next(trials, index)
                    measured = pair.measure(trial.number, trial.setting, repeat=trial.repeat, seed=seed, hold=hold)
                except PeerError:
                    raise
                except HwrxError as error:
                    writer.add_trial(trial, status="failed", error=str(error))
                    writer.log(f"trial {trial.number} {trial.label}: failed: {error}")
                    outcome.failed.append(f"{trial.label}: {error}")
                    continue
            write_trial(trial, measured, writer, outcome)
            if "placement" not in writer.manifest:  # of the first trial; each has its own in the journal
                writer.note(placement=measured.placement)
            twin(pair, trial, measured, writer)
        progress(len(trials), len(trials), "")
    return outcome


def holds_for_next(trials: Sequence[Trial], index: int) -> bool:
    """Whether a trial leaves what it takes from the kernel to the next one, which has the same agents."""
    if index + 1 == len(trials) or trials[index + 1].repeat != trials[index].repeat:
        return False
    this, following = trials[index].setting, trials[index + 1].setting
    # what shares the kernel's driver needs the network device
    return paths.holds(this.path, following.path) and this.link == following.link


@contextlib.contextmanager
def _named(trial: Trial, testbed: Testbed, writer: Writer, stopped: Callable[[], bool]) -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        if stopped():
            raise
        if isinstance(error, SilenceError):
            testbed.need_answer(error)
        writer.add_trial(trial, status="failed", error=str(error))
        writer.log(f"trial {trial.number} {trial.label}: {error}")
        raise TrialError(
            f"trial {trial.number} ({trial.label}) broke off: {Exception.__str__(error)}",
            remedy=error.remedy or "what was measured before it is in the run directory, marked partial",
        ) from error


def observed_facts(measured: Measured) -> dict[str, Any]:
    """Return what a trial's figures need besides its samples: the `steady` part of a stream, what was `offered`."""
    found: dict[str, Any] = {}
    if measured.steady is not None:
        found["steady"] = {"from_ns": measured.steady[0], "to_ns": measured.steady[1]}
    if measured.offered is not None:
        found["offered"] = {"messages": measured.offered[0], "ns": measured.offered[1]}
    return found


def write_trial(trial: Trial, measured: Measured, writer: Writer, outcome: Outcome) -> None:
    """Store what a trial brought. One whose loop did not come to its end is a failed trial with samples."""
    problems = [
        f"{role} {ending_words(done)}"
        for role, done in (("client", measured.client), ("server", measured.server))
        if done.ended not in ("complete", "finished")
    ]
    connections = measured.by_connection
    if connections is not None:
        problems += connections.problems(whole=not problems and measured.tally["lost"] == 0)
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
        late=measured.late,
        extra={
            **observed_facts(measured),
            "chosen": measured.chosen,
            "placement": measured.placement,
            "cpu": measured.cpu,
            "cpu_missing": measured.cpu_missing,
            "resident": {"client": measured.client.resident, "server": measured.server.resident},
            **({"by_connection": connections.facts()} if connections is not None else {}),
        },
    )
    if connections is not None:
        writer.add_table("connections", connections.table(trial.number))
