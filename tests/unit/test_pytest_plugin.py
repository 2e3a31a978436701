"""hwrx in pytest, as somebody who writes tests meets it: options, markers, skips, baselines, KTAP.

What is measured here is made up: the lab of these sessions is a stand-in that writes runs. Real ones are in tests/host.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import made_labs
import made_runs
import pytest

import hwrx
from hwrx.errors import StoreError, UsageError
from hwrx.report.reported import ReportedRun
from hwrx.testing import capabilities, comparing, ktap, labs, stored
from hwrx.testing.stored import Shelf
from hwrx.testing.wishes import read_wish, split_words

FOLDER = Path(__file__).parent
assert comparing  # imported here, so that the sessions within this process do not import it each anew

# for sessions in processes of their own
CONFTEST = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import made_labs
from hwrx.testing import capabilities, labs

labs.Lab = made_labs.StandIn
capabilities.CAPABILITIES.update({{name: lambda why=why: why for name, why in made_labs.LACKS.items()}})
"""
HELD = """
def test_udp(hwrx_compare, hwrx_baseline):
    run = hwrx_compare()
    assert run["udp", 64] <= 1.01 * hwrx_baseline
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project in which labs are stand-ins."""
    monkeypatch.delenv("HWRX_REQUIRE_HW", raising=False)
    monkeypatch.setattr(labs, "Lab", made_labs.StandIn)
    for name, why in made_labs.LACKS.items():
        monkeypatch.setitem(capabilities.CAPABILITIES, name, lambda why=why: why)
    return pytester


# --- who does not use it ---------------------------------------------------------------------------------------------


def test_who_does_not_use_it_pays_nothing_and_sees_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n"
        "def test_it():\n"
        "    heavy = {'numpy', 'msgspec', 'hwrx.errors', 'hwrx.testing', 'hwrx.scripting', 'click'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    done.assert_outcomes(passed=1)
    # pytest itself lists the plug-ins, and says where the tests are
    said = [line for line in done.outlines if not line.startswith(("plugins:", "rootdir:"))]
    assert "hwrx" not in "\n".join(said)
    assert not (pytester.path / ".hwrx").exists()


def test_the_options_and_the_marker_are_explained(pytester: pytest.Pytester) -> None:
    words = pytester.runpytest("--help").stdout.str()
    for option in ("kernel", "save", "compare", "require", "ktap", "dir", "keep"):
        assert f"--hwrx-{option}" in words
    assert "@pytest.mark.hwrx(topology=" in pytester.runpytest("--markers").stdout.str()


# --- labs ------------------------------------------------------------------------------------------------------------


def test_a_lab_is_put_up_once_for_all_tests_that_want_the_same(session: pytest.Pytester) -> None:
    session.makepyfile(
        "import pytest\n"
        "def test_a(hwrx_lab): pass\n"
        "def test_b(hwrx_lab): pass\n"
        "@pytest.mark.hwrx(topology='pair')\n"
        "def test_c(hwrx_lab): pass\n"
        "@pytest.mark.hwrx(topology='pair', clock='icount')\n"
        "def test_d(hwrx_lab): pass\n"
    )
    done = session.runpytest("-s")
    done.assert_outcomes(passed=4)
    words = done.stdout.str()
    assert (words.count("booted netns None"), words.count("booted pair None"), words.count("taken down")) == (1, 2, 3)


def test_a_test_runs_once_on_each_kernel_of_the_option_or_of_its_marker(session: pytest.Pytester) -> None:
    session.makepyfile(
        "import pytest\n"
        "def test_a(hwrx_lab, hwrx_kernel): pass\n"
        "@pytest.mark.hwrx(kernel=['6.1', '6.13'])\n"
        "def test_b(hwrx_lab): pass\n"
        "def test_c(): pass\n"
    )
    done = session.runpytest("-v", "-s", "--hwrx-kernel", "6.1,6.12")
    done.assert_outcomes(passed=5)
    for name in ("test_a[6.1]", "test_a[6.12]", "test_b[6.1]", "test_b[6.13]", "test_c"):
        assert f"::{name} " in done.stdout.str()
    assert done.stdout.str().count("booted") == 3


