"""What is printed and written, whatever the environment: closed streams, full disks, other encodings, hostile names."""

from __future__ import annotations

import io
import os
import pathlib
import subprocess
import sys

import made_runs
import pytest
from rich.table import Table
from rich.text import Text

import hwrx
from hwrx.errors import StoreError
from hwrx.host import console, disk, owners, streams, tools

HWRX = [sys.executable, "-P", "-m", "hwrx"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of sh in which "$@" is hwrx."""
    return subprocess.run(["sh", "-c", line, "sh", *HWRX, *words], capture_output=True, env=os.environ | environment)


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_ends_no_command_in_silence(closed: str) -> None:
    done = shell(f'"$@" {closed}', "stages", "--no-probe", "--json")
    assert done.returncode == 0
    assert (">&-" in closed) == (not done.stdout) or closed == "2>&-"
    done = shell(f'"$@" {closed}', "report", "/nowhere/at/all")
    assert done.returncode == 1
    assert (b"there is no run" in done.stderr) == ("2>&-" not in closed)


def test_a_full_disk_is_told_where_it_is_the_output() -> None:
    done = shell('"$@" > /dev/full', "stages", "--no-probe")
    assert done.returncode == 1
    assert done.stderr == b"hwrx: no space left on device\n  remedy: the disk is full: df -h\n"
    assert shell('"$@" 2> /dev/full', "report", "/nowhere").returncode == 1


def test_what_a_full_disk_refused_is_not_tried_again_at_the_interpreters_end() -> None:
    """It would exit with 120 then, whatever the command's own code is."""
    with pathlib.Path("/dev/full").open("w", encoding="utf-8") as full:
        full.write("held")
        streams.drop_refused(full)
        full.write("and more")
        full.flush()


def test_a_reader_that_goes_away_is_no_error(tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path)
    done = shell('{ "$@"; echo $? >&2; } | true', "report", str(run), "--json")
    assert done.stderr in (b"1\n", b"141\n")
    done = shell('{ "$@"; echo $? >&2; } | true', "report", str(run))
    assert done.stderr in (b"1\n", b"141\n")


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}])
def test_what_goes_into_a_pipe_is_utf_8_whatever_the_locale(
    environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    run = made_runs.make(tmp_path)
    done = shell('"$@"', "report", str(run), **environment)
    assert done.returncode == 0, done.stderr
    assert "µs" in done.stdout.decode("utf-8")
    assert "µs" in (run / "report.html").read_text(encoding="utf-8")


def test_a_notebooks_backend_is_not_asked_for(tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path)
    done = shell('"$@"', "report", str(run), "--to", "svg", MPLBACKEND="module://no_such_module.backend")
    assert done.returncode == 0, done.stderr
    assert list((run / "figures").glob("*.svg"))


@pytest.mark.parametrize("backend", ["nonsense", "module://no_such_module.backend"])
def test_a_backend_does_not_stop_a_program_that_uses_hwrx(backend: str, tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path, sizes=[64], messages=100)
    code = (
        "import sys, hwrx, os; hwrx.load(sys.argv[1]).figure('cdf').savefig(sys.argv[2])\n"
        "import matplotlib; print(os.environ['MPLBACKEND'], matplotlib.rcParams['backend'])"
    )
    words = [sys.executable, "-c", code, run, tmp_path / "cdf.svg"]
    done = subprocess.run(words, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # what the program itself asked for holds for its own figures
    kept, chosen = done.stdout.split()
    assert kept == backend and (chosen == backend or backend == "nonsense")


@pytest.mark.parametrize(
    "first", ["hwrx.report.style", "hwrx.report.sweeps", "hwrx.flood.pictures", "hwrx.memory.picture"]
)
def test_matplotlib_comes_up_whichever_module_asks_first(first: str) -> None:
    words = [sys.executable, "-c", f"import {first}"]
    done = subprocess.run(words, env={**os.environ, "MPLBACKEND": "nonsense"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_empty_environment_will_do(tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path)
    done = subprocess.run(["env", "-i", *HWRX, "report", str(run)], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_tools_are_found_outside_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("", "/nowhere", "/usr/bin:/bin"):
        monkeypatch.setenv("PATH", path)
        tools.widen_path()
        tools.widen_path()
        assert os.environ["PATH"].split(":")[-2:] == ["/usr/sbin", "/sbin"]
        assert "" not in os.environ["PATH"].split(":"), "that is the working directory"
        assert tools.find_tool("ip")


# --- words that are not ours -----------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J[red]eth0[/red] :smile: \x07\x9b\u202e"


def test_a_console_gives_words_no_power_and_no_colour() -> None:
    for terminal in (None, "xterm-256color"):
        out = io.StringIO()
        shown = console.OutsideConsole(file=out, markup=False, emoji=False, highlight=False, width=400)
        shown._force_terminal = terminal is not None
        table = Table(HOSTILE)
        table.add_row(HOSTILE)
        for each in (HOSTILE, Text(HOSTILE), table):
            shown.print(each)
        said = out.getvalue()
        assert said.count(r"\x1b[2J[red]eth0[/red] :smile: ") == 4
        assert not {"\x07", "\x9b", "\u202e"} & set(said)
        assert "\x1b[2J" not in said


def test_nothing_is_cut_into_a_pipe() -> None:
    for columns in (20, 80):
        out = io.StringIO()
        table = Table()
        for name in ("first", "second"):
            table.add_column(name, no_wrap=True)
        table.add_row("x" * 70, "y" * 70)
        console.open_console(out, width=columns).print(table)
        assert "…" not in out.getvalue()
        assert "y" * 70 in out.getvalue()


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 300])
def test_a_report_is_whole_in_a_pipe_of_any_width(columns: int, tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path, patterns=["pingpong", "stream"])
    done = shell('"$@"', "report", str(run), "--to", "table", COLUMNS=str(columns))
    assert done.returncode == 0
    assert "…" not in done.stdout.decode()


def test_a_runs_words_are_harmless_when_it_is_loaded(tmp_path: pathlib.Path) -> None:
    manifest = {**made_runs.MANIFEST, "machine": {"kernel": HOSTILE, HOSTILE: [HOSTILE]}, "warnings": [HOSTILE]}
    run = made_runs.make(tmp_path, manifest=manifest)
    found = hwrx.load(run).manifest
    assert found["machine"]["kernel"].startswith(r"\x1b[2J[red]")
    done = shell('"$@"', "report", str(run))
    assert done.returncode == 0
    assert not set(b"\x1b\x07") & set(done.stdout)
    assert b"\x1b" not in (run / "report.html").read_bytes()


def test_an_error_shows_a_hostile_name_and_does_not_obey_it() -> None:
    done = shell('"$@"', "report", "/nowhere/\x1b[31m\n\u202e")
    assert rb"/nowhere/\x1b[31m" in done.stderr
    assert b"\x1b" not in done.stderr
    assert b"Traceback" not in shell('"$@"', "report", os.fsdecode(b"/nowhere/\xff")).stderr


def test_a_process_may_be_called_anything() -> None:
    program = (
        "import ctypes, socket, sys; ctypes.CDLL(None).prctl(15, b'\\xff[b]\\x1b[1m', 0, 0, 0); s = socket.socket();"
        "s.bind(('127.0.0.1', 0)); import os; print(os.fstat(s.fileno()).st_ino, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        inode = int(process.stdout.readline())
        (owner,) = owners.owners_of([inode])[inode]
        process.communicate()
    assert owner.name == r"\xff[b]\x1b[1m"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_target_is_checked_and_left_as_it_was(tmp_path: pathlib.Path) -> None:
    disk.check_target(tmp_path / "new" / "deep" / "file.svg")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    there = tmp_path / "there"
    there.write_text("kept")
    disk.check_target(there)
    assert there.read_text() == "kept"
    (tmp_path / "dangling").symlink_to(tmp_path / "end")
    disk.check_target(tmp_path / "dangling")
    assert not (tmp_path / "end").exists()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for wrong in (
        tmp_path,
        there / "below",
        pathlib.Path("/proc/hwrx.svg"),
        tmp_path / ("x" * 300),
        tmp_path / "circle",
    ):
        with pytest.raises(StoreError, match=r"cannot write .*"):
            disk.check_target(wrong)


@pytest.mark.parametrize(
    "words",
    [
        ("walk", "udp", "--here", "--topology", "netns", "--svg", "/proc/no/walk.svg"),
        ("memory", "--picture", "/proc/no/pages.svg"),
        ("nic", "recv", "0000:ff:1f.7", "-w", "/proc/no/packets.pcapng"),
        ("flood", "udp", "--here", "--burst", "10", "--out", "/proc/no"),
        ("compare", "--paths", "udp", "--here", "--log", "/proc/no/log"),
        ("compare", "--paths", "udp", "--here", "--messages", "10", "--runs", "/proc/no"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(words: tuple[str, ...]) -> None:
    done = shell('"$@"', *words)
    assert done.returncode == 1
    assert b"cannot write" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"trial" not in done.stderr


@pytest.mark.parametrize(
    ("name", "kind"), [("report.html", "html"), ("figures", "svg"), ("tables", "latex"), ("summary.json", "json")]
)
def test_a_report_is_not_written_through_links(name: str, kind: str, tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path, paths=["udp"], sizes=[64], messages=100)
    outside = tmp_path / "outside"
    if "." in name:
        outside.write_text("mine")
    else:
        outside.mkdir()
    (run / name).symlink_to(outside)
    done = shell('"$@"', "report", str(run), "--to", kind)
    assert done.returncode == 1
    assert b"is a symbolic link, and is not written through" in done.stderr
    assert list(outside.iterdir()) == [] if outside.is_dir() else outside.read_text() == "mine"


def test_a_link_in_the_place_of_a_draft_is_not_followed(tmp_path: pathlib.Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    (tmp_path / ".report.html.part").symlink_to(mine)
    disk.replace_file(tmp_path / "report.html", b"new")
    assert mine.read_text() == "kept"
    assert (tmp_path / "report.html").read_bytes() == b"new"
