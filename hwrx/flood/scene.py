"""Making one flood: a wire, one sender, as many readers as there are sockets, the kernel's counters around them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from hwrx import paths
from hwrx.control.endings import ENDS
from hwrx.control.environment import parse_environment
from hwrx.control.messages import Pattern, Prepare, Role, Setting
from hwrx.control.places import Place
from hwrx.drops.books import Books
from hwrx.errors import HwrxError, MachineError, PathError, UsageError
from hwrx.flood import result
from hwrx.flood.model import PATHS, VERBS, Flood, Spec
from hwrx.host import netns, tools
from hwrx.host.own_sysfs import in_own_sysfs
from hwrx.probes import counting
from hwrx.probes.account import Int64s
from hwrx.verbs import rxe
from hwrx.wires import topology

if TYPE_CHECKING:
    from cython_ext.core.transport import Transport


Say = Callable[[str], None]
QUIET_NS = 300_000_000  # without a message for so long, none is on its way any more
SENDER, READER = "hwrx-send", "hwrx-read"  # what the programs know the threads by
LONGEST_BURST = 15.0  # seconds that the bins have room for where nothing says how long it takes
AFTER = 5.0  # seconds after the last send in which the readers come to their end


class Bed:
    """Two places on this kernel, the namespaces that they are in (None: this one), and what lies between them.

    The kernel's counters are loaded for the first flood and kept for the others, until `close`.

    :param places: netdev and address of each end
    :param spaces: names of network namespaces
    :param wire: what lies between the ends, for the report
    """

    def __init__(self, places: Mapping[Role, Place], spaces: Mapping[Role, str | None], wire: str) -> None:
        self.places, self.spaces, self.wire = places, spaces, wire
        self._stack = contextlib.ExitStack()
        self._counters: dict[tuple[float, bool], counting.Counter] = {}

    def counter(self, spec: Spec) -> counting.Counter:
        """The counters for such a flood: with room for as long as it lasts, and for rxe's work if it goes over verbs.

        :return: a Counter, loaded and attached; it is this object's
        :raises MachineError: if the kernel does not take the programs
        """
        lasts = spec.wants / spec.rate if spec.rate else spec.seconds or 0.0
        key = max(lasts, LONGEST_BURST) + AFTER, spec.path in VERBS
        if key not in self._counters:
            self._counters[key] = self._stack.enter_context(counting.Counter(key[0], rxe=key[1]))
        return self._counters[key]

    def close(self) -> None:
        """Detach the counters; harmless when called twice."""
        self._counters.clear()
        self._stack.close()


@contextlib.contextmanager
def flood_wire(spec: Spec) -> Iterator[Bed]:
    """Put up what the flood's path needs on this kernel (in a guest: take what is there), and take it down again.

    :param spec: whose `topology`, or path if that is None, says what is needed
    :return: a context that yields the Bed; it is closed with it
    :raises MachineError: if the topology cannot be put up here: no root, no rxe, no such NIC
    :raises UsageError: if there is no such topology
    """
    name = spec.topology or paths.default_topology(spec.path)
    found = topology.find_topology(name)
    with topology.at_hand(name) as up:
        spaces = {end: parse_environment(peer).netns for end, peer in up.peers.items()}
        with contextlib.closing(Bed(up.places, spaces, found.sentence)) as bed:
            yield bed


def check_spec(spec: Spec) -> None:
    """UsageError where there cannot be such a flood, MachineError where not on this machine; nothing is started."""
    check_words([spec])
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in (spec.send_cpu, spec.read_cpu):
        if cpu is not None and cpu not in cpus:
            raise UsageError(f"there is no CPU {cpu} for this process", remedy=f"choose of: {cpus}")
    if spec.rps and len(cpus) < 2:
        raise MachineError("RPS hands packets to another CPU, and there is one CPU only")


def check_words(specs: Sequence[Spec]) -> None:
    """UsageError where there cannot be such floods on any machine."""
    for spec in specs:
        _check_words(spec)


def _check_words(spec: Spec) -> None:
    if spec.path not in PATHS:
        known = paths.PATHS.get(spec.path)
        why = f": {known.unflooded}" if known is not None else ""
        raise UsageError(f"a flood cannot go over '{spec.path}'{why}", remedy=f"choose of: {', '.join(PATHS)}")
    if spec.sockets > 1 and not PATHS[spec.path].sockets:
        able = " or ".join(name for name, path in PATHS.items() if path.sockets)
        raise UsageError(f"{spec.path} has one receiver here, not {spec.sockets}", remedy=able)
    if spec.burst is None and spec.seconds is None:
        raise UsageError("a flood is a burst or lasts for some time", remedy="--burst 100000 or --sustained 5")
    if spec.rps and paths.find_path(spec.path).holding:
        raise UsageError(f"RPS is the kernel's, and {spec.path} goes past it", remedy="leave --rps out")
    if spec.read == "after" and PATHS[spec.path].stops:
        raise UsageError(
            f"{spec.path} waits for its reader: without one the sender stands still", remedy="leave --read after out"
        )
    if spec.completions is not None and paths.find_path(spec.path).memory_alone:
        able = " or ".join(name for name in VERBS if paths.reads_field(name, "paced", "completions"))
        raise UsageError(
            "the receiver of a WRITE has no completions", remedy=f"leave --completions out, or take {able}"
        )
    paths.check_setting(setting_of(spec))


class Made(Struct, frozen=True):
    """A flood, and of each of its messages when it was sent and taken (ns, 0: never)."""

    flood: Flood
    sent: Int64s
    taken: Int64s


def measure_flood(spec: Spec, bed: Bed | None = None, say: Say = lambda text: None) -> Flood:
    """Make one flood and return what was found of it. Needs root.

    :param spec: what is sent, and how it is received
    :param bed: where (of `flood_wire`); None: a wire of its own, taken down afterwards
    :param say: told what is being done, for people who wait
    :return: everything that was counted; messages' own times stay behind
    :raises UsageError: if there cannot be such a flood
    :raises MachineError: if this machine lacks something: root, a CPU, a device, a kernel's tracepoint
    :raises PathError: if an end stopped before its time
    """
    if bed is None:
        check_spec(spec)
        tools.need_root("counting what the kernel does with a flood")
        with flood_wire(spec) as own:
            return measure_flood(spec, own, say)
    return made_wire(spec, bed, say).flood


def made_wire(spec: Spec, bed: Bed, say: Say = lambda text: None) -> Made:
    """As `measure`, with the messages' times."""
    check_spec(spec)
    tools.need_root("counting what the kernel does with a flood")
    with contextlib.ExitStack() as stack:
        scene = _Scene(spec, bed, stack, say)
        flood = scene.run()
        count = scene.wave.posted
        return Made(flood, scene.wave.sent[:count], scene.wave.taken[:count])


