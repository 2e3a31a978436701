"""Campaigns without a machine: their cells, what makes a kernel bad, and how few of them are asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import made_runs
import msgspec
import pytest

from hwrx.campaign import bisecting, book, cells, condition, driving, matrix, matrix_text
from hwrx.campaign.cells import Axes
from hwrx.cli import main
from hwrx.commands.shared import campaigns
from hwrx.control.messages import Setting
from hwrx.errors import HwrxError, StoreError, UsageError
from hwrx.host.console import open_console
from hwrx.lab import kernel
from hwrx.report.headline import Headline, headlines_of
from hwrx.report.reported import ReportedRun
from hwrx.runs import experiment as experiments
from hwrx.runs import planning
from hwrx.runs.experiment import Experiment
from hwrx.runs.testbed import Wanted

FILE = """
paths = ["udp"]
topology = "netns"
clock = "icount"
boot = ["quiet"]

[campaign]
kernels = ["6.1", "6.12-rt init_on_alloc=1"]

[campaign.boots]
plain = []
eager = ["init_on_alloc=0", "nokaslr"]

[campaign.settings]
messages = [50, 60]
"""


def write(folder: Path, text: str = FILE) -> Path:
    file = folder / "kernels.toml"
    file.write_text(text)
    return file


def test_every_combination_is_a_cell_with_an_experiment_of_its_own(tmp_path: Path) -> None:
    experiment, axes = cells.load_campaign(write(tmp_path))
    planned = cells.plan_cells(experiment, axes)
    assert len(planned) == 8 and len({cell.folder for cell in planned}) == 8
    assert planned[0].name == "6.1, plain, messages 50"
    last = experiments.parse_experiment(planned[-1].experiment, source="cell")
    assert (last.kernel, last.setting["messages"]) == ("6.12-rt", 60)
    # of words that contradict each other the kernel heeds the last: what the cell adds comes behind
    assert last.boot == ("quiet", "init_on_alloc=1", "init_on_alloc=0", "nokaslr")
    first = experiments.parse_experiment(planned[0].experiment, source="cell")
    assert first.boot == ("quiet",) and first.seed == last.seed is not None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[campaign.settings]\nmessages", "[campaign.settings]\nmesages", r"there is no 'mesages'"),
        ("kernels = [", "kernel = [", r"unknown key 'campaign.kernel'"),
        ('kernels = ["6.1"', 'kernels = [6, "6.1"', r"campaign.kernels\[0\]: 6 is not allowed"),
        ("messages = [50, 60]", 'messages = ["few"]', r"cell 6.1, plain, few: setting.messages"),
        ("messages = [50, 60]", "messages = []", "the list is empty"),
        ("eager = [", "'e g' = [", "campaign.boots"),
    ],
)
def test_what_is_wrong_in_the_table_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cells.plan_cells(*cells.load_campaign(write(tmp_path, FILE.replace(old, new))), source="kernels.toml")


def test_a_campaign_is_told_from_an_experiment(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a campaign") as caught:
        experiments.load_experiment(write(tmp_path))
    assert "hwrx campaign run" in caught.value.remedy
    with pytest.raises(UsageError, match="varies nothing"):
        cells.load_campaign(write(tmp_path, 'paths = ["udp"]\n'))


def test_all_kernels_are_written_out_with_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {"": ["6.1.0-1-amd64", "6.1.0-2-amd64"], "rt": ["6.1.0-2-rt-amd64"], "cloud": []}
    monkeypatch.setattr(kernel, "packaged_kernels", lambda flavour="": offered[flavour])
    assert cells.listed_kernels(["all", "all-rt quiet", "6.1.0-1-amd64"]) == [
        "6.1.0-1-amd64",
        "6.1.0-2-amd64",
        "6.1.0-2-rt-amd64 quiet",
    ]
    with pytest.raises(UsageError, match="apt offers no kernel"):
        cells.listed_kernels(["all-cloud"])


def test_a_folder_takes_one_campaign_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    experiment, axes = cells.load_campaign(write(tmp_path))
    planned = cells.plan_cells(experiment, axes)
    folder = tmp_path / "c"
    made = book.Book.create(folder, name="n", question="", asked="one", axes=axes.names, anatomy=False, cells=planned)
    found = book.Book.open(folder)
    assert found.content == made.content and found.counts() == {"planned": 8}
    book.need_same(found, "one")
    with pytest.raises(UsageError, match="holds another campaign"):
        book.need_same(found, "other")
    (folder / book.MANIFEST).write_text('{"format": 1}')
    with pytest.raises(StoreError, match="is not a campaign's"):
        book.Book.open(folder)
    with pytest.raises(StoreError, match="there is no campaign"):
        book.Book.open(tmp_path / "nowhere")
    assert book.fingerprint("a", axes) != book.fingerprint("a", Axes(kernels=("6.1",)))


def test_hosts_are_for_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, FILE.replace("[campaign.boots]", 'hosts = ["n1"]\n[campaign.boots]'))
    assert main(["campaign", "run", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "add --slurm" in capsys.readouterr().err and not (tmp_path / "out").exists()


def made_book(folder: Path, **settings: list[object]) -> book.Book:
    axes = Axes(settings=settings)
    planned = cells.plan_cells(experiments.from_options(name="n", paths=["udp"], topology="netns"), axes)
    return book.Book.create(folder, name="n", question="", asked="", axes=axes.names, anatomy=False, cells=planned)


def planned_as_it_is(experiment: Experiment, wanted: Wanted, say: object) -> planning.Plan:
    return planning.plan_run(experiment)


def test_a_cell_that_was_left_out_is_looked_at_again(tmp_path: Path) -> None:
    """What it lacked, a kernel's image or a tool, may have been put there."""
    made = made_book(tmp_path / "c", messages=[41, 42])

    def lacking(experiment: Experiment, wanted: Wanted, say: object) -> planning.Plan:
        if experiment.setting["messages"] == 42:
            raise UsageError("there is no kernel image")
        return planning.plan_run(experiment)

    assert len(driving.leave_out(made, lacking, print)) == 1
    assert [(each.state, each.reason) for each in made.content.cells] == [
        ("planned", ""),
        ("left out", "there is no kernel image"),
    ]
    driving.leave_out(made, planned_as_it_is, print)
    assert [(each.state, each.reason) for each in made.content.cells] == [("planned", "")] * 2