def test_what_the_machine_lacks_skips_and_is_a_failure_if_required(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makepyfile(
        "import pytest\n"
        "@pytest.mark.hwrx(needs='nic')\n"
        "def test_marked(): assert False\n"
        "@pytest.mark.hwrx(topology='netns', needs='verbs')\n"
        "def test_of_the_wire(hwrx_lab): assert False\n"
        "def test_asked(hwrx_needs):\n"
        "    hwrx_needs('root', 'command:no-such-program')\n"
        "    assert False\n"
    )
    done = session.runpytest("-rs")
    done.assert_outcomes(skipped=3)
    for reason in ("no NIC here", "the topology netns has no verbs devices", "there is no command `no-such-program`"):
        assert reason in done.stdout.str()
    required = session.runpytest("--hwrx-require")
    required.assert_outcomes(errors=2, failed=1)
    assert "required by --hwrx-require (or HWRX_REQUIRE_HW=1), and no NIC here" in required.stdout.str()
    monkeypatch.setenv("HWRX_REQUIRE_HW", "1")
    session.runpytest().assert_outcomes(errors=2, failed=1)


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("needs='nik'", "a test cannot need 'nik'"),
        ("topolgy='pair'", "does not know 'topolgy'"),
        ("topology='wires'", "there is no topology 'wires' for a lab"),
    ],
)
def test_a_wrong_marker_is_an_error_in_words(session: pytest.Pytester, marker: str, words: str) -> None:
    session.makepyfile(f"import pytest\n@pytest.mark.hwrx({marker})\ndef test_it(hwrx_lab): pass\n")
    done = session.runpytest()
    done.assert_outcomes(errors=1)
    assert words in done.stdout.str()
    assert "choose of:" in done.stdout.str()
    assert "Traceback" not in done.stdout.str()


