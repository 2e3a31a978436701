"""However a comparison ends, nothing of it is left: by signals, at a terminal, by a kill of any of its processes."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from test_peers import wait_for_loop

from hwrx.errors import MachineError
from hwrx.host import interruption, undo

FILE = Path(__file__).parents[2] / "lab/bench/endings.py"
WORDS = ["--topology", "netns", "--paths", "udp", "--messages", "20000", "--repeats", "1000"]
LIMIT = 60.0  # seconds, against hanging


def load_endings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_endings", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_endings"] = module
    spec.loader.exec_module(module)
    return module


endings = load_endings()


@pytest.fixture(autouse=True)
def as_root(needs: Callable[..., None]) -> None:
    needs("root")


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("way", endings.WAYS)
@pytest.mark.parametrize("longest", [0.6, 4.0], ids=["while it starts", "while it measures"])
def test_nothing_of_a_comparison_is_left(way: str, longest: float, tmp_path: Path) -> None:
    made = endings.make_round(way, WORDS, longest, random.Random(f"{way} {longest}"), tmp_path)
    assert made.took is not None, made.left


def started(program: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    return child


def last_words(child: subprocess.Popen[str]) -> str:
    """What it prints until it ends; one that does not is killed, and TimeoutExpired is raised."""
    try:
        return child.communicate(timeout=LIMIT)[0]
    finally:
        child.kill()


def test_the_keeper_of_a_killed_process_undoes_what_it_did(tmp_path: Path) -> None:
    child = started(f"""
import time
from hwrx.host.undo import Undo
with Undo("a file") as undo:
    undo.plan("touch", {str(tmp_path / "undone")!r})
    print("up", flush=True)
    time.sleep(600)
""")
    child.kill()
    child.communicate()
    wait_until(lambda: (tmp_path / "undone").exists())
    wait_until(lambda: not list(undo.JOURNALS.glob(f"{child.pid}-*.json")))


def test_a_lock_is_held_by_one_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    """Each of them counts in a file, slowly: what two did at once would be counted once."""
    count = tmp_path / "count"
    count.write_text("0")
    program = f"""
import time
from pathlib import Path
from hwrx.host.undo import hold_lock
for _ in range(20):
    with hold_lock(Path({str(tmp_path)!r}, "a.lock")):
        number = int(Path({str(count)!r}).read_text())
        time.sleep(0.002)
        Path({str(count)!r}).write_text(str(number + 1))
"""
    several = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [each.wait(LIMIT) for each in several] == [0] * 4
    assert count.read_text() == "80"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_an_ordinary_user_is_told_who_may_hold_a_lock_of_roots() -> None:
    program = """
import os
from pathlib import Path
from hwrx.errors import MachineError
from hwrx.host.undo import hold_lock
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    with hold_lock(Path("/run/hwrx-test.lock")):
        print("held")
except MachineError as error:
    print(error.args[0], error.remedy, sep=": ")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "cannot make /run/hwrx-test.lock: /run may not be written to: run as root\n"


