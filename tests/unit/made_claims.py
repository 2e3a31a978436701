"""Makes results of claims, and runs of them, out of nothing, for tests of what reads them. Nothing here was tested."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import msgspec

from hwrx.claims import model, pictures
from hwrx.claims import run as driver
from hwrx.claims.model import Measurement, Result, Verdict

CLAIMS = model.every_claim()


def results() -> list[Result]:
    drawn = [
        pictures.Bars([("a <b>", 3.0), ("c", 0.0)], "count", [1]),
        pictures.Steps([pictures.Step("f", 0.0, 1, "softirq"), pictures.Step("g", 2.5, None, "reader")]),
        pictures.Lines({"one": [(1, 10), (1000, 20)], "two": [(1, 5)]}, "sockets", "ns", log=True),
        pictures.Cells({"off": [0, 0], "on": [0, 1]}, ["CPU 0", "CPU 1"]),
    ]
    whole = list(CLAIMS.values())[: len(drawn)]
    kinds = (*model.VERDICTS,)
    return [
        Result(claim, kinds[place], "words & figures", "", Measurement({"x": 1.5}, drawn[place]), 1.0, "6.1")
        for place, claim in enumerate(whole)
    ]


def make_claims(folder: pathlib.Path, kernel: str, verdicts: Mapping[str, Verdict]) -> pathlib.Path:
    """Write a run whose claims have these verdicts, by their names, and return its directory."""
    changed = [
        msgspec.structs.replace(each, kernel=kernel, verdict=verdicts[each.claim.name])
        for each in results()
        if each.claim.name in verdicts
    ]
    guest = {"qemu": "7.2", "emulated": True, "accelerator": "tcg", "cpus": 2, "clock": "wall"}
    about = {"machines": [guest], "host": {"commit": {"id": "abc1234def", "changed": False}}}
    command = ["/somewhere/bin/hwrx", "claims", "run", "--kernel", kernel]
    with driver.Ledger.create(folder, [each.claim for each in changed], command, about) as ledger:
        for each in changed:
            ledger.add(each)
    return folder
