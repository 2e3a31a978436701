"""Driving the experiments: few boots, as each has what can stand side by side; each result is kept as it comes."""

from __future__ import annotations

import datetime
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hwrx.claims.inside import Line, Request, test
from hwrx.claims.model import Claim, Result
from hwrx.claims.session import Session
from hwrx.control.messages import Clock
from hwrx.errors import GuestError, MachineError, StoreError, UsageError
from hwrx.host import disk
from hwrx.host.interruption import hold_signals
from hwrx.host.waiting import wait_to_read
from hwrx.lab import inquest
from hwrx.lab.vm import Guest
from hwrx.runs.schema import MANIFEST
from hwrx.runs.testbed import GuestBed
from hwrx.version import __version__
from hwrx.wires.topology import TOPOLOGIES

if TYPE_CHECKING:
    pass

RESULTS = "claims.jsonl"
PAGE, MARKDOWN = "claims.html", "claims.md"
BOOTS: tuple[tuple[Clock, str], ...] = (("wall", "pair"), ("icount", "pair"), ("icount", "queues"))
# topologies whose hardware a guest has beside the one that it boots with
NICS = tuple(name for name, known in TOPOLOGIES.items() if known.hardware)
# Seconds that an experiment may take. The longest, copy-faults-pages-in, takes 48 in an emulated guest on an idle
# machine and 93 on a busy one; all others end within 30.
SILENCE = 240.0
QUIET = 60.0  # seconds after which a guest is asked whether it lives
# those without a guest's devices first
ORDER = ("none", "lo", *sorted(TOPOLOGIES, key=lambda name: TOPOLOGIES[name].where == "guest"))
Say = Callable[[str], None]
Take = Callable[[Result], None]


class Manifest(Struct, frozen=True):
    """What the manifest of a ledger must have, whatever else it has."""

    hwrx: str
    started: str
    status: str
    claims_planned: list[str]
    command: list[str] = []
    host: dict[str, Any] = {}
    machines: list[dict[str, Any]] = []


class Ledger:
    """The run directory of a ledger: a manifest, and a line of JSON for each result, appended as it comes."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self._about = about
        self.results: list[Result] = []

    @classmethod
    def create(
        cls, path: Path, planned: Sequence[Claim], command: Sequence[str], more: Mapping[str, Any] | None = None
    ) -> Ledger:
        """Make the directory; StoreError where it holds a ledger already. `more` goes into the manifest."""
        about = {
            "hwrx": __version__,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": "running",
            "claims_planned": [claim.name for claim in planned],
            "command": list(command),
            **(more or {}),
        }
        if (path / RESULTS).exists():
            raise StoreError(f"{path} holds a ledger already", remedy="choose another folder with --out")
        with disk.guarded_writes(path):
            path.mkdir(parents=True, exist_ok=True)
            (path / RESULTS).touch()
        ledger = cls(path, about)
        ledger.note()
        return ledger

    def add(self, result: Result) -> None:
        """Keep a result."""
        with disk.guarded_writes(self.path):
            disk.append_line(self.path / RESULTS, msgspec.json.encode(result) + b"\n")
        self.results.append(result)

    def note(self, **more: object) -> None:
        """Put more into the manifest."""
        self._about |= more
        with disk.guarded_writes(self.path):
            text = msgspec.json.format(msgspec.json.encode(self._about), indent=1)
            disk.replace_file(self.path / MANIFEST, text + b"\n")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        whole = len(self.results) == len(self._about["claims_planned"])
        ended = "interrupted" if kind is not None and issubclass(kind, KeyboardInterrupt) else "partial"
        status = "complete" if kind is None and whole else ended
        self.note(status=status, ended=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def load_results(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """Read a ledger's directory; StoreError where it is none. A last line that was not finished is left out."""
    try:
        about: dict[str, Any] = msgspec.json.decode((path / MANIFEST).read_bytes())
        msgspec.convert(about, Manifest)
        lines = (path / RESULTS).read_bytes().split(b"\n")[:-1]
        return about, [msgspec.json.decode(line, type=Result) for line in lines]
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path} holds no ledger of claims: {error}", remedy="hwrx claims run makes one") from None


def sorted_for(claims: Sequence[Claim]) -> list[tuple[Clock, str, list[Claim]]]:
    """Group claims by clock and by the topology that the guest boots with, and sort them by topology and instrument.

    One guest has the hardware of all topologies; but what counts instructions is driven from outside, where the guest
    boots with it.
    """
    groups: dict[tuple[Clock, str], list[Claim]] = {}
    for claim in sorted(claims, key=lambda each: (ORDER.index(each.topology), each.instrument, each.name)):
        base = "queues" if claim.topology == "queues" and claim.clock == "icount" else "pair"
        groups.setdefault((claim.clock, base), []).append(claim)
    return [(clock, base, groups[clock, base]) for clock, base in sorted(groups, key=lambda each: BOOTS.index(each))]


