"""The lab's virtual machine: a distribution's kernel on the host's files, with agents and commands running in it.

QEMU is started in a process group of its own and dies with us, whatever ends us: leaving the context ends it, a kill of
hwrx is passed on by the kernel (PR_SET_PDEATHSIG), and the guest powers off when its port hangs up. All time limits are
the host's: a guest that counts instructions (`icount`) jumps over idle time.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

import msgspec

from hwrx import errors
from hwrx.control.environment import parse_environment
from hwrx.control.guest_boot import Priced
from hwrx.control.messages import Clock, Role
from hwrx.control.places import Place
from hwrx.errors import GuestError, HwrxError, StandstillError, UsageError
from hwrx.host import disk, netns, tools
from hwrx.host.interruption import hold_signals
from hwrx.host.processes import cpu_seconds
from hwrx.lab import accelerator, boot, emulator_user, initramfs, inquest, kernel, kernel_needs, requests
from hwrx.lab.kernel import Progress
from hwrx.lab.machine_words import kernel_words, machine_words, share_words
from hwrx.lab.port import Pipe, Port
from hwrx.wires import topology as topologies

BOOT_LIMIT = 180.0  # seconds until the agents' host inside answers; an emulated one takes 10, on a busy machine 60
_END_LIMIT = 5.0
_SHOWN = 15  # lines of the log in an error
_KEPT = 2000  # lines of the log in memory


class Guest:
    """A virtual machine with a topology in it. A context manager: boots on entering, ends on leaving.

    Enter it in a thread that lives as long as the guest: QEMU is told to die with the thread that started it.
    `beside` are topologies whose hardware it has, too: what runs in it puts them up. `kernel`: see `find_kernel`.
    `append` goes to the kernel's command line, `qemu` to QEMU. `writable` are folders that the guest may write to;
    everything else that it writes is lost. `options` go to the topology (`mtu`). `log` is a file that gets all that the
    guest prints. `descriptors` are open files that QEMU inherits; they stay the caller's. `copies_priced`: with the
    clock `icount`, whether kernel and C library find a processor on which `rep movsb` copies (an instruction a byte),
    or one without ERMS and FSRM, on which they copy by words.
    """

    def __init__(
        self,
        topology: str = "pair",
        *,
        beside: Sequence[str] = (),
        kernel: str | None = None,
        clock: Clock = "wall",
        copies_priced: Priced = "byte",
        cpus: int = 2,
        memory: str = "2G",
        accelerator: Literal["auto", "kvm", "tcg"] = "auto",
        append: Sequence[str] = (),
        qemu: Sequence[str] = (),
        writable: Sequence[Path] = (),
        options: Mapping[str, int] | None = None,
        log: Path | None = None,
        descriptors: Sequence[int] = (),
        limit: float = BOOT_LIMIT,
        progress: Progress = kernel.quiet_boot,
    ) -> None:
        found = topologies.find_topology(topology)
        all_found = [found, *(topologies.find_topology(name) for name in beside)]
        if clock == "icount" and accelerator == "kvm":
            raise UsageError("the clock `icount` counts emulated instructions: it cannot go with KVM")
        if clock == "wall" and copies_priced != "byte":
            raise UsageError("what a copy costs is priced where instructions are counted: it needs the clock `icount`")
        self.topology = topology
        self.beside = tuple(beside)
        self.clock = clock
        self.copies_priced = copies_priced
        self.cpus = 1 if clock == "icount" else cpus
        self.memory = memory
        self.places: dict[Role, Place] = {}
        self.peers: dict[Role, str] = {}
        self._wanted_kernel = kernel
        self._wanted_accelerator = "tcg" if clock == "icount" else accelerator
        self._append = (*(word for each in all_found for word in each.append), *append)
        self._qemu = (*(word for each in all_found for word in each.hardware), *qemu)
        self._modules = found.modules
        # one at most makes a namespace that QEMU is to be started in
        self._outside = next((each.outside for each in all_found if each.outside is not None), None)
        self._writable = {f"hwrx.rw{number}": path.absolute() for number, path in enumerate(writable)}
        self._options = dict(options or {})
        self._log_path = log
        self._descriptors = tuple(descriptors)
        self._limit = limit
        self._progress = progress
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT)
        self._printed = 0  # lines, in all
        self._stack = contextlib.ExitStack()
        self._user: emulator_user.EmulatorUser | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._started = 0.0  # seconds of time.monotonic
        self._port: Port | None = None
        self._reader: threading.Thread | None = None
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.begin()
        self.wait_until_up()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def begin(self) -> None:
        """Let the guest boot, and return meanwhile: of several each can come up while the others do."""
        try:
            self._boot()
        except BaseException:
            self._end()
            raise

    def wait_until_up(self) -> None:
        """Wait for a guest that boots until its topology is up; one that stands still is booted once more."""
        try:
            try:
                self._finish()
            except StandstillError as error:
                self.boot_again(error)
        except BaseException:
            self._end()
            raise

    def kill(self) -> None:
        """End the guest at once, from any thread: whoever waits for it gets an error. Leaving the context cleans up."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def agent(self, end: Role) -> Pipe:
        """Start an agent where the topology has this end, and return its pipe (a `hwrx.control.peers.Channel`)."""
        return self._open(requests.Open(netns=parse_environment(self.peers.get(end, "local")).netns))

    def command(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        netns: str | None = None,
        errors: Literal["apart", "merged"] = "apart",
    ) -> Pipe:
        """Start a command in the guest, as root, and return the pipe of its standard input and output.

        `errors` merged: standard error comes with the output; apart: its end is in `Pipe.epitaph`.
        """
        return self._open(
            requests.Open(list(argv), dict(environment or {}), str(folder or Path.cwd()), netns=netns, errors=errors)
        )

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        limit: float = 60.0,
        folder: Path | None = None,
        netns: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest to its end and return what it printed, standard error mixed in.

        It is killed after `limit` seconds of the host's clock, and GuestError raised.
        """
        pipe = self.command(argv, environment, folder=folder, netns=netns, errors="merged")
        deadline = time.monotonic() + limit
        output = bytearray()
        with contextlib.closing(pipe):
            pipe.end_input()
            while True:
                pipe.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    data = pipe.recv(1 << 16)
                except TimeoutError:
                    pipe.kill()
                    error = self.failure(f"`{tools.shorten_text(argv)}` did not end within {limit:.0f} s")
                    self.need_answer(error)
                    raise error from None
                if not data:
                    break
                output += data
            code = pipe.wait(max(1.0, deadline - time.monotonic()))
        if code is None:
            raise self.failure(f"`{tools.shorten_text(argv)}` ended, but the guest does not say how")
        return subprocess.CompletedProcess(list(argv), code, output.decode(errors="replace"), "")

    def lines(
        self, module: str, request: bytes, *, silence: float, who: str, ask_after: float | None = None
    ) -> Iterator[bytes]:
        """Run a Python module in the guest, which reads `request` from its standard input; yield what it prints.

        A line comes as soon as it is printed, without its end. GuestError, of `who` it is that ran there, if
        the module fails, StandstillError if nothing is printed for `silence` seconds; UsageError where that is what
        ended it. After `ask_after` quiet seconds, and so often, the guest is asked whether it lives: one that does not
        answer is not waited for any longer.
        """
        ask_after = min(ask_after or silence, silence)
        pipe = self.command([sys.executable, "-P", "-m", module], {"PYTHONDONTWRITEBYTECODE": "1"})
        with contextlib.closing(pipe):
            pipe.settimeout(ask_after)
            pipe.sendall(request)
            pipe.end_input()
            rest, heard = b"", time.monotonic()
            while True:
                try:
                    data = pipe.recv(1 << 16)
                except TimeoutError:
                    quiet, alive = time.monotonic() - heard, self._need_port().ping(inquest.ANSWER)
                    if alive and quiet < silence:
                        continue
                    where = inquest.where_it_stands(self, module) if alive else "the guest does not answer"
                    problem = f"{who} in the guest said nothing for {quiet:.0f} s: {where}"
                    raise self.failure(problem, StandstillError) from None
                if not data:
                    break
                heard = time.monotonic()
                *whole, rest = (rest + data).split(b"\n")
                yield from whole
            code = pipe.wait(10.0)
            if code is None:
                self._settle()
            if code != 0:
                raise inquest.ended_early(who, code, pipe.epitaph(), self.log())

    def check(self, limit: float = 30.0) -> None:
        """GuestError, with the guest's log, where the guest does not answer within `limit` seconds. It is ended then.

        Nothing of the kind is done by itself: a heartbeat would be in the measurements.
        """
        port = self._need_port()
        if not port.ping(limit):
            error = self.failure(port.problem or f"the guest did not answer within {limit:.0f} s")
            self._end()
            raise error

    def need_answer(self, trouble: HwrxError) -> None:
        """Find out whether what was met in this guest is because it stands still.

        :param trouble: what was met.
        :raises StandstillError: if the guest does not answer within ANSWER seconds, though QEMU is there.
        """
        port, process = self._need_port(), self._process
        if not port.problem and process is not None and process.poll() is None and not port.ping(inquest.ANSWER):
            problem = f"the guest stands still: {Exception.__str__(trouble)}"
            raise self.failure(problem, StandstillError) from trouble

    def why_gone(self) -> GuestError | None:
        """Return what became of a guest that is gone; None while it is there."""
        port = self._need_port()
        if not port.problem:
            return None
        self._settle()
        return self.failure(port.problem)

    def boot_again(self, why: GuestError) -> None:
        """End this guest, which stands still or is gone, and boot another one like it, with a word to `progress`.

        :raises GuestError: if that does not come up either.
        """
        self._end()
        self._progress("guest", f"{Exception.__str__(why).splitlines()[0]}; another one is booted")
        self._start(*self._chosen)
        self._finish()

    def describe(self) -> dict[str, Any]:
        """Return what is to be known of this guest: for the manifest."""
        return dict(self._facts)

    def log(self, lines: int = _KEPT) -> str:
        """Return the last lines that the guest printed."""
        return "\n".join(list(self._lines)[-lines:])

    def failure(self, what: str, kind: type[GuestError] = GuestError) -> GuestError:
        """Return a GuestError that carries the end of the log."""
        log = "".join(f"\n    {line}" for line in list(self._lines)[-_SHOWN:])
        return kind(f"{what}\n  the guest's last lines:{log or ' none'}")

    # --- coming up ---------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        self._user = emulator_user.find_emulator_user()
        if self._user is not None:
            self._user.need_access(emulator_user.files_of_hwrx(), self._writable.values())
        chosen = kernel.find_kernel(self._wanted_kernel, self._progress)
        kernel_needs.need_bootable(chosen, [self.topology, *self.beside])
        with_what = accelerator.choose_accelerator(chosen, self._progress, self._wanted_accelerator)
        self._facts = {
            "kernel": chosen.version,
            "package": chosen.package,
            "accelerator": with_what.name,
            "accelerator_reason": with_what.reason,
            "emulated": with_what.emulated,
            "qemu": accelerator.qemu_version(),
            "clock": self.clock,
            "copies_priced": self.copies_priced,
            "cpus": self.cpus,
            "memory": self.memory,
            "topology": self.topology,
            "beside": list(self.beside),
            "options": self._options,
            "append": list(self._append),
            "qemu_options": list(self._qemu),
        }
        self._progress(
            "boot",
            f"kernel {chosen.version}, {'software emulation' if with_what.emulated else 'KVM'}, {self.clock} clock",
        )
        self._chosen = chosen, with_what
        self._start(chosen, with_what)

    def _finish(self) -> None:
        self._wait_until_ready(self._started + self._limit)
        self._facts["boot_s"] = round(time.monotonic() - self._started, 3)

    def _start(self, chosen: kernel.Kernel, with_what: accelerator.Accelerator) -> None:
        self._started = time.monotonic()
        options = msgspec.json.encode(self._options).decode()
        archive = initramfs.in_memory(
            initramfs.build_initramfs(
                chosen.base,
                chosen.version,
                [sys.executable, "-S", "-P", "-m", requests.SUPERVISOR, self.topology, options],
                writable=self._writable,
                environment={
                    # the layer over the host's files lets it be written, slowly; threads would stand in the way of fork
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                    "HWRX_IN_GUEST": "1",
                    # so that a command finds `hwrx`, after the system's own
                    "PATH": f"{initramfs.PATH}:{Path(sys.executable).parent}",
                    # the guest finds the same modules as we do; looking for them by itself (module `site`, the
                    # finders of editable installs) takes half of the time in which an emulated Python starts
                    "PYTHONPATH": ":".join([str(Path(__file__).parents[2]), *filter(os.path.isdir, sys.path)]),
                },
                modules=self._modules,
                own_share=self._user is not None,
            )
        )  # fmt: skip
        # neither the archive nor the port has a name in the file system: nothing is left behind, whatever ends us
        ours, theirs = socket.socketpair()
        self._port = Port(ours)
        image, more, inherited = kernel_words(chosen, by_name=self._user is None)
        command = [
            *(self._user.start_words(kvm=with_what.name == "kvm") if self._user else [tools.find_tool("setpriv")]),
            "--pdeathsig", "KILL", *self._qemu_command(image, with_what, archive, theirs.fileno()), *more,
        ]  # fmt: skip
        self._facts["command"] = shlex.join(command)
        owner = self._user.uid if self._user else 0
        space = self._stack.enter_context(self._outside(owner)) if self._outside is not None else None
        output = None
        if self._log_path is not None:
            with disk.guarded_writes(self._log_path):
                output = self._log_path.open("ab" if self._printed else "wb")
            self._stack.callback(output.close)
        try:
            with netns.entered_namespace(space):  # QEMU stays where it was started
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(archive, theirs.fileno(), *inherited, *self._descriptors),
                )
        finally:
            theirs.close()
            for each in (archive, *inherited):
                os.close(each)
        if self._killed:  # meanwhile
            self._process.kill()
        assert self._process.stdout is not None  # asked for above
        self._reader = threading.Thread(
            target=self._read_lines, args=(self._process.stdout, output), daemon=True, name="guest log"
        )
        self._reader.start()

    def _qemu_command(self, image: str, with_what: accelerator.Accelerator, archive: int, port: int) -> list[str]:
        command = machine_words(
            with_what, cpus=self.cpus, memory=self.memory, clock=self.clock, copies_priced=self.copies_priced
        )
        command += share_words(initramfs.ROOT_TAG, "/")
        for tag, path in self._writable.items():
            command += share_words(tag, str(path), "off")
        command += [
            "-chardev", f"socket,id=hwrx,fd={port}",
            "-device", "virtio-serial-pci",
            "-device", f"virtserialport,chardev=hwrx,name={requests.PORT}",
            "-kernel", image,
            "-initrd", f"/proc/self/fd/{archive}",
            "-append", " ".join((*boot.base_words(self.clock), *self._append)),
        ]  # fmt: skip
        return [*command, *self._qemu]

    def _wait_until_ready(self, deadline: float) -> None:
        port = self._need_port()
        port.start()
        pulse = inquest.Pulse()
        while not port.ready.wait(0.1):
            self._need_alive()
            assert self._process is not None  # that is what was just asked
            if still := pulse.feel(cpu_seconds(self._process.pid), self._printed):
                raise self.failure(f"the guest stood still while it came up: {still}", StandstillError)
            if port.problem:
                self._settle()
                self._need_alive()  # who has ended is said by his end, which may be seen after that of the port
                raise self.failure(port.problem)
            if time.monotonic() > deadline:
                raise self.failure(f"the guest did not come up within {self._limit:.0f} s")
        if port.failed is not None:
            kind = getattr(errors, port.failed.kind, GuestError)
            raise kind(f"in the guest: {port.failed.message}", remedy=port.failed.remedy)
        assert port.up is not None  # what `ready` means, where nothing failed
        self.places, self.peers = port.up.places, port.up.peers
        self._progress("agents", f"topology {self.topology} is up")

    def _need_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._settle()
            raise self.failure(f"the guest ended while it came up (QEMU's exit code {self._process.returncode})")

    def _need_port(self) -> Port:
        if self._port is None:
            raise GuestError("the guest is not running")
        return self._port

    def _open(self, what: requests.Open) -> Pipe:
        if gone := self.why_gone():
            raise gone
        return self._need_port().open(what)

    # --- going down --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Let the log's last lines arrive."""
        if self._process is not None and self._reader is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._reader.join(1.0)

    def _end(self) -> None:
        with hold_signals():
            if self._port is not None:
                self._port.quit()
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                if self._reader is not None:
                    self._reader.join(_END_LIMIT)
                if self._process.stdout is not None:
                    self._process.stdout.close()
            if self._port is not None:
                self._port.close()
            self._port = self._process = None
            self._stack.close()

    def _read_lines(self, source: IO[bytes], output: IO[bytes] | None) -> None:
        """Keep what the guest prints; ends with QEMU."""
        with contextlib.suppress(ValueError):  # the file was closed under us: the guest is being ended
            for line in source:
                self._lines.append(line.decode(errors="replace").rstrip())
                self._printed += 1
                if output is not None:
                    output.write(line)
                    output.flush()
