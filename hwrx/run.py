"""The schedule of a run: one trial after the other, two agents each, samples into the store.

A failure of a path (no device, a size that is too large) fails its trial, and the run goes on. An agent that dies or
falls silent ends the run: what was measured before stays, marked partial, and the trial is named.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import paths
from hwrx.errors import HwrxError, PeerError, SilenceError, TrialError
from hwrx.messages import (
    SAMPLES_A_CHUNK,
    Chunk,
    Connect,
    Done,
    Fetch,
    Place,
    Prepare,
    Prepared,
    Ready,
    Release,
    Released,
    Role,
    Setting,
    Start,
)
from hwrx.peers import ANSWER_WITHIN, Peer, wait, wait_first

if TYPE_CHECKING:
    from hwrx.experiment import Trial
    from hwrx.store import Writer

Int64s = npt.NDArray[np.int64]
Array = Literal["intended", "posted", "delivered"]
# Between the end of one endpoint's loop and that of the other lie a few messages in flight; an emulated CPU is slow.
GRACE = 5.0
# each end and its other; the server first, so that it listens when the client calls
ENDS: tuple[tuple[Role, Role], ...] = (("server", "client"), ("client", "server"))


class Testbed(Protocol):
    """Two places with something between them, and a way to start an agent at each."""

    places: Mapping[Role, Place]

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


class Pair:
    """The two agents of a testbed. A context manager; both are gone when it is left, whatever happened."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._stack = contextlib.ExitStack()
        self.peers: dict[Role, Peer] = {}

    def __enter__(self) -> Pair:
        try:
            for role, _ in ENDS:
                self.peers[role] = self._stack.enter_context(self._testbed.start(role))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            # an agent in the middle of a loop does not hear Quit
            for peer in self.peers.values():
                peer.kill()
        self._stack.close()

    def measure(
        self,
        number: int,
        setting: Setting,
        limit: float,
        look: Callable[[Mapping[Role, Peer]], None] = lambda peers: None,
        before: Callable[[Mapping[Role, Peer]], None] = lambda peers: None,
    ) -> Measured:
        """Run one trial. `limit` seconds bound its loops; the error of either end is raised as soon as it is known.

        `look` is called with both agents while they still have the trial's arrays, `before` when they are connected.
        """
        client, server = self.peers["client"], self.peers["server"]
        places = self._testbed.places
        prepared: dict[Role, Prepared] = {}
        for role, other in ENDS:
            message = Prepare(trial=number, role=role, setting=setting, here=places[role], there=places[other])
            prepared[role] = self.peers[role].ask(message, Prepared)
        try:
            client.send(Connect(remote=prepared["server"].remote))
            server.send(Connect(remote=prepared["client"].remote))
            wait({client: Ready, server: Ready}, ANSWER_WITHIN)
            before(self.peers)
            server.send(Start())
            client.send(Start())
            done = self._both_done(client, server, limit, setting.limit)
            measured = self._collect(setting, done, prepared)
            look(self.peers)
        except PeerError:
            raise  # the run ends, and both agents with it
        except HwrxError:
            # one end could not do its part: both are asked to let go, so that the next trial finds them ready. An
            # interrupt does not come here: nobody waits for loops that may take long
            self._release()
            raise
        self._release()
        return measured

    def _both_done(self, client: Peer, server: Peer, limit: float, quiet: float) -> dict[Peer, Done]:
        """Wait for both loops to end. One that goes on after the other has failed is ended with its agent."""
        done: dict[Peer, Done] = {}
        deadline = time.monotonic() + limit
        while missing := [peer for peer in (client, server) if peer not in done]:
            patience = deadline - time.monotonic()
            for ended in done.values():
                well = ended.ended in ("complete", "finished")
                patience = min(patience, quiet + GRACE if well else GRACE)
            try:
                peer, reply = wait_first(missing, Done, patience)
            except SilenceError:
                if not done:
                    raise
                first = next(iter(done))
                self._renew(missing[0])
                raise TrialError(
                    f"{first.name} {_ending(done[first])}, and {missing[0].name} waited in vain for more; "
                    "its agent was started anew"
                ) from None
            done[peer] = reply
        return done

    def _renew(self, peer: Peer) -> None:
        """Put a new agent into the place of one that cannot be talked to."""
        role: Role = "client" if peer is self.peers["client"] else "server"
        peer.kill()
        self.peers[role] = self._stack.enter_context(self._testbed.start(role))

    def _collect(self, setting: Setting, done: dict[Peer, Done], prepared: dict[Role, Prepared]) -> Measured:
        client, server = self.peers["client"], self.peers["server"]
        at_client, at_server = done[client], done[server]
        seen_by: Role = paths.find(setting.path).stream_seen_by if setting.pattern == "stream" else "client"
        observer = self.peers[seen_by]
        delivered = fetch(observer, "delivered", setting.messages)
        got = np.flatnonzero(delivered)
        service: Int64s | None = None
        if setting.pattern == "stream":
            order = np.argsort(delivered[got], kind="stable")
            got = got[order]
            ns = np.diff(delivered[got], prepend=delivered[got[:1]])
        else:
            ns = (delivered - fetch(client, "intended", setting.messages))[got]
            if setting.pattern == "paced":
                service = (delivered - fetch(client, "posted", setting.messages))[got]
        return Measured(
            sequence=got.astype(np.uint32),
            ns=ns,
            service_ns=service,
            tally=merged(at_client.tally, at_server.tally, seen_by),
            client=at_client,
            server=at_server,
            chosen={role: prepared[role].chosen for role in prepared},
        )

    def _release(self) -> None:
        """Both ends let go. Replies of a trial that was broken off may stand before the one that is waited for."""
        for peer in self.peers.values():
            peer.send(Release())
        for peer in self.peers.values():
            peer.settle(Released, ANSWER_WITHIN)


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
    trial_limit: float = 120.0,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    twin: Callable[[Pair, Trial, Measured, Writer], None] = lambda pair, trial, measured, writer: None,
) -> Outcome:
    """Run `trials` in the given order and write each as it ends.

    `progress` is called with trials done, trials in all and the next one's label. Raises TrialError when an agent died
    or fell silent: it names the trial; the writer then marks the run partial. A path's own failure is recorded with its
    trial and in the outcome, and the run goes on. `twin` is called after each trial that was measured and written, for
    what is to be measured beside it (tracing).
    """
    outcome = Outcome()
    with Pair(testbed) as pair:
        for index, trial in enumerate(trials):
            progress(index, len(trials), trial.label)
            with _named(trial, writer):
                try:
                    measured = pair.measure(trial.number, trial.setting, trial_limit)
                except PeerError:
                    raise
                except HwrxError as error:
                    writer.add_trial(trial, status="failed", error=str(error))
                    writer.log(f"trial {trial.number} {trial.label}: failed: {error}")
                    outcome.failed.append(f"{trial.label}: {error}")
                    continue
            write(trial, measured, writer, outcome)
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
            "cpu_ns": {"client": measured.client.cpu_ns, "server": measured.server.cpu_ns},
            "resident": {"client": measured.client.resident, "server": measured.server.resident},
        },
    )