def test_a_lab_that_cannot_be_put_up_is_tried_once_and_is_an_error_in_words(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    session.makepyfile("def test_a(hwrx_lab): pass\ndef test_b(hwrx_lab): pass\n")
    done = session.runpytest("-s")
    done.assert_outcomes(errors=2)
    assert done.stdout.str().count("tried\n") == 1
    assert "hwrx: it did not come up" in done.stdout.str()
    assert "During handling" not in done.stdout.str()


# --- baselines -------------------------------------------------------------------------------------------------------


def test_a_regression_fails_with_the_figures_the_diff_and_the_run_that_is_kept(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makepyfile(HELD)
    saved = session.runpytest("--hwrx-save")
    saved.assert_outcomes(passed=1)
    assert "hwrx: 1 baseline saved in" in saved.stdout.str()
    assert not list((session.path / ".hwrx" / "runs").glob("*/*"))  # of a test that passed nothing stays
    same = session.runpytest("--hwrx-compare")
    same.assert_outcomes(passed=1)
    monkeypatch.setenv("PLANTED", "400")
    done = session.runpytest("--junitxml", "junit.xml")
    done.assert_outcomes(failed=1)
    words = done.stdout.str()
    assert "udp 64 B pingpong event <= 1.01 * <baseline default>" in words
    assert "exact figure: 10,200.0 instructions against 10,000.0, +2.00 %: beyond 1.01 times the baseline" in words
    assert "0 of 1 exact figures are equal to the digit, 1 are not" in words  # the diff
    (kept,) = (path for path in (session.path / ".hwrx" / "runs").glob("*/2*"))
    assert f"run: {kept}" in words
    assert hwrx.load(kept)["udp"].p50 == pytest.approx(10_200)
    junit = (session.path / "junit.xml").read_text()
    assert f'<property name="hwrx run" value="{kept}"' in junit
    assert '<property name="hwrx udp 64 B pingpong event [instructions]" value="10200.0' in junit


@pytest.mark.parametrize("saved", [False, True])
def test_what_fails_beside_a_comparison_that_holds_is_told(session: pytest.Pytester, saved: bool) -> None:
    session.makepyfile(HELD)
    if saved:
        session.runpytest("--hwrx-save").assert_outcomes(passed=1)
    session.makepyfile(HELD + "    assert run['udp', 64] <= 1.01 * hwrx_baseline and len(run.paths) == 7\n")
    done = session.runpytest(*([] if saved else ["--hwrx-save"]))
    done.assert_outcomes(failed=1)
    assert "1 == 7" in done.stdout.str()
    assert "has no baseline" not in done.stdout.str()
    assert "hwrx diff" not in done.stdout.str()


def test_a_test_that_changes_the_directory_changes_no_place(session: pytest.Pytester) -> None:
    (session.path / "elsewhere").mkdir()
    session.makepyfile(HELD.replace("    run =", "    import os; os.chdir('elsewhere')\n    run =", 1))
    # in a process of its own, whose directory stays changed until it ends
    session.makeconftest(CONFTEST)
    done = session.runpytest_subprocess("--hwrx-dir=kept", "--hwrx-ktap=out.tap", "--hwrx-save")
    done.assert_outcomes(passed=1)
    assert len(list((session.path / "kept" / "baselines").glob("default/*/*/baseline.json"))) == 1
    assert (session.path / "out.tap").exists()
    assert not list((session.path / "elsewhere").iterdir())


def test_a_test_that_fails_saves_no_baseline(session: pytest.Pytester) -> None:
    session.makepyfile("def test_udp(hwrx_compare, hwrx_baseline):\n    hwrx_compare()\n    assert False\n")
    session.runpytest("--hwrx-save").assert_outcomes(failed=1)
    assert not (session.path / ".hwrx" / "baselines").exists()


def test_without_a_baseline_it_is_said_what_to_type(session: pytest.Pytester) -> None:
    session.makepyfile(HELD)
    done = session.runpytest()
    done.assert_outcomes(failed=1)
    assert "test_udp has no baseline 'default' yet" in done.stdout.str()
    assert "remedy: pytest --hwrx-save" in done.stdout.str()
    assert "holding.py" not in done.stdout.str()  # the way through hwrx is no business of who reads it


def test_a_baseline_of_another_kernel_is_named_and_not_compared(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makepyfile(HELD)
    session.runpytest("--hwrx-save").assert_outcomes(passed=1)
    monkeypatch.setenv("KERNEL", "6.12.9")
    done = session.runpytest()
    done.assert_outcomes(failed=1)
    assert "it is of kernel 6.1.0-test, here 6.12.9" in done.stdout.str()
    session.runpytest("--hwrx-save").assert_outcomes(passed=1)  # each kernel has its own
    session.runpytest().assert_outcomes(passed=1)


def test_named_baselines_are_compared_and_saved_in_one_session(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makepyfile(HELD)
    session.runpytest("--hwrx-save=v1").assert_outcomes(passed=1)
    both = session.runpytest("--hwrx-compare=v1", "--hwrx-save=v2")
    both.assert_outcomes(passed=1)
    monkeypatch.setenv("PLANTED", "400")
    session.runpytest("--hwrx-compare=v2").assert_outcomes(failed=1)
    unknown = session.runpytest("--hwrx-compare=v3")
    assert "has no baseline 'v3' yet" in unknown.stdout.str()


def test_a_test_that_measures_something_else_now_is_told_what_to_type(session: pytest.Pytester) -> None:
    session.makepyfile(HELD)
    session.runpytest("--hwrx-save").assert_outcomes(passed=1)
    session.makepyfile(HELD.replace("hwrx_compare()", "hwrx_compare(sizes=[64, 128], warmup=5)"))
    done = session.runpytest()
    done.assert_outcomes(failed=1)
    words = done.stdout.str()
    assert "no setting in common" in words
    assert re.search(r"remedy: rm -r \S+/test_udp-\w+, then pytest --hwrx-save=default", words)
    assert "--anyway" not in words


def test_an_option_that_took_a_file_for_its_name_is_refused(session: pytest.Pytester) -> None:
    session.makepyfile(HELD)
    done = session.runpytest("--hwrx-save", "test_it.py")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "'test_it.py' is not a name for a baseline" in done.stderr.str()


def test_it_works_in_several_processes(session: pytest.Pytester) -> None:
    names = "abcd"
    session.makeconftest(CONFTEST)
    session.makepyfile("".join(HELD.replace("test_udp", f"test_{name}") for name in names))
    saved = session.runpytest_subprocess("-n", "2", "--hwrx-save", "--hwrx-ktap=out.tap")
    saved.assert_outcomes(passed=4)
    assert "hwrx: 4 baselines saved in" in saved.stdout.str()
    session.runpytest().assert_outcomes(passed=4)
    text = (session.path / "out.tap").read_text()
    assert text.startswith("KTAP version 1\n1..4\n")
    assert sorted(re.findall(r"::test_(\w)$", text, re.MULTILINE)) == list(names)


@pytest.fixture
def run(tmp_path: Path) -> ReportedRun:
    return hwrx.load(made_runs.make(tmp_path / "runs", paths=["udp"], sizes=[64], messages=60))


def test_a_damaged_baseline_is_named(run: ReportedRun, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "kept", "default", "test_a.py::test_it")
    place = shelf.add_run(0, run)
    assert [each.path.name for each in shelf.find_runs(0, run)] == [run.path.name]
    file = place / stored.FILE
    whole = file.read_text()
    for content in ("", "[]", "{", '{"format": 99, "runs": []}', json.dumps({"format": 1, "runs": []})):
        file.write_text(content)
        with pytest.raises(StoreError, match=f"(damaged|not a baseline).*(\n.*)*remedy: rm -r {place}"):
            shelf.find_runs(0, run)
    file.write_text(whole)
    samples = place / run.path.name / "samples.parquet"
    samples.write_bytes(samples.read_bytes()[:-100])
    with pytest.raises(StoreError):
        shelf.find_runs(0, run)
    shutil.rmtree(place / run.path.name)
    with pytest.raises(StoreError):
        shelf.find_runs(0, run)


def test_a_baseline_keeps_the_newest_runs(run: ReportedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_RUNS", 2)
    shelf = Shelf(tmp_path / "kept", "default", "test_a.py::test_it")
    made = [
        hwrx.load(made_runs.make(tmp_path / str(seed), seed, name=f"n{seed}", paths=["udp"], sizes=[64], messages=60))
        for seed in range(3)
    ]
    for each in made:
        place = shelf.add_run(0, each)
    assert [each.path.name for each in shelf.find_runs(0, run)] == [each.path.name for each in made[1:]]
    assert not (place / made[0].path.name).exists()


def test_two_sessions_that_add_at_once_lose_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path / "kept", "default", "test_a.py::test_it")
    made = [
        hwrx.load(made_runs.make(tmp_path / str(seed), seed, name=f"n{seed}", paths=["udp"], sizes=[64], messages=60))
        for seed in range(6)
    ]
    copy = shutil.copytree
    # every session has read what is there before the first one writes, unless they wait for each other
    monkeypatch.setattr(shutil, "copytree", lambda *names: (time.sleep(0.2), copy(*names)))
    with ThreadPoolExecutor(len(made)) as sessions:
        list(sessions.map(lambda each: Shelf(tmp_path / "kept", shelf.name, shelf.test).add_run(0, each), made))
    assert {each.path.name for each in shelf.find_runs(0, made[0])} == {each.path.name for each in made}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"boot": ["init_on_alloc=0"]}, {}, "boot init_on_alloc=0, now none"),
        ({}, {"wire_mtu": 9000}, "wire_mtu none, now 9000"),
    ],
)
def test_runs_of_guests_that_were_put_up_otherwise_are_compared_and_not_pooled(
    tmp_path: Path, first: dict[str, object], second: dict[str, object], words: str
) -> None:
    before, after = (
        hwrx.load(made_runs.make(tmp_path / name, paths=["udp"], sizes=[64], messages=60, name=name, **fields))
        for name, fields in (("a", first), ("b", second))
    )
    shelf = Shelf(tmp_path / "kept", "default", "test_a.py::test_it")
    place = shelf.add_run(0, before)
    assert [each.path.name for each in shelf.find_runs(0, after)] == [before.path.name]
    with pytest.raises(UsageError, match=f"{words}\n.*rm -r {place}, then pytest --hwrx-save"):
        shelf.add_run(0, after)
    assert [each.path.name for each in shelf.find_runs(0, after)] == [before.path.name]


