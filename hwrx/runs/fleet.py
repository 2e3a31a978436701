"""The agents of many hosts: one for each end of each flow, begun together, of which one may die while others go on.

What a trial between hosts keeps besides its samples (`Measured.between`): `by_flow`, what became of each; `by_host`,
what network devices and the wire have dropped meanwhile; and `start`, how far apart the flows can have begun. Clocks of
two hosts are never subtracted: how long a word takes to a host is measured by round trips, and what is told is the
bound that they give.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from hwrx.control import endings
from hwrx.control.endings import LeftAloneError
from hwrx.control.messages import Done, Look, LookAround, Moved, Release, Released, Role, Setting, Start, Surveyed
from hwrx.control.peers import ANSWER_WITHIN, Peer
from hwrx.control.places import Survey
from hwrx.errors import HwrxError, PeerError, TrialError
from hwrx.host.waiting import wait_to_read
from hwrx.machine import placement
from hwrx.machine.placement import OWN_CPUS, Wish
from hwrx.paths import cputime
from hwrx.runs.beds import Testbed
from hwrx.runs.collecting import Fetched, Times, close_accounts, fetch_sender, merge_tallies
from hwrx.runs.hosts import End, HostsBed, name_end
from hwrx.runs.schedule import Link, Measured, Pair

Drops = dict[str, dict[str, int]]  # by host: packets that were lost, by the counter that says so
Told = dict[str, Any]  # of a flow: what stands in a trial's `by_flow`
ROUNDS = 3  # round trips to each sender, of which the shortest counts


class Flow(Link, frozen=True, eq=False, kw_only=True):
    """A link between two hosts. One that is left out has no agent at an end whose host cannot be reached."""

    ends: dict[Role, End]


class Fleet(Pair):
    """The agents of a testbed of hosts. See Pair; an agent that dies in a trial is started anew for the next.

    If it cannot be, the next trial goes on without its flows; not so the first of a run, whose hosts may be named
    wrongly, nor one of a fleet that `needs_all`.
    """

    def __init__(self, testbed: HostsBed, wish: Wish = OWN_CPUS, *, needs_all: bool = False) -> None:
        super().__init__(testbed, wish)
        self._needs_all = needs_all
        self._bed = testbed
        self._agents: dict[End, Peer] = {}
        self._at: dict[str, Survey] = {}
        self._begun: dict[str, Any] = {}
        self._dropped: Drops = {}  # when the trial began
        self._gone: dict[Peer, HwrxError] = {}
        self._unreached: dict[End, PeerError] = {}  # ends of the trial that have no agent
        self._left_out: list[Link] = []  # flows of the trial that lost an end before it began
        self._tell: Callable[[str], None] = lambda words: None

    def heed(self, tell: Callable[[str], None]) -> None:
        """See Pair."""
        self._tell = tell

    def renew(self) -> None:
        """See Pair."""
        self._stack.close()
        self._agents = {}

    def _begin(self) -> None:
        """Which hosts are wanted the first trial says."""

    def _everybody(self) -> list[Peer]:
        return list(self._agents.values())

    def _links(self, setting: Setting) -> list[Link]:
        """Return the flows of a setting, with agents that live; the others are left out.

        :raises PeerError: if an end cannot be reached, and the trial is not to go on without it
        :raises TrialError: if no flow has both its ends
        """
        self._gone, self._unreached, self._left_out = {}, {}, []
        flows = self._bed.flows(setting)
        self._reach(list(dict.fromkeys(end for ends in flows for end in ends.values())))
        for error in self._unreached.values():
            if self._needs_all or not self._bed.begun:
                raise error
            self._tell(str(error.args[0]))
        self._bed.begun = True
        whole = [ends for ends in flows if not self._unreached.keys() & set(ends.values())]
        self._left_out += [self._flow_of(ends) for ends in flows if ends not in whole]
        if not whole:
            first = next(iter(self._unreached.values()))
            raise TrialError(f"no flow has both its ends: {first.args[0]}", remedy=first.remedy)
        surveys = [{role: self._at[end[1]] for role, end in ends.items()} for ends in whole]
        cpus = placement.choose_between(self._wish, surveys, setting.wait)
        return [self._flow_of(ends, cpu) for ends, cpu in zip(whole, cpus, strict=True)]

    def _reach(self, wanted: Sequence[End]) -> None:
        """Have an agent at each end, and know what there is to run on; note the ends where that cannot be."""
        for end in wanted:
            if end in self._agents and _has_ended(self._agents[end]):
                self._agents.pop(end).kill()
        for end, peer in self._bed.try_ends([end for end in wanted if end not in self._agents]).items():
            if isinstance(peer, PeerError):
                self._unreached[end] = peer
            else:
                self._agents[end] = self._stack.enter_context(peer)
        for end in wanted:
            if end in self._agents and end[1] not in self._at:
                try:
                    looked = self._agents[end].ask(LookAround(here=self._bed.place_of(end)), Surveyed)
                except PeerError as error:
                    self._unreached[end] = error
                    self._drop(self._agents[end])
                else:
                    self._at[end[1]] = looked.survey

    def _flow_of(self, ends: dict[Role, End], cpu: Mapping[Role, int | None] = {}) -> Flow:
        return Flow(
            {role: self._agents[end] for role, end in ends.items() if end in self._agents},
            {role: msgspec.structs.replace(self._bed.place_of(end), cpu=cpu.get(role)) for role, end in ends.items()},
            ends=ends,
        )

    def _leave_out(self, links: list[Link], link: Link, error: PeerError) -> None:
        """See Pair: the others go on. The end that lives lets go of what it has prepared."""
        self._lose_end(link, error)
        links.remove(link)
        self._release([link])
        self._left_out.append(link)
        if not links:
            raise TrialError(f"no flow has both its ends: {error.args[0]}", remedy=error.remedy)

    def _lose_end(self, link: Link, error: PeerError) -> None:
        """Tell that an end of a flow is gone: the one that the error names, or both if it names none."""
        ends = _ends(link)
        for role in [role for role in ends if name_end(ends[role]) in str(error)] or list(ends):
            self._gone[link.peers[role]] = error
            self._drop(link.peers[role])
        self._tell(str(error.args[0]))

    def _start(self, links: list[Link]) -> None:
        """Let all begin: servers first. The senders' ways are measured before, so that the spread has a bound."""
        self._dropped = self._count_drops([peer for link in links for peer in link.peers.values()])
        ways = {}
        for link in list(links):
            try:
                ways[link] = _round_trip(link.peers["client"])
            except PeerError as error:
                self._leave_out(links, link, error)
        for link in list(links):
            try:
                link.peers["server"].send(Start())
            except PeerError as error:
                self._leave_out(links, link, error)
        told = []
        for link in links:
            told.append(time.monotonic_ns())
            # its server waits by now: where loops are waited for it is seen that a sender is gone, and its server told
            with contextlib.suppress(PeerError):
                link.peers["client"].send(Start())
        # no word is on its way for less than nothing, nor longer than there and back
        latest = max(moment + ways[link] for moment, link in zip(told, links, strict=True))
        longest = max(ways[link] for link in links)
        self._begun = {"within_ns": latest - told[0], "longest_round_trip_ns": longest, "senders": len(links)}

    def _all_done(self, links: Sequence[Link], setting: Setting) -> dict[Peer, Done]:
        names = {link.peers[role]: name_end(end) for link in links for role, end in _ends(link).items()}

        def bereave(peer: Peer, error: HwrxError) -> None:
            self._gone[peer] = error
            words = str(error.args[0])
            self._tell(words if names[peer] in words else f"{names[peer]}: {words}")

        return endings.all_done([link.peers for link in links], setting, bereave=bereave)

    def _collect(self, links: Sequence[Link], setting: Setting, done: dict[Peer, Done], setup: float) -> Measured:
        """Put together what the flows brought whose both ends lived, and say what became of each of the others."""
        for peer, error in self._gone.items():
            if isinstance(error, PeerError | LeftAloneError):
                self._drop(peer)
        fetched: dict[Link, Fetched] = {}
        for link in links:
            if all(peer in done for peer in link.peers.values()):
                try:
                    fetched[link] = fetch_sender(setting, link.peers, done, setup)
                except PeerError as error:
                    self._lose_end(link, error)
        whole = list(fetched)
        done = {peer: each for peer, each in done.items() if peer not in self._gone}
        errors = [*self._unreached.values(), *self._gone.values()]
        lost = list(dict.fromkeys(str(error.args[0]) for error in errors))
        if not whole:
            raise TrialError(f"no flow has both its ends: {'; '.join(lost)}")
        measured = self._put_together(whole, setting, done, list(fetched.values()))
        asked = [*links, *self._left_out]
        done = close_accounts(setting, done, [link.peers for link in whole])
        figures = {link: _figure(each.times) for link, each in fetched.items()}
        gone = {
            end: self._gone[link.peers[role]]
            for link in asked
            for role, end in _ends(link).items()
            if link.peers.get(role) in self._gone
        }
        gone |= self._unreached
        flows = [_describe(link, setting, done, gone, figures.get(link, {})) for link in asked]
        if lost:
            lost.append(f"the figures are of {len(whole)} of {len(asked)} flows")
        drops = _new_drops(self._dropped, self._count_drops(list(done)))
        between = {"by_flow": flows, "flow_count": len(whole), "start": self._begun, "by_host": drops}
        return msgspec.structs.replace(measured, between=between, lost=lost)

    def _count_drops(self, peers: Sequence[Peer]) -> Drops:
        """Ask an agent at each host what its network device has lost, and the wire; of one that is gone nothing."""
        agents = {end[1]: (peer, end) for end, peer in self._agents.items() if peer in peers}
        for peer, end in agents.values():
            with contextlib.suppress(PeerError):
                peer.send(LookAround(here=self._bed.place_of(end)))
        found: Drops = {}
        for name, (peer, _) in agents.items():
            with contextlib.suppress(PeerError):
                found[name] = dict(peer.hear(Surveyed).survey.drops)
        for name, count in self._bed.wire_drops().items():
            found.setdefault(name, {})["on_the_wire"] = count
        return found

    def _one_clock(self, ends: list[Times], boots: Sequence[str]) -> list[Times]:
        """Return each flow's times from the first that its machine's clock saw, if there is more than one clock."""
        if len(set(boots)) == 1:
            return ends
        firsts: dict[str, int] = {}
        for boot, times in zip(boots, ends, strict=True):
            if len(times.delivered):
                firsts[boot] = min(firsts.get(boot, times.delivered[0]), int(times.delivered.min()))
        # the sender's times are by the same clock, or are never subtracted from the observer's
        return [_shifted(times, firsts.get(boot, 0)) for boot, times in zip(boots, ends, strict=True)]

    def _seen(self, links: Sequence[Link]) -> Mapping[Role, Survey]:
        return {role: self._at[end[1]] for role, end in _ends(links[0]).items()}

    def _release(self, links: Sequence[Link]) -> None:
        """See Pair. An end that is gone by now spoils nothing: another one is started for the next trial."""
        for let_go in (_ask_to_release, _await_release):
            alive = set(self._everybody())
            for peer in [peer for link in links for peer in link.peers.values() if peer in alive]:
                try:
                    let_go(peer)
                except PeerError as error:
                    self._tell(str(error.args[0]))
                    self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        """Forget an agent that is gone, or cannot be talked to."""
        peer.kill()
        self._agents = {end: each for end, each in self._agents.items() if each is not peer}