def test_guests_are_those_of_all_cells_that_are_not_done(tmp_path: Path) -> None:
    """Cells that a killed driver left running, and those that --retry attempts again, boot as many as before."""
    made = made_book(tmp_path / "c", messages=[41, 42, 43, 44])
    for standing, state in zip(made.content.cells, ("running", "failed", "done", "planned"), strict=True):
        standing.state = state
    assert len(driving.leave_out(made, planned_as_it_is, print)) == 3
    # nor does what is known now change what a cell under way is
    driving.leave_out(made, lambda *words: (_ for _ in ()).throw(UsageError("no image")), print)
    assert [each.state for each in made.content.cells] == ["running", "failed", "done", "left out"]


def test_one_cell_that_measures_time_has_the_machine_for_itself(tmp_path: Path) -> None:
    made = made_book(tmp_path / "c", clock=["icount", "wall"])
    able = driving.leave_out(made, planned_as_it_is, print)
    assert [each.counted for each in able] == [True, False]
    way = campaigns.Way(
        out=None, jobs=2, slurm=False, sbatch=(), attempts=1, retry=False, over=0.01, dry_run=False, as_json=False
    )
    with pytest.raises(UsageError, match="in each other's figures"):
        campaigns._engine(made, way, able)
    assert campaigns._engine(made, way, able[:1]).room() == 2


# --- the table -----------------------------------------------------------------------------------------------------


def of_kernels(
    folder: Path, *figures: Headline, anatomy: bool = False, machines: Sequence[str] = ("", "", "")
) -> book.Book:
    """A campaign over as many kernels, each done, with a figure."""
    experiment, _ = cells.load_campaign(write(folder))
    axes = Axes(kernels=tuple(f"6.{number}" for number in range(len(figures))))
    planned = cells.plan_cells(experiment, axes)
    made = book.Book.create(
        folder / "c", name="n", question="", asked="", axes=axes.names, anatomy=anatomy, cells=planned
    )
    for standing, one, machine in zip(made.content.cells, figures, machines, strict=False):
        standing.state, standing.attempts = "done", [book.Attempt(job="1", began="")]
        made.attempt_folder(standing).mkdir()
        book.write_result(made.attempt_folder(standing), book.Result(state="done", figures=[one], machine=machine))
    return made


