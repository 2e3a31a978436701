"""What others may leave for us to open: nothing of it is executed, followed or emptied without being asked for."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import made_runs
import msgspec
import pytest

import hwrx
from hwrx.cli import main
from hwrx.errors import MachineError
from hwrx.host import undo
from hwrx.probes import recording
from hwrx.report import artifact
from hwrx.runs import experiment, testbed

ROOT = pathlib.Path(__file__).resolve().parents[2]


def made_by_another(root: pathlib.Path, **manifest: Any) -> pathlib.Path:
    return made_runs.make(root, manifest={**made_runs.MANIFEST, **manifest}, paths=["udp"])


# --- runs of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["sh -c 'touch {mark}; exec {agent}'", "ssh:somewhere.invalid"])
def test_a_runs_peer_is_shown_and_not_started(
    peer: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "executed"
    asked = {"peer": peer.replace("{mark}", str(mark)), "peer_address": "127.0.0.1"}
    run = made_by_another(tmp_path, asked=asked)
    assert main(["rerun", str(run), "--runs", str(tmp_path / "again")]) == 2
    said = capsys.readouterr().err
    assert "--yes" in said
    assert ("touch" if "touch" in peer else "somewhere.invalid") in said
    assert not mark.exists()
    assert not (tmp_path / "again").exists()


def test_a_run_that_only_needs_hwrx_is_run_again_without_a_question(tmp_path: pathlib.Path) -> None:
    for peer in (None, "local", "netns:blue"):
        assert testbed.Wanted(peer=peer).actions() == []
    assert testbed.Wanted(peer="x\x1b[2J {agent}").actions()[0].startswith(r"`'x\x1b[2J' ")
    assert experiment.boot_actions(experiment.from_options(paths=["udp"], kernel="6.12")) == []
    assert experiment.boot_actions(experiment.from_options(paths=["udp"], kernel="/tmp/vmlinuz"))


def test_words_about_the_ends_that_are_none_are_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_by_another(tmp_path, asked={"peer": 3})
    assert main(["rerun", str(run)]) == 1
    assert "does not say how its ends were reached" in capsys.readouterr().err


@pytest.mark.parametrize("commit", ["--output=OUT", "HEAD", "main:LICENSE", "0" * 39, ["x"], "0" * 41, "\x1b[31m"])
def test_only_a_commit_is_handed_to_git(commit: Any, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "written"
    wanted = commit.replace("OUT", str(out)) if isinstance(commit, str) else commit
    run = hwrx.load(made_by_another(tmp_path, host={"commit": {"id": wanted, "changed": False}}))
    source, _, warning = artifact._source(run)
    assert source == b""
    assert "which is none" in warning
    assert "\x1b" not in warning
    assert not out.exists()


def test_an_artifact_holds_nothing_that_links_lead_to(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secrets"
    secret.mkdir()
    (secret / "key").write_text("secret key")
    run = made_runs.make(tmp_path / "runs")
    (run / "link.txt").symlink_to(secret / "key")
    (run / "folder").symlink_to(secret)
    os.mkfifo(run / "pipe")
    packed = artifact.pack_artifact(hwrx.load(run), tmp_path / "a.tar.gz")
    listed = subprocess.run(["tar", "-tzf", packed], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"link\.txt|folder|key|pipe", listed)


# --- programs --------------------------------------------------------------------------------------------------------


def test_python_is_never_started_so_that_the_working_directory_is_searched() -> None:
    started = []
    for file in (ROOT / "hwrx").rglob("*.py"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if "sys.executable" in line and not re.search(r"f\"|exists|endswith", line):
                started.append((f"{file.name}:{number}", line))
    assert len(started) >= 4
    assert [each for each in started if '"-P"' not in each[1]] == []


def test_a_module_of_the_working_directory_is_not_imported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('executed')")
    ask = "import hwrx.control.environment as e, json; print(json.dumps(e.parse_environment('local').agent_command()))"
    words = subprocess.run([sys.executable, "-P", "-c", ask], capture_output=True, text=True, check=True).stdout
    argv = msgspec.json.decode(words, type=list[str])
    done = subprocess.run(argv, cwd=tmp_path, input=b"", capture_output=True)
    assert b"executed" not in done.stderr
    assert done.returncode == 0


# --- folders that everybody writes to --------------------------------------------------------------------------------


def test_a_lock_is_our_own_file_and_no_other_under_its_name(tmp_path: pathlib.Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("a long text that is to stay")
    lock = tmp_path / "hwrx.lock"
    lock.symlink_to(mine)
    with pytest.raises(MachineError, match="cannot be opened"):
        recording._open_lock(lock)
    lock.unlink()
    lock.hardlink_to(mine)
    with pytest.raises(MachineError, match="not a file of our own"):
        recording._open_lock(lock)
    assert mine.read_text() == "a long text that is to stay"
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(MachineError, match="not a file of our own"):
        recording._open_lock(lock)
    lock.unlink()
    os.close(recording._open_lock(lock))
    assert lock.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("spoiled", ["folder", "file", "link", "nested", "nothing"])
def test_a_journal_that_others_may_have_written_is_not_executed(
    spoiled: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "journals"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(undo, "JOURNALS", folder)
    mark = tmp_path / "mark"
    mark.write_text("there")
    journal = folder / "1-aaaa.json"
    content = msgspec.json.encode(undo.Journal(2**22 + 1, 1, "a test", [["rm", str(mark)]]))
    journal.write_bytes(b"[" * 5000 if spoiled == "nested" else content)
    journal.chmod(0o666 if spoiled == "file" else 0o600)
    if spoiled == "folder":
        folder.chmod(0o777)
    if spoiled == "link":
        journal.rename(tmp_path / "elsewhere")
        journal.symlink_to(tmp_path / "elsewhere")
    if spoiled == "folder":
        with pytest.raises(MachineError, match="is not this user's alone"):
            undo.mend_leftovers()
    else:
        assert bool(undo.mend_leftovers()) == (spoiled == "nothing")
    assert mark.exists() == (spoiled != "nothing")


def test_a_journal_is_its_users_alone_whatever_the_umask(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo, "JOURNALS", tmp_path / "journals")
    before = os.umask(0)
    try:
        with undo.Undo("a test") as step:
            step.plan("true")
            (journal,) = (tmp_path / "journals").glob("*.json")
            assert undo._read_own(journal)
    finally:
        os.umask(before)
