"""What the commands say of this machine, and what their exit codes are."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from hwrx.errors import MachineError
from hwrx.lab import doctor
from hwrx.machine import description
from hwrx.verbs import devices

HWRX = [sys.executable, "-m", "hwrx"]


def hwrx(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HWRX, *arguments], capture_output=True, text=True, env=os.environ | more)


def test_devices_prints_json_also_where_there_are_none() -> None:
    done = hwrx("devices", "--json")
    assert done.returncode == 0, done.stderr
    assert [device["name"] for device in json.loads(done.stdout)] == devices.device_names()


def test_a_device_that_comes_right_behind_the_list_is_told_of() -> None:
    watch = ["unshare", "--net", *HWRX, "devices", "--watch", "--json"]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            assert watcher.stdout is not None
            assert json.loads(watcher.stdout.readline())["event"] == "present"
            inside = ["nsenter", "--net", "--target", str(watcher.pid)]
            subprocess.run([*inside, "ip", "link", "add", "hwt0", "type", "veth", "peer", "name", "hwt1"], check=True)
            # one that missed it would be silent for ever
            assert select.select([watcher.stdout], [], [], 60.0)[0]
            told = json.loads(watcher.stdout.readline())
            assert (told["event"], told["subsystem"]) == ("add", "net") and told["name"] in ("hwt0", "hwt1")
        finally:
            watcher.kill()


def test_the_doctor_has_a_remedy_for_each_lack_and_its_exit_code_is_the_main_jobs() -> None:
    done = hwrx("doctor", "--json")
    report = json.loads(done.stdout)
    assert {finding["part"] for finding in report["findings"]} == set(doctor.PARTS)
    for finding in report["findings"]:
        assert finding["seen"]
        assert finding["fine"] or finding["remedy"], finding
    assert report["healthy"] == all(finding["fine"] for finding in report["findings"] if finding["part"] == "main")
    assert done.returncode == (0 if report["healthy"] else MachineError.exit_code)


def test_the_doctor_on_a_machine_without_tools_names_packages_and_fails(tmp_path: Path) -> None:
    # tools are also looked for in /usr/sbin; a root without it is a namespace's
    empty = tmp_path / "empty"
    empty.mkdir()
    hide = 'mount --bind $0 /usr/sbin && mount --bind $0 /usr/local/bin && PATH=$0 exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, empty, *HWRX, "doctor", "--json"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    assert not report["healthy"]
    assert done.returncode == MachineError.exit_code
    lacks = {finding["name"]: finding for finding in report["findings"] if not finding["fine"]}
    assert "apt-get install" in lacks["QEMU"]["remedy"]
    assert "qemu-system-x86" in lacks["QEMU"]["remedy"]
    assert lacks["static busybox"]["remedy"] == "apt-get install busybox-static"
    assert "iproute2" in lacks["network tools"]["remedy"]


def test_the_manifest_is_json_without_names_and_secrets() -> None:
    program = "import json; from hwrx.machine import description; print(json.dumps(description.describe_machine()))"
    done = subprocess.run(
        ["unshare", "--uts", "sh", "-c", 'hostname a-telling-name && exec "$@"', "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"SECRET_TOKEN": "hunter2hunter2"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["hwrx"]
    assert "hunter2hunter2" not in done.stdout
    assert "a-telling-name" not in done.stdout
    hardware = [path.read_text().strip() for path in Path("/sys/class/net").glob("*/address")]
    assert not any(address in done.stdout for address in hardware if address != "00:00:00:00:00:00")


def test_the_manifest_names_the_commit_of_the_tree() -> None:
    tree = Path(description.__file__).parents[2]
    head = subprocess.run(
        ["git", "-c", f"safe.directory={tree}", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert description.find_commit().get("id", "") == head.stdout.strip()


def test_a_kernel_without_rxe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwrx.verbs.rxe.RXE_MODULE", "hwrx_no_such_module")
    monkeypatch.setattr(doctor, "RXE_MODULE", "hwrx_no_such_module")
    findings = {finding.name: finding for finding in doctor.examine_machine()}
    assert not findings["SoftRoCE module"].fine
    assert "hwrx_no_such_module" in findings["SoftRoCE module"].seen


def test_rxe_on_a_netdev_that_does_not_exist_lists_those_that_do() -> None:
    done = hwrx("rxe", "up", "no-such-netdev")
    assert done.returncode == 2
    assert "there is no netdev 'no-such-netdev'" in done.stderr
    assert "lo" in done.stderr
    assert "Traceback" not in done.stderr


def test_little_locked_memory_is_noticed_where_the_user_is_not_root() -> None:
    done = subprocess.run(
        ["prlimit", "--memlock=65536:65536", "setpriv", "--reuid=65534", "--clear-groups", "env",
         "HOME=/nonexistent", *HWRX, "doctor", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert not findings["locked memory"]["fine"]
    assert "64 KiB" in findings["locked memory"]["seen"]
    assert "limits.d" in findings["locked memory"]["remedy"]
    assert not findings["root"]["fine"]


def test_a_shell_on_the_host_runs_in_the_clients_namespace_and_passes_the_exit_code_on() -> None:
    done = hwrx("lab", "shell", "netns", "--", "sh", "-c", "ip -o link; echo $SERVER_NETNS; exit 9")
    assert done.returncode == 9, done.stderr
    assert "hwrx0" in done.stdout
    assert "hwrx-b-" in done.stdout


def test_a_shell_without_a_terminal_is_refused_in_words() -> None:
    done = subprocess.run([*HWRX, "lab", "shell", "ring"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "'pair'" in done.stderr


def test_down_on_a_clean_machine_says_so() -> None:
    assert hwrx("lab", "down").returncode == 0
    assert hwrx("lab", "down").stdout == "nothing is left over\n"


def test_only_root_takes_down_what_is_left() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", *HWRX, "lab", "down"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "taking down what is left needs root" in done.stderr and "sudo" in done.stderr


def test_kernels_are_listed_also_where_there_are_none(tmp_path: Path) -> None:
    done = hwrx("lab", "kernels", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0
    assert "no kernel is cached" in done.stdout


def test_what_stands_on_a_device_is_seen_in_both_families(tmp_path: Path) -> None:
    """Of a real `ip`, in a namespace of its own: default routes, addresses and permanent neighbours."""
    script = """
        ip link add fa type veth peer name fb && ip link set fa up && ip link set fb up
        ip address add 192.0.2.1/24 dev fa && ip address add 2001:2::1/64 dev fa nodad
        for family in -4 -6; do [ $family = -4 ] && via=192.0.2.2 || via=2001:2::2
            ip $family neighbour add $via lladdr 02:00:00:00:00:01 dev fa nud permanent
            [ "$1" = $family ] && ip $family route add default via $via dev fa; done
        exec "$2" -c 'import json; from hwrx.nic import belongings; t = belongings.read_tables("fa"); print(json.dumps([
            [r["dst"] for r in t.routes if r["dst"] == "default"], t.addresses_given(),
            sorted(n["dst"] for n in t.neighbours if "PERMANENT" in n["state"])]))'
    """
    for family in ("-4", "-6"):
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", script, "sh", family, sys.executable], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [
            ["default"],
            ["192.0.2.1/24", "2001:2::1/64"],
            ["192.0.2.2", "2001:2::2"],
        ]


@pytest.mark.parametrize("name", ["", "..", "../lo", "a/b", "x" * 300, "lo\x1b[31m"])
@pytest.mark.parametrize(
    "words",
    [
        ["rxe", "up"],
        ["rxe", "down"],
        ["lookup", "127.0.0.1:53", "--netns"],
        ["lookup", "127.0.0.1:53", "--device"],
    ],
)
def test_what_cannot_be_a_name_is_said_before_it_becomes_a_path(words: list[str], name: str) -> None:
    done = hwrx(*words, name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not the name of a" in done.stderr and "\x1b" not in done.stderr and "Traceback" not in done.stderr
