"""A run that was written in format 1, by commit 0e64dfc: it says today what it said then.

tests/data/format-1 is what `hwrx compare --paths udp,tcp --size 64 --messages 200 --repeats 2 --topology netns --trace
--seed 7` wrote (of its manifest only the host's name and the folder have been changed), tests/data/format-1.json what
that commit's own reader and report made of it.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

import hwrx
from hwrx.cli import main
from hwrx.timelines.tables import stage_numbers

DATA = pathlib.Path(__file__).parents[1] / "data"
SAID = json.loads((DATA / "format-1.json").read_text())


@pytest.fixture
def run(tmp_path: pathlib.Path) -> hwrx.runs.reading.Run:  # type: ignore[name-defined]
    shutil.copytree(DATA / "format-1", tmp_path / "old")
    return hwrx.load(tmp_path / "old")


def test_its_samples_are_the_same(run) -> None:  # type: ignore[no-untyped-def]
    trials = {}
    for row, samples in run.each_trial():
        trials[f"{row['label']} {row['repeat']}"] = {
            "samples": len(samples.ns),
            "sum_ns": int(samples.ns.sum()),
            "median_ns": float(np.median(samples.ns)),
            "delivered": row["delivered"],
            "seq": int(samples.sequence.sum()),
            "cpu": row["cpu_ns_client_user"],
        }
    assert trials == SAID["trials"]
    assert run.status == "complete"
    assert run.manifest["format"] == 1


def test_its_report_gives_the_same_figures(run) -> None:  # type: ignore[no-untyped-def]
    rows = {row.label: row for row in run.summary().rows}
    assert rows.keys() == SAID["rows"].keys()
    for name, said in SAID["rows"].items():
        assert rows[name].samples == said["samples"]
        assert rows[name].quantiles["p50"].value == pytest.approx(said["p50_us"], rel=1e-12)


def test_its_stages_are_known_by_name(run) -> None:  # type: ignore[no-untyped-def]
    table = run.table("stages")
    assert table is not None
    assert (stage_numbers(table) > 0).all(), "today's catalogue has every stage of then"
    columns = [table[name].cast("string").to_pylist() for name in ("path", "name")]
    path, stage = (np.array(values, dtype=object) for values in columns)
    ns = table["ns"].to_numpy()
    for key, said in SAID["stages"].items():
        mine = path == key.split()[0]
        messages = (mine & (stage == "posted")).sum()
        for name, (count, mean, median) in said.items():
            values = ns[mine & (stage == name)]
            found = [len(values), values.sum() / messages, np.median(values)]
            assert found == pytest.approx([count, mean, median], rel=1e-12), name


def test_its_whole_report_is_written(run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    wanted = ["--to", "table", "--to", "html", "--to", "json", "--out", str(tmp_path / "out")]
    assert main(["report", str(run.path), *wanted]) == 0, capsys.readouterr().err
    assert "stage" in (tmp_path / "out" / "report.html").read_text()
