"""The hooks' catalogue, and what is refused before anything is put up."""

from __future__ import annotations

import contextlib
import os
import socket
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from hwrx import paths
from hwrx.commands.hooks import costs_of
from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.machine import scheduling
from hwrx.paths import hooks

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


def test_the_shipped_experiment_sweeps_every_hook() -> None:
    file = Path(__file__).parents[2] / "lab/experiments/hooks.toml"
    assert tomllib.loads(file.read_text())["sweep"]["hook"] == [hook.name for hook in hooks.HOOKS]


def test_some_hooks_are_on_and_have_no_work() -> None:
    assert {hook.name for hook in hooks.HOOKS if not hook.works} == {"none", "tap-elsewhere", "forward"}


def test_a_hook_that_is_none_or_on_another_path_is_refused() -> None:
    paths.check_setting(Setting(path="udp", hook="tap"))
    with pytest.raises(UsageError, match="no hook 'nothing'"):
        paths.check_setting(Setting(path="udp", hook="nothing"))
    with pytest.raises(UsageError, match="kernel's sockets"):
        paths.check_setting(Setting(path="rdma-send", hook="tap"))


def test_a_hook_needs_a_device() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        contextlib.ExitStack() as stack,
        pytest.raises(UsageError, match="device"),
    ):
        hooks.put_hook("tap", sock, None, stack, first=True)


def test_a_trial_of_the_experiment_is_scheduled_in_batch_and_nothing_after_it() -> None:
    file = Path(__file__).parents[2] / "lab/experiments/hooks.toml"
    policy = tomllib.loads(file.read_text())["setting"]["schedule"]
    before = os.sched_getscheduler(0)
    with scheduling.scheduled_as(policy):
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before
    with scheduling.scheduled_as("normal"):
        assert os.sched_getscheduler(0) == before


class Made:
    """A run with two hooks in three repeats: one adds 100 ns to each round trip, the other nothing on the whole."""

    path = Path("made")

    def each_trial(self) -> Any:
        added = {"none": (0, 0, 0), "tap": (200, 202, 198), "forward": (2, -2, 0)}
        for hook, extra in added.items():
            for repeat, more in enumerate(extra):
                ns = np.full(9, 20_000 + 10 * repeat + more)
                yield {"status": "ok", "hook": hook, "repeat": repeat}, SimpleNamespace(ns=ns)


def test_a_cost_is_the_difference_of_pairs_with_its_interval() -> None:
    found = {cost.hook: cost for cost in costs_of(cast("Run", Made()))}
    tap, forward = found["tap"], found["forward"]
    assert tap.added == pytest.approx(100)
    assert tap.low is not None
    assert 95 < tap.low < 100
    assert tap.as_expected is True
    assert forward.low is not None
    assert forward.low < 0
    assert forward.as_expected is True