def test_times_are_of_a_machine_and_instructions_of_an_emulator(tmp_path: Path, run: ReportedRun) -> None:
    wall = stored.conditions_of(run)
    assert wall["clock"] == "wall"
    assert {"processor", "machine"} <= wall.keys()
    guest = {"qemu": "7.2.22", "accelerator": "tcg"}
    counted = stored.conditions_of(
        hwrx.load(
            made_runs.make(tmp_path, manifest={**made_runs.MANIFEST, "guest": guest}, paths=["udp"], clock="icount")
        )
    )
    assert counted["clock"] == "icount"
    assert counted["emulator"] == "QEMU 7.2.22 tcg"
    assert not {"processor", "machine"} & counted.keys()


# --- words -----------------------------------------------------------------------------------------------------------


def test_markers_add_up_and_the_nearest_wins() -> None:
    wish = read_wish(
        [{"kernel": "6.12"}, {"topology": "nic", "kernel": "6.1", "needs": ["root", "verbs"], "boot": ["x"]}]
    )
    assert (wish.topology, wish.kernels, wish.needs) == ("nic", ("6.12",), ("root", "verbs"))
    assert dict(wish.lab) == {"boot": ("x",)}
    assert hash(wish.lab) is not None
    assert (wish.in_guest(None), read_wish([{}]).in_guest(None), read_wish([{}]).in_guest("6.1")) == (True, False, True)
    assert split_words(" 6.1, 6.12,") == ("6.1", "6.12")
    with pytest.raises(UsageError, match="does not know 'kernels'"):
        read_wish([{"kernels": "6.1"}])


