"""The host's end of a guest's control port: a pipe for each process inside, and the thread that moves their bytes."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import threading
from typing import TypeVar

import msgspec

from hwrx import errors
from hwrx.control.peers import DIES_WITHIN, ENDS_WITHIN
from hwrx.errors import GuestError, HwrxError, UsageError
from hwrx.host.decoding import UNREADABLE
from hwrx.host.outside import clean_text, describe_status
from hwrx.lab import requests
from hwrx.lab.mux import LARGEST, Frame, Kind, Mux
from hwrx.wires.made import Made

Said = TypeVar("Said")
COMMAND_ENDS_WITHIN = 2.0  # seconds that a command has when nobody hears it any more
_END_LIMIT = 5.0  # seconds that the thread has to end


class Pipe:
    """The host's end of a process in the guest: its standard input and output. A `hwrx.control.peers.Channel`.

    `ends_within`: seconds that the process has after its stream was closed.
    """

    def __init__(self, port: Port, number: int, ours: socket.socket, ends_within: float) -> None:
        self._port = port
        self._ends_within = ends_within
        self._number = number
        self._socket = ours
        self._exited = threading.Event()
        self._status: int | None = None
        self._words = ""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Let `recv` and `sendall` raise TimeoutError after so long."""
        self._socket.settimeout(seconds)

    def recv(self, most: int) -> bytes:
        """Return up to `most` bytes of the output; b"" when the process has ended or closed it."""
        return self._socket.recv(most)

    def sendall(self, data: bytes) -> None:
        """Write to the process's input; OSError where it is gone."""
        self._socket.sendall(data)

    def end_input(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(OSError):  # the process may have ended by itself
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the process and its group; harmless when it is gone."""
        self._ends_within = DIES_WITHIN
        if not self._exited.is_set():
            self._port.send(Kind.KILL, self._number, bytes([number]))

    @property
    def returncode(self) -> int | None:
        """Exit code, -N for signal N; None while the process lives, or where the guest went away with it."""
        return self._status

    def wait(self, limit: float) -> int | None:
        """Wait up to `limit` seconds for the end and return `returncode`."""
        self._exited.wait(limit)
        return self._status

    @property
    def ended(self) -> bool:
        """Whether the process has ended, or its guest has."""
        return self._exited.is_set()

    def hang_up(self) -> None:
        """See peers.Channel. In a guest the process is killed, and its keeper gives back what it held."""
        self.kill()

    def close(self) -> None:
        """Close the stream; the process is killed unless it ends within its time."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        if not self._exited.wait(self._ends_within):
            self.kill()
            self._exited.wait(DIES_WITHIN)

    def epitaph(self) -> str:
        """Say how the process ended, with the last lines of its standard error; "" while it lives."""
        if not self._exited.wait(1.0):
            return ""
        if self._status is None:
            return self._port.problem or "its guest is gone"
        return "\n    ".join([describe_status(self._status), *self._words.strip().splitlines()[-8:]])

    def _end(self, status: int | None, words: str) -> None:
        self._status, self._words = status, words
        self._exited.set()


class Port:
    """The host's end of the control port: a thread that moves the bytes of all pipes."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._mux: Mux | None = None
        self._thread: threading.Thread | None = None
        self._asked: collections.deque[tuple[Kind, int, bytes, tuple[socket.socket, Pipe] | None]] = collections.deque()
        self._pipes: dict[int, Pipe] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._pong = threading.Event()
        self._stop = False
        self.ready = threading.Event()  # the guest has said that it is up, or that it cannot be
        self.up: Made | None = None
        self.failed: requests.Problem | None = None
        self.problem = ""  # why the port is of no use any more

    def start(self) -> None:
        """Begin to move bytes."""
        self._mux = Mux(self._socket.fileno(), self._on_frame)
        self._mux.watch(self._wake_read, self._on_wake)
        self._thread = threading.Thread(target=self._run, daemon=True, name="guest port")
        self._thread.start()

    def send(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        """Send a frame, from any thread."""
        self._ask(kind, number, payload, None)

    def open(self, what: requests.Open) -> Pipe:
        """Start a process and return its pipe; UsageError if its words are too long for a frame."""
        words = requests.encode(what)
        if len(words) > LARGEST:
            raise UsageError(
                f"a command for the guest is {len(words)} bytes long with its environment, at most {LARGEST} fit",
                remedy="give it fewer or shorter words and variables, for example in a file that the guest can read",
            )
        ends_within = COMMAND_ENDS_WITHIN if what.argv is not None else ENDS_WITHIN
        ours, theirs = socket.socketpair()
        with self._lock:
            self._next = self._next % 65535 + 1
            while self._next in self._pipes:
                self._next = self._next % 65535 + 1
            pipe = self._pipes[self._next] = Pipe(self, self._next, ours, ends_within)
            self._ask(Kind.OPEN, self._next, words, (theirs, pipe))
        return pipe

    def ping(self, limit: float) -> bool:
        """Return whether the guest answers within `limit` seconds."""
        self._pong.clear()
        self.send(Kind.PING)
        return self._pong.wait(limit) and not self.problem

    def quit(self) -> None:
        """Ask the guest to end, and stop moving bytes."""
        if self._thread is not None:
            self.send(Kind.QUIT)
            self._stop = True
            self._wake()
            self._thread.join(_END_LIMIT)

    def close(self) -> None:
        """Free the descriptors. The thread has ended by then, for its socket has."""
        self._stop = True
        self._wake()
        if self._thread is not None:
            self._thread.join(_END_LIMIT)
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _ask(self, kind: Kind, number: int, payload: bytes, opened: tuple[socket.socket, Pipe] | None) -> None:
        self._asked.append((kind, number, payload, opened))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_write, b"!")

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        assert self._mux is not None  # its own callback
        while self._asked:
            kind, number, payload, opened = self._asked.popleft()
            if opened is not None:
                fd = opened[0].detach()
                self._mux.attach(number, fd, fd)
            self._mux.send(kind, number, payload)

    def _run(self) -> None:
        mux = self._mux
        assert mux is not None  # set by start()
        try:
            while not self._stop and not mux.ended:
                mux.step(None)
            self.problem = "" if self._stop else "the guest is gone: its control port has closed"
        except HwrxError as error:
            self.problem = str(error)
        except OSError as error:
            self.problem = f"the guest's control port failed: {error}"
        except Exception as error:  # whatever it is: who waits for the port would wait to the limit
            self.problem = f"the thread of the guest's control port failed: {type(error).__name__}: {error}"
            raise
        finally:
            with self._lock:
                self._on_wake()  # pipes that were asked for, but not yet begun
                mux.close()
                for pipe in self._pipes.values():
                    pipe._end(None, "")
                self._pipes.clear()
            self._pong.set()

    def _on_frame(self, frame: Frame) -> None:
        assert self._mux is not None  # its own callback
        match frame.kind:
            case Kind.READY:
                self.up = _decode_payload(frame, Made)
                self.ready.set()
            case Kind.FAILED:
                problem = _decode_problem(frame)
                if frame.channel == 0:
                    self.failed = problem
                    self.ready.set()
                else:
                    self._forget(frame.channel, None, problem.message)
            case Kind.EXIT:
                if len(frame.payload) < 4:
                    raise GuestError("the guest said that a process ended, and not how")
                self._forget(
                    frame.channel,
                    int.from_bytes(frame.payload[:4], signed=True),
                    clean_text(frame.payload[4:]),
                )
            case Kind.PONG:
                self._pong.set()
            case _:
                raise GuestError(f"the guest sent {frame.kind.name}, which only a host sends")

    def _forget(self, number: int, status: int | None, words: str) -> None:
        with self._lock:
            pipe = self._pipes.pop(number, None)
        if pipe is not None and self._mux is not None:
            pipe._end(status, words)
            self._mux.leave(number)


def _decode_payload(frame: Frame, kind: type[Said]) -> Said:
    """Decode a frame's JSON; GuestError if it is not of this kind."""
    try:
        return msgspec.json.decode(frame.payload, type=kind)
    except UNREADABLE as error:
        raise GuestError(
            f"the guest's {frame.kind.name} cannot be read: {error} ({frame.payload[:64]!r})",
            remedy="host and guest must run the same hwrx",
        ) from None


def _decode_problem(frame: Frame) -> requests.Problem:
    """Decode what went wrong in the guest; its kind is then surely the name of an error of hwrx."""
    said = _decode_payload(frame, requests.Problem)
    kind = getattr(errors, said.kind, None)
    known = isinstance(kind, type) and issubclass(kind, HwrxError)
    return requests.Problem(said.kind if known else "GuestError", clean_text(said.message), clean_text(said.remedy))
