"""The schedule of a run: one trial after the other, two agents each, samples into the store.

A failure of a path (no device, a size that is too large) fails its trial, and the run goes on. An agent that dies or
falls silent ends the run: what was measured before stays, marked partial, and the trial is named.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import paths
from hwrx.control import endings
from hwrx.control.endings import ENDS, LeftAloneError, ending_words
from hwrx.control.messages import (
    Connect,
    Done,
    LookAround,
    Prepare,
    Prepared,
    Ready,
    Release,
    Released,
    Role,
    Setting,
    Start,
    Surveyed,
)
from hwrx.control.peers import ANSWER_WITHIN, Peer, wait_for_replies
from hwrx.control.places import Place, Survey
from hwrx.errors import HwrxError, PeerError, SilenceError, TrialError
from hwrx.machine import placement
from hwrx.machine.placement import OWN_CPUS, Wish
from hwrx.paths import cputime
from hwrx.runs.beds import Testbed
from hwrx.runs.by_connection import ByConnection, join_connections
from hwrx.runs.collecting import (
    Answered,
    Fetched,
    Int64s,
    Times,
    answered_rate,
    close_accounts,
    device_counts,
    fetch_sender,
    join_ends,
    join_resent,
    join_times,
    merge_tallies,
    placed_of,
    steady_part,
)

if TYPE_CHECKING:
    from hwrx.runs.store import Writer
    from hwrx.runs.trials import Trial


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
    answered: Answered | None = None  # ping-pong over several connections, or with losses
    by_connection: ByConnection | None = None  # of several
    between: dict[str, Any] = {}  # hosts: what became of each flow, and how together they began: see hwrx.runs.fleet
    messages: int | None = None  # that were measured, of one sender
    lost: list[str] = []  # hosts: the ends that died while the others went on, and why


class Link(Struct, frozen=True, eq=False):
    """One sender of a trial: its two agents, and where each lives."""

    peers: dict[Role, Peer]
    places: dict[Role, Place]


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

    def heed(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called with words as soon as an end is lost without which the trial goes on: of many hosts."""

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            # an agent in the middle of a loop does not hear Quit, but the end of its pipe
            for peer in self._everybody():
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

    def _everybody(self) -> list[Peer]:
        return [peer for peers in self._pairs for peer in peers.values()]

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
        links = self._links(setting)
        prepared: dict[Role, Prepared] = {}
        began = time.monotonic()
        try:
            for sender, link in enumerate(list(links)):
                peers = link.peers
                try:
                    for role, other in ENDS:
                        message = Prepare(
                            trial=number,
                            role=role,
                            setting=setting,
                            here=link.places[role],
                            there=link.places[other],
                            repeat=repeat,
                            sender=sender,
                            seed=seed,
                            stamps=stamps,
                            alone=self._testbed.alone
                            and (role == cputime.observing_end(setting) or setting.settle > 0),
                            stamped=stamped,
                            counted=counted,
                            hold=hold,
                        )
                        prepared[role] = peers[role].ask(message, Prepared)
                    for role, other in ENDS[::-1]:
                        peers[role].send(Connect(remote=prepared[other].remote))
                    wait_for_replies(dict.fromkeys(peers.values(), Ready), ANSWER_WITHIN)
                except PeerError as error:
                    self._leave_out(links, link, error)
            setup = time.monotonic() - began
            before(links[0].peers)
            self._start(links)
            done = self._all_done(links, setting)
            measured = self._collect(links, setting, done, setup)
            look(links[0].peers)
        except PeerError:
            raise  # the run ends, and all agents with it
        except HwrxError:
            # one end could not do its part: all are asked to let go, so that the next trial finds them ready. An
            # interrupt does not come here: nobody waits for loops that may take long
            self._release(links)
            raise
        self._release(links)
        return measured

    def _links(self, setting: Setting) -> list[Link]:
        """Return the two agents of each of the setting's senders, and where they live."""
        cpus = placement.choose_cpus(self._wish, self._surveys, setting)
        self._enlarge(setting.senders)
        places = self._testbed.places
        return [
            Link(peers, {role: msgspec.structs.replace(places[role], cpu=cpu[role]) for role, _ in ENDS})
            for peers, cpu in zip(self._pairs, cpus, strict=False)
        ]

    def _leave_out(self, links: list[Link], link: Link, error: PeerError) -> None:
        """An end is gone before the trial has begun: of two ends there is no trial without it."""
        raise error

    def _start(self, links: list[Link]) -> None:
        """Let all loops begin, the servers' first."""
        for role, _ in ENDS:
            for link in links:
                link.peers[role].send(Start())

    def _all_done(self, links: Sequence[Link], setting: Setting) -> dict[Peer, Done]:
        """Wait for all loops to end. One that goes on after its other end has ended is ended with its agent."""
        try:
            look_every = endings.LOOK_SELDOM if self._testbed.alone else endings.LOOK_EVERY
            return endings.all_done([link.peers for link in links], setting, look_every)
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

    def _collect(self, links: Sequence[Link], setting: Setting, done: dict[Peer, Done], setup: float) -> Measured:
        """Fetch what all senders' messages met, in the order of their delivery where there are several."""
        fetched = [fetch_sender(setting, link.peers, done, setup) for link in links]
        return self._put_together(links, setting, done, fetched)

    def _put_together(
        self, links: Sequence[Link], setting: Setting, done: Mapping[Peer, Done], fetched: Sequence[Fetched]
    ) -> Measured:
        """Make one of what was fetched of each sender."""
        seen_by = cputime.observing_end(setting)
        pairs = [link.peers for link in links]
        done = close_accounts(setting, done, pairs)
        stream, paced = setting.pattern == "stream", setting.pattern == "paced"
        ends = self._one_clock([each.times for each in fetched], [done[peers[seen_by]].boot for peers in pairs])
        times = join_times(ends) if stream or len(ends) > 1 else ends[0]
        counts = [each.known.messages for each in fetched]
        client, server = (join_ends([done[peers[role]] for peers in pairs], counts) for role in ("client", "server"))
        everybody = [done[peer] for peers in pairs for peer in peers.values()]
        tally = {
            **merge_tallies(client.tally, server.tally, seen_by),
            **device_counts(everybody),
            "resent": join_resent(everybody),
        }
        from_answers = setting.pattern == "pingpong" and (setting.connections > 1 or tally["lost"] > 0)
        of_all = msgspec.structs.replace(setting, messages=sum(counts))
        by_actor, missing = cputime.account_time(of_all, client, server, self._testbed.alone)
        one_clock = client.boot == server.boot != ""
        connections = [each.connections for each in fetched if each.connections is not None]
        return Measured(
            sequence=times.sequence.astype(np.uint32),
            ns=np.diff(times.delivered, prepend=times.delivered[:1]) if stream else times.delivered - times.intended,
            service_ns=times.delivered - times.sent if paced else None,
            late=None if stream else times.delivered - times.sent > round(setting.patience * 1e9),
            steady=steady_part(times.delivered, times.posted if one_clock else None) if stream else None,
            messages=max(counts),
            offered=(len(times.posted), int(np.ptp(times.posted))) if paced and len(times.posted) else None,
            answered=answered_rate(ends) if from_answers else None,
            tally=tally,
            client=client,
            server=server,
            chosen={"client": client.chosen, "server": server.chosen},
            placement=placement.record_placement(
                self._wish, self._seen(links), [placed_of(peers, done) for peers in pairs]
            ),
            cpu=by_actor,
            cpu_missing=missing,
            by_connection=join_connections(connections) if connections else None,
        )

    def _one_clock(self, ends: list[Times], boots: Sequence[str]) -> list[Times]:
        """Return the senders' times as of one clock. `boots`: of the machine whose clock saw each one's delivered."""
        return ends

    def _seen(self, links: Sequence[Link]) -> Mapping[Role, Survey]:
        """Return the CPUs that there are at both ends of the first sender."""
        return self._surveys

    def _release(self, links: Sequence[Link]) -> None:
        """All ends let go. Replies of a trial that was broken off may stand before the one that is waited for."""
        peers = [peer for link in links for peer in link.peers.values()]
        for peer in peers:
            peer.send(Release())
        for peer in peers:
            peer.settle(Released, ANSWER_WITHIN)


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
    agents: Callable[[Testbed, Wish], Pair] = Pair,
) -> Outcome:
    """Run `trials` in the given order and write each as it ends, the trials of every repeat with agents of their own.

    `progress` is called with trials done, trials in all and the next one's label. Raises TrialError when an agent died
    or fell silent: it names the trial; the writer then marks the run partial. StandstillError if a whole guest fell
    silent: another one can go on with that trial. A path's own failure is recorded with its
    trial and in the outcome, and the run goes on. `twin` is called after each trial that was measured and written, for
    what is to be measured beside it (tracing). `stopped` tells whether an agent's death is our own doing, from another
    thread: then no trial is to blame. `outcome` is what is added to and returned: it is known after an error, too.
    `agents` starts them: Pair of two ends, `hwrx.runs.fleet.open_agents` of whatever the testbed has.
    """
    outcome = Outcome() if outcome is None else outcome
    seed = int(writer.manifest.get("seed") or 0)
    with agents(testbed, wish) as pair:
        for index, trial in enumerate(trials):
            progress(index, len(trials), trial.label)
            pair.heed(functools.partial(_tell_loss, writer, functools.partial(progress, index, len(trials)), trial))
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