def test_what_moved_is_said_from_one_kernel_to_the_next(tmp_path: Path) -> None:
    made = of_kernels(tmp_path, figure(value=100.0), figure(value=100.5), figure(value=110.0), anatomy=True)
    (step,) = matrix.read_matrix(made).moved
    assert (step.before, step.after, step.worse) == ("6.1", "6.2", True)
    assert step.ratio == pytest.approx(110 / 100.5) and step.functions == []
    # and its messages are to be taken apart on both sides, and nothing else
    assert matrix.to_take_apart(made, [step]) == {2: [step.label], 3: [step.label]}
    for attempt in ("anatomy-1", "anatomy-2"):
        folder = made.folder(made.content.cells[2].cell) / attempt
        folder.mkdir()
        book.write_result(folder, book.Result(state="failed", error="no compiler"))
    assert matrix.to_take_apart(made, [step]) == {2: [step.label]}  # not without end
    assert matrix.read_matrix(made, over=0.2).moved == []


def test_shares_of_the_capacity_have_a_figure_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"udp 64 B event": 20_000.0}
    run = made_runs.make(tmp_path, paths=["udp"], sizes=[64], patterns=["paced"], load=[0.2, 0.5], capacity=rates)
    figures = headlines_of(ReportedRun.open(run).summary())
    assert sorted(each.setting for each in figures) == [
        "udp 64 B paced event load=0.2",
        "udp 64 B paced event load=0.5",
    ]
    made = of_kernels(tmp_path, figures[0])
    made.attempt_folder(made.content.cells[0]).joinpath(book.RESULT).unlink()
    book.write_result(made.attempt_folder(made.content.cells[0]), book.Result(state="done", figures=figures))
    matrix_text.show_matrix(matrix.read_matrix(made), open_console())
    assert {"load=0.2", "load=0.5"} <= set(capsys.readouterr().out.split())


def test_a_table_has_figures_of_its_own_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = msgspec.structs.replace(figure(value=9.25), unit="µs", exact=False)
    matrix_text.show_matrix(matrix.read_matrix(of_kernels(tmp_path, figure(value=4321.0), timed)), open_console())
    counted, times = capsys.readouterr().out.split("udp 64 B", 1)[0].split("pingpong, ")[1:]
    assert "instructions" in counted and "4,321" in counted and "9.25" not in counted
    assert "µs" in times and "9.25" in times and "4,321" not in times


def test_times_of_two_processors_are_not_held_against_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [msgspec.structs.replace(figure(value=value), unit="µs", exact=False) for value in (5.0, 9.0, 12.0)]
    (tmp_path / "times").mkdir()
    found = matrix.read_matrix(of_kernels(tmp_path / "times", *times, machines=("Xeon", "Epyc", "Epyc")))
    assert [(each.before, each.after) for each in found.moved] == [("6.1", "6.2")]
    matrix_text.show_matrix(found, open_console())
    assert "Times are of 2 processors (Epyc; Xeon)" in " ".join(capsys.readouterr().out.split())
    # instructions are the same on all
    made = of_kernels(tmp_path, figure(value=100.0), figure(value=200.0), machines=("Xeon", "Epyc"))
    assert len(matrix.read_matrix(made).moved) == 1


def test_a_setting_is_taken_apart_by_the_name_that_its_run_gave_it(tmp_path: Path) -> None:
    """What is swept stands there in the file's order, and with one value, too."""
    wanted = {"paths": ["udp"], "sizes": [64], "repeats": 1, "clock": "icount"}
    wanted |= {"sweep": {"init_on_alloc": [0, 1], "rest": [0, 9], "warmup": [7]}}
    run = made_runs.make(tmp_path, manifest={**made_runs.MANIFEST, "clock": "icount"}, **wanted)
    found = {matrix.label_of(each) for each in headlines_of(ReportedRun.open(run).summary())}
    assert found == {trial.label for trial in made_runs.layout(**wanted).trials} and len(found) == 4


def test_figures_of_a_setting_are_of_one_kind(tmp_path: Path) -> None:
    exact = msgspec.structs.replace(figure(value=100.0), more={"cost": 120.0})
    cost = msgspec.structs.replace(figure(value=121.0), exact=False, more={"cost": 121.0})
    found = matrix.read_matrix(of_kernels(tmp_path, exact, cost))
    assert [each.value for line in found.lines for each in line.figures.values()] == [120.0, 121.0]
    assert found.moved == []  # 21 % if a state stood beside a cost


# --- what is bad ---------------------------------------------------------------------------------------------------


