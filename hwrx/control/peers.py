"""The controller's side of a control pipe: how to reach an agent, ask it something, and notice that it is gone.

A peer is started in an environment (`hwrx.control.environment`), or is an agent of a guest that `hwrx.lab.vm` hands
over. All are a socket on which frames travel; no port listens anywhere.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from hwrx import errors
from hwrx.control.causes import find_remedy
from hwrx.control.environment import Host, parse_environment
from hwrx.control.messages import (
    MOST_WAITING,
    Failed,
    Frames,
    FromAgent,
    Hello,
    Quit,
    ToAgent,
    frame_message,
    same_version,
)
from hwrx.errors import HwrxError, PeerError, SilenceError
from hwrx.host.outside import clean_text, describe_status
from hwrx.host.processes import killed_for_memory
from hwrx.host.shortage import shortage_remedy
from hwrx.host.waiting import wait_to_read

Reply = TypeVar("Reply")
Key = TypeVar("Key", bound=Hashable)
# An agent answers these within seconds on any machine; a trial has a limit of its own. An emulated CPU starts slowly.
ANSWER_WITHIN = 60.0
ENDS_WITHIN = 15.0  # that an agent has when its pipe was closed: a NIC is handed back in seconds
# agents that are started at the same time, maybe all at one host: of connections that have not yet logged in OpenSSH
# begins to refuse some beyond ten (MaxStartups), dropbear beyond five
AT_ONCE = 4
DIES_WITHIN = 2.0  # that it has when it was killed


class Channel(Protocol):
    """Both directions of a control pipe, and the process behind it."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there is something to receive, or the end."""

    def recv(self, most: int) -> bytes:
        """Return up to `most` bytes; b"" is the end of the stream."""

    def sendall(self, data: bytes) -> None:
        """Send all of `data`; OSError where the other end is gone."""

    def kill(self) -> None:
        """End the process behind the channel at once, as SIGKILL does. Harmless when it is gone."""

    def hang_up(self) -> None:
        """End the stream without waiting: the process gives back what it holds, in the middle of a loop too."""

    def close(self) -> None:
        """Close the stream, wait for the process, and free what belongs to them."""

    def epitaph(self) -> str:
        """Say how the process ended, with the last lines that it wrote to standard error; "" while it lives."""


