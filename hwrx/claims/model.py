"""A claim as its file states it, and what a measurement and a verdict on it are."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from hwrx.claims.pictures import Picture
from hwrx.claims.ranges import check_range
from hwrx.control.messages import Clock
from hwrx.errors import UsageError
from hwrx.wires.topology import ON_ONE_KERNEL

FOLDER = Path(__file__).resolve().parents[2] / "lab" / "claims"
if TYPE_CHECKING:
    Topology = str
else:
    Topology = Literal[("none", "lo", *ON_ONE_KERNEL)]  # none: no wire at all; lo: this machine's loopback
Verdict = Literal["confirmed", "refuted", "depends", "not tested here"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "depends", "not tested here")


class Ruling(Struct, frozen=True, forbid_unknown_fields=True):
    """When the claim counts as what. Each is a predicate over the figures of the measurement (see `predicate`).

    `needs` says which measurement can decide at all; else the claim is not tested. `confirmed` is asked first, then
    `depends`, whose words `on` say what it depends on; where neither holds the claim is refuted. `figure` is the
    sentence that is printed beside the verdict: Python's format fields are filled with figures and parameters.
    """

    confirmed: str
    figure: str
    needs: str = ""
    depends: str = ""
    on: str = ""


Parameter = bool | int | float | str | list[int] | list[str]  # what an instrument is told


class Claim(Struct, frozen=True, forbid_unknown_fields=True):
    """One claim. `parameters` go to the instrument; those that are not named have the instrument's defaults."""

    claim: str
    question: str
    says: list[str]
    instrument: str
    verdict: Ruling
    topology: Topology = "netns"
    clock: Clock = "wall"
    name: str = ""
    chapter: str = "Elsewhere"
    parameters: dict[str, Any] = {}


class Measurement(Struct, frozen=True):
    """What an instrument found: named figures, those that it could not find with the reason, and one picture."""

    figures: dict[str, float | int | bool | str | None]
    picture: Picture | None = None
    absent: dict[str, str] = {}
    notes: list[str] = []


class Result(Struct, frozen=True):
    """A verdict and all that it rests on. `why` is for what was not tested; `emulated` says what wall time is worth."""

    claim: Claim
    verdict: Verdict
    words: str
    why: str = ""
    measurement: Measurement | None = None
    seconds: float = 0.0
    kernel: str = ""
    clock: Clock = "wall"
    emulated: bool = False


def load_claim(path: Path) -> Claim:
    """Read one claim's file; UsageError names what is wrong in it."""
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Claim)
    except (msgspec.MsgspecError, OSError) as error:
        raise UsageError(f"{path} is no claim: {error}", remedy="lab/claims has examples") from None
    return msgspec.structs.replace(found, name=path.stem)


def every_claim(folder: Path = FOLDER) -> dict[str, Claim]:
    """Return all claims of a folder by their names, in the order of chapters that the page has."""
    found = [load_claim(path) for path in sorted(folder.glob("*.toml"))]
    if not found:
        raise UsageError(f"there are no claims in {folder}", remedy="run it from a clone of hwrx")
    order = {chapter: number for number, chapter in enumerate(CHAPTERS)}
    found.sort(key=lambda claim: (order.get(claim.chapter, len(order)), claim.name))
    return {claim.name: claim for claim in found}


CHAPTERS = ("The NIC", "Interrupts and polling", "The stack", "Whose packet", "To the program", "RDMA", "Memory")


def find_claim(names: Sequence[str], claims: Mapping[str, Claim]) -> list[Claim]:
    """Return the claims called `names`, or all; a path of a file of one's own will do too."""
    chosen = []
    for name in names:
        if name in claims:
            chosen.append(claims[name])
        elif name.endswith(".toml") and Path(name).exists():
            chosen.append(load_claim(Path(name)))
        else:
            raise UsageError(
                f"there is no claim '{name}'", remedy=f"{near_names(name, claims)}; hwrx claims list has all"
            )
    return chosen or list(claims.values())


def with_parameters(claim: Claim, settings: Sequence[str], known: Mapping[str, Any]) -> Claim:
    """Return the claim with `key=value` settings in the place of its own; `known` are the instrument's, with defaults.

    UsageError where the instrument has no such parameter, or the value is not of the parameter's kind.
    """
    parameters = dict(claim.parameters)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"'{setting}' sets nothing", remedy="--set size=1400")
        if key not in known:
            raise UsageError(
                f"'{claim.name}' has no parameter '{key}'",
                remedy=f"{near_names(key, known)}; it has: {', '.join(known) or 'none'}",
            )
        parameters[key] = _value(key, text, parameters.get(key, known[key]))
        check_range(claim.name, key, parameters[key])
    return msgspec.structs.replace(claim, parameters=parameters)


def _value(key: str, text: str, example: Parameter) -> Parameter:
    """Read a value of the kind that `example` has."""
    kind = type(example)
    try:
        if isinstance(example, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if isinstance(example, list):
            parts = [part for part in text.split(",") if part]
            return [int(part) for part in parts] if example and isinstance(example[0], int) else parts
        if isinstance(example, int):
            return int(text.replace("_", ""))
        return float(text) if isinstance(example, float) else text
    except (ValueError, KeyError):
        words = {bool: "true or false", int: "a whole number", float: "a number", list: "values with commas between"}
        raise UsageError(
            f"{key} is to be {words.get(kind, kind.__name__)}, and '{text}' is none", remedy=f"--set {key}={example}"
        ) from None


def near_names(name: str, known: Collection[str]) -> str:
    """Say which known names are like one that is not known."""
    like = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    like += [other for other in known if name and name in other and other not in like][:2]
    return f"do you mean {' or '.join(like)}?" if like else "none is like it"