def test_what_this_process_does_instead_is_done_once_and_its_error_leaves(tmp_path: Path) -> None:
    def fail() -> None:
        raise MachineError("it does not come back")

    with pytest.raises(MachineError, match="it does not come back"), undo.Undo("two things") as plan:
        plan.plan("touch", str(tmp_path / "first"))
        plan.plan("touch", str(tmp_path / "second"), here=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_what_a_dead_process_would_have_called_is_called_and_an_error_of_it_stops_nothing(tmp_path: Path) -> None:
    entries = [["touch", str(tmp_path / "first")], ["call", "os", "mkdir", str(tmp_path / "second")]]
    entries += [["call", "hwrx.nic.pci", "give_back", "ffff:ff:1f.7", "1-0000"]]  # there is no such NIC
    undo.undo_journal(undo.Journal(4194304, 1, "three things", entries))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_a_journal_of_another_network_namespace_is_left_alone(tmp_path: Path) -> None:
    path = undo.JOURNALS / f"4194304-{os.urandom(2).hex()}.json"
    entries = [["touch", str(tmp_path / "undone")]]
    journal = undo.Journal(4194304, 1, "something elsewhere", entries, ["pid:[1]", "net:[1]"])
    undo.own_folder(undo.JOURNALS)
    path.write_bytes(msgspec.json.encode(journal))
    try:
        undo.mend_leftovers()
        assert path.exists() and not (tmp_path / "undone").exists()
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(journal, spaces=undo._spaces())))
        assert undo.mend_leftovers() == ["something elsewhere, left by process 4194304"]
        assert not path.exists() and (tmp_path / "undone").exists()
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("spoil", ["writable", "another's"])
def test_journals_that_are_not_roots_alone_are_not_carried_out(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "journals"
    folder.mkdir(mode=0o755)
    (folder / "4194304-0000.json").write_bytes(
        msgspec.json.encode(undo.Journal(4194304, 1, "an attack", [["touch", str(tmp_path / "done")]]))
    )
    if spoil == "writable":
        folder.chmod(0o777)
    else:
        os.chown(folder, 1000, 1000)
    monkeypatch.setattr(undo, "JOURNALS", folder)
    with pytest.raises(MachineError, match="is not this user's alone") as caught:
        undo.mend_leftovers()
    assert "ls -ld" in caught.value.remedy
    assert not (tmp_path / "done").exists()
    assert stat.S_ISDIR(folder.stat().st_mode)


def test_nothing_is_changed_if_how_to_undo_it_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "full"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2,mode=755", "tmpfs", disk], check=True)
    try:
        (disk / "somebody's").touch()
        monkeypatch.setattr(undo, "JOURNALS", disk)
        with undo.Undo("a thing") as plan:
            with pytest.raises(
                MachineError, match="how to undo a thing cannot be written down: No space left"
            ) as caught:
                plan.plan("touch", str(tmp_path / "undone"))
            assert "make room" in caught.value.remedy
        assert not (tmp_path / "undone").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_second_signal_does_not_cut_what_is_taken_down() -> None:
    child = started("""
import time
from hwrx.host.interruption import Ending, hold_signals
with Ending() as ending:
    try:
        print("up", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        ending.heard()
        time.sleep(0.5)
        print("taken down", flush=True)
""")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        child.send_signal(number)
        time.sleep(0.05)
    said = last_words(child)
    assert (said, child.returncode) == ("taken down\n", 0)


def test_a_signal_waits_for_the_end_of_what_holds_it_whichever_thread_gets_it(tmp_path: Path) -> None:
    child = started(f"""
import threading, time
from pathlib import Path
from hwrx.host.interruption import Ending, hold_signals
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
with Ending() as ending:
    try:
        with hold_signals():
            print("up", flush=True)
            while not Path({str(tmp_path)!r}, "sent").exists():
                pass
            time.sleep(0.2)  # the kernel may have given it to the other thread, which has to wake up
            print("taken down", flush=True)
    except KeyboardInterrupt:
        ending.heard()
        print("ended", flush=True)
""")
    for number in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(number)
    (tmp_path / "sent").touch()
    said = last_words(child)
    assert said == "taken down\nended\n"


def test_a_signal_that_was_lost_in_a_destructor_ends_the_program_all_the_same() -> None:
    child = started("""
import time
from hwrx.host.interruption import Ending
class Slow:
    def __del__(self):
        print("up", flush=True)
        time.sleep(600)
with Ending() as ending:
    try:
        Slow()
        time.sleep(600)
    except KeyboardInterrupt:
        ending.heard()
        print("ended", flush=True)
""")
    child.send_signal(signal.SIGTERM)
    said = last_words(child)
    assert (said, child.returncode) == ("ended\n", 0)


def test_the_exit_code_is_ours_also_if_the_signal_comes_in_what_a_library_executes() -> None:
    """CPython would end the program by SIGINT: dataclasses execute strings, and are made by the dozen at the start."""
    child = started("""
import sys
from hwrx.host.interruption import run_beneath
def main():
    exec("import time; print('up', flush=True); time.sleep(600)")
sys.exit(run_beneath(main))
""")
    child.send_signal(signal.SIGINT)
    last_words(child)
    assert child.returncode == interruption.INTERRUPTED


def test_an_import_that_failed_for_the_signal_alone_is_no_error(tmp_path: Path) -> None:
    """As NumPy does it: whatever went wrong while it was imported is an ImportError of its own."""
    (tmp_path / "slow_library.py").write_text("""
import time
try:
    print("up", flush=True)
    time.sleep(600)
except BaseException:
    pass
raise ImportError("a part failed to import")
""")
    child = started(f"""
import sys
from hwrx.host.interruption import run_beneath
def main():
    sys.path.insert(0, {str(tmp_path)!r})
    import slow_library
sys.exit(run_beneath(main))
""")
    child.send_signal(signal.SIGINT)
    last_words(child)
    assert child.returncode == interruption.INTERRUPTED


def test_signals_that_were_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.Ending():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_agent_that_is_told_to_end_in_the_middle_of_a_loop_ends(number: signal.Signals) -> None:
    from hwrx.control.messages import Prepare, Prepared, Setting, Start
    from hwrx.control.peers import Peer, ProcessChannel
    from hwrx.control.places import Place

    with Peer.start("local", "server") as server:
        channel = server._channel
        assert isinstance(channel, ProcessChannel)
        setting = Setting(path="udp", limit=600)
        server.ask(Prepare(trial=1, role="server", setting=setting, here=Place(), there=Place()), Prepared)
        server.send(Start())
        wait_for_loop(channel.process.pid)
        channel.process.send_signal(number)
        assert channel.process.wait(timeout=LIMIT) == 3