class ProcessChannel:
    """A subprocess with one socket as its standard input and output, and its standard error in a file."""

    def __init__(self, argv: Sequence[str], name: str) -> None:
        self._name = name
        self._killed_before = killed_for_memory()
        ours, theirs = socket.socketpair()
        self._errors: Any = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in close()
        try:
            # a group of its own: Ctrl-C in a terminal is for the controller, which ends its agents in order
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            ours.close()
            self._errors.close()
            raise PeerError(
                f"peer {name}: cannot start `{shlex.join(argv)}`: {error.strerror}",
                remedy=shortage_remedy(error.errno) or f"is {argv[0]} installed and executable?",
            ) from None
        finally:
            theirs.close()
        self._socket = ours

    def fileno(self) -> int:
        """See Channel."""
        return self._socket.fileno()

    def recv(self, most: int) -> bytes:
        """See Channel."""
        return self._socket.recv(most)

    def sendall(self, data: bytes) -> None:
        """See Channel."""
        self._socket.sendall(data)

    def kill(self) -> None:
        """See Channel."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """See Channel."""
        with contextlib.suppress(OSError):  # it is closed, or the process has gone
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See Channel."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        try:
            self.process.wait(timeout=ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # another user's (sudo): it cannot be killed
                self.process.wait(timeout=DIES_WITHIN)
        self._errors.close()

    def epitaph(self) -> str:
        """See Channel."""
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return ""
        how = describe_status(code)
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and killed_for_memory() > self._killed_before:
            how += ", most likely by the kernel, which was out of memory for it (dmesg says whom it ended)"
        if self._errors.closed:
            return how
        self._errors.seek(0)
        said = self._errors.read()[-4000:]
        lines = clean_text(said.strip()).splitlines()[-8:]
        return "\n    ".join([how, *lines])


class Peer:
    """An agent, seen from the controller. A context manager: leaving it ends the agent.

    Every request ends within its limit: in a reply, in the exception that the agent reported, or in a PeerError that
    names the peer and what became of it.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self.name = name
        self._channel = channel
        self._frames = Frames("from agent")
        self._replies: list[FromAgent] = []
        self._closed = False

    @classmethod
    def start(cls, spec: str | Host, name: str) -> Self:
        """Start an agent on `spec` and greet it."""
        argv = spec.agent_command() if isinstance(spec, Host) else parse_environment(spec).agent_command()
        return cls.greet(cls._launch(argv, name), name)

    @staticmethod
    def _launch(argv: Sequence[str], name: str) -> ProcessChannel:
        if shutil.which(argv[0]) is None:
            raise PeerError(f"peer {name}: there is no command `{argv[0]}`", remedy=f"install {argv[0]}")
        return ProcessChannel(argv, name)

    @classmethod
    def call(cls, way: Way, name: str) -> Self:
        """Start an agent; `hear_greeting` waits for it."""
        peer = cls(way() if callable(way) else cls._launch(way, name), name)
        with contextlib.suppress(PeerError):  # it has ended: told with the reason where its greeting is waited for
            peer.send(Hello())
        return peer

    def hear_greeting(self, limit: float = ANSWER_WITHIN) -> None:
        """Wait for what an agent says first. PeerError, and the agent is gone, if it is not one of this version."""
        try:
            same_version(wait_for_replies({self: Hello}, limit)[self])
        except BaseException:
            self.kill()
            raise

    @classmethod
    def greet(cls, channel: Channel, name: str) -> Self:
        """Take over a channel on which an agent listens, and exchange versions."""
        peer = cls(channel, name)
        try:
            peer.send(Hello())
        except BaseException:
            peer.kill()
            raise
        peer.hear_greeting()
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to wait on, for `wait`."""
        return self._channel.fileno()

    def send(self, message: ToAgent) -> None:
        """Send a message whose reply `wait` collects."""
        try:
            self._channel.sendall(frame_message(message))
        except OSError:
            raise self._gone() from None

    def ask(self, message: ToAgent, kind: type[Reply], limit: float = ANSWER_WITHIN) -> Reply:
        """Send a message and return the reply, which must be of `kind`, within `limit` seconds."""
        self.send(message)
        return self.hear(kind, limit)

    def hear(self, kind: type[Reply], limit: float = ANSWER_WITHIN) -> Reply:
        """Return the reply to what was sent, as `ask` does."""
        reply: Reply = wait_for_replies({self: kind}, limit)[self]
        return reply

    def receive(self) -> None:
        """Read what is there."""
        try:
            data = self._channel.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise self._gone()
        try:
            self._replies += self._frames.feed(data)
            if len(self._replies) > MOST_WAITING:
                raise PeerError(f"it sent {len(self._replies)} messages that nothing had asked for")
        except PeerError as error:
            raise PeerError(f"peer {self.name}: {Exception.__str__(error)}", remedy=error.remedy) from None

    def reply(self, kind: type[Reply]) -> Reply:
        """Return the oldest reply; raise what the agent reported, or PeerError where it is not of `kind`."""
        reply = self._replies.pop(0)
        if isinstance(reply, Failed):
            raise _error_of(reply, self.name)
        if not isinstance(reply, kind):
            raise PeerError(f"peer {self.name} answered with {type(reply).__name__} instead of {kind.__name__}")
        return reply

    def settle(self, kind: type[Any], limit: float) -> None:
        """Wait for a reply of `kind`, past those that a broken-off exchange has left before it."""
        deadline = time.monotonic() + limit
        while True:
            while self._replies:
                if isinstance(self._replies.pop(0), kind):
                    return
            receive_any([self], deadline)

    @property
    def has_reply(self) -> bool:
        """Whether a whole reply has been read and not yet taken."""
        return bool(self._replies)

    def _gone(self) -> PeerError:
        how = self._channel.epitaph()
        within = " in the middle of a message" if self._frames.truncated else ""
        return PeerError(f"peer {self.name} is gone{within}" + (f": {how}" if how else ""), remedy=find_remedy(how))

    def kill(self) -> None:
        """End the agent at once."""
        self._channel.kill()
        self._close_channel()

    def hang_up(self) -> None:
        """End the agent whatever it does, without waiting: it gives back what it holds. `close` waits for that."""
        self._channel.hang_up()

    def close(self) -> None:
        """Ask the agent to end; it is killed where it does not."""
        if not self._closed:
            with contextlib.suppress(PeerError):
                self.send(Quit())
        self._close_channel()

    def _close_channel(self) -> None:
        if not self._closed:
            self._closed = True
            self._channel.close()


Started = Peer | PeerError  # an agent, or why there is none
Way = Sequence[str] | Callable[[], Channel]  # to an agent: the command that starts it, or what opens its channel


def start_peers(wanted: Mapping[Key, tuple[Way, str]], limit: float = ANSWER_WITHIN) -> dict[Key, Started]:
    """Start agents, `AT_ONCE` at a time, and greet them.

    :param wanted: by any key, the way to each and its name
    :param limit: seconds that each lot of them has to answer
    :return: by the same keys, each peer, or the PeerError that says why there is none
    """
    started: dict[Key, Started] = {}
    keys = list(wanted)
    try:
        for first in range(0, len(keys), AT_ONCE):
            lot = keys[first : first + AT_ONCE]
            deadline = time.monotonic() + limit
            for key in lot:
                try:
                    started[key] = Peer.call(*wanted[key])
                except PeerError as error:
                    started[key] = error
            for key in lot:
                peer = started[key]
                try:
                    if isinstance(peer, Peer):
                        peer.hear_greeting(max(0.0, deadline - time.monotonic()))
                except PeerError as error:
                    started[key] = error
    except BaseException:
        for each in started.values():
            if isinstance(each, Peer):
                each.kill()
        raise
    return started


def wait_for_replies(expected: Mapping[Peer, type[Any]], limit: float) -> dict[Peer, Any]:
    """Wait until each peer has replied with its kind, at most `limit` seconds in all.

    Raises the first failure that is noticed: the error that an agent reports, or PeerError naming the peer that died or
    stayed silent. The other peers' replies may then still be on their way.
    """
    replies: dict[Peer, Any] = {}
    deadline = time.monotonic() + limit
    while missing := [peer for peer in expected if peer not in replies]:
        for peer in missing:
            if peer.has_reply:
                replies[peer] = peer.reply(expected[peer])
        waiting = [peer for peer in missing if peer not in replies]
        if not waiting:
            continue
        receive_any(waiting, deadline)
    return replies


def wait_first(peers: Iterable[Peer], kind: type[Reply], limit: float) -> tuple[Peer, Reply]:
    """Return the first reply of any of the peers, and whose it is; raises as `wait` does."""
    deadline = time.monotonic() + limit
    peers = list(peers)
    while True:
        for peer in peers:
            if peer.has_reply:
                return peer, peer.reply(kind)
        receive_any(peers, deadline)


def receive_any(peers: Sequence[Peer], deadline: float) -> None:
    """Wait until there is something to read from one of the peers, and read it; SilenceError at the deadline."""
    ready = wait_to_read(peers, deadline - time.monotonic())
    if not ready:
        names = " and ".join(peer.name for peer in peers)
        raise SilenceError(f"no answer from {names} in time", remedy="is that machine overloaded, or its link down?")
    for peer in ready:
        peer.receive()


def _error_of(failed: Failed, name: str) -> HwrxError:
    kind = getattr(errors, failed.kind, PeerError)
    if not (isinstance(kind, type) and issubclass(kind, HwrxError)):
        kind = PeerError
    return kind(f"{name}: {clean_text(failed.message)}", remedy=clean_text(failed.remedy))
