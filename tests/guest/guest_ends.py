"""Two agents and the trials between them, for the tests inside the guest."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from hwrx.control.messages import (
    Connect,
    Done,
    Look,
    Moved,
    Prepare,
    Prepared,
    Ready,
    Release,
    Released,
    Role,
    Setting,
    Start,
)
from hwrx.control.peers import Peer, wait_for_replies
from hwrx.control.places import Place
from hwrx.errors import PeerError

ROLES: tuple[Role, Role] = ("client", "server")
GRACE = 4.0  # seconds that one end may take to notice that the other failed
RELEASE = 30.0
LIMIT = 120.0  # seconds that a step may take in an emulated guest on a busy machine

Places = dict[Role, Place]
Tamper = Callable[[Role, dict[str, Any]], dict[str, Any]]


class Outcome(Struct):
    """What both ends said of one trial."""

    prepared: dict[Role, Prepared]
    done: dict[Role, Done]


class Ends:
    """Two agents, started once: each trial prepares, connects, runs and releases an endpoint in both."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.peers: dict[Role, Peer] = {}
        self._trial = 0

    def start(self) -> None:
        for role in ROLES:
            if role not in self.peers:
                self.peers[role] = Peer.start("local", role)

    def kill(self, role: Role) -> None:
        """SIGKILL; the next trial starts another agent."""
        self.peers.pop(role).kill()

    def close(self) -> None:
        while self.peers:
            self.peers.popitem()[1].close()

    def prepare(self, setting: Setting | dict[Role, Setting], places: Places | None = None) -> dict[Role, Prepared]:
        """One setting for both, or one each."""
        settings = setting if isinstance(setting, dict) else dict.fromkeys(ROLES, setting)
        self.start()
        self._trial += 1
        at = places or self.places
        others: dict[Role, Role] = {"client": "server", "server": "client"}
        for role, peer in self.peers.items():
            peer.send(
                Prepare(trial=self._trial, role=role, setting=settings[role], here=at[role], there=at[others[role]])
            )
        replies = wait_for_replies(dict.fromkeys(self.peers.values(), Prepared), LIMIT)
        return {role: replies[peer] for role, peer in self.peers.items()}

    def connect(self, prepared: dict[Role, Prepared], tamper: Tamper = lambda role, remote: remote) -> None:
        """`tamper(role, remote)` may change what that role is told of the other end."""
        self.peers["client"].send(Connect(tamper("client", prepared["server"].remote)))
        self.peers["server"].send(Connect(tamper("server", prepared["client"].remote)))
        wait_for_replies(dict.fromkeys(self.peers.values(), Ready), LIMIT)

    def wait_until_moving(self) -> None:
        """Return when messages go to and fro: each end's loop has come further."""
        deadline = time.monotonic() + LIMIT
        for peer in self.peers.values():
            while peer.ask(Look(), Moved, LIMIT).count < 10:
                assert time.monotonic() < deadline, f"no message has come to the {peer.name}"
                time.sleep(0.05)

    def finish(self) -> dict[Role, Done]:
        """What both ends say at the end; of the server nothing where it does not end after the client failed.

        A server that never saw a message waits for its first as long as its controller lets it: it is killed then.
        """
        client, server = self.peers["client"], self.peers["server"]
        done: dict[Role, Done] = {"client": wait_for_replies({client: Done}, LIMIT)[client]}
        failed = done["client"].ended in ("error", "limit")
        try:
            done["server"] = wait_for_replies({server: Done}, GRACE if failed else LIMIT)[server]
        except PeerError:
            if not failed:
                raise
            self.kill("server")
        return done

    def release(self) -> None:
        """Both ends give everything back; an agent that is inside a loop, or gone, does so by dying."""
        for peer in self.peers.values():
            peer.send(Release())
        for role, peer in list(self.peers.items()):
            try:
                peer.settle(Released, RELEASE)
            except PeerError:
                self.kill(role)

    def run(
        self, setting: Setting | dict[Role, Setting], *, places: Places | None = None, tamper: Tamper | None = None
    ) -> Outcome:
        """One whole trial; whatever is raised, both ends are released."""
        try:
            prepared = self.prepare(setting, places)
            self.connect(prepared, tamper or (lambda role, remote: remote))
            for role in ("server", "client"):
                self.peers[role].send(Start())  # type: ignore[index]
            return Outcome(prepared, self.finish())
        finally:
            self.release()


def resources() -> dict[str, dict[str, int]]:
    """What each verbs device holds, as `rdma resource` counts it."""
    shown = subprocess.run(["rdma", "-j", "resource", "show"], capture_output=True, text=True, check=True).stdout
    return {
        item["ifname"]: {kind: item[kind] for kind in ("pd", "cq", "qp", "mr", "ctx") if kind in item}
        for item in json.loads(shown)
    }


class Wire(Struct):
    """A veth pair with rxe devices that a test may break."""

    places: Places
    links: dict[Role, str]
    devices: dict[Role, str]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
