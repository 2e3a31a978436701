"""`hwrx anatomy` on a real guest: its sums are the guest's clock, and the guest does not notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hwrx
from hwrx.anatomy.dissect import dissect_paths
from hwrx.errors import UsageError
from hwrx.report import anatomies, journeys
from hwrx.runs import experiment

pytestmark = pytest.mark.beside

HWRX = [sys.executable, "-m", "hwrx"]
PATHS = ["udp", "rdma-send"]


@pytest.fixture(autouse=True, scope="module")
def _needs(needs: Callable[..., None]) -> None:
    needs("guest")


@pytest.fixture(scope="module")
def dissected() -> dict[str, dict[str, Any]]:
    words = [*HWRX, "anatomy", *PATHS, "--messages", "100", "--copies", "--json"]
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


@pytest.mark.parametrize("path", PATHS)
def test_interrupts_and_address_spaces_are_seen_as_they_happen(dissected: dict[str, dict[str, Any]], path: str) -> None:
    machine = dissected[path]["machine"]
    assert machine["cr3_loads"] >= 2  # to the other agent and back
    handlers = {each["handler"] for each in machine["interrupts"]}
    assert handlers <= {"sysvec_apic_timer_interrupt", "exc_page_fault"}, "a veth has no interrupt"


def test_a_guest_with_other_boot_words_says_which_interrupts_and_devices_a_message_met() -> None:
    words = [*HWRX, "anatomy", "roce-send", "--iommu", "strict", "--mitigations", "off", "--messages", "20", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    assert (one["boot"]["iommu"], one["boot"]["mitigations"]) == ("strict", "off")
    machine = one["machine"]
    ours = [each for each in machine["interrupts"] if each["handler"].startswith("vfio_msihandler")]
    assert len({each["vector"] for each in ours}) == 2, "one of each NIC"
    for each in ours:
        assert set(each["messages"]) == set(range(one["messages"])), "in every message"
    bells = {touched["address"] & 0xFFFF for touched in machine["touched"] if touched["store"]}
    assert {0x3818, 0x2818} <= bells, "the NIC is told of what is to be sent (TDT) and where to receive (RDT)"
    assert all(touched["device"] for touched in machine["touched"])


@pytest.mark.parametrize(("path", "sender", "passes"), [("udp", 1.0, 0.0), ("rdma-send", 2.0, 1.0)])
def test_each_byte_is_followed_to_where_it_belongs(
    dissected: dict[str, dict[str, Any]], path: str, sender: float, passes: float
) -> None:
    """64 bytes are posted inline: the library copies them, and rxe copies them again."""
    copies = dissected[path]["copies"]
    assert (copies["messages"], copies["in_place"], copies["landed"]) == (6, 6, 0.0)
    assert (copies["sender"], copies["receiver"]) == (sender, 1.0)
    assert (copies["sender_passes"], copies["receiver_passes"]) == (passes, passes)
    by = {each["function"] for each in copies["handled"] if each["copied"]}
    # of kernel 6.1, and of 6.12
    if path == "udp":
        assert by in ({"copy_user_enhanced_fast_string"}, {"rep_movs_alternative"})
    else:
        assert len(by & {"memcpy_erms", "memcpy_orig"}) == 1


@pytest.mark.parametrize(
    ("path", "some"),
    [
        (
            "udp",
            ["sys_enter send", "ip_output", "enqueue_to_backlog", "udp_rcv", "copied to the user"],
        ),
        ("rdma-send", ["rxe_post_send", "rxe_xmit_packet", "rxe_rcv", "rxe_mr_copied", "ib_uverbs_comp_handler"]),
    ],
)
def test_stages_follow_each_other_and_add_up_to_the_message(
    dissected: dict[str, dict[str, Any]], path: str, some: list[str]
) -> None:
    stamps = dissected[path]["stamps"]
    for direction in ("there", "back"):
        way = [stamp["stage"] for stamp in stamps if stamp["direction"] == direction]
        assert [stage for stage in way if stage in some] == some
        assert (way[0], way[-1]) == ("posted", "delivered")
    assert sum(stamp["since"] for stamp in stamps) == sum(piece["instructions"] for piece in dissected[path]["pieces"])


def test_a_run_that_is_to_be_taken_apart_keeps_it_and_shows_it_beside_what_probes_counted(tmp_path: Any) -> None:
    words = ["--paths", "udp", "--clock", "icount", "--topology", "netns", "--size", "1000", "--trace", "--anatomy"]
    words += ["--messages", "20", "--repeats", "1", "--runs", str(tmp_path)]
    done = subprocess.run([*HWRX, "compare", *words], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "complete"
    (one,) = journeys.anatomy_of(run)
    assert one.label == run.rows[0]["label"]
    assert one.copies is not None and (one.copies.sender, one.copies.receiver) == (1.0, 1.0)
    _, table, stages = anatomies.anatomy_tables(run.summary())
    assert [cell[0] for cell in table.rows[0][1]][-1] == "they agree"
    added = {cells[0][0]: cells[5][0] for _, cells in stages.rows}
    assert int(added["udp_rcv"].replace(",", "")) > 0  # what a probe costs
    page = (tmp_path / "latest" / "report.html").read_text(encoding="utf-8")
    assert "Copies by physical address" in page and "data:image/svg+xml;base64," in page


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


def test_nothing_of_it_is_left_when_it_is_killed(tmp_path: Path) -> None:
    words = [*HWRX, "anatomy", "udp", "--messages", "10"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stderr is not None
        until = next((line for line in child.stderr if line.startswith("trial: ")), "")
        child.kill()
    assert until == "trial: udp 64 B\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_take_apart_is_said_before_anything_boots() -> None:
    plan = experiment.from_options(name="anatomy", paths=["udp"], patterns=["stream"], clock="icount", topology="netns")
    with pytest.raises(UsageError, match="the anatomy is of a ping-pong"):
        dissect_paths(plan, lambda stage, text: None)
