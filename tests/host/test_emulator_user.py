"""QEMU as another user than root: HWRX_QEMU_USER."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwrx.errors import MachineError, UsageError
from hwrx.lab import emulator_user, kernel
from hwrx.lab.vm import Guest

USER = "nobody"


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch, needs: Callable[..., None]) -> None:
    needs("root")
    monkeypatch.setenv(emulator_user.VARIABLE, USER)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own are not."""
    made = Path(tempfile.mkdtemp(prefix="hwrx-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def identity(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_a_guest_boots_and_works_as_a_user_without_any_right(folder: Path, needs: Callable[..., None]) -> None:
    needs("guest")
    shared = folder / "shared, with a comma"
    shared.mkdir()
    shared.chmod(0o777)
    user = emulator_user.find_emulator_user()
    assert user is not None
    with Guest("queues", writable=[shared], log=folder / "log.txt") as guest:
        assert guest._process is not None
        is_ = identity(guest._process.pid)
        assert is_["Name"].startswith("qemu-system")
        assert {*is_["Uid"].split(), *is_["Gid"].split()} == {str(user.uid), str(user.gid)}
        assert int(is_["CapEff"], 16) == int(is_["CapBnd"], 16) == 0
        # a module from a folder of root's, the shared folder, and a file that this user may not read
        # and hwrx's own command is found in a guest by its name
        found = f"id -u && test $(command -v hwrx) = {Path(sys.executable).parent}/hwrx"
        words = f"{found} && modprobe sctp && echo told > /proc/self/cwd/said && ! cat /etc/shadow"
        done = guest.run(["sh", "-c", words], folder=shared)
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "0"), done.stdout
        assert "Permission denied" in done.stdout
    assert (shared / "said").read_text() == "told\n"
    assert (shared / "said").stat().st_uid == user.uid
    assert (folder / "log.txt").stat().st_size


def test_qemu_still_dies_with_hwrx() -> None:
    # the kernel forgets PR_SET_PDEATHSIG when a process changes its user: it has to come after
    user = emulator_user.find_emulator_user()
    assert user is not None
    code = (
        "import ctypes; kept = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(kept)); import os\n"
        "print(kept.value, os.geteuid())"
    )
    words = [*user.start_words(), "--pdeathsig", "KILL", "/usr/bin/python3", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["9", str(user.uid)]


def test_files_that_the_user_may_not_reach_are_told_before_anything_boots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted: list[object] = []
    monkeypatch.setattr(kernel, "find_kernel", lambda *args: booted.append(args))
    closed = folder / "closed" / "tree"
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    monkeypatch.setattr(sys, "path", [*sys.path, str(closed)])
    with pytest.raises(MachineError, match=rf"user 'nobody' .* may not read {closed}") as caught, Guest("pair"):
        pass
    assert "setfacl" in caught.value.remedy
    monkeypatch.undo()
    monkeypatch.setenv(emulator_user.VARIABLE, USER)
    monkeypatch.setattr(kernel, "find_kernel", lambda *args: booted.append(args))
    with pytest.raises(MachineError, match=f"may not write to {folder}"), Guest("pair", writable=[folder]):
        pass
    assert booted == []


def test_who_is_not_there_is_said_and_who_is_oneself_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulator_user.VARIABLE, "nobody-of-that-name")
    with pytest.raises(UsageError, match="this machine has no user 'nobody-of-that-name'"), Guest("pair"):
        pass
    for same in ("", "root"):
        monkeypatch.setenv(emulator_user.VARIABLE, same)
        assert emulator_user.find_emulator_user() is None


def test_only_root_starts_qemu_as_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="only root can start QEMU as another user"):
        emulator_user.find_emulator_user()
