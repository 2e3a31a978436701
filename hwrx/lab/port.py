"""The host's end of a guest's control port: a pipe for each process inside, and the thread that moves their bytes."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import threading

import msgspec

from hwrx.errors import GuestError, HwrxError
from hwrx.lab import guest as inside
from hwrx.lab.mux import Frame, Kind, Mux
from hwrx.wires.topology import Made

_END_LIMIT = 5.0  # seconds that the thread has to end


class Pipe:
    """The host's end of a process in the guest: its standard input and output. A `hwrx.control.peers.Channel`."""

    def __init__(self, port: Port, number: int, ours: socket.socket) -> None:
        self._port = port
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

    def close(self) -> None:
        """Close the stream; the process is killed unless it ends within two seconds."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        if not self._exited.wait(2.0):
            self.kill()
            self._exited.wait(2.0)

    def epitaph(self) -> str:
        """Say how the process ended, with the last lines of its standard error; "" while it lives."""
        if not self._exited.wait(1.0):
            return ""
        if self._status is None:
            return self._port.problem or "its guest is gone"
        how = f"killed by {signal.Signals(-self._status).name}" if self._status < 0 else f"exit code {self._status}"
        return "\n    ".join([how, *self._words.strip().splitlines()[-8:]])

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
        self.failed: inside.Problem | None = None
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

    def open(self, what: inside.Open) -> Pipe:
        """Start a process and return its pipe."""
        ours, theirs = socket.socketpair()
        with self._lock:
            self._next = self._next % 65535 + 1
            while self._next in self._pipes:
                self._next = self._next % 65535 + 1
            pipe = self._pipes[self._next] = Pipe(self, self._next, ours)
            self._ask(Kind.OPEN, self._next, inside.encode(what), (theirs, pipe))
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
                self.up = msgspec.json.decode(frame.payload, type=Made)
                self.ready.set()
            case Kind.FAILED:
                problem = msgspec.json.decode(frame.payload, type=inside.Problem)
                if frame.channel == 0:
                    self.failed = problem
                    self.ready.set()
                else:
                    self._forget(frame.channel, None, problem.message)
            case Kind.EXIT:
                self._forget(
                    frame.channel,
                    int.from_bytes(frame.payload[:4], signed=True),
                    frame.payload[4:].decode(errors="replace"),
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
