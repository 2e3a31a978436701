"""The second cgroup hierarchy is found wherever it is mounted, by everything that needs it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hwrx.errors import MachineError
from hwrx.host.undo import Undo
from hwrx.memory import forces
from hwrx.paths import hooks
from hwrx.probes import cgroups

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hybrid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mounts as systemd makes them: the first hierarchy's on /sys/fs/cgroup, the second beside; one is covered."""
    unified = tmp_path / "a blank" / "unified"
    unified.mkdir(parents=True)
    (unified / "cgroup.controllers").write_text("cpuset hugetlb\n")
    (unified / "cgroup.subtree_control").write_text("\n")
    (tmp_path / "covered").mkdir()
    lines = [
        f"tmpfs {tmp_path} tmpfs rw 0 0",
        f"cgroup {tmp_path}/memory cgroup rw,memory 0 0",
        f"cgroup2 {tmp_path}/covered cgroup2 rw 0 0",
        f"cgroup2 {str(unified).replace(' ', chr(92) + '040')} cgroup2 rw 0 0",
    ]
    (tmp_path / "mounts").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(cgroups, "MOUNTS", tmp_path / "mounts")
    return unified


def test_the_hierarchy_beside_the_first_one_is_found(hybrid: Path) -> None:
    assert cgroups.find_hierarchy() == hybrid
    with cgroups.opened_root() as descriptor:
        assert Path(f"/proc/self/fd/{descriptor}").resolve() == hybrid


def test_a_hook_goes_onto_it(hybrid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[tuple[str, Path]] = []

    class Reader:
        def attach_cgroup(self, name: str, descriptor: int) -> None:
            attached.append((name, Path(f"/proc/self/fd/{descriptor}").resolve()))

    monkeypatch.setattr(hooks, "_reader", lambda stack: Reader())
    (hook,) = (each for each in hooks.HOOKS if each.name == "cgroup")
    with socket.socket() as sock:
        hook.put(sock, "lo", hooks.contextlib.ExitStack())
    assert attached == [("pass_packet", hybrid)]


def test_a_memory_limit_says_that_the_controller_is_the_other_hierarchy_s(hybrid: Path) -> None:
    with (
        Undo("nothing") as undo,
        pytest.raises(MachineError, match="has no memory controller: the first one") as caught,
    ):
        forces.Cgroup(undo)
    assert "cgroup_no_v1=memory" in caught.value.remedy
    (hybrid / "cgroup.controllers").write_text("cpuset memory\n")
    with Undo("nothing") as undo:
        made = forces.Cgroup(undo)
        assert made.path.parent == hybrid and made.path.is_dir()
        assert (hybrid / "cgroup.subtree_control").read_text() == "+memory"
    assert (hybrid / "cgroup.subtree_control").read_text() == "-memory\n"
    assert not made.path.exists()


def test_without_any_it_is_said_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
    monkeypatch.setattr(cgroups, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(MachineError, match="mounted nowhere") as caught:
        cgroups.find_hierarchy()
    assert "mount -t cgroup2" in caught.value.remedy


def test_a_program_is_put_on_the_real_one(needs: Callable[..., None]) -> None:
    needs("root")
    with cgroups.opened_root() as descriptor:
        assert Path(f"/proc/self/fd/{descriptor}/cgroup.procs").exists()


def test_nobody_else_looks_for_it() -> None:
    found = [
        path.name
        for path in (ROOT / "hwrx").rglob("*.py")
        if "/sys/fs/cgroup" in path.read_text() and path.name not in ("cgroups.py", "initramfs.py")
    ]
    assert found == []
