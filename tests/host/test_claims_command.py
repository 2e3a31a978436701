"""`hwrx claims run --here`: verdicts and reasons of this machine's own kernel, the run directory, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from hwrx.cli import main
from hwrx.host import netns

HWRX = [sys.executable, "-m", "hwrx", "claims"]


def test_claims_are_tested_here_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    names = ["file-knows-its-process", "port-is-one-program", "hca-makes-no-copies"]
    words = [*HWRX, "run", *names, "--here", "--json", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {each["claim"]["name"]: each for each in json.loads(done.stdout)}
    assert [found[name]["verdict"] for name in names[:2]] == ["refuted", "depends"]
    assert found[names[0]]["kernel"] == os.uname().release
    assert found[names[0]]["measurement"]["figures"]["owner_bound"] == 0
    last = found[names[2]]
    assert last["verdict"] != "not tested here" or last["why"]
    page = (out / "claims.html").read_bytes()
    again = subprocess.run([*HWRX, "page", str(out), "--out", str(tmp_path / "again.html")], capture_output=True)
    assert again.returncode == 0
    assert (tmp_path / "again.html").read_bytes() == page
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["status"] == "complete" and manifest["host"]["commit"]


def test_claims_that_ran_here_leave_no_descriptor(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    assert main(["claims", "run", "file-knows-its-process", "--here", "--out", str(tmp_path / "run")]) == 0
    assert len(list(descriptors.iterdir())) == before


def namespaces_of(pid: int) -> set[str]:
    """The namespaces that children of a process have made: their names say who did. Others make some, too."""
    found = set()
    for name in netns.namespace_names():
        maker = re.match(r"hwrx-[ab]-(\d+)-", name)
        with contextlib.suppress(FileNotFoundError):
            if maker and f"\nPPid:\t{pid}\n" in Path(f"/proc/{maker[1]}/status").read_text():
                found.add(name)
    return found


def test_ctrl_c_takes_down_what_was_put_up(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*HWRX, "run", "no-socket-is-dropped", "--set", "messages=2000000", "--here", "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    assert "testing: no-socket-is-dropped" in process.stderr.readline()
    for _ in range(200):
        if made := namespaces_of(process.pid):
            break
        assert process.poll() is None
        signal.sigtimedwait([], 0.05)
    assert made
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, "Traceback" in said) == (130, False), said
    assert not made & set(netns.namespace_names())
    assert json.loads((out / "manifest.json").read_bytes())["status"] == "interrupted"
