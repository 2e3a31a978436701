"""What is left behind, and for how long, when a comparison is ended in the middle, however that comes?

Each round starts `hwrx compare`, waits for a random moment, and ends it: the controller by SIGKILL, SIGQUIT, SIGTERM or
SIGHUP, by Ctrl-C twice or ten times at its terminal, or one of its children (an agent, QEMU) by SIGKILL. Then it looks
every 10 ms for what is left: processes that the comparison started (they have a mark in their environment), namespaces
and journals with its pid, NICs that are driven from user space.

Prints how often something was left after the limit, and the longest time until nothing was. Nothing here is a test: a
missed goal is shown, not raised. A comparison that ends by itself before it is ended makes no round, but an error.

    lab/bench/endings [--rounds 100] [--topology netns] [--paths udp] [--seed 1] [--json FILE]
    lab/bench/endings --guest --topology nic --paths nic-ring,udp --longest 60 --rounds 10
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

from hwrx.host import netns, undo
from hwrx.host.processes import process_start
from hwrx.lab.vm import Guest
from hwrx.nic import pci

GOAL = 2.0  # seconds
GIVES_UP = 30.0  # and what is there then stays
GOES_ON = 5.0  # a comparison that has not ended so long after a child was killed does not need it
MARK = "HWRX_BENCH_ENDINGS"
WAYS = ("kill", "kill a child", "quit", "term", "hup", "2 x Ctrl-C", "10 x Ctrl-C", "terminal closed")


class Round(Struct, frozen=True):
    """One end. `moment`: seconds after the start; `took`: until nothing was left; None: something still is."""

    way: str
    moment: float
    took: float | None
    left: list[str]  # after the goal


class Comparison:
    """A `hwrx compare` that runs at a terminal of its own."""

    def __init__(self, words: list[str], runs: Path) -> None:
        self.mark = f"{os.getpid()}-{random.getrandbits(32):08x}"
        self.terminal, theirs = pty.openpty()
        self.said = b""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hwrx", "compare", *words, "--runs", str(runs)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, MARK: self.mark},
            preexec_fn=lambda: _take_terminal(theirs),
        )
        os.close(theirs)
        os.set_blocking(self.terminal, False)

    def read(self) -> None:
        """Take what it prints, as a terminal does."""
        try:
            while said := os.read(self.terminal, 1 << 16):
                self.said = (self.said + said)[-2000:]
        except (BlockingIOError, OSError):
            return

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            self.read()
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """Its processes that live: those that have its mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            pid = int(folder.name)
            if f"{MARK}={self.mark}".encode() in environment and process_start(pid) is not None:
                found.append(pid)
        return found

    def left(self) -> list[str]:
        """What of it there is, in words."""
        pid = self.process.pid
        found = [f"process {each} ({_name(each)})" for each in self.processes()]
        found += [f"namespace {name}" for name in netns.namespace_names() if f"-{pid}-" in name]
        found += [f"journal {path.name}" for path in undo.JOURNALS.glob(f"{pid}-*.json")]
        found += [f"{nic.address} on {nic.driver}" for nic in pci.list_nics() if nic.driver in pci.USER_DRIVERS]
        return found

    def close(self) -> None:
        """Free the terminal; end what may still be there."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.terminal >= 0:
            os.close(self.terminal)


def _take_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    for number in (signal.SIGINT, signal.SIGQUIT):  # a shell has its jobs in the background ignore them
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:60].strip()
    except OSError:
        return "gone"


def end_by(way: str, running: Comparison, chance: random.Random) -> None:
    """End a comparison in one of WAYS."""

    def press_keys(count: int) -> None:
        for _ in range(count):
            os.write(running.terminal, b"\x03")
            time.sleep(chance.uniform(0.0, 0.15))

    def kill_child() -> None:
        children = [pid for pid in running.processes() if pid != running.process.pid and "keeper" not in _name(pid)]
        with contextlib.suppress(ProcessLookupError):  # a tool that was called, and has ended meanwhile
            os.kill(chance.choice(children) if children else running.process.pid, signal.SIGKILL)
        running.wait(GOES_ON)
        if running.process.poll() is None:  # the child was one that it can do without
            running.process.send_signal(signal.SIGTERM)

    def close_terminal() -> None:
        os.close(running.terminal)
        running.terminal = -1

    actions: dict[str, Callable[[], None]] = {
        "kill": lambda: running.process.send_signal(signal.SIGKILL),
        "kill a child": kill_child,
        "quit": lambda: running.process.send_signal(signal.SIGQUIT),
        "term": lambda: running.process.send_signal(signal.SIGTERM),
        "hup": lambda: running.process.send_signal(signal.SIGHUP),
        "2 x Ctrl-C": lambda: press_keys(2),
        "10 x Ctrl-C": lambda: press_keys(10),
        "terminal closed": close_terminal,
    }
    actions[way]()


def make_round(way: str, words: list[str], longest: float, chance: random.Random, runs: Path) -> Round:
    """Start a comparison, end it, and look until nothing is left."""
    running = Comparison(words, runs)
    try:
        moment = chance.uniform(0.0, longest)
        running.wait(moment)
        if running.process.poll() is not None:
            running.read()
            raise SystemExit(f"the comparison ended by itself:\n{running.said.decode(errors='replace')}")
        end_by(way, running, chance)
        ended = time.monotonic()
        late: list[str] = []
        while time.monotonic() - ended < GIVES_UP:
            if running.terminal >= 0:
                running.read()
            running.process.poll()
            left = running.left()
            passed = time.monotonic() - ended
            if not left:
                return Round(way, moment, passed, late)
            if passed > GOAL and not late:
                late = left
            time.sleep(0.01)
        return Round(way, moment, None, running.left())
    finally:
        running.close()


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--topology", default="netns")
    parser.add_argument("--paths", default="udp")
    parser.add_argument("--here", action="store_true", help="on this machine's kernel")
    parser.add_argument("--guest", action="store_true", help="in a guest that has what the topology needs")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--longest", type=float, default=6.0, help="seconds until the last moment of an end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.guest:
        own = [word for word in sys.argv[1:] if word != "--guest"]
        with Guest("netns", beside=[asked.topology]) as guest:
            done = guest.run(
                [sys.executable, "-P", __file__, *own, "--here"], limit=asked.rounds * (asked.longest + 60)
            )
        sys.stdout.write(done.stdout)
        sys.exit(done.returncode)
    words = ["--topology", asked.topology, "--paths", asked.paths, "--messages", "20000", "--repeats", "1000"]
    words += ["--here"] if asked.here else []
    chance = random.Random(asked.seed)
    ways = asked.ways.split(",")
    rounds = []
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            rounds.append(make_round(ways[number % len(ways)], words, asked.longest, chance, Path(folder)))
            if rounds[-1].left:
                console.print(
                    f"{rounds[-1].way} at {rounds[-1].moment:.2f} s: {'; '.join(rounds[-1].left)}", markup=False
                )
    table = Table("ended by", "rounds", f"left after {GOAL:g} s", "left for good", "longest, s")
    for way in ways:
        of_way = [each for each in rounds if each.way == way]
        took = [each.took for each in of_way if each.took is not None]
        table.add_row(
            way,
            str(len(of_way)),
            str(sum(each.took is None or each.took > GOAL for each in of_way)),
            str(sum(each.took is None for each in of_way)),
            f"{max(took):.2f}" if took else "-",
        )
    console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(rounds)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
