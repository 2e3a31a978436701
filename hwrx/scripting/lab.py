"""`hwrx.compare`, and `hwrx.Lab`: a topology that is put up once for many comparisons, commands and walks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from hwrx.campaign import measuring, walking
from hwrx.control.environment import parse_environment
from hwrx.control.guest_boot import BOOT_FIELDS, Boot, Iommu, Mitigations, Priced
from hwrx.control.messages import ENDS, Role
from hwrx.control.places import Place
from hwrx.errors import GuestError, MachineError, StandstillError, TrialError, UsageError
from hwrx.host import tools
from hwrx.lab.vm import Guest
from hwrx.report.published import open_published
from hwrx.report.reported import ReportedRun
from hwrx.runs import experiment as experiments
from hwrx.runs import planning, testbed, traffic
from hwrx.runs.beds import Testbed
from hwrx.runs.experiment import Experiment, WantedClock, described_experiment
from hwrx.runs.guests import GuestsBed
from hwrx.runs.overrides import LISTED
from hwrx.runs.testbed import Bed, Booted, GuestBed, Wanted
from hwrx.scripting.progress import Listener, Listening
from hwrx.timelines.walk import Journey
from hwrx.wires import topology as topologies

StrPath = str | os.PathLike[str]
INSIDE = os.environ.get("HWRX_IN_GUEST") == "1"  # a guest boots no guest: it has the topology that it was booted with
# what is decided when a lab is put up, and holds for all that is done in it
FIXED = ("topology", "clock", "kernel", "boot", "wire_mtu")


def compare_paths(
    experiment: StrPath | None,
    *,
    runs: StrPath,
    progress: Listener | None,
    log: StrPath | None,
    here: bool,
    devices: tuple[str, ...] | list[str],
    peer: str | None,
    peer_device: str | None,
    peer_address: str | None,
    address: str | None,
    hostnames: bool,
    options: Mapping[str, object],
) -> ReportedRun:
    """Run an experiment and return its run: see `hwrx.compare`, which calls it."""
    wanted = Wanted(
        here=here,
        devices=_listed("devices", devices),
        peer=peer,
        peer_device=peer_device,
        peer_address=peer_address,
        address=address,
        log=None if log is None else Path(log),
    )
    more: dict[str, object] = {"topology": "hosts"} if wanted.explicit else {}
    described = describe_comparison(experiment, {**more, **options})
    return run_comparison(described, wanted, runs=runs, progress=progress, hostnames=hostnames)


def describe_comparison(file: StrPath | None, options: Mapping[str, object]) -> Experiment:
    """Return the experiment that a call describes: of a file, of keywords, or of a file with keywords over it.

    :raises UsageError: if a keyword is none, or has a value that it cannot have
    """
    for field, several in LISTED.items():
        if field in options and not isinstance(options[field], Mapping):  # a table of that name is one of a file
            raise UsageError(f"'{field}' is given as a list: {several}", remedy=f"{several}=[{options[field]!r}]")
    content: dict[str, Any] = dict(options)
    for field in ("paths", "sizes", "patterns", "waits", *BOOT_FIELDS):
        value = content.get(field)
        if isinstance(value, str | int):  # a list of one, as the command line has it
            content[field] = [value]
    return described_experiment(None if file is None else Path(file), content)


def run_comparison(
    experiment: Experiment,
    wanted: Wanted,
    *,
    runs: StrPath,
    progress: Listener | None,
    hostnames: bool,
    open_bed: measuring.BedOpener = testbed.opened_bed,
) -> ReportedRun:
    """Plan and measure an experiment as the command does, and open the run.

    :raises TrialError: if trials failed; the run is there, and named
    """
    tools.widen_path()
    listening = Listening(progress)
    layout = measuring.settle_plan(experiment, wanted, listening.stage)
    outcome, directory = measuring.measure_plan(layout, wanted, Path(runs), progress=listening, open_bed=open_bed)
    if outcome.failed:
        raise TrialError(
            f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}",
            remedy=f"each failure stands in {directory / 'log.txt'}; hwrx.load({str(directory)!r}) has the others",
        )
    return open_published(directory, hostnames=hostnames)


class Lab:
    """A topology that stands: in a guest that is booted once, in namespaces of this machine, or its loopback.

    A context manager: put up on entering, taken down on leaving. Enter it in a thread that lives as long as it does
    (the main one): QEMU is told to die with the thread that started it. One thing at a time is done in a lab.

    :param topology: "pair", "nic", "queues", "router", "wire", "netns" or "here"
    :param guests: of the topology "wire", sets of names: ("guest[1-3]", "sink"); (): "client" and "server"
    :param kernel: of the guest: a version ("6.12"), or the path of a vmlinuz; None: the lab's own
    :param clock: "icount" counts guest instructions, "wall" measures time, "auto" counts where the guest is emulated
    :param boot: words for the guest's kernel command line
    :param wire_mtu: of the wire, in bytes; None: 1500
    :param copies_priced: with instructions counted: what a copied byte costs, one a "byte" or one a "word"
    :param iommu: of the guest: "off", "passthrough", "lazy", "strict"; None: as the topology has it
    :param mitigations: of the guest's kernel, "off" or "auto"; None: its own default
    :param init_on_alloc: whether the guest's kernel zeroes what it allocates; None: its own default
    :param huge_pages: whether the guest reserves huge pages, for trials that want them
    :param runs: the folder for the directories of runs
    :param log: a file that gets all that the guest prints
    :param progress: called with a `Step` for each thing that is done
    """

    def __init__(
        self,
        topology: str = "pair",
        *,
        guests: Sequence[str] = (),
        kernel: str | None = None,
        clock: WantedClock = "auto",
        boot: Sequence[str] = (),
        wire_mtu: int | None = None,
        copies_priced: Priced = "byte",
        iommu: Iommu | None = None,
        mitigations: Mitigations | None = None,
        init_on_alloc: Literal[0, 1] | None = None,
        huge_pages: bool = False,
        runs: StrPath = "runs",
        log: StrPath | None = None,
        progress: Listener | None = None,
    ) -> None:
        self.topology = topology
        self._boot = Boot(
            copies_priced=copies_priced, iommu=iommu, mitigations=mitigations, init_on_alloc=init_on_alloc
        )
        self._runs = runs
        self._progress = progress
        self._wanted = Wanted(here=INSIDE, log=None if log is None else Path(log))
        own: dict[str, Any] = {
            "topology": topology,
            "kernel": kernel,
            "clock": clock,
            "boot": list(_listed("boot", boot)) or None,
            "wire_mtu": wire_mtu,
            "huge_pages": huge_pages or None,
            "clients": list(_listed("guests", guests)) or None,  # as if all sent to all: so many are there
            "traffic": "all-to-all" if guests else None,
            **{name: value for name, value in _booted_with(self._boot).items() if name != "copies_priced"},
        }
        self._experiment = experiments.from_options(name="lab", paths=["udp"], source="the lab", **own)
        self._stack = contextlib.ExitStack()
        self._bed: Testbed | None = None
        self._stands_still: StandstillError | None = None
        self._busy = threading.Lock()

    def __repr__(self) -> str:
        return f"<hwrx lab {self.topology}, {self.clock} clock, {'up' if self._bed is not None else 'not up'}>"

    def __enter__(self) -> Self:
        if self._bed is not None:
            raise UsageError("this lab is up already", remedy="enter it once")
        tools.widen_path()
        say = Listening(self._progress).stage
        settled = testbed.settle_clock(self._experiment, self._wanted, say)
        if settled.clock == "wall" and self._boot.copies_priced != "byte":
            raise UsageError(
                "what a copied byte costs is priced where instructions are counted",
                remedy='clock="icount", or leave out copies_priced',
            )
        self._experiment = settled
        self._bed = self._stack.enter_context(self._put_up(settled, say))
        return self

    def __exit__(self, *exc: object) -> None:
        self._bed = None
        self._stack.close()

    @property
    def clock(self) -> WantedClock:
        """What its figures are by: "wall" or "icount"; before it is up also "auto"."""
        return self._experiment.clock

    @property
    def kernel(self) -> str:
        """The version of the kernel that messages cross, as `uname -r` says it."""
        return self.run(["uname", "-r"]).stdout.strip()

    @property
    def guest(self) -> Guest | None:
        """The virtual machine; None if the topology is this machine's, or there are several: see `guests`."""
        bed = self._need_bed()
        return bed.guest if isinstance(bed, GuestBed) else None

    @property
    def guests(self) -> Mapping[str, Guest]:
        """The virtual machines of the topology "wire", by their names; of another topology there are none."""
        bed = self._need_bed()
        return bed.guests if isinstance(bed, GuestsBed) else {}

    @property
    def places(self) -> Mapping[Role, Place]:
        """Where the "client" and the "server" live: address, netdev, verbs device.

        :raises UsageError: if the guests of the topology "wire" have other names: each has its own place
        """
        bed = self._need_bed()
        if isinstance(bed, GuestsBed) and not set(ENDS) <= bed.guests.keys():
            names = list(bed.guests)
            raise UsageError(
                f"none of this lab's guests is the client or the server: they are {', '.join(names)}",
                remedy=f"lab.guests[{names[0]!r}].places['client'] is where '{names[0]}' lives",
            )
        return bed.places

    def compare(
        self,
        experiment: StrPath | None = None,
        *,
        runs: StrPath | None = None,
        progress: Listener | None = None,
        hostnames: bool = False,
        **options: object,
    ) -> ReportedRun:
        """Run an experiment in this lab and return its run; see `hwrx.compare`.

        With `anatomy=True` messages are taken apart in one guest more, whose emulator watches: this one goes on.

        :param experiment: a file; None: what the keywords describe
        :param runs, progress: instead of the lab's own
        :param options: fields of an experiment and of a setting
        :raises UsageError: if it wants another topology, clock, kernel or boot than the lab has
        :raises TrialError: if trials failed; the run is there, and named
        """
        described = self._described(experiment, options)
        with self._one_at_a_time():
            return run_comparison(
                described,
                self._wanted,
                runs=self._runs if runs is None else runs,
                progress=progress or self._progress,
                hostnames=hostnames,
                open_bed=self._opened,
            )

    def run(
        self, argv: Sequence[str], *, end: str | None = None, limit: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where the topology is, as root of the guest, and return what it printed and its exit code.

        Of a command in a guest standard error is mixed into `stdout`.

        :param argv: the command and its arguments
        :param end: "client" or "server": in the network namespace of that end, if it has one; of the topology "wire"
            the name of a guest, and without it the first
        :param limit: seconds of this machine's clock after which it is killed
        :raises UsageError: if there is no such command, or no such end
        :raises GuestError: if it does not end in time
        """
        bed = self._need_bed()
        ends = list(bed.guests) if isinstance(bed, GuestsBed) else ENDS
        if end is not None and end not in ends:
            raise UsageError(f"this topology has no end '{end}'", remedy=f"one of: {', '.join(ends)}")
        if not argv or isinstance(argv, str):
            raise UsageError("a command is a list of its words", remedy='lab.run(["ip", "link"])')
        with self._one_at_a_time():
            if isinstance(bed, GuestsBed):
                return bed.guests[end or ends[0]].run(argv, limit=limit)
            role = next((role for role in ENDS if role == end), None)
            if isinstance(bed, GuestBed):
                namespace = parse_environment(bed.guest.peers.get(role, "local")).netns if role else None
                return bed.guest.run(argv, limit=limit, netns=namespace)
            assert isinstance(bed, Bed)
            namespace = bed.namespace_of(role) if role else None
            return _run_here(argv, namespace, limit)

    def walk(self, *paths: str, size: int = 64, messages: int = walking.MESSAGES, wait: str = "event") -> list[Journey]:
        """Follow one message of each path from post to delivery, as `hwrx walk` does.

        :param paths: one or two, or more
        :param size: of the message, in bytes
        :param messages: of the trial that the one is taken from
        :param wait: how the reader waits
        :return: a journey for each path: its steps, the copies, where the payload lay
        :raises TrialError: if no message was seen at every stage
        :raises MachineError: if the kernel cannot be traced
        """
        plan = walking.describe_walk(paths, size=size, messages=messages, topology=self.topology)
        with self._one_at_a_time():
            return walking.walk_paths(plan, self._need_bed(), wait=wait, say=Listening(self._progress).stage)

    def _put_up(
        self, settled: Experiment, say: Callable[[str, str], None]
    ) -> contextlib.AbstractContextManager[Testbed]:
        if not INSIDE or self.topology == "here":
            return testbed.opened_bed(settled, self._wanted, say, boot=self._boot)
        testbed.check_wanted(settled, self._wanted)
        return _standing_bed(self.topology)

    # --- the testbed, handed to a run ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(
        self,
        experiment: Experiment,
        wanted: Wanted,
        say: Callable[[str, str], None],
        *,
        boot: Boot,
        held: Callable[[Guest], contextlib.AbstractContextManager[object]],
    ) -> Iterator[Testbed]:
        """Hand over the testbed that is up: see `hwrx.campaign.measuring.BedOpener`."""
        bed = self._need_bed()
        if not isinstance(bed, GuestBed):
            yield bed
            return
        if self._stands_still is not None:  # it is asked for once more because of that
            bed.guest.boot_again(self._stands_still)
            self._stands_still = None
            bed = self._bed = GuestBed(bed.guest, self._boot)
        with held(bed.guest):
            try:
                yield bed
            except StandstillError as error:
                self._stands_still = error
                raise

    def _need_bed(self) -> Testbed:
        if self._bed is None:
            raise UsageError("this lab is not up", remedy="with hwrx.Lab(…) as lab: …")
        return self._bed

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise UsageError("this lab is busy: another thread uses it", remedy="a lab for each thread")
        try:
            yield
        finally:
            self._busy.release()

    def _described(self, file: StrPath | None, options: Mapping[str, object]) -> Experiment:
        """Return the experiment that is asked for, with the lab's own in what is left open."""
        self._need_bed()
        own = self._experiment
        given = {name: value for name, value in options.items() if value is not None}
        for name in FIXED:
            mine, asked = getattr(own, name), given.pop(name, None)
            asked = _listed(name, asked) if name == "boot" and isinstance(asked, str | list) else asked
            if asked is not None and asked != mine and (name, asked) != ("clock", "auto"):
                raise self._refused(name, asked, mine)
        counting = own.clock == "icount"
        booted = {
            name: value for name, value in _booted_with(self._boot).items() if counting or name != "copies_priced"
        }
        lab_own = {name: value for name in FIXED if (value := getattr(own, name)) not in (None, ())}
        if file is None:
            found = describe_comparison(None, {**lab_own, **booted, **given})
        else:
            asked_for = experiments.load_experiment(Path(file))
            for name in FIXED:
                mine, asked = getattr(own, name), getattr(asked_for, name)
                if asked not in (mine, None, ()) and (name, asked) != ("clock", "auto"):
                    raise self._refused(name, asked, mine)
            booted = {name: value for name, value in booted.items() if name not in experiments.given_fields(asked_for)}
            found = describe_comparison(file, {**lab_own, **booted, **given})
        boots = planning.boots_of(planning.plan_run(found, testbed.setting_checker(found, self._wanted)))
        if isinstance(self._bed, GuestsBed) and (more := set(traffic.hosts_of(found)) - set(self._bed.guests)):
            raise UsageError(
                f"this lab has no guest {', '.join(sorted(more))}",
                remedy=f"clients and servers of: {', '.join(self._bed.guests)}; or hwrx.Lab(…, guests=…)",
            )
        if isinstance(self._bed, Booted) and (other := [boot for boot in boots if boot != self._boot]):
            raise UsageError(
                f"this lab was booted with {self._boot}, and the comparison wants {other[0]}",
                remedy="a lab for each: hwrx.Lab(…, init_on_alloc=…); or hwrx.compare, which boots all of them",
            )
        if "huge_pages" in experiments.given_fields(found) and "huge_pages" not in experiments.given_fields(own):
            raise UsageError("this lab's guest has no huge pages", remedy="hwrx.Lab(…, huge_pages=True)")
        return found

    def _refused(self, name: str, asked: object, mine: object) -> UsageError:
        return UsageError(
            f"this lab's {name} is {_words(mine)}, and the comparison wants {_words(asked)}",
            remedy=f"a lab of its own: hwrx.Lab(…, {name}=…), or leave it out",
        )


@contextlib.contextmanager
def _standing_bed(topology: str) -> Iterator[Testbed]:
    with topologies.at_hand(topology) as made:
        yield Bed(made.places, made.peers, {"wire": topologies.find_topology(topology).sentence})


def _booted_with(boot: Boot) -> dict[str, object]:
    """Return the fields of a setting that say what a guest was booted with; those that are None are not among them."""
    found = {name: getattr(boot, name) for name in boot.__struct_fields__}
    return {name: value for name, value in found.items() if value is not None}


def _listed(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Return what is given as a list; UsageError if it is a string, which would be one of letters."""
    if isinstance(value, str):
        raise UsageError(f"'{name}' is given as a list", remedy=f"{name}=[{value!r}]")
    return tuple(value)


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "empty"
    return "not chosen" if value is None else str(value)


def _run_here(argv: Sequence[str], namespace: str | None, limit: float) -> subprocess.CompletedProcess[str]:
    within = ["ip", "netns", "exec", namespace] if namespace else []
    if not within:
        tools.find_tool(argv[0])
    try:
        return subprocess.run(
            [*within, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GuestError(f"`{tools.shorten_text(argv)}` did not end within {limit:.0f} s") from None
    except OSError as error:
        raise MachineError(f"cannot run `{tools.shorten_text(argv)}`: {error.strerror}") from None
