"""What the repeats of a run renew, in words that stand under its tables."""

from __future__ import annotations

import pathlib

import made_runs
import msgspec

import hwrx
from hwrx.report import about
from hwrx.runs import renewal


def test_a_guest_keeps_its_boot_and_the_layout_of_memory_and_a_machine_draws_that_anew() -> None:
    guest = renewal.find_renewal(guest=True, bound=True, topology="pair")
    machine = renewal.find_renewal(guest=False, bound=True, topology="netns")
    assert "the boot of the guest" in guest.kept
    assert "the layout of the processes' memory" in guest.kept
    assert "the layout of their memory" in machine.renewed
    assert set(renewal.RENEWED) <= set(guest.renewed) & set(machine.renewed)


def test_cpus_that_the_scheduler_chose_are_not_kept() -> None:
    free = renewal.find_renewal(guest=False, bound=False, topology="netns")
    assert not any("CPU" in words for words in free.kept)
    assert any("CPUs" in words for words in free.renewed)


def test_a_report_says_what_its_intervals_leave_out_and_an_older_run_says_nothing(tmp_path: pathlib.Path) -> None:
    found = msgspec.to_builtins(renewal.find_renewal(guest=False, bound=True, topology="netns"))
    new = hwrx.load(made_runs.make(tmp_path / "new", manifest={"renewal": found})).summary()
    said = " ".join(about.about_row(new))
    assert "Each repeat had of its own the processes of both ends" in said
    assert "all repeats of the run shared the boot of the machine, the CPUs that the ends are bound to" in said
    old = hwrx.load(made_runs.make(tmp_path / "old")).summary()
    assert "Each repeat had" not in " ".join(about.about_row(old))
    assert renewal.describe_renewal({}) == ""


def test_where_the_ends_ran_stands_in_the_report(tmp_path: pathlib.Path) -> None:
    end = {"cpu": 3, "beside_irq": False}
    where = {"by": "hwrx", "client": end, "server": {**end, "cpu": 5}, "shared": "nothing"}
    summary = hwrx.load(made_runs.make(tmp_path, manifest={"placement": where})).summary()
    assert "The client ran on CPU 3, the server on CPU 5 (chosen by hwrx)." in about.about_row(summary)
