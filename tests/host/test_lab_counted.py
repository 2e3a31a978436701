"""A lab that counts instructions: the command's figures to the digit, and a regression that was planted is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hwrx
from hwrx.errors import UsageError
from hwrx.report.reported import ReportedRun
from hwrx.scripting.lab import Lab

pytestmark = [pytest.mark.beside, pytest.mark.hwrx(needs=["root", "guest"])]

ASKED: dict[str, Any] = {"paths": ["udp", "tcp"], "sizes": [64], "messages": 60, "repeats": 3, "seed": 7}
HELD = """
import os, pytest

@pytest.mark.hwrx(topology="netns", clock="icount", boot=[os.environ.get("PLANTED", "init_on_alloc=0")])
def test_udp_costs_what_it_cost(hwrx_compare, hwrx_baseline):
    run = hwrx_compare(paths=["udp"], sizes=[1400], messages=40, repeats=1, seed=7, anatomy=True)
    assert run["udp", 1400] <= 1.01 * hwrx_baseline
"""
RULES = """
table ip planted {
    chain c {
        type filter hook input priority 0
        udp dport 1-65535 accept
    }
}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    runs = tmp_path_factory.mktemp("runs")
    with hwrx.Lab("netns", clock="icount", boot=["init_on_alloc=0"], runs=runs) as lab:
        yield lab


@pytest.fixture(scope="module")
def first(lab: Lab) -> ReportedRun:
    """What the command does in a guest of its own, as the first thing in this one."""
    return lab.compare(**ASKED)


def states(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figure of the commonest state of each path, µs: it repeats to the digit, how often it is met does not."""
    return {row["path"]: max(row["states"], key=lambda state: state["share"])["value"] for row in rows}


def test_the_figures_of_a_lab_are_those_of_the_command_in_another_boot(first: ReportedRun, tmp_path: Path) -> None:
    file = tmp_path / "asked.toml"
    file.write_text(
        'paths = ["udp", "tcp"]\nsizes = [64]\nrepeats = 3\nseed = 7\ntopology = "netns"\nclock = "icount"\n'
        'boot = ["init_on_alloc=0"]\n[setting]\nmessages = 60\n'
    )
    argv = [sys.executable, "-P", "-m", "hwrx", "compare", str(file), "--runs", str(tmp_path), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    command = json.loads(done.stdout)["rows"]
    ours = {found.row.path: max(found.row.states, key=lambda state: state.share).value for found in first}
    # where a packet lies in its slab, and what a connection has seen, is another in each boot: as the guide has it
    assert ours["udp"] == pytest.approx(states(command)["udp"], rel=3e-4)
    assert ours["tcp"] == pytest.approx(states(command)["tcp"], rel=5e-4)
    assert {found.unit for found in first} == {"instructions"}
    # of one run the figures are the same bits, whoever reads it
    again = hwrx.load(first.path)
    assert [found.p50 for found in again] == [found.p50 for found in first]
    assert [found.cost for found in again] == [found.cost for found in first]


def test_a_rule_of_netfilter_is_found_and_nothing_is_where_there_is_none(lab: Lab, first: ReportedRun) -> None:
    baseline = hwrx.Baseline(first)
    same = lab.compare(**ASKED)
    for path in ("udp", "tcp"):
        assert same[path, 64] <= 1.01 * baseline
    lab.run(["sh", "-c", f"nft -f - <<'END'{RULES}END"], end="client")
    try:
        slower = lab.compare(**ASKED)
    finally:
        assert lab.run(["nft", "delete", "table", "ip", "planted"], end="client").returncode == 0
    verdict = (1.01 * baseline).judge(slower["udp", 64], "<=")
    assert not verdict.holds
    assert "instructions against" in verdict.sentences()[0]
    assert slower["udp", 64] <= 1.1 * baseline


def test_the_guests_clock_is_the_count_and_is_not_calibrated(lab: Lab) -> None:
    said = lab.run(["dmesg"]).stdout
    assert "tsc: Detected 1000.000 MHz TSC" in said
    assert "Refined TSC" not in said
    found = lab.run(["cat", "/sys/devices/system/clocksource/clocksource0/available_clocksource"]).stdout.split()
    assert found == ["tsc"]


def test_a_failed_assertion_names_the_functions_that_moved(tmp_path: Path) -> None:
    """Messages of both sides were taken apart: a kernel that zeroes what it allocates has a function more."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_held.py").write_text(HELD)

    def session(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        return subprocess.run(
            argv, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False
        )

    saved = session("--hwrx-save")
    assert saved.returncode == 0, saved.stdout + saved.stderr
    held = session(PLANTED="init_on_alloc=1")
    assert held.returncode == 1, held.stdout + held.stderr
    said = re.search(r"functions that moved: (.*)", held.stdout)
    assert said is not None, held.stdout
    # memset_erms zeroes the buffer of a packet, an instruction a byte; nothing else takes as many
    name, more, unit = said[1].split(";")[0].split()
    assert (name, unit) == ("memset_erms", "instructions")
    assert int(more.replace(",", "")) > 1400
    assert "run: " in held.stdout


def test_a_walk_goes_through_the_kernel_of_the_lab(lab: Lab) -> None:
    (journey,) = lab.walk("udp")
    assert journey.path == "udp"
    assert len(journey.steps) > 10
    assert journey.copies == 2.0


def test_commands_run_in_the_guest_at_an_end_of_the_wire(lab: Lab) -> None:
    assert lab.guest is not None
    assert lab.run(["uname", "-r"]).stdout.strip() == lab.kernel == lab.guest.describe()["kernel"]
    assert "hwrx1" in lab.run(["ip", "-brief", "link"], end="server").stdout
    assert "hwrx1" not in lab.run(["ip", "-brief", "link"]).stdout


def test_another_boot_is_refused(lab: Lab) -> None:
    with pytest.raises(UsageError, match="the comparison wants copies priced by the word"):
        lab.compare(**ASKED, copies_priced=["byte", "word"])
    with pytest.raises(UsageError, match="has no huge pages"):
        lab.compare(**ASKED, huge_pages=True)


def test_a_guest_that_stands_still_is_booted_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an emulated one does now and then: the run goes on in another, and so does the lab."""
    from hwrx.errors import StandstillError
    from hwrx.runs import schedule

    went: list[Callable[..., None]] = []
    execute = schedule.execute_trials

    def stands_still_once(*args: Any, **words: Any) -> Any:
        if not went:
            went.append(execute)
            raise StandstillError("the guest stands still: made up")
        return execute(*args, **words)

    assert lab.guest is not None
    before = lab.guest.describe()["boot_s"]
    monkeypatch.setattr(schedule, "execute_trials", stands_still_once)
    run = lab.compare(paths=["udp"], sizes=[64], messages=60, repeats=1)
    assert run["udp"].p50 > 0
    assert lab.guest.describe()["boot_s"] != before
    assert lab.run(["true"]).returncode == 0
