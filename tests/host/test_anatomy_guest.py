"""`hwrx anatomy` on a real guest: its sums are the guest's clock, and the guest does not notice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import hwrx
from hwrx.anatomy.dissect import dissect_paths
from hwrx.errors import UsageError
from hwrx.runs import experiment

pytestmark = pytest.mark.beside

HWRX = [sys.executable, "-m", "hwrx"]
PATHS = ["udp", "rdma-send"]


@pytest.fixture(autouse=True, scope="module")
def _needs(needs: Callable[..., None]) -> None:
    needs("guest")


@pytest.fixture(scope="module")
def dissected() -> dict[str, dict[str, Any]]:
    words = [*HWRX, "anatomy", *PATHS, "--messages", "100", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {one["path"]: one for one in json.loads(done.stdout)}


@pytest.mark.parametrize("path", PATHS)
def test_the_sum_over_functions_is_what_the_clock_says_of_each_message(
    dissected: dict[str, dict[str, Any]], path: str
) -> None:
    one = dissected[path]
    assert (one["exact"], one["awake"], one["lost"], one["beyond"]) == (one["messages"], one["messages"], 0, 0)
    assert one["messages"] >= 99  # the very first of all wakes the plugin
    assert sum(part["instructions"] for part in one["parts"]) == pytest.approx(one["instructions"])
    assert sum(one["layers"].values()) == pytest.approx(one["instructions"])
    assert one["named"] >= 0.999
    assert one["layered"] >= 0.98
    functions = {part["function"] for part in one["parts"]}
    assert {"entry_SYSCALL_64", "udp_rcv", "answering_server", "veth_xmit", "__schedule"} <= functions
    assert sum(piece["instructions"] for piece in one["pieces"]) == pytest.approx(2 * one["instructions"])
    assert one["calls"] > 500 and one["unmatched"] <= one["calls"] / 1000
    deepest = max((piece["stack"] for piece in one["pieces"]), key=len)
    assert len(deepest) > 20 and deepest[0]["of"] == "cython_ext.loops.pingpong"
    assert ("rxe_requester" in functions) == (path == "rdma-send")


def test_the_guest_does_not_notice(dissected: dict[str, dict[str, Any]], tmp_path: Any) -> None:
    """A message costs what it costs where nobody looks.

    What is common in one boot may be rare in another: the kind that most messages are of where nobody looks is looked
    for among all kinds that were seen.
    """
    words = ["--paths", ",".join(PATHS), "--clock", "icount", "--topology", "pair", "--size", "64"]
    words += ["--messages", "100", "--repeats", "1", "--runs", str(tmp_path)]
    done = subprocess.run([*HWRX, "compare", *words], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    for row in hwrx.load(tmp_path / "latest").summary().rows:
        plain = row.quantiles["p50"]
        assert plain is not None
        states = [state["instructions"] for state in dissected[row.path]["states"]]
        assert any(plain.value * 1000 == pytest.approx(state, rel=0.01) for state in states), (plain, states)


def test_nothing_to_take_apart_is_said_before_anything_boots() -> None:
    plan = experiment.from_options(name="anatomy", paths=["udp"], patterns=["stream"], clock="icount", topology="netns")
    with pytest.raises(UsageError, match="the anatomy is of a ping-pong"):
        dissect_paths(plan, lambda stage, text: None)
