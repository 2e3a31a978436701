"""The ledger as one HTML page: opens without a network, on a phone, in print, light and dark."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hwrx.claims.model import CHAPTERS, VERDICTS, Result
from hwrx.claims.pictures import NARROW, WIDE, to_svg
from hwrx.host import disk
from hwrx.report.page import render_template
from hwrx.report.provenance import flat_changes

MARKS = {"confirmed": "yes", "refuted": "no", "depends": "it depends", "not tested here": "not tested"}


def render_page(about: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Return the page; the same for the same ledger each time."""
    chapters = [*CHAPTERS, *sorted({each.claim.chapter for each in results} - set(CHAPTERS))]
    counts = Counter(result.verdict for result in results)
    return render_template(
        "claims.html",
        about=about,
        answer=answer_of(results),
        counts=[(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]],
        chapters=[
            (chapter, [_shown(each) for each in results if each.claim.chapter == chapter])
            for chapter in chapters
            if any(each.claim.chapter == chapter for each in results)
        ],
        labels=labels_of(results),
        lines=[(key, words) for key, words in flat_changes(dict(about)) if key != "claims_planned"],
    )


def write_page(path: pathlib.Path, about: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write the page to a file."""
    with disk.guarded_writes(path):
        disk.replace_file(path, render_page(about, results).encode())


def answer_of(results: Sequence[Result]) -> str:
    """The ledger in a sentence."""
    counts = Counter(result.verdict for result in results)
    kernels = " and ".join(sorted({result.kernel for result in results})) or "no kernel"
    words = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    return f"Of {len(results)} claims on packet reception, Linux {kernels} has " + ", ".join(words) + "."


def labels_of(results: Sequence[Result]) -> list[str]:
    """What every figure of the page is subject to."""
    found = []
    if any(each.emulated and each.clock == "wall" for each in results):
        found.append("emulated guest: its wall-clock times mean something against each other only; counts are exact")
    if any(each.clock == "icount" for each in results):
        found.append("clock icount: one virtual nanosecond is one guest instruction")
    return found


def _shown(result: Result) -> dict[str, Any]:
    claim, found = result.claim, result.measurement
    picture = found.picture if found else None
    figures = [(name, _words(value)) for name, value in sorted((found.figures if found else {}).items())]
    figures += sorted((found.absent if found else {}).items())
    return {
        "name": claim.name,
        "mark": MARKS[result.verdict],
        "class": result.verdict.split(maxsplit=1)[0],
        "claim": claim.claim,
        "question": claim.question,
        "says": claim.says,
        "verdict": result.verdict,
        "on": claim.verdict.on if result.verdict == "depends" else "",
        "words": result.words,
        "why": result.why,
        "wide": to_svg(picture, WIDE) if picture else "",
        "narrow": to_svg(picture, NARROW) if picture else "",
        "figures": figures,
        "notes": found.notes if found else [],
        "ruling": [(key, str(value)) for key, value in msgspec.to_builtins(claim.verdict).items() if value],
        "instrument": claim.instrument,
        "parameters": ", ".join(f"{key} = {value}" for key, value in claim.parameters.items()),
        "where": f"Linux {result.kernel}, {claim.topology}, clock {result.clock}"
        + (", emulated" if result.emulated else "")
        + f", {result.seconds:.1f} s",
    }


def _words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)