def figure(path: str = "udp", value: float = 100.0, pattern: str = "pingpong", size: int = 64) -> Headline:
    return Headline(
        path=path, size=size, pattern=pattern, wait="event", swept={}, unit="instructions", value=value, exact=True,
        label=f"{path} {size} B {pattern} event",
        more={"p50": value + 1, "rate": 1e9 / value},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value", "bad"),
    [
        ("udp@64 p50 > 1.05", 107, True),
        ("udp@64 p50 > 1.05", 104, False),
        ("udp>1.05x", 106, True),
        ("udp@64 pingpong rate < 0.9", 120, True),
        ("udp@64 >= 100 instructions", 100, True),
        ("udp@64 > 100 instructions", 100, False),
        ("udp@64 rate < 5000000 messages/s", 300, True),
    ],
)
def test_a_figure_is_held_against_the_good_ones_or_a_number(text: str, value: float, bad: bool) -> None:
    test = condition.parse_condition(text)
    reference = test.value([figure(), figure("tcp")])
    assert test.is_bad(test.value([figure("tcp"), figure(value=value)]), reference) is bad


@pytest.mark.parametrize("text", ["udp@64", "p50 > x", "udp@64 p51 > 1", "udp@64 > 5 apples", "udp@64 == 1", ""])
def test_what_is_not_a_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a valid condition"):
        condition.parse_condition(text)


def test_a_condition_is_about_a_setting_of_the_experiment() -> None:
    settings = [Setting(path="udp"), Setting(path="tcp", size=1400)]
    condition.parse_condition("udp@64 pingpong p50 > 1.05").need_measured(settings)
    condition.parse_condition("tcp > 1.05").need_measured(settings)
    for text in ("tcp@64 > 1.05", "udp@64 stream > 1.05", "rdma-send > 1.05"):
        with pytest.raises(UsageError, match=r"about none of the .*: udp@64 pingpong, tcp@1400 pingpong"):
            condition.parse_condition(text).need_measured(settings)


def test_a_search_for_what_is_not_measured_boots_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bisect", "--paths", "udp", "--topology", "netns", "--test", "tcp@64 > 1.05"]
    assert main([*words, "--kernels", "6.1,6.12", "--good", "6.1", "--bad", "6.12"]) == 2
    assert "about none of the experiment's settings" in " ".join(capsys.readouterr().err.split())


def test_a_condition_fits_one_figure() -> None:
    test = condition.parse_condition("udp > 1.05")
    with pytest.raises(UsageError, match="about several settings"):
        test.value([figure(size=64), figure(size=1400)])
    with pytest.raises(condition.NoFigureError, match="no figure"):
        test.value([figure("tcp")])
    with pytest.raises(UsageError, match="is in instructions, not in us"):
        condition.parse_condition("udp > 5 us").value([figure()])


# --- bisecting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(1, 17))
def test_seventeen_kernels_take_five_boots_wherever_the_change_is(first: int) -> None:
    asked: list[int] = []

    def measure(place: int) -> tuple[list[Headline], str]:
        asked.append(place)
        return [figure(value=110 if place >= first else 100)], ""

    names = [f"k{place}" for place in range(17)]
    found = bisecting.Search(names, condition.parse_condition("udp@64 p50 > 1.05"), measure).carry_out()
    assert (found.last_good, found.first_bad) == (f"k{first - 1}", f"k{first}")
    # the bad end is looked at only if nothing before it is bad
    assert found.boots == len(asked) <= (5 if first < 16 else 6)


def test_a_kernel_that_cannot_boot_is_passed_over_and_named() -> None:
    def measure(place: int) -> tuple[list[Headline], str]:
        return ([], "lacks 9p") if place in (2, 3) else ([figure(value=110 if place > 3 else 100)], "")

    names = [f"k{place}" for place in range(6)]
    found = bisecting.Search(names, condition.parse_condition("udp@64 > 1.05"), measure).carry_out()
    assert (found.last_good, found.first_bad, found.between) == ("k1", "k4", ["k2", "k3"])
    assert [each.reason for each in found.judged if each.verdict == "skip"] == ["lacks 9p", "lacks 9p"]


def test_ends_that_are_not_what_is_said_of_them_are_refused() -> None:
    def same(place: int) -> tuple[list[Headline], str]:
        return [figure()], ""

    with pytest.raises(UsageError, match="said to be bad is good"):
        bisecting.Search(["a", "b", "c"], condition.parse_condition("udp > 1.05"), same).carry_out()
    with pytest.raises(UsageError, match="the good kernel a is bad"):
        bisecting.Search(["a", "b"], condition.parse_condition("udp > 50 instructions"), same).carry_out()
    with pytest.raises(HwrxError, match="cannot be measured: no image"):
        bisecting.Search(["a", "b"], condition.parse_condition("udp > 2"), lambda place: ([], "no image")).carry_out()
    assert bisecting._reference(condition.parse_condition("udp > 5 us"), None) is None


