"""The endpoint process: takes messages from a control pipe, drives one end of a path, answers.

It owns what it opens and dies with its pipe: when the controller goes away in the middle of a trial, a thread that does
nothing else sees the end of the stream and ends the process, so no endpoint is left behind spinning.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from cython_ext.loops.many import run_connections
from hwrx import paths
from hwrx.control.messages import (
    MOST_WAITING,
    Array,
    ByConnection,
    Chunk,
    Connect,
    CountEnd,
    CountOpen,
    Describe,
    Described,
    Done,
    Failed,
    Fetch,
    FetchEvents,
    Frames,
    FromAgent,
    Hello,
    Inspect,
    Look,
    LookAround,
    Moved,
    Prepare,
    Prepared,
    Quit,
    Ready,
    Release,
    Released,
    Start,
    Stop,
    Surveyed,
    ToAgent,
    TraceBegin,
    TraceClose,
    TraceEnd,
    TraceOpen,
    frame_message,
    same_version,
)
from hwrx.errors import HwrxError, PeerError
from hwrx.host.interruption import ENDING
from hwrx.host.shortage import shortage_remedy
from hwrx.machine import placement, scheduling
from hwrx.paths import arrivals, cputime, mixes, napi
from hwrx.version import __version__
from hwrx.wires import impair

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cython_ext.core.transport import Transport
    from hwrx.probes.counters import Counters
    from hwrx.probes.service import Service


Inbox = queue.Queue[ToAgent | PeerError | None]
RESIDENT = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Agent:
    """One endpoint at a time: prepared, connected, run, asked for its samples, released."""

    def __init__(self) -> None:
        self._prepare: Prepare | None = None
        self._endpoint: Any = None
        self._trial: Trial | None = None
        self._tracer: Service | None = None
        self._counters: Counters | None = None
        self._name: str | None = None  # of this thread, while the programs that count know it by another
        self._started_on = os.sched_getaffinity(0)
        self._switched_off: list[str] = []  # features of the scheduler, until the trial is released
        self._device = contextlib.ExitStack()  # undoes what was switched at our device, until the trial is released
        self._polled: dict[str, int] = {}  # how it is polled, if the trial asks for that
        self._spoiled = True  # whether netem may be on our link: an agent before us may have been killed
        self._waits = threading.Event()  # set while the main thread waits for the other end, or runs a loop
        self._abandoned = threading.Event()

    def answer(self, message: ToAgent) -> FromAgent:
        """Do what the message asks; an HwrxError becomes Failed, to be raised again by the controller."""
        try:
            return self._do(message)
        except HwrxError as error:
            return Failed(kind=type(error).__name__, message=str(Exception.__str__(error)), remedy=error.remedy)
        except OSError as error:
            words = error.strerror or str(error)
            where = f"{error.filename}: " if error.filename else ""
            return Failed(kind="PathError", message=f"{where}{words}", remedy=shortage_remedy(error.errno))
        except (MemoryError, ValueError) as error:
            return Failed(kind="PathError", message=f"{type(error).__name__}: {error}")
        except Exception as error:  # a message that is well formed and nonsense: a missing key, a number beyond C's
            traceback.print_exc()
            return Failed(kind="PathError", message=f"{type(message).__name__}: {type(error).__name__}: {error}")

    def _do(self, message: ToAgent) -> FromAgent:
        match message:
            case Hello():
                same_version(message)
                return Hello(hwrx=__version__)
            case LookAround():
                return Surveyed(placement.survey_cpus(message.here, self._started_on))
            case Prepare():
                return self._open(message)
            case Connect():
                endpoint = self._need_endpoint()
                with self._waiting():
                    endpoint.connect(message.remote)
                if self._prepare is not None and self._prepare.setting.netem:  # the connection is there, unharmed
                    impair.spoil_wire(self._prepare.here.netdev, self._prepare.setting.netem)
                    self._spoiled = True
                return Ready()
            case Start():
                return self._run()
            case Fetch():
                if self._trial is None:
                    raise PeerError("samples were asked for before a trial was run")
                values = self._array(message.array)[message.first : message.first + message.count]
                return Chunk(first=message.first, data=values.astype("<i8", copy=False).tobytes())
            case Inspect():
                endpoint = self._need_endpoint()
                return Prepared(remote={}, chosen={**self._chosen(endpoint), **_buffers(endpoint)})
            case Release():
                self.close()
                return Released()
            case Describe():
                # not needed by the trials themselves, and slow to import in a guest
                from hwrx.machine import description

                if not message.noise:
                    return Described(machine=description.describe_machine())
                from hwrx.machine import timekeeping, tune  # as above

                return Described(
                    machine=description.describe_machine(),
                    noise=[str(finding) for finding in tune.find_noise()],
                    timekeeping=timekeeping.describe_timekeeping(),
                )
            case TraceOpen() | TraceBegin() | TraceEnd() | FetchEvents() | TraceClose():
                if self._tracer is None:
                    from hwrx.probes.service import Service  # an endpoint has no use for it

                    self._tracer = Service()
                return self._tracer.answer(message)
            case CountOpen() | CountEnd():
                if self._counters is None:
                    from hwrx.probes.counters import Counters  # as above

                    self._counters = Counters()
                return self._counters.answer(message)
            case Quit():
                raise SystemExit(0)
            case Look() | Stop():
                raise PeerError(f"{type(message).__name__} is for the thread that reads the pipe")

    def _open(self, prepare: Prepare) -> Prepared:
        self.close()
        if not paths.find_path(prepare.setting.path).holding:  # a trial before this one may have broken off
            paths.release_held()
        placement.pin_thread(prepare.here.cpu, self._started_on)
        self._switched_off = scheduling.settle_features(prepare.setting.schedule)
        if self._spoiled:
            impair.mend_wire(prepare.here.netdev)
            self._spoiled = False
        if prepare.counted:
            self._name = cputime.rename_thread(cputime.COUNTED_NAMES[prepare.role])
        self._polled = napi.switch_napi(prepare, self._device)
        self._endpoint = paths.open_endpoint(prepare)
        paced = prepare.setting.pattern == "paced"
        setting = arrivals.timed_setting(prepare.setting, prepare.repeat, prepare.seed)
        sends_on_time = paced and prepare.role == "client"
        fetched = paths.find_path(setting.path).full_rtt
        self._trial = Trial(
            messages=setting.messages,
            warmup=setting.warmup,
            cooldown=setting.cooldown,
            size=setting.size,
            sizes=mixes.draw_sizes(setting, prepare.repeat, prepare.seed, fetched=fetched) if setting.mix else None,
            trial=prepare.trial,
            batch=setting.batch,
            check_every=setting.check_every,
            due=arrivals.schedule_sends(setting, prepare.repeat, prepare.seed) if sends_on_time else None,
            limit_ns=round(setting.limit * 1e9),
            counters=cputime.meter_files(prepare.alone),
            patience_ns=round(setting.patience * 1e9),
            stamped=prepare.stamped or prepare.stamps,
            lasts_ns=0 if paced else round((setting.duration or 0.0) * 1e9),
            closes=prepare.role == "client",
        )
        if setting.connections > 1:
            self._endpoint.connections.begin(setting.warmup, setting.messages, setting.total)
        if prepare.stamps:
            self._endpoint.stamp_stages(setting.warmup, setting.messages)
        self._prepare = prepare
        return Prepared(remote=self._endpoint.describe(), chosen=self._chosen(self._endpoint))

    def _array(self, name: Array) -> npt.NDArray[np.int64]:
        if name in ("intended", "posted", "delivered"):
            times: npt.NDArray[np.int64] = getattr(self._trial, name)
            return times
        if name in get_args(ByConnection):
            connections = getattr(self._endpoint, "connections", None)
            if connections is None:
                raise PeerError(f"{name} was asked for, and this endpoint has a single connection")
            of_connections: npt.NDArray[np.int64] = getattr(connections, name)
            return of_connections
        stamps = getattr(self._endpoint, "stamps", None)
        if stamps is None:
            raise PeerError(f"{name} was asked for, which this endpoint does not stamp")
        stamped: npt.NDArray[np.int64] = getattr(stamps, name)
        return stamped

    def _chosen(self, endpoint: Transport) -> dict[str, object]:
        return {**endpoint.chosen(), **({"napi": self._polled} if self._polled else {})}

    def _need_endpoint(self) -> Transport:
        if self._endpoint is None:
            raise PeerError("asked to connect or start before anything was prepared")
        endpoint: Transport = self._endpoint
        return endpoint

    def _run(self) -> Done:
        endpoint = self._need_endpoint()
        prepare, trial = self._prepare, self._trial
        if prepare is None or trial is None:
            raise PeerError("asked to start before anything was prepared")
        before = endpoint.resent()
        with scheduling.scheduled_as(prepare.setting.schedule):
            if prepare.counted and self._counters is not None:
                self._counters.begin(prepare.counted)
            setting = prepare.setting
            with self._waiting():
                if setting.connections > 1:
                    status = run_connections(trial, endpoint, self._endpoint.connections, prepare.role)
                else:
                    status = loop.run(trial, endpoint, setting.pattern, prepare.role, setting.rest, setting.settle)
        done = Done(
            tally={**endpoint.counts(), **trial.counts()},  # what is said of messages wins
            ended=loop.ENDED.get(status, "error"),
            resent=endpoint.resent() - before,
            cpu=cputime.time_used(trial.meter, prepare.alone, prepare.setting.rest if prepare.role == "client" else 0),
            resident=peak_resident(),
            chosen=self._chosen(endpoint),
            placed=placement.observe_placement(prepare.here),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(),
            between=trial.meter.times,
            filled=trial.filled,
        )
        return done if status in loop.ENDED else msgspec.structs.replace(done, error=endpoint.explain(status))

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self._waits.set()
        try:
            if self._abandoned.is_set():
                raise SystemExit(3)
            yield
        finally:
            self._waits.clear()

    def abandon(self) -> None:
        """For another thread: the pipe has ended, so nobody waits for what this process does.

        A loop, or a wait for the other end, is ended: by the endpoint if it holds something of the machine that is to
        be given back, else with the process. Whatever else the main thread does (it takes a NIC, it gives one back) it
        does to the end; it finds the end of the pipe next.
        """
        self._abandoned.set()
        endpoint = self._endpoint
        if self._waits.is_set() and not (endpoint is not None and endpoint.interrupt()):
            self._mend()
            os._exit(3)

    def _mend(self) -> None:
        """Give the machine back what the trial has changed on it, but for what the endpoint holds."""
        self._device.close()
        self._polled = {}
        scheduling.switch_features_on(self._switched_off)
        self._switched_off = []
        prepare = self._prepare
        if prepare is not None and prepare.setting.netem and self._spoiled:
            impair.mend_wire(prepare.here.netdev)
            self._spoiled = False

    def progress(self) -> int:
        """For another thread: how far the loop has come that runs, or ran last."""
        trial = self._trial
        return trial.progress() if trial is not None else 0

    def stop(self, total: int) -> None:
        """For another thread: the loop that runs need not wait for what may be lost, or more than `total` messages."""
        trial, endpoint = self._trial, self._endpoint
        if trial is not None:
            if total:
                endpoint.end_at(total)
            trial.stop(total)

    def stop_tracing(self) -> None:
        """Detach what TraceOpen and CountOpen attached; harmless when nothing is."""
        if self._tracer is not None:
            self._tracer.close()
            self._tracer = None
        if self._counters is not None:
            self._counters.close()
            self._counters = None

    def close(self) -> None:
        """Tear down what is open; harmless when nothing is."""
        endpoint, self._endpoint, self._trial = self._endpoint, None, None
        self._mend()
        prepare, self._prepare = self._prepare, None
        if self._name is not None:
            cputime.rename_thread(self._name)
            self._name = None
        if endpoint is not None:
            endpoint.close()
        if prepare is not None and not prepare.hold:
            paths.release_held()


def peak_resident() -> int:
    """The most memory that this process had resident, in bytes: VmHWM of proc_pid_status(5).

    Not ru_maxrss of getrusage(2): a process keeps through execve(2) what that was in the process that started it.
    """
    found = RESIDENT.search(Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) << 10 if found else 0


def _buffers(endpoint: Transport) -> dict[str, str]:
    """Return where a socket's pinned buffers are, in virtual and, where this user may know it, in physical memory."""
    found = {}
    for name, words in (("received", "receive"), ("built", "send")):
        buffer = getattr(endpoint, name, None)
        if buffer is not None:
            found[f"{words}_address"] = hex(buffer.address)
            with contextlib.suppress(HwrxError):
                found[f"{words}_physical"] = hex(buffer.physical_pages()[0])
    return found


