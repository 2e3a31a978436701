"""Comparisons and labs by calls, on this machine's namespaces: the command's figures, and nothing left behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hwrx
from hwrx.cli import main
from hwrx.errors import HwrxError, MachineError, UsageError
from hwrx.host import netns
from hwrx.scripting.progress import Step
from hwrx.testing.labs import LabKeeper
from hwrx.testing.wishes import read_wish

SHORT: dict[str, Any] = {"paths": ["udp", "tcp"], "sizes": [64], "messages": 200, "repeats": 2}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = netns.namespace_names()
    yield
    assert netns.namespace_names() == before


def test_a_call_gives_the_figures_that_the_command_prints_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[Step] = []
    run = hwrx.compare(**SHORT, patterns=["pingpong", "stream"], topology="netns", runs=tmp_path, progress=steps.append)
    assert capfd.readouterr() == ("", "")  # a call prints nothing
    assert main(["report", str(run.path), "--to", "json"]) == 0
    told = json.loads((run.path / "summary.json").read_text())["rows"]
    assert len(told) == len(list(run)) == 4
    for row in told:
        found = run.cell(row["path"], row["size"], pattern=row["pattern"])
        if row["pattern"] == "pingpong":
            assert found.p50 == row["p50_us"] * 1000
        elif row["messages_per_s"] is not None:
            assert found.rate == row["messages_per_s"]
    assert steps[0].stage == "topology"
    assert (steps[-1].stage, steps[-1].done, steps[-1].total) == ("trial", 8, 8)
    assert run.path.parent == tmp_path


def test_an_experiment_file_is_taken_and_keywords_change_it(tmp_path: Path) -> None:
    file = tmp_path / "asked.toml"
    file.write_text('paths = ["udp"]\nsizes = [64, 1400]\ntopology = "netns"\nrepeats = 1\n[setting]\nmessages = 50\n')
    run = hwrx.compare(file, sizes=[100], runs=tmp_path)
    assert [(found.row.path, found.row.size) for found in run] == [("udp", 100)]
    assert run.name == "asked"


def test_a_lab_is_put_up_once_and_its_commands_run_at_an_end(tmp_path: Path) -> None:
    with hwrx.Lab("netns", runs=tmp_path) as lab:
        first = lab.compare(**SHORT)
        names = netns.namespace_names()
        second = lab.compare(**{**SHORT, "paths": "udp", "sizes": 1400})
        assert netns.namespace_names() == names
        assert (first.paths, second.paths) == (["udp", "tcp"], ["udp"])
        for end, address in (("client", "198.18.77.1"), ("server", "198.18.77.2")):
            done = lab.run(["ip", "-brief", "address"], end=end)  # type: ignore[arg-type]
            assert (done.returncode, address in done.stdout) == (0, True)
        assert "198.18.77.1" not in lab.run(["ip", "-brief", "address"]).stdout
        assert lab.run(["sh", "-c", "echo gone >&2; exit 3"], end="client").returncode == 3
        assert (lab.clock, lab.guest, lab.places["server"].netdev) == ("wall", None, "hwrx1")


def test_a_lab_on_the_loopback_needs_no_root(tmp_path: Path) -> None:
    with hwrx.Lab("here", runs=tmp_path) as lab:
        assert lab.compare(paths=["tcp"], messages=100, repeats=1)["tcp"].p50 > 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kernel": "6.12"}, "this lab's kernel is not chosen, and the comparison wants 6.12"),
        ({"topology": "pair"}, "this lab's topology is netns, and the comparison wants pair"),
        ({"clock": "icount"}, "this lab's clock is wall, and the comparison wants icount"),
        ({"boot": ["quiet"]}, "this lab's boot is empty, and the comparison wants quiet"),
        ({"boot": "quiet"}, "'boot' is given as a list\n  remedy: boot=['quiet']"),
        ({"wire_mtu": 4200}, "this lab's wire_mtu is not chosen, and the comparison wants 4200"),
        ({"init_on_alloc": 1}, "init_on_alloc is what a guest is booted with, and this machine is none"),
        ({"sizez": [64]}, "unknown key 'sizez'"),
        ({"size": 64}, "'size' is given as a list: sizes"),
    ],
)
def test_what_a_lab_is_not_is_refused_before_anything_is_measured(
    asked: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with hwrx.Lab("netns", runs=tmp_path / "runs") as lab:
        with pytest.raises(UsageError) as told:
            lab.compare(**{**SHORT, **asked})
        assert words in str(told.value)
    assert not (tmp_path / "runs").exists()


def test_a_file_for_another_topology_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pair.toml"
    file.write_text('paths = ["udp"]\ntopology = "pair"\n')
    with hwrx.Lab("netns") as lab, pytest.raises(UsageError, match="the comparison wants pair"):
        lab.compare(file)


def test_a_string_is_no_list_of_its_letters(tmp_path: Path) -> None:
    for given in ({"boot": "init_on_alloc=0"}, {"guests": "sink", "topology": "wire"}):
        with pytest.raises(UsageError, match=r"is given as a list\n  remedy: \w+=\['"):
            hwrx.Lab(**given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"is given as a list\n  remedy: devices=\['mlx5_0'\]"):
        hwrx.compare(paths=["rdma-send"], devices="mlx5_0", runs=tmp_path)  # type: ignore[arg-type]
    keeper = LabKeeper(tmp_path)
    with pytest.raises(UsageError, match=r"boot=\['quiet'\]"):
        keeper.lab_for(read_wish([{"clock": "icount", "boot": "quiet"}]), None)


def test_a_lab_says_how_it_is_used() -> None:
    lab = hwrx.Lab("netns")
    with pytest.raises(UsageError, match="this lab is not up"):
        lab.compare(paths=["udp"])
    with lab:
        with pytest.raises(UsageError, match="up already"):
            lab.__enter__()
        with pytest.raises(UsageError, match="a list of its words"):
            lab.run("ip link")
        with pytest.raises(UsageError, match="no end 'middle'"):
            lab.run(["true"], end="middle")  # type: ignore[arg-type]
        with pytest.raises(MachineError, match="there is no `no-such-program`"):
            lab.run(["no-such-program"])
        with pytest.raises(HwrxError, match="did not end within 0 s"):
            lab.run(["sleep", "60"], end="client", limit=0.2)
        with pytest.raises(UsageError, match="no path is given"):
            lab.walk()
    with pytest.raises(UsageError, match="this lab is not up"):
        _ = lab.places


def test_a_lab_does_one_thing_at_a_time() -> None:
    with hwrx.Lab("netns") as lab:
        begun = threading.Event()
        thread = threading.Thread(target=lambda: (begun.set(), lab.run(["sleep", "1"])))
        thread.start()
        begun.wait()
        with pytest.raises(UsageError, match="this lab is busy"):
            while thread.is_alive():
                lab.run(["true"])
            pytest.fail("the other thread was never in the lab at the same time")
        thread.join()


def test_an_error_leaves_no_namespace_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def stops(step: Step) -> None:
        if step.stage == "trial":
            raise RuntimeError("the listener's own")

    with pytest.raises(RuntimeError, match="the listener's own"):
        hwrx.compare(**SHORT, topology="netns", runs=tmp_path, progress=stops)
    with pytest.raises(UsageError, match="there is no 'upd'"):
        hwrx.compare(paths=["upd"], topology="netns", runs=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_only_what_there_is_is_imported_by_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Labs'"):
        _ = hwrx.Labs  # type: ignore[attr-defined]
