"""Reports of drills, kept as JSON, and the page that holds several of them side by side."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import msgspec
from msgspec import Struct

from hwrx.drill.model import CHAPTERS, Drill, Result, Verdict
from hwrx.errors import StoreError

MARKS: dict[Verdict, str] = {"kept": "kept", "broken": "**broken**", "not tested": "not tested"}


class Report(Struct, frozen=True):
    """What one command found: the peer, its kernel where it has one, and a result for each drill."""

    peer: str  # hwrx, or a verbs device's driver
    kernel: str
    emulated: bool
    commit: str
    started: str
    command: list[str]
    results: list[Result]

    @property
    def label(self) -> str:
        """The peer in a column's head."""
        return self.peer if not self.kernel else f"{self.peer}, Linux {self.kernel}"


def load_report(path: Path) -> Report:
    """Read a report.

    :raises StoreError: if it is not one
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path} is not a report of drills: {error}", remedy="hwrx drill run --out FILE") from error


def answer_of(report: Report) -> str:
    """The report in a sentence."""
    counts = Counter(result.verdict for result in report.results)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])
    return f"{report.label}: of {len(report.results)} rules {words}."


def render_page(reports: Sequence[Report], drills: Mapping[str, Drill]) -> str:
    """Return the page in Markdown: a column of verdicts for each report, and what was seen where a rule is broken.

    :param drills: the rules by their names; of results without one only the name is known
    """
    lines = [
        "# The rules of the reliable transport, and who keeps them",
        "",
        "`hwrx drill page` writes this page from the reports of `hwrx drill run`; it is not edited.",
        "",
        *(f"- {answer_of(report)}" for report in reports),
        "",
        "| Peer | Command | Commit | Started |",
        "|---|---|---|---|",
        *(_row([report.label + (", emulated" if report.emulated else ""), f"`{_command(report)}`", report.commit,
                report.started]) for report in reports),
        "",
    ]  # fmt: skip
    found = [{result.name: result for result in report.results} for report in reports]
    for chapter in CHAPTERS:
        names = [name for name, drill in drills.items() if drill.chapter == chapter]
        names = [name for name in names if any(name in results for results in found)]
        if names:
            lines += [f"## {chapter}", "", *_table(names, drills, reports, found), ""]
    return "\n".join([*lines, *_deviations(reports, drills)]) + "\n"


def _table(
    names: Sequence[str], drills: Mapping[str, Drill], reports: Sequence[Report], found: Sequence[Mapping[str, Result]]
) -> list[str]:
    rows = [_row(["Rule", "Section", *(report.label for report in reports), "Its name"])]
    rows.append(_row(["---"] * (len(reports) + 3)))
    for name in names:
        verdicts = [MARKS[results[name].verdict] if name in results else "–" for results in found]
        section = drills[name].source.rpartition("volume 1, ")[2]
        rows.append(_row([_text(drills[name].rule), section, *verdicts, f"`{name}`"]))
    return rows


def _deviations(reports: Sequence[Report], drills: Mapping[str, Drill]) -> list[str]:
    """Return what was seen of every rule that was not kept."""
    lines = ["## What was seen instead", ""]
    for report in reports:
        seen = [result for result in report.results if result.verdict != "kept"]
        lines += [f"### {report.label}", ""]
        lines += [f"- `{each.name}` ({each.verdict}): {_text(each.words)}." for each in seen] or ["Every rule is kept."]
        lines.append("")
    return lines[:-1]


def _command(report: Report) -> str:
    # folders of the machine where it ran say nothing to who reads the page
    return shlex.join(PurePath(word).name if word.startswith("/") else word for word in report.command or ["hwrx"])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """Return words as Markdown shows them."""
    for mark in "\\`*_<>|[]":
        words = words.replace(mark, f"\\{mark}")
    return " ".join(words.split())
