"""The guest's side of its one port: sets a topology up, then starts agents and commands as the host asks.

Starting Python takes seconds in an emulated guest. So the agents' modules are imported once, here, and an agent is a
fork. The supervisor has one thread, so forking is safe; it uses no time while a trial runs, for it only waits for the
port.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hwrx import paths
from hwrx.errors import GuestError, HwrxError, MachineError
from hwrx.host import netns, undo
from hwrx.host.decoding import UNREADABLE
from hwrx.host.interruption import ENDING
from hwrx.host.outside import clean_text
from hwrx.lab.mux import Frame, Kind, Mux
from hwrx.lab.requests import PORT, Open, Problem, encode
from hwrx.wires import topology as topologies

_LAST_WORDS = 4000  # bytes of a process's standard error that reach the host


def find_port(name: str = PORT, ports: Path = Path("/sys/class/virtio-ports")) -> Path:
    """Return the device of a named virtio-serial port. There is no udev here to make links by name."""
    for port in sorted(ports.glob("*")):
        if (port / "name").read_text(encoding="utf-8").strip() == name:
            return Path("/dev") / port.name
    raise MachineError(
        f"this machine has no virtio-serial port called {name}",
        remedy="this program is the lab's, and runs in its guests",
    )


class Supervisor:
    """Starts processes for the host and reports how they end."""

    def __init__(self, port: int) -> None:
        self.mux = Mux(port, self._on_frame)
        self._port = port
        self._processes: dict[int, _Process] = {}
        self.quit = False

    def run(self) -> None:
        """Serve until the host says QUIT or goes away, then end every process."""
        try:
            while not (self.quit or self.mux.ended):
                self.mux.step(None)
        finally:
            for process in self._processes.values():
                process.signal(signal.SIGKILL)
            self.mux.close()

    def report(self, error: HwrxError, channel: int = 0) -> None:
        """Tell the host what went wrong."""
        # each short enough for both to fit a frame, whatever JSON makes of their characters
        message, remedy = clean_text(Exception.__str__(error), most=2000), clean_text(error.remedy, most=1000)
        self.mux.send(Kind.FAILED, channel, encode(Problem(type(error).__name__, message, remedy)))

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.OPEN:
                try:
                    self._open(frame.channel, msgspec.json.decode(frame.payload, type=Open))
                except UNREADABLE as error:
                    self.report(GuestError(f"the host's request to start a process is none: {error}"), frame.channel)
                except OSError as error:
                    self.report(GuestError(f"cannot start a process in the guest: {error}"), frame.channel)
            case Kind.KILL:
                process = self._processes.get(frame.channel)
                if process is not None and frame.payload:
                    process.signal(frame.payload[0])
            case Kind.PING:
                self.mux.send(Kind.PONG, 0, frame.payload)
            case Kind.QUIT:
                self.quit = True
            case _:
                raise GuestError(f"the host sent {frame.kind.name}, which only a guest sends")

    def _open(self, channel: int, what: Open) -> None:
        if channel == 0 or channel in self._processes:
            raise OSError(f"channel {channel} is taken")
        process = _Process(what)
        self._processes[channel] = process
        self.mux.attach(channel, process.output, process.input, lambda: self._finish(channel, output_ended=True))
        self.mux.watch(process.pidfd, lambda: self._finish(channel, exited=True))

    def _finish(self, channel: int, *, output_ended: bool = False, exited: bool = False) -> None:
        """Report the end once the process is gone and all that it had written is sent, whichever comes last."""
        process = self._processes[channel]
        if exited:
            self.mux.unwatch(process.pidfd)
            process.reap()
            self.mux.drain(channel)
        process.output_ended |= output_ended
        if process.status is not None and process.output_ended:
            self.mux.send(Kind.EXIT, channel, process.status.to_bytes(4, signed=True) + process.last_words())
            self.mux.detach(channel)
            process.close()
            del self._processes[channel]


class _Process:
    """A child of the supervisor: an agent that was forked, or a command."""

    def __init__(self, what: Open) -> None:
        inward, self.input = os.pipe2(os.O_CLOEXEC)
        self.output, outward = os.pipe2(os.O_CLOEXEC)
        self.errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self.status: int | None = None
        self.output_ended = False
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()  # a group of its own, to be signalled as one
                for number in (*ENDING, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                os.dup2(inward, 0)
                os.dup2(outward, 1)
                os.dup2(1 if what.errors == "merged" else self.errors, 2)
                os.closerange(3, 4096)
                _become(what)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(70)
        os.close(inward)
        os.close(outward)
        self.pidfd = os.pidfd_open(self.pid)

    def signal(self, number: int) -> None:
        """Signal the process and its group; harmless if it is gone, or if there is no such signal."""
        with contextlib.suppress(OSError):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # just forked: it has no group of its own yet
                if self.status is None:
                    os.kill(self.pid, number)

    def reap(self) -> None:
        """Take the exit status: non-negative for an exit code, -N for signal N."""
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def last_words(self) -> bytes:
        """Return the end of what went to standard error."""
        size = os.fstat(self.errors).st_size
        return os.pread(self.errors, _LAST_WORDS, max(0, size - _LAST_WORDS))

    def close(self) -> None:
        """Free the descriptors that the Mux does not own."""
        os.close(self.pidfd)
        os.close(self.errors)


def _become(what: Open) -> None:
    """In the child: be what was asked for. Returns only where an agent has ended."""
    if what.netns is not None:
        netns.enter_namespace(what.netns)
    if what.argv is None:
        # the supervisor has imported it by then (`preload_modules`), unless it lacks something
        from hwrx.paths import agent

        agent.main()
        os._exit(0)
    os.chdir(what.folder)
    environment = {**os.environ, **what.environment}
    try:
        os.execvpe(what.argv[0], what.argv, environment)
    except OSError as error:
        os.write(2, f"cannot run {what.argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def preload_modules() -> None:
    """Import what agents and their endpoints need, so that an agent is only a fork away.

    Every repeat has agents of its own: what is not here each of them reads from the host's files again.
    """
    # what is missing is reported by the trial that wants it
    with contextlib.suppress(ImportError):
        importlib.import_module("hwrx.paths.agent")
    paths.preload_endpoints()


def main(topology: str, options: Mapping[str, int]) -> int:
    """Set the topology up, tell the host, and serve it. Returns the exit code."""
    port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    undo.need_no_keeper()  # the guest ends with us
    supervisor = Supervisor(port)
    try:
        with topologies.build_topology(topology, **options) as made:
            preload_modules()
            supervisor.mux.send(Kind.READY, 0, encode(made))
            supervisor.run()
    except HwrxError as error:
        sys.stderr.write(f"hwrx: {error}\n")
        supervisor.report(error)
        supervisor.mux.flush()
        return error.exit_code
    finally:
        os.close(port)
    return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # it was ours, see hwrx.lab.vm; commands find their modules as ever
    sys.exit(main(sys.argv[1], msgspec.json.decode(sys.argv[2], type=dict[str, int])))