def in_lab(claims: Sequence[Claim], kernel: str | None, log: Path | None, say: Say, take: Take) -> list[dict[str, Any]]:
    """Run claims in virtual machines, as few boots as can be; return what is known of the machines.

    Where an experiment brings its guest to a standstill another guest goes on, and tries it once more if it is
    emulated: emulation itself may stand still (see `ftrace.Kept`). The second time it is its claim's reason.
    """
    again: set[str] = set()
    machines: list[dict[str, Any]] = []
    for clock, base, group in sorted_for(claims):
        left: Sequence[Claim] = group
        while left:
            wanted = {claim.topology for claim in left}
            with Guest(
                # rxe is there from the beginning; the NICs are put into the same machine, so that one boot does for all
                base,
                beside=[name for name in NICS if name in wanted and name != base],
                kernel=kernel,
                clock=clock,
                log=log and log.with_name(f"{log.stem}{f'-{len(machines) + 1}' if machines else ''}{log.suffix}"),
                limit=600 if clock == "icount" else 180,
                progress=lambda stage, text: say(f"{stage}: {text}"),
            ) as guest:
                about = guest.describe()
                machines.append(about)
                run = functools.partial(_from_outside if clock == "icount" else _inside, guest, say)
                left, why = find_survivors(left, about["kernel"], about["emulated"], run, take, again=again)
                if why:
                    about["ended"] = why
                    say(why)
    return machines


def _inside(guest: Guest, say: Say, group: Sequence[Claim], take: Take) -> None:
    """Run claims by a program in the guest. GuestError where it, or the guest, does not live to their end."""
    request = msgspec.json.encode(Request(list(group), "wall", guest.describe()["emulated"]))
    _follow(
        guest.lines("hwrx.claims.inside", request, silence=SILENCE, who="the experiment", ask_after=QUIET), say, take
    )


def find_survivors(
    group: Sequence[Claim],
    kernel: str,
    emulated: bool,
    run: Callable[[Sequence[Claim], Take], None],
    take: Take,
    *,
    again: set[str] | None = None,
) -> tuple[Sequence[Claim], str]:
    """Run a group; return the claims that are left where its guest or program did not survive one, and what was said.

    That one is told as not tested; but where there is a set `again` it is put into it, and is left too, the first time.
    """
    taken = 0

    def count(result: Result) -> None:
        nonlocal taken
        taken += 1
        take(result)

    try:
        run(group, count)
    except GuestError as error:
        if taken == len(group):
            return (), ""  # every claim has its verdict: that the machine would not end well is none of theirs
        name, why = group[taken].name, str(error.args[0]).splitlines()[0]
        if again is not None and emulated and name not in again:
            again.add(name)
            return group[taken:], f"{name}, which is tried again in another guest: {why}"
        take(Result(group[taken], "not tested here", "", why, kernel=kernel, emulated=emulated))
        return group[taken + 1 :], f"{name}: {why}"
    return (), ""


def _from_outside(guest: Guest, say: Say, group: Sequence[Claim], take: Take) -> None:
    """Run claims whose trials take place in a guest, and are driven and timed out from here."""
    about = guest.describe()
    with Session("icount", GuestBed(guest)) as session:
        for claim in group:
            say(f"testing: {claim.name}")
            result = test(claim, session, emulated=about["emulated"], kernel=about["kernel"])
            if result.verdict == "not tested here":
                guest.check(inquest.ANSWER)  # a guest that is gone would be the reason of all that follow
            take(result)


def run_here(claims: Sequence[Claim], say: Say, take: Take) -> None:
    """Run claims on this machine's own kernel, in a process of their own; another goes on where one dies."""
    if counted := [claim.name for claim in claims if claim.clock == "icount"]:
        raise UsageError(
            f"'{counted[0]}' counts a guest's instructions", remedy="leave out --here, or name claims of the clock wall"
        )
    left: Sequence[Claim] = [claim for _, _, group in sorted_for(claims) for claim in group]
    while left:
        left, _ = find_survivors(left, os.uname().release, False, functools.partial(_beside, say), take)


def _beside(say: Say, group: Sequence[Claim], take: Take) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "hwrx.claims.inside"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us alone: we end it, once
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    errors: list[bytes] = []
    listener = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
    listener.start()
    try:
        process.stdin.write(msgspec.json.encode(Request(list(group))))
        process.stdin.close()
        _follow(_lines(process.stdout.fileno()), say, take)
        if code := process.wait(10.0):
            listener.join(1.0)
            said = f"killed by signal {-code}" if code < 0 else b"".join(errors).decode(errors="replace")
            raise inquest.ended_early("the experiment", code, said)
    finally:
        if process.poll() is None:
            with hold_signals():
                process.terminate()  # it takes down what it has put up
                try:
                    process.wait(20.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        process.stdout.close()
        listener.join(1.0)
        if not listener.is_alive():  # what the process started may hold the other end
            process.stderr.close()


def _lines(descriptor: int) -> Iterator[bytes]:
    rest = b""
    while wait_to_read([descriptor], SILENCE):
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    raise GuestError(f"the experiment said nothing for {SILENCE:.0f} s")


def _follow(lines: Iterable[bytes], say: Say, take: Take) -> None:
    """Pass on what the experiments say."""
    for line in lines:
        if not line.startswith(b"{"):
            continue  # something that a tool printed
        try:
            said = msgspec.json.decode(line, type=Line)
        except msgspec.MsgspecError as error:
            raise MachineError(f"the experiments sent a line that is none of theirs: {error}") from None
        if said.result is not None:
            take(said.result)
        else:
            say(f"testing: {said.starting}")