def test_a_state_is_not_held_against_a_cost() -> None:
    """Of two kernels that cost the same the messages of one repeat to the digit."""
    exact = msgspec.structs.replace(figure(value=12_911.5), more={"cost": 13_900.0})
    cost = msgspec.structs.replace(figure(value=13_900.0), exact=False, more={"cost": 13_900.0})
    test = condition.parse_condition("udp > 1.05")
    assert not test.is_bad(cost, exact) and not test.is_bad(exact, cost)
    assert test.is_bad(msgspec.structs.replace(cost, more={"cost": 14_900.0}, value=14_900.0), exact)
    # a number is one of the good kernel's kind, and without a cost there is nothing to hold
    number = condition.parse_condition("udp > 13000 instructions")
    for held, good in ((number, exact), (test, msgspec.structs.replace(exact, more={}))):
        with pytest.raises(condition.NoFigureError, match="on one of two kernels alone"):
            held.is_bad(cost, good)

    kernels = [exact, cost, msgspec.structs.replace(cost, value=15_000.0, more={"cost": 15_000.0})]
    found = bisecting.Search(["a", "b", "c"], test, lambda place: ([kernels[place]], "")).carry_out()
    assert [(each.kernel, each.verdict) for each in found.judged] == [("a", "good"), ("b", "good"), ("c", "bad")]
    assert found.judged[1].ratio == 1.0


@pytest.mark.parametrize("named", ["", " p50", " rate"])
def test_a_time_is_not_held_against_instructions(named: str) -> None:
    timed = Headline(
        path="udp", size=64, pattern="pingpong", wait="event", swept={}, unit="µs", value=9.0, exact=False,
        more={"p50": 9.0, "rate": 5e4},
    )  # fmt: skip
    with pytest.raises(UsageError, match="is in instructions, and of the good kernel in µs"):
        condition.parse_condition(f"udp{named} > 1.05").is_bad(figure(), timed)


def test_a_figure_beside_the_headline_has_its_own_unit() -> None:
    stream = Headline(
        path="udp", size=64, pattern="stream", wait="event", swept={}, unit="messages/s", value=1e6, exact=False,
        more={"p50": 9.0, "rate": 1e6},
    )  # fmt: skip
    test = condition.parse_condition("udp p50 > 8 us")
    assert test.is_bad(test.value([stream]))
    with pytest.raises(UsageError, match="is in messages/s, not in instructions"):
        condition.parse_condition("udp rate > 5 instructions").value([figure()])


def test_the_list_is_cut_to_its_ends_in_either_direction() -> None:
    names = ["6.1.0-1-amd64", "6.1.0-2-amd64", "6.12.1-amd64"]
    assert bisecting.between(names, "6.1.0-1", "6.12.1") == names
    assert bisecting.between(names, "6.12.1-amd64", "6.1.0-2") == names[:0:-1]
    with pytest.raises(UsageError, match=r"6\.6 is not on the list"):
        bisecting.between(names, "6.6", "6.12.1")
    with pytest.raises(UsageError, match="good and bad"):
        bisecting.between(names, "6.12.1", "6.12.1")


@pytest.mark.parametrize(
    "words",
    [
        ["--test", "nonsense", "--paths", "udp"],
        ["--test", "udp > 1.05", "--paths", "udp"],
        ["--test", "udp > 1.05", "--paths", "udp", "--reference", "/nowhere"],
        ["--test", "udp > 5 us", "--paths", "upd"],
        ["--test", "udp > 5 us", "--no-such-option"],
        ["--paths", "udp"],
        ["--test", "udp > 5 us", "/nowhere.toml"],
        ["--test", "udp > 5 us", "--paths", "udp", "--kernels", "6.1"],
    ],
)
def test_what_is_wrong_with_its_words_ends_git_bisect_and_is_no_bad_commit(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bisect", "--build", "true", *words]) == bisecting.ABORT
    assert capsys.readouterr().err


def test_a_build_that_fails_or_leaves_no_kernel_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["bisect", "--tree", str(tmp_path), "--test", "udp > 5 instructions", "--paths", "udp", "--build"]
    for command, said in (("exit 3", "exit code 3"), ("true", "not a tree in which a kernel was built")):
        assert main([*words, command]) == bisecting.SKIP
        assert said in capsys.readouterr().out
