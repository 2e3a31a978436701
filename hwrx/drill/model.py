"""A drill as its file states it: both ends, what is posted, what becomes of which packet, and when the rule is kept."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from cython_ext.roce.packet import OPCODES
from cython_ext.roce.queue_pair import VERBS
from hwrx.claims.predicate import names_in
from hwrx.errors import UsageError

FOLDER = Path(__file__).resolve().parents[2] / "lab" / "drills"
# as the specification orders what it asks of a responder and of a requester
CHAPTERS = (
    "Whose packet", "Numbers", "Opcodes", "Lengths", "Memory", "Receiver not ready", "Answers", "Retrying",
    "Hearing answers", "Generating requests",
)  # fmt: skip
Verdict = Literal["kept", "broken", "not tested"]
Deed = Literal["drop", "repeat", "copy", "delay", "swap", "cut", "spoil", "flip", "trail", "change"]
End = Literal["us", "peer"]
STEP_VERBS = ("receive", *VERBS)


class Side(Struct, frozen=True, forbid_unknown_fields=True):
    """One end of the connection. Codes as the verbs interface has them (ibv_modify_qp)."""

    mtu: int = 1024  # bytes
    psn: int = 1000  # of its first request
    timeout: int = 18  # code: 1.07 s, longer than an emulated guest sleeps
    retry_count: int = 3
    rnr_retry: int = 7
    min_rnr_timer: int = 12  # code: 0.64 ms
    reads: int = 4  # READs and atomics outstanding
    access: tuple[str, ...] = ("local write", "remote write", "remote read", "remote atomic")  # of its memory
    receives: int = 8  # requests that are posted before anything happens
    receive_size: int = 4096  # bytes of each


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """Requests that one end posts; the next step comes when everything has come to rest, unless `wait` is false."""

    verb: str
    by: End = "us"
    size: int = 64  # bytes, at most 4096
    count: int = 1
    key: Literal["right", "wrong"] = "right"
    shift: int = 0  # bytes between the memory that is meant and the address that is named
    wait: bool = True
    until: Literal["", "RNR NAK"] = ""  # the step ends as soon as one has gone, in either direction


class Tamper(Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of a packet on its way: of the `nth` that fits, and as many after it as `times` says.

    Numbers (`psn`) count from the first packet of the end that makes the requests. `set` changes fields: see
    `hwrx.drill.tampering.FIELDS`. The ICRC is made right again, unless `icrc` says otherwise.
    """

    to: End
    do: Deed
    opcode: str = ""  # without RC_; several with | between
    kind: Literal["", "request", "answer", "ACK", "NAK", "RNR NAK", "first time", "again"] = ""
    psn: int | None = None
    message: int | None = None  # of its direction, from 1 on
    nth: int = 1
    times: int = 1  # 0: all that follow
    set: dict[str, int | str] = {}
    bytes: int = 0  # for cut
    packets: int = 1  # for delay: as many pass it
    ms: float = 20.0  # for delay and swap: if they do not come, it goes on after so long
    before: bool = False  # for copy: it goes in front of what it is copied from
    icrc: Literal["right", "wrong", "kept"] = "right"


class Drill(Struct, frozen=True, forbid_unknown_fields=True):
    """One rule.

    `holds` is a predicate over figures (`hwrx.drill.figures`); `says` is the sentence beside the verdict, filled with
    them. `needs` is a predicate too: if it does not hold, the peer was not put to the test. `mutant` breaks a peer for
    the tests: packets are changed between the peer and the place where it is observed; `mutant_peer` gives it other
    options.
    """

    rule: str
    source: str
    chapter: str
    holds: str
    says: str
    needs: str = "tampered >= 1"
    us: Side = Side()
    peer: Side = Side(psn=5000)
    step: list[Step] = []
    tamper: list[Tamper] = []
    mutant: list[Tamper] = []
    mutant_peer: dict[str, int | list[str]] = {}
    name: str = ""


class Result(Struct, frozen=True):
    """A verdict, and the figures that it rests on."""

    name: str
    verdict: Verdict
    words: str
    figures: dict[str, int | float | str | bool]
    seconds: float = 0.0


def load_drill(path: Path) -> Drill:
    """Read one file.

    :raises UsageError: if it is not a drill, and what is wrong in it
    """
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Drill)
    except (msgspec.MsgspecError, OSError) as error:
        raise UsageError(f"{path} is not a drill: {error}", remedy="lab/drills has examples") from None
    _check(path, found)
    return msgspec.structs.replace(found, name=path.stem)


def _check(path: Path, drill: Drill) -> None:
    def wrong(why: str) -> UsageError:
        return UsageError(f"{path} is not a drill: {why}", remedy="lab/drills has examples")

    if drill.chapter not in CHAPTERS:
        raise wrong(f"there is no chapter '{drill.chapter}'; there are: {', '.join(CHAPTERS)}")
    for step in drill.step:
        if step.verb not in STEP_VERBS or not 0 <= step.size <= 4096 or not 1 <= step.count <= 16:
            raise wrong(f"a step '{step.verb}' of {step.size} bytes, {step.count} times, cannot be")
    if not drill.step:
        raise wrong("nothing is posted in it")
    for tamper in (*drill.tamper, *drill.mutant):
        for name in filter(None, tamper.opcode.split("|")):
            if f"RC_{name}" not in OPCODES:
                raise wrong(f"there is no opcode '{name}'")
    for predicate in (drill.holds, drill.needs):
        names_in(predicate)


def every_drill(folder: Path = FOLDER) -> dict[str, Drill]:
    """Return all drills of a folder by their names, in the order of chapters.

    :raises UsageError: if there are none
    """
    found = [load_drill(path) for path in sorted(folder.glob("*.toml"))]
    if not found:
        raise UsageError(f"there are no drills in {folder}", remedy="run it from a clone of hwrx")
    found.sort(key=lambda drill: (CHAPTERS.index(drill.chapter), drill.name))
    return {drill.name: drill for drill in found}


def find_drills(names: Sequence[str], drills: Mapping[str, Drill]) -> list[Drill]:
    """Return the drills called `names`, or all; the path of a file of one's own will do too.

    :raises UsageError: if there is none of a name
    """
    chosen = []
    for name in names:
        if name in drills:
            chosen.append(drills[name])
        elif name.endswith(".toml") and Path(name).exists():
            chosen.append(load_drill(Path(name)))
        else:
            like = difflib.get_close_matches(name, drills, n=3, cutoff=0.4)
            meant = f"do you mean {' or '.join(like)}? " if like else ""
            raise UsageError(f"there is no drill '{name}'", remedy=f"{meant}hwrx drill list has all")
    return chosen or list(drills.values())