def open_agents(testbed: Testbed, wish: Wish = OWN_CPUS, *, needs_all: bool = False) -> Pair:
    """Return the agents of a testbed: of two ends, or of hosts, which can go on without some unless it `needs_all`."""
    return Fleet(testbed, wish, needs_all=needs_all) if isinstance(testbed, HostsBed) else Pair(testbed, wish)


def _ends(link: Link) -> dict[Role, End]:
    assert isinstance(link, Flow)  # a fleet makes no others
    return link.ends


def _has_ended(peer: Peer) -> bool:
    """Whether an agent that nobody has asked anything is gone."""
    with contextlib.suppress(PeerError):
        if not peer.has_reply and wait_to_read([peer], 0):
            peer.receive()
        return False
    return True


def _ask_to_release(peer: Peer) -> None:
    peer.send(Release())


def _await_release(peer: Peer) -> None:
    peer.settle(Released, ANSWER_WITHIN)


def _new_drops(before: Drops, after: Drops) -> list[Told]:
    """Return what was lost in between, of each host that lost something, by the names of the counters."""
    grown = {
        name: {key: count - before[name].get(key, count) for key, count in counts.items()}
        for name, counts in after.items()
        if name in before
    }
    lost = {name: {key: count for key, count in counts.items() if count > 0} for name, counts in grown.items()}
    return [{"host": name, **counts} for name, counts in lost.items() if counts]


