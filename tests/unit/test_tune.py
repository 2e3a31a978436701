"""What spoils a measurement, on made-up machines: found, switched off, and put back to the letter."""

from __future__ import annotations

import json
import pathlib

import pytest

from hwrx.cli import main
from hwrx.errors import MachineError, UsageError
from hwrx.machine import tune

CPU = "sys/devices/system/cpu"


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> pathlib.Path:
    files = {
        f"{CPU}/intel_pstate/no_turbo": "0",
        f"{CPU}/smt/control": "on",
        "proc/sys/kernel/nmi_watchdog": "1",
        "proc/sys/kernel/numa_balancing": "1",
        "proc/loadavg": "0.10 0.1 0.1 1/100 1\n",
        "proc/cpuinfo": "flags\t: fpu tsc\n",
        "proc/irq/40/smp_affinity_list": "0-1",
        "sys/class/net/eth0/device/msi_irqs/40": "msix",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    }
    for cpu in range(2):
        files |= {
            f"{CPU}/cpu{cpu}/cpufreq/scaling_governor": "schedutil\n",
            f"{CPU}/cpu{cpu}/cpufreq/scaling_available_governors": "performance schedutil\n",
            f"{CPU}/cpu{cpu}/cpuidle/state0/latency": "0",
            f"{CPU}/cpu{cpu}/cpuidle/state0/disable": "0",
            f"{CPU}/cpu{cpu}/cpuidle/state1/latency": "133",
            f"{CPU}/cpu{cpu}/cpuidle/state1/disable": "0",
        }
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    for node in range(2):
        (tmp_path / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    return tmp_path


def snapshot(root: pathlib.Path) -> dict[str, str]:
    return {str(f.relative_to(root)): f.read_text().strip() for f in root.rglob("*") if f.is_file()}


def names(root: pathlib.Path) -> list[str]:
    return [finding.name for finding in tune.find_noise(root)]


def test_everything_that_disturbs_is_found(machine: pathlib.Path) -> None:
    assert names(machine) == [
        "frequency scaling",
        "turbo",
        "deep C-states",
        "SMT",
        "NMI watchdog",
        "NUMA balancing",
        "interrupt affinity",
    ]
    deep = next(finding for finding in tune.find_noise(machine) if finding.name == "deep C-states")
    assert deep.state == "disable is 0 (2 places)"
    assert all(finding.effect and finding.remedy for finding in tune.find_noise(machine))


def test_apply_switches_it_off_and_restore_puts_it_back(machine: pathlib.Path) -> None:
    before = snapshot(machine)
    changed = tune.apply_tuning(machine)
    assert len(changed) == 8
    assert names(machine) == ["interrupt affinity"]
    assert (machine / CPU / "cpu1/cpuidle/state0/disable").read_text() == "0"
    assert tune.apply_tuning(machine) == []
    assert len(tune.restore_tuning(machine)) == 8
    assert snapshot(machine) == before


def test_what_was_noted_first_is_restored_after_two_applies(machine: pathlib.Path) -> None:
    before = snapshot(machine)
    tune.apply_tuning(machine)
    (machine / CPU / "cpu0/cpufreq/scaling_governor").write_text("powersave")
    tune.apply_tuning(machine)
    tune.restore_tuning(machine)
    assert snapshot(machine) == before


def test_an_apply_that_breaks_off_can_be_restored(machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(machine)
    genuine, left = tune._write, [3]

    def breaks(file: pathlib.Path, value: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise MachineError("no")
        genuine(file, value)

    monkeypatch.setattr(tune, "_write", breaks)
    with pytest.raises(MachineError):
        tune.apply_tuning(machine)
    monkeypatch.setattr(tune, "_write", genuine)
    assert snapshot(machine) != before
    tune.restore_tuning(machine)
    assert snapshot(machine) == before


def test_nothing_to_restore_is_said(machine: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="nothing to restore"):
        tune.restore_tuning(machine)


def test_a_file_that_cannot_be_written_is_named(machine: pathlib.Path) -> None:
    knob = machine / CPU / "intel_pstate/no_turbo"
    knob.unlink()
    knob.mkdir()
    with pytest.raises(MachineError, match=r"cannot write 1 to .*no_turbo: is a directory"):
        tune.apply_tuning(machine)


def test_damaged_notes_are_named(machine: pathlib.Path) -> None:
    (machine / tune.NOTES).parent.mkdir(parents=True)
    (machine / tune.NOTES).write_text("{")
    with pytest.raises(MachineError, match=r"tune.json is damaged"):
        tune.restore_tuning(machine)


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("proc/loadavg", "1.90 1 1 3/100 7", "other load"),
        ("proc/cpuinfo", "flags\t\t: fpu hypervisor tsc", "virtual machine"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet", "clock"),
    ],
)
def test_what_no_file_mends_is_a_warning(machine: pathlib.Path, file: str, content: str, name: str) -> None:
    assert name not in names(machine)
    (machine / file).write_text(content)
    assert name in names(machine)


def test_interrupts_that_are_bound_are_no_warning(machine: pathlib.Path) -> None:
    (machine / "proc/irq/40/smp_affinity_list").write_text("1")
    assert "interrupt affinity" not in names(machine)


def test_a_device_that_merges_packets_is_a_warning_where_it_is_measured() -> None:
    offloads = {"generic-receive-offload": True, "large-receive-offload": False}
    machine = {"nics": [{"name": "eth0", "offloads": offloads}, {"name": "eth1"}]}
    found = tune.find_merging(machine, {"eth0", "eth1"})
    assert [finding.state for finding in found] == ["eth0 merges or cuts packets (generic-receive-offload)"]
    assert "ethtool -K eth0 gro off" in found[0].remedy
    assert tune.find_merging(machine, {"eth1"}) == []


def test_offloads_that_could_not_be_read_are_told_and_stop_nothing() -> None:
    machine = {"nics": [{"name": "eth0", "offloads": "unknown: there is no `ethtool`"}, {"name": "eth1"}]}
    (found,) = tune.find_merging(machine, {"eth0", "eth1"})
    assert "whether eth0 merges or cuts packets is unknown: there is no `ethtool`" in found.state
    assert "apt-get install ethtool" in found.remedy
    assert tune.find_merging(machine, {"eth1"}) == []


def test_an_empty_machine_has_nothing_to_tell(tmp_path: pathlib.Path) -> None:
    assert tune.find_noise(tmp_path) == []
    assert tune.apply_tuning(tmp_path) == []


def test_command_shows_and_refuses_contradictions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 0
    assert capsys.readouterr().out
    assert main(["tune", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    assert main(["tune", "--apply", "--restore"]) == 2
    assert "exclude each other" in capsys.readouterr().err
