"""hwrx in pytest: labs, comparisons and baselines as fixtures; see lab/guide/scripting.md.

pytest loads this in every session of an environment that has hwrx, so nothing of hwrx is imported before it is used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LABS: pytest.StashKey[Any] = pytest.StashKey()  # hwrx.testing.labs.LabKeeper
COMPARISON: pytest.StashKey[Any] = pytest.StashKey()  # hwrx.testing.comparing.Comparison
PASSED = pytest.StashKey[bool]()
DIFFS = pytest.StashKey[list[str]]()
SAVED = "hwrx saved"  # a property of a test's report, which also another process's has
STDOUT = "-"  # for a file
EXPLAINED = 6  # lines of an assertion: pytest shows eight


# --- options ---------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("hwrx", "hwrx: how packets reach programs")
    group.addoption(
        "--hwrx-kernel", metavar="VERSION,…", help="Kernels of guests: tests that name none run once on each."
    )
    group.addoption(
        "--hwrx-save",
        metavar="NAME",
        nargs="?",
        const="default",
        help="Add the runs of tests that pass to their baselines; with --hwrx-compare, hold them against others first.",
    )
    group.addoption(
        "--hwrx-compare",
        metavar="NAME",
        nargs="?",
        const="default",
        help="Baseline to hold runs against [default].",
    )
    group.addoption(
        "--hwrx-require", action="store_true", help="Fail where a test would be skipped for what the machine lacks."
    )
    group.addoption("--hwrx-ktap", metavar="FILE", help="Write results as KTAP, too; -: to standard output.")
    group.addoption(
        "--hwrx-dir", metavar="DIR", help="Where runs and baselines are kept [.hwrx in the root of the tests]."
    )
    group.addoption("--hwrx-keep", action="store_true", help="Keep the runs of tests that pass, too.")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known; refuse options that cannot be meant."""
    config.addinivalue_line(
        "markers",
        "hwrx(topology=, kernel=, needs=, clock=, boot=, …): the lab that a test wants, and what it needs",
    )
    for option in ("hwrx_save", "hwrx_compare"):
        name = config.getoption(option)
        if name is not None:
            try:
                _room("testing.stored").check_name(name)  # before anything is measured
            except _room("errors").UsageError as error:
                raise pytest.UsageError(f"hwrx: {error}") from None
    if config.getoption("hwrx_ktap") is not None and not hasattr(config, "workerinput"):
        target = config.getoption("hwrx_ktap")
        where = target if target == STDOUT else str(config.invocation_params.dir / target)
        config.pluginmanager.register(KtapWriter(where), "hwrx-ktap")


def is_required(config: pytest.Config) -> bool:
    """Whether what the machine lacks is a failure: by --hwrx-require, or HWRX_REQUIRE_HW=1 in the environment."""
    return bool(config.getoption("hwrx_require")) or os.environ.get("HWRX_REQUIRE_HW") == "1"


def skip_without(config: pytest.Config, reason: str) -> None:
    """Skip a test, or fail if all that the machine can do has to be tested."""
    if is_required(config):
        pytest.fail(f"required by --hwrx-require (or HWRX_REQUIRE_HW=1), and {reason}", pytrace=False)
    pytest.skip(reason)


def _folder(config: pytest.Config) -> Path:
    # absolute: a test may have another working directory than the session
    return config.invocation_params.dir / (config.getoption("hwrx_dir") or config.rootpath / ".hwrx")


# --- which lab -------------------------------------------------------------------------------------------------------


def _room(name: str) -> ModuleType:
    """Import a module of hwrx when it is wanted, as hwrx.cli does its commands: most sessions want none."""
    return importlib.import_module(f"hwrx.{name}")


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """An HwrxError of a fixture is told without the way through it."""
    try:
        yield
    except _room("errors").HwrxError as error:
        raise pytest.fail.Exception(f"hwrx: {error}", pytrace=False) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each kernel that its marker, or --hwrx-kernel, names."""
    if "hwrx_kernel" not in metafunc.fixturenames:
        return
    named = _markers_of(metafunc.definition)
    given = metafunc.config.getoption("hwrx_kernel")
    if not given and not any("kernel" in words for words in named):
        return
    wishes = _room("testing.wishes")
    with _in_words():
        kernels = wishes.read_wish(named).kernels or wishes.split_words(given or "")
        metafunc.parametrize("hwrx_kernel", kernels, indirect=True, scope="session")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the machine lacks, with the reason."""
    if item.get_closest_marker("hwrx") is None:
        return
    with _in_words():
        wish = _room("testing.wishes").read_wish(_markers_of(item))
        callspec = getattr(item, "callspec", None)
        kernel = callspec.params.get("hwrx_kernel") if callspec else None
        wants_lab = "hwrx_lab" in getattr(item, "fixturenames", ())
        topology = wish.topology if wants_lab or any("topology" in words for words in _markers_of(item)) else "here"
        reason = _room("testing.capabilities").what_lacks_for(
            topology, wish.needs, guest=wants_lab and wish.in_guest(kernel)
        )
    if reason:
        skip_without(item.config, reason)


