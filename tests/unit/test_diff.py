"""Two runs held against each other."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import made_runs
import pytest

import hwrx
from hwrx.cli import main
from hwrx.errors import UsageError
from hwrx.report import diff


@pytest.fixture
def pair(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> tuple[pathlib.Path, pathlib.Path]:
    """The second is 20 % slower over rdma-send alone."""
    options: dict[str, Any] = {"repeats": 5, "patterns": ["pingpong", "stream"], "sizes": [64]}
    before = made_runs.make(tmp_path, seed=1, **options)
    monkeypatch.setitem(made_runs.SPEED, "rdma-send", made_runs.SPEED["rdma-send"] * 6 // 5)
    after = made_runs.make(tmp_path, seed=2, manifest={**made_runs.MANIFEST, "governor": "powersave"}, **options)
    return before, after


def test_what_changed_is_found_and_what_did_not_is_not(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
    found = diff.compare(*map(hwrx.load, pair))
    slower = [change for change in found.failures(0.1) if change.row.startswith("rdma-send")]
    assert {change.figure for change in slower} >= {"p50 µs", "p90 µs", "messages/s"}
    assert all(15 < abs(change.percent) < 25 for change in slower if change.figure == "p50 µs")
    assert not [change for change in found.failures(0.1) if change.row.startswith("udp")]
    assert found.failures(0.5) == []
    assert found.environment == [("governor", "–", "powersave")]


def test_getting_better_is_no_failure(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
    found = diff.compare(*map(hwrx.load, reversed(pair)))
    assert [change for change in found.changes if change.told_apart and change.row.startswith("rdma-send")]
    assert found.failures(0.1) == []


def test_a_run_against_itself_changed_nothing(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
    found = diff.compare(hwrx.load(pair[0]), hwrx.load(pair[0]))
    assert not any(change.told_apart for change in found.changes)
    assert found.environment == []
    assert "0 of 8 figures changed" in " ".join(diff.to_text(found).split())


def test_command_exits_with_1_where_a_figure_is_worse(
    pair: tuple[pathlib.Path, pathlib.Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = map(str, pair)
    assert main(["diff", before, after]) == 0
    assert "rdma-send 64 B pingpong" in " ".join(capsys.readouterr().out.split())
    assert main(["diff", before, after, "--fail-over", "10%"]) == 1
    assert "worse: rdma-send 64 B pingpong event p50 µs: +" in capsys.readouterr().err
    assert main(["diff", before, after, "--fail-over", "0.5"]) == 0
    capsys.readouterr()
    assert main(["diff", before, after, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"]
    assert main(["diff", before, after, "--fail-over", "much"]) == 2
    assert "give it as 5% or 0.05" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("manifest", "options", "words"),
    [
        ({"emulated": False}, {}, r"on an emulated machine, .* on a real one"),
        ({"machine": {"kernel": {"release": "6.12"}}}, {}, r"their kernels differ \(6.1.0-test, 6.12\)"),
        ({}, {"clock": "icount"}, r"one counts wall time, the other icount time"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(
    tmp_path: pathlib.Path, manifest: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    a = hwrx.load(made_runs.make(tmp_path))
    b = hwrx.load(made_runs.make(tmp_path, manifest={**made_runs.MANIFEST, **manifest}, **options))
    with pytest.raises(UsageError, match=words + r"[^\n]*\n.*--anyway"):
        diff.compare(a, b)
    assert diff.compare(a, b, anyway=True).changes


def test_settings_of_one_run_alone_are_named_and_none_in_common_is_an_error(tmp_path: pathlib.Path) -> None:
    a, b, c = (
        hwrx.load(made_runs.make(tmp_path, paths=["udp", *more], sizes=sizes, repeats=2))
        for more, sizes in (([], [64]), (["tcp"], [64]), ([], [128]))
    )
    assert diff.compare(a, b).only == [("b", "tcp 64 B pingpong event")]
    assert diff.compare(b, a).only == [("a", "tcp 64 B pingpong event")]
    with pytest.raises(UsageError, match="no setting in common"):
        diff.compare(a, c)
