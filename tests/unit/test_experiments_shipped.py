"""Every experiment that is shipped can be read, asks a question, and makes trials."""

from __future__ import annotations

import pathlib

import pytest

from hwrx import experiment

SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "lab" / "experiments").glob("*.toml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_experiment_is_whole(file: pathlib.Path) -> None:
    read = experiment.load(file)
    assert read.name == file.stem
    assert read.question.splitlines()[0].endswith("?")
    layout = experiment.plan(read, lambda setting: None)
    assert layout.trials
    assert experiment.loads(experiment.dumps(layout.experiment), source="again") == layout.experiment


def test_first_experiment_is_short_and_has_a_p99() -> None:
    layout = experiment.plan(experiment.load(SHIPPED[0].parent / "first.toml"), lambda setting: None)
    assert len(layout.trials) < 110
    assert all(trial.setting.messages >= 1000 for trial in layout.trials)
    assert {t.setting.wait for t in layout.trials if t.setting.path == "rdma-write"} == {"poll", "event"}
    assert experiment.estimate(layout).seconds < 180
