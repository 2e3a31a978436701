"""The ledger as one Markdown page, of one run or of several side by side: what a repository keeps of them."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hwrx.claims.model import CHAPTERS, Result
from hwrx.claims.page import answer_of, labels_of

Run = tuple[Mapping[str, Any], Sequence[Result]]  # what a run's directory says of itself, and its results

_NOT_RUN = "–"


def render_markdown(runs: Sequence[Run]) -> str:
    """Return the page of one or more runs, the same text each time.

    :param runs: at least one; each has a column of verdicts, headed by its kernel. The column "What was seen" is of
        the first run that has the claim.
    """
    found = [{result.claim.name: result for result in results} for _, results in runs]
    names = list(dict.fromkeys(name for results in found for name in results))
    first = {name: next(results[name] for results in found if name in results) for name in names}
    chapters = [*CHAPTERS, *sorted({each.claim.chapter for each in first.values()} - set(CHAPTERS))]
    lines = [*_opening(runs), ""]
    for chapter in chapters:
        chosen = sorted(name for name in names if first[name].claim.chapter == chapter)
        if chosen:
            lines += [f"## {chapter}", "", *_table(chosen, first, found), ""]
    return "\n".join(lines)


def _opening(runs: Sequence[Run]) -> list[str]:
    """Return title, answers, and for each run what it takes to repeat it."""
    lines = [
        "# What is said of packet reception, and what is so",
        "",
        "`hwrx claims page --to md` writes this page from the directories of runs; it is not edited.",
        "",
        *(f"- {answer_of(results)}" for _, results in runs),
        *(
            f"- {_sentence(label)}"
            for label in dict.fromkeys(label for _, results in runs for label in labels_of(results))
        ),
        "",
        "| Command | Kernel | Machine | Commit | Started | State |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [_row(_origin(about, results)) for about, results in runs]


def _origin(about: Mapping[str, Any], results: Sequence[Result]) -> list[str]:
    """Return the command, kernels, machines, commit, time and state of a run, as its manifest has them."""
    guests = [_machine(each) for each in about.get("machines", [])]
    command = about.get("command") or ["hwrx"]
    commit = (about.get("host") or {}).get("commit") or {}  # None if hwrx was not run from a clone
    return [
        f"`{shlex.join([pathlib.PurePath(command[0]).name, *command[1:]])}`",
        ", ".join(_kernels(results)) or _NOT_RUN,
        "; ".join(dict.fromkeys(guests)) or "this machine",
        f"{commit['id'][:7]}{', and changes' if commit.get('changed') else ''}" if commit else "?",
        str(about.get("started", "?")),
        str(about.get("status", "?")),
    ]


def _machine(guest: Mapping[str, Any]) -> str:
    how = "emulated" if guest.get("emulated") else guest.get("accelerator", "?")
    cpus = "one CPU" if guest.get("cpus") == 1 else f"{guest.get('cpus', '?')} CPUs"
    return f"QEMU {guest.get('qemu', '?')}, {how}, {cpus}, clock {guest.get('clock', '?')}"


def _kernels(results: Sequence[Result]) -> list[str]:
    return sorted({result.kernel for result in results if result.kernel})


def _table(names: Sequence[str], first: Mapping[str, Result], found: Sequence[Mapping[str, Result]]) -> list[str]:
    """Return a chapter's table: the claim, a verdict for each run, what was seen, and the claim's name."""
    heads = [", ".join(_kernels(list(results.values()))) or _NOT_RUN for results in found]
    rows = [_row(["What is said", *heads, "What was seen", "Its name"]), _row(["---"] * (len(heads) + 3))]
    for name in names:
        result = first[name]
        verdicts = [results[name].verdict if name in results else _NOT_RUN for results in found]
        rows.append(_row([_text(result.claim.claim).rstrip("."), *verdicts, _seen(result), f"`{name}`"]))
    return rows


def _seen(result: Result) -> str:
    """Return the sentence beside a verdict, or the reason why there is none."""
    on = result.claim.verdict.on if result.verdict == "depends" else ""
    return " ".join(_sentence(_text(words)) for words in (on and f"on {on}", result.words or result.why) if words)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _text(words: str) -> str:
    """Return words as Markdown shows them: none is a tag, a cell's end, emphasis or a line of its own."""
    for mark in "\\`*_<>|[]":
        words = words.replace(mark, f"\\{mark}")
    return " ".join(words.split())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
