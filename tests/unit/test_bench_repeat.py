"""What lab/bench/repeat calls alike."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

import pytest

FILE = pathlib.Path(__file__).parents[2] / "lab/bench/repeat.py"


@pytest.fixture(scope="module")
def repeat() -> Any:
    spec = importlib.util.spec_from_file_location("bench_repeat", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_repeat"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([11824.0, 11824.0, 11829.0], True),
        ([11824.0, 11835.0], False),
        ([11.824, 11.834], True),
        ([11.824, 11.836], False),
        ([9999.0, 10000.0], True),
        ([0.0, 0.0], True),
        ([0.0, 1e-9], False),
        ([5.0, float("inf")], False),
    ],
)
def test_alike_is_to_the_last_digit(repeat: Any, values: list[float], same: bool) -> None:
    assert repeat.alike(values, 4) is same


def test_states_are_held_each_against_its_like(repeat: Any) -> None:
    assert repeat.states_alike([[11824.0, 13057.0], [13057.0, 11824.0]], 4)
    assert repeat.states_alike([[11824.0], [13057.0, 11824.0], [13058.0]], 4)
    assert not repeat.states_alike([[11824.0], [13057.0]], 4)
    assert not repeat.states_alike([[11824.0, 12500.0], [11824.0]], 4)
    assert not repeat.states_alike([[11824.0], []], 4)


def test_a_row_that_a_run_lacks_differs(repeat: Any) -> None:
    runs = [{"udp": ("cost", [11824.0]), "tcp": ("cost", [9.0])}, {"udp": ("cost", [11825.0])}]
    rows = {row.row: row for row in repeat.held("first", runs, 4)}
    assert rows["udp"].alike
    assert not rows["tcp"].alike
    assert rows["tcp"].values == [[9.0], []]


def test_one_run_is_refused(repeat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        repeat.main(["--runs", "1"])
    assert "two runs" in capsys.readouterr().err