def serve_pipe(read_fd: int, write_fd: int, told: int) -> None:
    """Answer messages from `read_fd` on `write_fd` until Quit or the end of the stream, or something comes from `told`.

    All descriptors stay the caller's. What is no message of hwrx is answered with Failed, and ends the service.
    """
    agent = Agent()
    # two more than may wait: what went wrong, and the end, always have room
    inbox: Inbox = queue.Queue(MOST_WAITING + 2)
    pipe = Pipe(write_fd)
    threading.Thread(target=_read, args=(read_fd, told, inbox, agent, pipe), daemon=True, name="control").start()
    try:
        while (item := inbox.get()) is not None:
            if isinstance(item, PeerError):
                pipe.write(Failed(kind="PeerError", message=str(item)))
                return
            pipe.write(agent.answer(item))
    except (SystemExit, BrokenPipeError):
        return
    finally:
        agent.close()
        agent.stop_tracing()
        paths.release_held()


def _read(fd: int, told: int, inbox: Inbox, agent: Agent, pipe: Pipe) -> None:
    """Read the pipe to its end: the thread's whole life. However it ends, the main thread is told."""
    try:
        _read_frames(fd, told, inbox, agent, pipe)
    except PeerError as error:
        _give_up(inbox, error)
    except Exception as error:
        _give_up(inbox, PeerError(f"the control pipe cannot be served any more: {type(error).__name__}: {error}"))
    agent.abandon()


