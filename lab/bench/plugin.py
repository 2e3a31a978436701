"""How often does hwrx's pytest plug-in see a regression that is none, and does it see those that were planted?

A project of one test is made: udp and tcp, 64 B, between two network namespaces of a guest that counts instructions,
held against its baseline times 1.005. Each session is a pytest of its own and boots a guest of its own.

* saved: `--hwrx-save`, so many times.
* the same: sessions in which nothing differs. Each that fails is a false alarm.
* planted: the kernel zeroes what it allocates (`init_on_alloc=1`); a rule of netfilter accepts udp and tcp; the loop
  of a copy of hwrx executes 200 instructions more in each round trip, between the two readings of the clock. Each
  session that does not fail has missed one.

Prints Markdown. Exit code 1: a false alarm, a regression that was missed, or a session that broke.

    lab/bench/plugin [--sessions N] [--saved N] [--factor F] [--only same|planted] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msgspec import Struct, to_builtins

ROOT = Path(__file__).parents[2]
TEST = '''
import os, pytest

RULES = """table ip planted {{
    chain c {{
        type filter hook input priority 0
        meta l4proto {{{{ udp, tcp }}}} th dport 1-65535 accept
    }}
}}
"""

@pytest.mark.hwrx(topology="netns", clock="icount", boot=[os.environ.get("PLANTED_BOOT", "init_on_alloc=0")])
def test_sockets(hwrx_lab, hwrx_compare, hwrx_baseline):
    if "PLANTED_RULE" in os.environ:
        for end in ("client", "server"):
            assert hwrx_lab.run(["sh", "-c", f"nft -f - <<'END'\\n{{RULES}}END"], end=end).returncode == 0
    run = hwrx_compare(paths=["udp", "tcp"], sizes=[64], messages=60, repeats=3, seed=7)
    worse = [path for path in ("udp", "tcp") if not run[path, 64] <= {factor} * hwrx_baseline]
    print("worse:", *worse)
    assert run["udp", 64] <= {factor} * hwrx_baseline
    assert run["tcp", 64] <= {factor} * hwrx_baseline
'''
LOOP = "cython_ext/loops/pingpong.pyx"
# in front of the wait for the answer, which is timed
BEFORE = "    cdef int status\n    while True:\n        if again and ops.lossy:"
AFTER = BEFORE.replace("    while True:", "    hwrx_rest(200)\n    while True:")


class Session(Struct, frozen=True):
    """One session: whether its test passed, None if it broke; seconds; what it said of figures."""

    kind: str
    passed: bool | None
    seconds: float
    said: list[str]


def run_session(kind: str, project: Path, *options: str, tree: Path = ROOT, **environment: str) -> Session:
    """Run the project's test once, with the hwrx of a tree."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(tree), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.findall(r"^E +(.* beyond .*)$", done.stdout, re.MULTILINE)
    passed = True if done.returncode == 0 else False if said else None
    if passed is None:
        print(done.stdout[-3000:], done.stderr[-1000:], file=sys.stderr)
    session = Session(kind, passed, round(time.monotonic() - began, 1), list(dict.fromkeys(said)))
    print(f"{kind}: {'passed' if passed else 'failed' if said else 'BROKE'}, {session.seconds:.0f} s", file=sys.stderr)
    return session


def copy_with_a_longer_loop(folder: Path) -> Path:
    """Return a copy of hwrx whose loop has 200 instructions more, built."""
    shutil.copytree(ROOT / "hwrx", folder / "hwrx", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "cython_ext", folder / "cython_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    loop = folder / LOOP
    source = loop.read_text(encoding="utf-8")
    if source.count(BEFORE) != 1:
        sys.exit(f"plugin: {LOOP} does not wait where this bench expects it to")
    loop.write_text(source.replace(BEFORE, AFTER), encoding="utf-8")
    argv = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_ext", "--inplace"]
    subprocess.run(argv, cwd=folder, check=True, stdout=sys.stderr)
    return folder


def show(sessions: list[Session], factor: float) -> None:
    """Print a line a kind."""
    print(f"\nudp and tcp, 64 B, `icount`, `<= {factor:g} * hwrx_baseline`:\n")
    heads = ("sessions", "n", "passed", "failed", "broke", "seconds each", "the first that it said")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for kind in dict.fromkeys(session.kind for session in sessions):
        mine = [session for session in sessions if session.kind == kind]
        said = next((words for session in mine for words in session.said), "–")
        passed, failed, broke = (sum(session.passed is state for session in mine) for state in (True, False, None))
        seconds = sum(session.seconds for session in mine) / len(mine)
        print(f"| {kind} | {len(mine)} | {passed} | {failed} | {broke} | {seconds:.0f} | {said} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10, help="sessions in which nothing differs [10]")
    parser.add_argument("--saved", type=int, default=3, help="sessions of the baseline [3]")
    parser.add_argument("--factor", type=float, default=1.005, help="that the baseline is multiplied by [1.005]")
    parser.add_argument("--only", choices=["same", "planted"])
    parser.add_argument("--json", type=Path, help="file for the sessions")
    asked = parser.parse_args()
    sessions: list[Session] = []
    with tempfile.TemporaryDirectory(prefix="hwrx-plugin-") as scratch:
        project = Path(scratch, "project")
        project.mkdir()
        (project / "pytest.ini").write_text("[pytest]\n")
        (project / "test_sockets.py").write_text(TEST.format(factor=asked.factor))
        sessions += [run_session("saved", project, "--hwrx-save") for _ in range(asked.saved)]
        if asked.only != "planted":
            sessions += [run_session("the same", project) for _ in range(asked.sessions)]
        if asked.only != "same":
            sessions.append(run_session("init_on_alloc=1", project, PLANTED_BOOT="init_on_alloc=1"))
            sessions.append(run_session("a rule of netfilter", project, PLANTED_RULE="1"))
            tree = copy_with_a_longer_loop(Path(scratch, "tree"))
            sessions.append(run_session("200 instructions in the loop", project, tree=tree))
    show(sessions, asked.factor)
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(sessions)) + "\n", encoding="utf-8")
    quiet = ("saved", "the same")
    return int(any(session.passed is not (session.kind in quiet) for session in sessions))


if __name__ == "__main__":
    sys.exit(main())