def _tell_loss(writer: Writer, progress: Callable[[str], None], trial: Trial, words: str) -> None:
    """Say that an end of many is gone, at once: the others go on, which may take long."""
    writer.log(f"trial {trial.number} {trial.label}: {words}")
    progress(f"{trial.label}: {words}")


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
    """Return what a trial's figures need besides its samples: a stream's `steady` part, what was offered, answered."""
    found: dict[str, Any] = {}
    if measured.steady is not None:
        found["steady"] = {"from_ns": measured.steady[0], "to_ns": measured.steady[1]}
    if measured.offered is not None:
        found["offered"] = {"messages": measured.offered[0], "ns": measured.offered[1]}
    if measured.answered is not None:
        found["answered"] = msgspec.to_builtins(measured.answered)
    return found


def write_trial(trial: Trial, measured: Measured, writer: Writer, outcome: Outcome) -> None:
    """Store what a trial brought. One whose loop did not come to its end is a failed trial with samples."""
    problems = [
        f"{role} {ending_words(done)}"
        for role, done in (("client", measured.client), ("server", measured.server))
        if done.ended not in ("complete", "finished")
    ]
    problems[:0] = measured.lost
    if measured.client.filled:
        problems.append(
            f"the memory for {trial.setting.messages:,} measured messages was full before {trial.setting.duration:g} s"
            " were over: raise messages, or lower duration"
        )
    if measured.messages is not None and trial.setting.duration is not None:
        # what came, in the place of what there was memory for
        trial = msgspec.structs.replace(
            trial, setting=msgspec.structs.replace(trial.setting, messages=measured.messages)
        )
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
            **measured.between,
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