def _markers_of(node: pytest.Item) -> list[dict[str, object]]:
    """What the markers of a test say, the nearest one first."""
    return [dict(marker.kwargs) for marker in node.iter_markers("hwrx")]


# --- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def hwrx_needs(pytestconfig: pytest.Config) -> Callable[..., None]:
    """`hwrx_needs("root", "command:iperf3")` skips if this machine lacks one of them, or fails with --hwrx-require."""

    def check(*names: str) -> None:
        for name in names:
            with _in_words():
                reason = _room("testing.capabilities").what_lacks(name)
            if reason:
                skip_without(pytestconfig, reason)

    return check


@pytest.fixture(scope="session")
def hwrx_kernel(request: pytest.FixtureRequest) -> str | None:
    """The kernel that a guest is to have this time: of the marker or of --hwrx-kernel; None: nobody named one."""
    return getattr(request, "param", None)


@pytest.fixture
def hwrx_lab(request: pytest.FixtureRequest, hwrx_kernel: str | None) -> object:
    """The lab that the test's marker describes (`hwrx.Lab`): put up once in a session for all tests that want it."""
    config = request.config
    with _in_words():
        wish = _room("testing.wishes").read_wish(_markers_of(request.node))
        reason = _room("testing.capabilities").what_lacks_for(wish.topology, (), guest=wish.in_guest(hwrx_kernel))
        if not reason:
            if LABS not in config.stash:
                config.stash[LABS] = _room("testing.labs").LabKeeper(_folder(config) / "runs")
            try:
                lab = config.stash[LABS].lab_for(wish, hwrx_kernel)
            except _room("errors").MachineError as error:
                reason = str(error)
        if not reason and "verbs" in wish.needs and any(place.verbs is None for place in lab.places.values()):
            reason = f"the kernel of this lab ({lab.kernel}) has no verbs devices on the topology {wish.topology}"
    if reason:
        skip_without(config, reason)
    return lab


@pytest.fixture
def hwrx_compare(request: pytest.FixtureRequest, hwrx_lab: object) -> Iterator[object]:
    """Run comparisons in the test's lab: `run = hwrx_compare(paths=["udp", "tcp"], sizes=[64])`.

    The directory of a run stays if the test fails, and its report names it.
    """
    item, config = request.node, request.config

    def record(name: str, value: object) -> None:
        item.user_properties.append((name, value))

    comparison = _room("testing.comparing").Comparison(hwrx_lab, _folder(config) / "runs", item.nodeid, record)
    item.stash[COMPARISON] = comparison
    yield comparison
    if item.stash.get(PASSED, False) and not config.getoption("hwrx_keep"):
        comparison.forget()


@pytest.fixture
def hwrx_baseline(request: pytest.FixtureRequest, hwrx_compare: object) -> Iterator[object]:
    """What this test's runs were before, here: `assert run["udp", 64] <= 1.02 * hwrx_baseline`.

    --hwrx-save adds the runs of a test that passes; until there are any, comparing is an error.
    """
    stored = _room("testing.stored")
    item, config = request.node, request.config
    folder = _folder(config) / "baselines"
    save, compare = config.getoption("hwrx_save"), config.getoption("hwrx_compare")
    shelf = stored.Shelf(folder, compare or stored.DEFAULT, item.nodeid)
    only_saving = save is not None and compare is None
    yield _room("testing.comparing").TestBaseline(hwrx_compare, shelf, only_saving=only_saving)
    if save is not None and item.stash.get(PASSED, False):
        with _in_words():
            target = stored.Shelf(folder, save, item.nodeid)
            for number, run in enumerate(item.stash[COMPARISON].runs):
                item.user_properties.append((SAVED, str(target.add_run(number, run))))