def test_results_are_ktap(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(capabilities.CAPABILITIES, "sun", lambda: "it # rains")
    session.makepyfile(
        test_of_ktap="import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "def test_skipped(hwrx_needs): hwrx_needs('sun')\n"
        "@pytest.fixture\n"
        "def known(request): request.applymarker(pytest.mark.xfail(reason='known'))\n"
        "def test_expected(known): assert 0\n"
        "@pytest.fixture\n"
        "def ends_badly():\n"
        "    yield\n"
        "    assert 0, 'left behind'\n"
        "def test_teardown(ends_badly): pass\n"
        "@pytest.mark.parametrize('word', ['a#b'])\n"
        "def test_named(word): pass\n"
    )
    done = session.runpytest("--hwrx-ktap", "-", "-q")
    assert done.ret == 1
    lines = done.stdout.str().splitlines()
    begin = lines.index("KTAP version 1")
    assert lines[begin + 1] == "1..6"
    found = [line for line in lines[begin:] if re.match(r"(not )?ok \d", line)]
    assert found == [
        "ok 1 test_of_ktap.py::test_good",
        "not ok 2 test_of_ktap.py::test_bad",
        "ok 3 test_of_ktap.py::test_skipped # SKIP it # rains",
        "not ok 4 test_of_ktap.py::test_expected # XFAIL known",
        "not ok 5 test_of_ktap.py::test_teardown",
        "ok 6 test_of_ktap.py::test_named[a b]",
    ]
    assert any(line.startswith("# ") and "one is not two" in line for line in lines)
    assert any(line.startswith("# ") and "left behind" in line for line in lines)
    required = session.runpytest("--hwrx-ktap", "-", "-q", "--hwrx-require").stdout.str()
    assert "\nnot ok 3 test_of_ktap.py::test_skipped\n" in required


def test_a_failure_stays_one_in_ktap_and_a_module_that_is_skipped_is_there(session: pytest.Pytester) -> None:
    session.makepyfile(
        test_failing="import pytest, unittest\n"
        "@pytest.fixture\n"
        "def lacks_at_the_end(hwrx_needs):\n"
        "    yield\n"
        "    hwrx_needs('command:no-such-program')\n"
        "def test_bad(lacks_at_the_end): assert 0, 'one is not two'\n"
        "class TestParts(unittest.TestCase):\n"
        "    def test_parts(self):\n"
        "        with self.subTest('a'): self.fail('a is wrong')\n"
        "        with self.subTest('b'): self.skipTest('b is not there')\n",
        test_whole="import unittest\nraise unittest.SkipTest('it is not here')\n",
    )
    lines = session.runpytest("--hwrx-ktap", "-", "-q").stdout.str().splitlines()
    lines = lines[lines.index("KTAP version 1") :]
    assert [line for line in lines if re.match(r"(not )?ok \d", line)] == [
        "ok 1 test_whole.py # SKIP unittest.case.SkipTest: it is not here",
        "not ok 2 test_failing.py::test_bad",
        "not ok 3 test_failing.py::TestParts::test_parts",
    ]
    for words in ("one is not two", "a is wrong"):
        assert any(line.startswith("# ") and words in line for line in lines)


def test_ktap_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        ktap.write_ktap({"a": ktap.Result("a", True)}, str(tmp_path / "file" / "out.tap"))
