"""A stand-in for a lab whose runs are made up: for tests of what tests say of runs. Nothing here is measured.

PLANTED in the environment is by how much a round trip takes longer than 20,000 instructions, KERNEL the kernel's name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import made_runs
import numpy as np

import hwrx
from hwrx.control.messages import Role
from hwrx.control.places import Place
from hwrx.errors import GuestError
from hwrx.report.reported import ReportedRun
from hwrx.runs import store

LACKS = {"root": "", "namespaces": "", "guest": "", "nic": "no NIC here"}  # of the machine that these tests are on


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")


class StandIn:
    """In the place of `hwrx.Lab`: says on standard output when it is put up and taken down."""

    places: ClassVar[dict[Role, Place]] = {}
    kernel = "6.1"

    def __init__(self, topology: str, **words: Any) -> None:
        self._words = f"{topology} {words.get('kernel')}"

    def __enter__(self) -> Self:
        if "BROKEN" in os.environ:
            say("tried")
            raise GuestError("it did not come up")
        say(f"booted {self._words}")
        return self

    def __exit__(self, *exc: object) -> None:
        say("taken down")

    def compare(self, experiment: Path | None = None, *, runs: Path, **options: Any) -> ReportedRun:
        fields: dict[str, Any] = {"paths": ["udp"], "sizes": [64], "repeats": 2, "clock": "icount", "messages": 60}
        plan = made_runs.layout(**{**fields, **options})
        about = {**made_runs.MANIFEST, "machine": {"kernel": os.environ.get("KERNEL", "6.1.0-test")}}
        with store.Writer.create(runs, plan, about) as writer:
            for trial in plan.trials:
                writer.add_trial(
                    trial,
                    status="ok",
                    tally={"posted": 60, "delivered": 60, "bytes": 3840, "lost": 0},
                    sequence=np.arange(60, dtype=np.uint32),
                    ns=np.full(60, 20_000 + int(os.environ.get("PLANTED", "0")), np.int64),
                    service_ns=None,
                    extra={},
                )
        return hwrx.load(writer.path)
