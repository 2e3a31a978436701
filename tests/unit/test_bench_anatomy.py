"""What lab/bench/anatomy holds against its goals."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from hwrx.anatomy.model import Dissection, Interrupt, MachineEvents


def load_bench() -> ModuleType:
    file = Path(__file__).parents[2] / "lab/bench/anatomy.py"
    spec = importlib.util.spec_from_file_location("bench_anatomy", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_anatomy"] = module
    spec.loader.exec_module(module)
    return module


BENCH = load_bench()
GOOD = Dissection(
    label="udp", path="udp", size=64, whole=False, messages=999, instructions=12_000.0, named=1.0, layered=1.0,
    awake=999, exact=999, beyond=0, halted=0.0, lost=0, parts=[], layers={}, states=[], pieces=[], calls=2000,
    unmatched=2, stamps=[], machine=MachineEvents(2.0, 0.0, [Interrupt(None, "tick", [5, 5, 9])], []),
)  # fmt: skip


def test_what_reaches_every_goal_falls_short_in_none_and_interrupted_messages_are_counted_once() -> None:
    found = BENCH.judge(GOOD, "6.1", 1000)
    assert (found.short, found.interrupted) == ([], 2)


@pytest.mark.parametrize(
    ("changed", "short"),
    [
        ({"messages": 998}, "messages"),
        ({"exact": 998}, "sum = clock"),
        ({"beyond": 1}, "sum = clock"),
        ({"lost": 1}, "sum = clock"),
        ({"named": 0.9989}, "named"),
        ({"layered": 0.9799}, "in a layer"),
        ({"unmatched": 3}, "unmatched returns"),
    ],
)
def test_what_falls_short_is_named(changed: dict[str, Any], short: str) -> None:
    assert BENCH.judge(msgspec.structs.replace(GOOD, **changed), "6.1", 1000).short == [short]
