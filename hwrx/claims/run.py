"""Driving the experiments: few boots, as each has what can stand side by side; each result is kept as it comes."""

from __future__ import annotations

import contextlib
import datetime
import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hwrx import __version__, disk
from hwrx.claims.inside import Line, Request, test
from hwrx.claims.model import Claim, Clock, Result
from hwrx.claims.session import Session
from hwrx.errors import GuestError, MachineError, StoreError, TrialError, UsageError
from hwrx.testbed import GuestBed
from hwrx.undo import unhurried

if TYPE_CHECKING:
    from hwrx.vm import Guest

RESULTS, MANIFEST, PAGE = "claims.jsonl", "manifest.json", "claims.html"
BOOTS: tuple[tuple[Clock, str], ...] = (("wall", "pair"), ("icount", "pair"), ("icount", "queues"))
NICS = ("nic", "queues")  # topologies whose hardware a guest has beside the one that it boots with
SILENCE = 300.0  # seconds that an experiment may take: an emulated guest on a busy machine
ORDER = ("none", "lo", "netns", "pair", "nic", "queues")
Say = Callable[[str], None]
Take = Callable[[Result], None]


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
        with disk.guarded(path):
            path.mkdir(parents=True, exist_ok=True)
            (path / RESULTS).touch()
        ledger = cls(path, about)
        ledger.note()
        return ledger

    def add(self, result: Result) -> None:
        """Keep a result."""
        with disk.guarded(self.path):
            disk.append(self.path / RESULTS, msgspec.json.encode(result) + b"\n")
        self.results.append(result)

    def note(self, **more: Any) -> None:
        """Put more into the manifest."""
        self._about |= more
        with disk.guarded(self.path):
            text = msgspec.json.format(msgspec.json.encode(self._about), indent=1)
            disk.replace(self.path / MANIFEST, text + b"\n")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        whole = len(self.results) == len(self._about["claims_planned"])
        status = "complete" if kind is None and whole else "interrupted" if kind is KeyboardInterrupt else "partial"
        self.note(status=status, ended=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """Read a ledger's directory; StoreError where it is none. A last line that was not finished is left out."""
    try:
        about: dict[str, Any] = msgspec.json.decode((path / MANIFEST).read_bytes())
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

    Where an experiment brings its guest to a standstill, that is its claim's reason, and another guest goes on.
    """
    from hwrx.vm import Guest

    machines = []
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
                log=log,
                limit=600 if clock == "icount" else 180,
                progress=lambda stage, text: say(f"{stage}: {text}"),
            ) as guest:
                about = guest.describe()
                machines.append(about)
                if clock == "icount":
                    _from_outside(guest, left, say, take)
                    break
                left = _survivors(left, about, functools.partial(_inside, guest, say), take)
    return machines


def _inside(guest: Guest, say: Say, group: Sequence[Claim], take: Take) -> None:
    """Run claims by a program in the guest. GuestError where it, or the guest, does not live to their end."""
    request = msgspec.json.encode(Request(list(group), "wall", guest.describe()["emulated"]))
    _follow(guest.lines("hwrx.claims.inside", request, silence=SILENCE, who="the experiment"), say, take)


def _survivors(
    group: Sequence[Claim], about: Mapping[str, Any], run: Callable[[Sequence[Claim], Take], None], take: Take
) -> Sequence[Claim]:
    """Run a group; return the claims behind one that the guest did not survive, which is told as not tested."""
    taken = 0

    def count(result: Result) -> None:
        nonlocal taken
        taken += 1
        take(result)

    try:
        run(group, count)
    except GuestError as error:
        if taken == len(group):
            raise
        why = str(error.args[0]).splitlines()[0]
        take(Result(group[taken], "not tested here", "", why, kernel=about["kernel"], emulated=about["emulated"]))
        return group[taken + 1 :]
    return ()


def _from_outside(guest: Guest, group: Sequence[Claim], say: Say, take: Take) -> None:
    """Run claims whose trials take place in a guest, and are driven and timed out from here."""
    about = guest.describe()
    with Session("icount", GuestBed(guest)) as session:
        for claim in group:
            say(f"testing: {claim.name}")
            take(test(claim, session, emulated=about["emulated"], kernel=about["kernel"]))


def here(claims: Sequence[Claim], say: Say, take: Take) -> None:
    """Run claims on this machine's own kernel, in a process of their own."""
    if counted := [claim.name for claim in claims if claim.clock == "icount"]:
        raise UsageError(
            f"'{counted[0]}' counts a guest's instructions", remedy="leave out --here, or name claims of the clock wall"
        )
    everything = [claim for _, _, group in sorted_for(claims) for claim in group]
    request = msgspec.json.encode(Request(everything))
    process = subprocess.Popen(
        [sys.executable, "-m", "hwrx.claims.inside"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us alone: we end it, once
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    errors: list[bytes] = []
    listener = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
    listener.start()
    try:
        process.stdin.write(request)
        process.stdin.close()
        _follow(process.stdout, say, take)
        if process.wait(10.0):
            listener.join(1.0)
            said = b"".join(errors).decode(errors="replace").strip().splitlines()
            raise TrialError(said[-1].removeprefix("hwrx: ") if said else "the experiments ended before their time")
    finally:
        if process.poll() is None:
            with unhurried(), contextlib.suppress(subprocess.TimeoutExpired):
                process.terminate()  # it takes down what it has put up
                process.wait(20.0)
        process.stdout.close()


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
