"""A campaign's folder: which cells there are, how far each is, what was attempted where, and what came of it.

    campaigns/NAME/
      campaign.json            the cells, their states and attempts; written anew, whole, whenever one changes
      cells/001-6.1/
        experiment.toml        the cell's experiment, as `hwrx compare` takes it
        attempt-1/
          result.json          written last, whole: its figures, or the error that ended it
          log.txt              what it said, and what its guest printed in guest.txt
          2026…-NAME/          the run, as any other
        anatomy-1/             messages that were taken apart, if a figure moved: anatomy.json, result.json, log.txt

Whoever drives a campaign writes campaign.json; a cell writes beneath its attempt alone. So a cell that was under way
when its driver was killed is found again by its result.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from hwrx.campaign.cells import Axes, Cell
from hwrx.errors import StoreError, UsageError
from hwrx.host import disk
from hwrx.report.headline import Headline

MANIFEST = "campaign.json"
RESULT = "result.json"
EXPERIMENT = "experiment.toml"
FORMAT = 1
State = Literal["planned", "running", "done", "failed", "left out"]


class Result(Struct, frozen=True, kw_only=True):
    """What an attempt leaves. `run`: the run's folder, beneath the attempt's; "" if none was begun.

    `lasting`: whether the error would come again, however often the cell is tried. `machine`: the processor, and
    whether the guest was emulated; "" of what was measured before that was kept.
    """

    state: Literal["done", "failed"]
    run: str = ""
    figures: list[Headline] = []
    skipped: list[str] = []
    error: str = ""
    lasting: bool = False
    kernel: str = ""
    machine: str = ""


class Attempt(Struct, kw_only=True):
    """One try of a cell. `where`: this machine or a node. `job`: as the engine knows it. `error`: what ended it."""

    job: str
    began: str
    where: str = ""
    ended: str = ""
    error: str = ""


class Standing(Struct, kw_only=True):
    """How far a cell is."""

    cell: Cell
    state: State = "planned"
    reason: str = ""  # of a cell that failed or was left out
    attempts: list[Attempt] = []


class Content(Struct, kw_only=True):
    """What campaign.json has."""

    format: int
    name: str
    question: str
    asked: str  # fingerprint of experiment and axes: the same command goes on, another one does not
    axes: list[str]
    engine: str
    anatomy: bool  # whether messages of figures that move are taken apart
    started: str
    ended: str = ""
    cells: list[Standing]


class Book:
    """A campaign's folder, opened by whoever drives it, or reads what came of it."""

    def __init__(self, path: Path, content: Content) -> None:
        self.path = path
        self.content = content

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str,
        question: str,
        asked: str,
        axes: Sequence[str],
        anatomy: bool,
        cells: Sequence[Cell],
    ) -> Book:
        """Make the folder, with the experiment of each cell in it.

        :raises StoreError: if it cannot be written.
        """
        content = Content(
            format=FORMAT,
            name=name,
            question=question,
            asked=asked,
            axes=list(axes),
            engine="",
            anatomy=anatomy,
            started=time_now(),
            cells=[Standing(cell=cell) for cell in cells],
        )
        book = cls(path, content)
        with disk.guarded_writes(path):
            for cell in cells:
                folder = path / "cells" / cell.folder
                folder.mkdir(parents=True, exist_ok=True)
                (folder / EXPERIMENT).write_text(cell.experiment, encoding="utf-8")
        book.save()
        return book

    @classmethod
    def open(cls, path: Path) -> Book:
        """Open a campaign's folder.

        :raises StoreError: if there is none, or it was not written by this version or is damaged.
        """
        file = path / MANIFEST
        try:
            content = msgspec.json.decode(file.read_bytes(), type=Content)
        except FileNotFoundError:
            raise StoreError(f"there is no campaign in {path}", remedy="hwrx campaign run FILE makes one") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"{file} is not a campaign's: {error}", remedy="hwrx campaign run FILE --out ELSEWHERE"
            ) from None
        if content.format != FORMAT:
            raise StoreError(f"{file} is of format {content.format}, and this version reads {FORMAT}")
        return cls(path, content)

    @contextlib.contextmanager
    def driven(self) -> Iterator[None]:
        """Be the only one that drives the campaign.

        :raises StoreError: if another process does.
        """
        with disk.locked_directory(self.path):
            yield

    def save(self) -> None:
        """Write campaign.json whole."""
        text = msgspec.json.format(msgspec.json.encode(self.content), indent=1)
        with disk.guarded_writes(self.path):
            disk.replace_file(self.path / MANIFEST, text + b"\n")

    def folder(self, cell: Cell) -> Path:
        """Return a cell's folder."""
        return self.path / "cells" / cell.folder

    def attempt_folder(self, standing: Standing) -> Path:
        """Return the folder of a cell's last attempt."""
        return self.folder(standing.cell) / f"attempt-{max(1, len(standing.attempts))}"

    def result(self, standing: Standing) -> Result | None:
        """Return what a cell's last attempt left, None if it left nothing."""
        return read_result(self.attempt_folder(standing))

    def counts(self) -> dict[State, int]:
        """Return how many cells are in each state that any is in."""
        found: dict[State, int] = {}
        for standing in self.content.cells:
            found[standing.state] = found.get(standing.state, 0) + 1
        return found


def read_result(attempt: Path) -> Result | None:
    """Return what an attempt left, None if it left nothing yet, or what it left is not a result."""
    try:
        return msgspec.json.decode((attempt / RESULT).read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError):
        return None


def write_result(attempt: Path, result: Result) -> None:
    """Leave a result, whole."""
    with disk.guarded_writes(attempt):
        disk.replace_file(attempt / RESULT, msgspec.json.encode(result))


def fingerprint(text: str, axes: Axes) -> str:
    """Return what tells one campaign from another: its experiment without a seed that was drawn, and its axes."""
    return hashlib.sha256(text.encode() + b"\0" + msgspec.json.encode(axes)).hexdigest()[:16]


def need_same(book: Book, asked: str) -> None:
    """See that a folder holds the campaign that is asked for.

    :raises UsageError: if it holds another one.
    """
    if book.content.asked != asked:
        raise UsageError(
            f"{book.path} holds another campaign: its experiment or its cells are not those that are asked for",
            remedy="--out ELSEWHERE begins one there; hwrx campaign show prints what is there",
        )


def time_now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