def setting_of(spec: Spec) -> Setting:
    """The endpoints' setting: an open loop's, whose ends wait for nobody; TCP and SEND stop a sender by themselves."""
    sockets = PATHS[spec.path].sockets
    pattern: Pattern = "stream" if PATHS[spec.path].stops else "paced"
    # of these only what the path reads
    selective = {"rate": spec.rate or 1.0, "window": max(256, spec.together)}
    return Setting(
        path=spec.path,
        pattern=pattern,
        size=spec.size,
        messages=spec.wants,
        warmup=0,
        cooldown=0,
        wait="epoll" if sockets else "event",
        batch=spec.together,
        check_every=0,
        socket_buffer=spec.receive_buffer if sockets else None,
        receives=spec.receives,
        completions=spec.completions,
        **{name: value for name, value in selective.items() if paths.reads_field(spec.path, pattern, name)},  # type: ignore[arg-type]
    )


class _Scene:
    """One flood, from opening its endpoints to closing them (which `stack` does)."""

    def __init__(self, spec: Spec, bed: Bed, stack: contextlib.ExitStack, say: Say) -> None:
        from cython_ext.loops.flood import Wave

        self.spec, self.bed, self.say = spec, bed, say
        self.stack = stack
        cpus = sorted(os.sched_getaffinity(0))
        self.send_cpu = cpus[-1] if spec.send_cpu is None else spec.send_cpu
        self.read_cpu = cpus[0] if spec.read_cpu is None else spec.read_cpu
        self.wave = Wave(messages=spec.wants, size=spec.size, trial=spec.trial, batch=spec.together)
        self.ends: dict[Role, list[Any]] = {"client": [], "server": []}
        self.status = 0
        self.counts: list[tuple[int, dict[str, int]]] = [(0, {})] * spec.sockets
        self.failure: BaseException | None = None
        self.notes: list[str] = []

    def run(self) -> Flood:
        spec, bed = self.spec, self.bed
        device = bed.places["server"].netdev or ""
        self.say("opening the endpoints")
        self._open()
        limits = dict(counting.read_sysctls())
        own = paths.find_path(spec.path).holding  # the kernel has no such device meanwhile
        limits["receive_queues"] = queues = 1 if own else self._receive_queues(device)
        irqs = [] if own else counting.interrupts_of(device)
        if spec.rps:
            self._steer(device, queues, irqs)
        books = self.stack.enter_context(Books(spec.trial, self._spaces()))
        counter = bed.counter(spec)
        counter.aim(device, irqs, limits)
        watched = counter.watch(self._descriptors())
        self.say(f"{spec.wants:,} messages" if spec.seconds is None else f"{spec.seconds:g} s")
        before = [dict(end.counts()) for end in self.ends["server"]]
        verbs = self._verbs_counters()
        counts = self._flood(counter)
        ended = self._ended()
        counters = {
            name: {key: value - verbs[name].get(key, 0) for key, value in each.items()}
            for name, each in self._verbs_counters().items()
        }
        told: dict[str, int] = {}
        for end, old in zip(self.ends["server"], before, strict=True):
            for name, value in end.counts().items():
                told[name] = told.get(name, 0) + value - old.get(name, 0)
        self.notes += counter.lacks
        chosen = self.ends["server"][0].chosen()
        if "receive_buffer" in chosen:
            limits["receive_buffer"] = int(chosen["receive_buffer"])
        return result.assemble_flood(
            result.Raw(
                spec=spec,
                wire=bed.wire,
                counts=counts,
                sent=self.wave.sent,
                taken=self.wave.taken,
                posted=self.wave.posted,
                reader=[each for _, each in self.counts],
                told=told,
                irqs=irqs,
                watched=watched,
                limits=limits,
                counters=counters,
                ended=ended,
                own_driver=own,
            ),
            books,
            self.notes,
        )

    # --- endpoints ------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open all servers, then all clients, and connect both sides: each in its own namespace."""
        spec, places = self.spec, self.bed.places
        for role, other in ENDS:
            for _ in range(spec.sockets):
                prepare = Prepare(
                    trial=spec.trial, role=role, setting=setting_of(spec), here=places[role], there=places[other]
                )
                with netns.entered_namespace(self.bed.spaces[role]):
                    end = paths.open_endpoint(prepare)
                self.stack.callback(end.close)
                self.ends[role].append(end)
        if paths.find_path(spec.path).memory_alone:
            for end in self.ends["server"]:
                end.go_on()
        for server, client in zip(self.ends["server"], self.ends["client"], strict=True):
            self._connect(server, client)

    def _connect(self, server: Transport, client: Transport) -> None:
        """Connect both ends at the same time: a TCP server waits for its client."""
        told: dict[Role, dict[str, Any]] = {"server": server.describe(), "client": client.describe()}
        failed: list[HwrxError] = []

        def accept() -> None:
            try:
                with netns.entered_namespace(self.bed.spaces["server"]):
                    server.connect(told["client"])
            except HwrxError as error:
                failed.append(error)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        with netns.entered_namespace(self.bed.spaces["client"]):
            client.connect(told["server"])
        thread.join(30.0)
        if failed:
            raise failed[0]
        if thread.is_alive():
            raise PathError("the receiving end was not connected within 30 s")

    def _descriptors(self) -> list[int]:
        """The descriptors of the receiving sockets, in order; none where the path has no socket queue."""
        if not PATHS[self.spec.path].sockets:
            where = "the receiver's memory" if paths.find_path(self.spec.path).memory_alone else "a ring"
            self.notes.append(f"{self.spec.path} has no socket's receive queue: its messages wait in {where}")
            return []
        ports = {end.describe()["port"]: number for number, end in enumerate(self.ends["server"])}
        found: dict[int, int] = {}
        for link in list(Path("/proc/self/fd").iterdir()):
            try:
                if not str(link.readlink()).startswith("socket:"):
                    continue
            except FileNotFoundError:  # the listing's own
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(link.name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] in ports:
                    one.getpeername()  # OSError of one that listens
                    found[ports[one.getsockname()[1]]] = int(link.name)
        return [found[number] for number in sorted(found)]

    def _spaces(self) -> list[str | None]:
        return list(dict.fromkeys(self.bed.spaces.values()))

    def _steer(self, device: str, queues: int, irqs: Sequence[int]) -> None:
        """Switch RPS on: all CPUs but those that packets come in on, by interrupt or (on a veth) by their sender."""
        taken = counting.cpus_of(irqs) or {self.send_cpu}
        others = os.sched_getaffinity(0) - taken
        if not others:
            raise MachineError(f"{device} brings packets to every CPU already, so RPS has none to hand them to")
        mask = sum(1 << cpu for cpu in others)
        for number in range(queues):
            file = f"class/net/{device}/queues/rx-{number}/rps_cpus"
            with netns.entered_namespace(self.bed.spaces["server"]):
                in_own_sysfs(f"echo {mask:x} > {file}")
            self.stack.callback(self._unsteer, file)

    def _unsteer(self, file: str) -> None:
        with netns.entered_namespace(self.bed.spaces["server"]):
            in_own_sysfs(f"echo 0 > {file}")

    def _receive_queues(self, device: str) -> int:
        """How many receive queues the device uses; it may have been made with more."""
        with netns.entered_namespace(self.bed.spaces["server"]):
            names = in_own_sysfs(f"ls class/net/{device}/queues")
        return len(re.findall(r"^rx-", names, re.MULTILINE))

    # --- while it goes on -----------------------------------------------------------------------------------------

    def _flood(self, counter: counting.Counter) -> counting.Counts:
        spec = self.spec
        readers = [threading.Thread(target=self._read, args=(number,)) for number in range(spec.sockets)]
        sender = threading.Thread(target=self._send)
        started: list[threading.Thread] = []
        try:
            if spec.read == "always":
                self._begin(readers, started)
            counter.begin()
            self._begin([sender], started)
            tenth = 0
            while sender.is_alive():
                sender.join(0.1)
                if spec.seconds is None and self.wave.posted * 10 // spec.wants > tenth:
                    tenth = self.wave.posted * 10 // spec.wants
                    self.say(f"{self.wave.posted:,} of {spec.wants:,} sent")
            if spec.read == "after":
                self._begin(readers, started)
            self.wave.end()
            for reader in readers:
                while reader.is_alive():
                    reader.join(0.05)
        finally:
            # also on Ctrl-C: the threads use what is closed next
            self.wave.end()
            for thread in started:
                thread.join()
        return counter.end()

    def _begin(self, threads: list[threading.Thread], started: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
            started.append(thread)

    def _send(self) -> None:
        from cython_ext.loops.flood import send

        spec = self.spec
        self._become(SENDER, self.send_cpu)
        gap = 1e9 / spec.rate if spec.rate else 0.0
        try:
            self.status = send(self.wave, self.ends["client"], gap, round((spec.seconds or 0) * 1e9))
        except BaseException as error:
            self.failure = error

    def _read(self, number: int) -> None:
        from cython_ext.loops.flood import read

        self._become(f"{READER}-{number}", self.read_cpu)
        try:
            work = round(self.spec.work * 1e9)
            self.counts[number] = read(self.wave, self.ends["server"][number], QUIET_NS, work)
        except BaseException as error:
            self.failure = error

    @staticmethod
    def _become(name: str, cpu: int) -> None:
        """Let the calling thread be known by a name, and run on one CPU."""
        Path("/proc/thread-self/comm").write_text(name, encoding="utf-8")
        os.sched_setaffinity(0, {cpu})

    def _ended(self) -> str:
        """How it ended early: of verbs in words, for that is what may be asked; of other paths it is an error."""
        if self.failure is not None:
            raise self.failure
        said = []
        for (status, _), end in zip(self.counts, self.ends["server"], strict=True):
            if status < 0:
                said.append(f"the reader stopped: {end.explain(status)}")
        if self.status < 0:
            said.append(f"the sender stopped: {self.ends['client'][0].explain(self.status)}")
        if said and self.spec.path not in VERBS:
            raise PathError("; ".join(said))
        return "; ".join(said)

    def _verbs_counters(self) -> dict[str, dict[str, int]]:
        """What both verbs devices have counted; of rxe drivers/infiniband/sw/rxe/rxe_hw_counters.c has the names."""
        found: dict[str, dict[str, int]] = {}
        for place in self.bed.places.values() if self.spec.path in VERBS else ():
            folder = rxe.VERBS / str(place.verbs) / "ports" / str(place.port) / "hw_counters"
            counters = {
                file.name: file.read_text(encoding="utf-8").strip()
                for file in folder.glob("*")
                if file.name != "lifespan"
            }
            found[str(place.verbs)] = {name: int(text) for name, text in counters.items() if text.isdecimal()}
            if not counters:
                self.notes.append(f"{place.verbs} has no counters of its own: its RNR NAKs and retries cannot be told")
        return found