def _round_trip(peer: Peer) -> int:
    """Return the shortest of a few round trips to an agent, in ns: its thread that reads the pipe answers."""
    found = []
    for _ in range(ROUNDS):
        began = time.monotonic_ns()
        peer.ask(Look(), Moved, ANSWER_WITHIN)
        found.append(time.monotonic_ns() - began)
    return min(found)


def _figure(times: Times) -> Told:
    """Return what a flow's messages were like alone: its quantiles in ns as its path's samples have them, its rate."""
    if not len(times.delivered):
        return {}
    took = times.delivered - times.intended
    span = int(times.delivered.max() - times.delivered.min())
    return {
        "p50_ns": float(np.quantile(took, 0.5)),
        "p99_ns": float(np.quantile(took, 0.99)),
        "messages_per_s": (len(times.delivered) - 1) / span * 1e9 if span else None,
        "from_ns": int(times.delivered.min()),
        "to_ns": int(times.delivered.max()),
    }


def _describe(
    link: Link,
    setting: Setting,
    done: Mapping[Peer, Done],
    gone: Mapping[End, HwrxError],
    figure: Told,
) -> Told:
    """Say what became of a flow: who lost what, and where as far as an end knows it."""
    ends = _ends(link)
    flow: Told = {role: ends[role][1] for role in ends}
    client, server = (done.get(link.peers[role]) if role in link.peers else None for role in ("client", "server"))
    if client is not None and server is not None:
        tally = merge_tallies(client.tally, server.tally, cputime.observing_end(setting))
        flow |= {name: tally[name] for name in ("posted", "expected", "delivered", "lost", "duplicated", "corrupt")}
        if "socket_drops" in tally:
            flow["lost_at_socket"] = tally["socket_drops"]
        flow["ended"] = {"client": client.ended, "server": server.ended}
        quantiles = setting.pattern != "stream"
        flow |= {key: value for key, value in figure.items() if quantiles or not key.startswith("p")}
        return flow
    # of an end that lives: what it saw until the other was gone
    for end, name in ((client, "posted"), (server, "delivered")):
        if end is not None and name in end.tally:
            flow[name] = end.tally[name]
    whys = [f"{error.args[0]}" for end in ends.values() if (error := gone.get(end)) is not None]
    return {**flow, "gone": "; ".join(whys)}


def _shifted(times: Times, by: int) -> Times:
    return Times(times.sequence, times.intended - by, times.sent - by, times.delivered - by, times.posted - by)