def _give_up(inbox: Inbox, error: PeerError) -> None:
    """Let the main thread answer with the error. If a loop runs that ends with the process, only these words remain."""
    with contextlib.suppress(OSError, ValueError):  # nobody may have left us a standard error
        sys.stderr.write(f"hwrx agent: {error}\n")
    inbox.put(error)


def _read_frames(fd: int, told: int, inbox: Inbox, agent: Agent, pipe: Pipe) -> None:
    """Sort what comes: what is asked of a loop that runs is answered here, all else waits. PeerError for garbage."""
    frames = Frames("to agent")
    while True:
        try:
            ended = told in select.select([fd, told], [], [])[0]
            data = b"" if ended else os.read(fd, 1 << 16)
        except OSError:
            data = b""
        if not data:
            inbox.put(PeerError("the control pipe ended within a frame") if frames.truncated else None)
            return
        for message in frames.feed(data):
            if isinstance(message, Look):
                pipe.write(Moved(agent.progress()))
            elif isinstance(message, Stop):
                agent.stop(message.total)
            elif inbox.qsize() >= MOST_WAITING:
                raise PeerError(f"more than {MOST_WAITING} messages came before the first of them was answered")
            else:
                inbox.put(message)


class Pipe:
    """The way back to the controller, for both threads: whole frames, one after the other."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def write(self, message: FromAgent) -> None:
        """Send a message; BrokenPipeError if nobody reads any more."""
        view = memoryview(frame_message(message))
        with self._lock:
            while view:
                view = view[os.write(self._fd, view) :]


def main() -> None:
    """Serve on standard input and output; whatever else would print there goes to standard error.

    SIGINT, SIGTERM and SIGHUP are as the end of the pipe. The main thread may be inside a loop that knows nothing of
    them; so they are heard by the thread that reads the pipe.
    """
    inward, outward = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = sys.stderr
    told, tells = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    came: list[int] = []
    for number in ENDING:
        signal.signal(number, lambda number, frame: came.append(number))
    serve_pipe(inward, outward, told)
    if came:
        raise SystemExit(128 + came[0])