# --- reports ---------------------------------------------------------------------------------------------------------


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    """Say by how much a figure is worse than its baseline, and which functions moved."""
    holding = sys.modules.get("hwrx.report.holding")
    if holding is None:  # nobody holds anything against a baseline
        return None
    scaled = 1.0 * right if isinstance(right, holding.Baseline) else right
    if not isinstance(scaled, holding.Scaled) or op not in ("<=", ">="):
        return None
    if scaled.holds_for(left, op):  # what failed stands beside it: `assert run["udp"] <= 1.02 * baseline and …`
        return None
    verdict = scaled.judge(left, op)
    config.stash.setdefault(DIFFS, []).append(_room("report.diff_text").to_text(verdict.diff))
    lines = [f"{verdict.name} {op} {scaled!r}", *verdict.sentences()[:2]]
    if moved := verdict.moved_functions():
        lines.append(f"functions that moved: {'; '.join(moved)}")
    found: Any = left
    return [*lines[: EXPLAINED - 1], f"run: {found.run.path}"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep whether a test passed; add the diff and the directories of its runs to the report of one that failed."""
    report = yield
    if call.when == "call":
        item.stash[PASSED] = report.passed
    diffs = item.config.stash.get(DIFFS, [])
    if report.failed:
        report.sections += [("hwrx diff", text) for text in diffs]
        comparison = item.stash.get(COMPARISON, None)
        if comparison is not None and comparison.runs and call.when == "call":
            words = "\n".join(f"{run.path}: hwrx report {run.path}" for run in comparison.runs)
            report.sections.append(("hwrx runs of this test, kept", words))
    diffs.clear()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which baselines were saved."""
    reports = [report for of in terminalreporter.stats.values() for report in of]
    saved = {value for each in reports for name, value in getattr(each, "user_properties", ()) if name == SAVED}
    for folder in sorted({str(Path(value).parents[1]) for value in saved}):
        count = sum(Path(value).parents[1] == Path(folder) for value in saved)
        terminalreporter.write_line(f"hwrx: {count} baseline{'s' * (count != 1)} saved in {folder}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take the labs down."""
    keeper = session.config.stash.get(LABS, None)
    if keeper is not None:
        keeper.close()
        del session.config.stash[LABS]


class KtapWriter:
    """Gathers results for --hwrx-ktap, and writes them when the session ends, however it does."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._results: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended; what fails while it is taken down is a failure, too.

        A test has several reports: its phases, and its subtests. One that failed stays failed whatever follows.
        """
        if report.failed:
            self._note_failure(report)
        elif report.skipped:
            self._note_skip(report, getattr(report, "wasxfail", None))
        elif report.when == "call":
            self._results.setdefault(report.nodeid, _room("testing.ktap").Result(report.nodeid, True))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what could not be collected, and modules that were skipped whole: no test of them is run."""
        if report.failed:
            self._note_failure(report)
        elif report.skipped:
            self._note_skip(report, None)

    def _note_failure(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        before = self._failure_words(report.nodeid)
        words = report.longreprtext if before is None else f"{before}\n{report.longreprtext}"
        self._results[report.nodeid] = _room("testing.ktap").Result(report.nodeid, False, words=words)

    def _note_skip(self, report: pytest.TestReport | pytest.CollectReport, expected: object) -> None:
        if self._failure_words(report.nodeid) is not None:
            return
        directive = "SKIP" if expected is None else "XFAIL"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        words = reason.removeprefix("Skipped: ") if expected is None else str(expected)
        self._results[report.nodeid] = _room("testing.ktap").Result(report.nodeid, expected is None, directive, words)

    def _failure_words(self, name: str) -> str | None:
        """The words of the failure that was noted of a test, if one was."""
        found = self._results.get(name)
        return str(found.words) if found is not None and not found.passed and not found.directive else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write all results."""
        ktap = _room("testing.ktap")
        if self._target == STDOUT:
            terminalreporter.write(ktap.to_ktap(list(self._results.values())))
            return
        try:
            ktap.write_ktap(self._results, self._target)
        except _room("errors").HwrxError as error:
            raise pytest.UsageError(f"hwrx: {error}") from None
