"""Driving the claims: guests that die, what the experiments say, the run directory, the page, the command."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Sequence

import msgspec
import pytest
from click.testing import CliRunner
from made_claims import CLAIMS, make_claims, results

from hwrx.claims import inside, markdown, model, page
from hwrx.claims import run as driver
from hwrx.claims.model import Claim, Result
from hwrx.cli import cli
from hwrx.errors import GuestError, HwrxError, MachineError, StoreError, UsageError
from hwrx.lab import inquest

# --- guests and programs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_claim_that_its_guest_does_not_survive_is_told_and_the_others_go_on(dies_at: int) -> None:
    claims = list(model.every_claim().values())[:3]
    taken: list[Result] = []

    def run(group: Sequence[Claim], take: Callable[[Result], None]) -> None:
        for number, claim in enumerate(group):
            if number == dies_at:
                raise GuestError("an experiment said nothing for 300 s\nthe console's last line")
            take(Result(claim, "confirmed", "seen"))

    left, why = driver.find_survivors(claims, "6.1", True, run, taken.append)
    assert why == f"{claims[dies_at].name}: an experiment said nothing for 300 s"
    assert list(left) == claims[dies_at + 1 :]
    assert [each.claim for each in taken] == claims[: dies_at + 1]
    assert (taken[-1].verdict, taken[-1].why) == ("not tested here", "an experiment said nothing for 300 s")
    assert all(each.verdict == "confirmed" for each in taken[:-1])


def test_an_emulated_guest_is_given_a_second_chance() -> None:
    claims = list(model.every_claim().values())[:2]
    taken: list[Result] = []
    again: set[str] = set()

    def run(group: Sequence[Claim], take: Callable[[Result], None]) -> None:
        raise GuestError("it stands still")

    left, why = driver.find_survivors(claims, "6.1", True, run, taken.append, again=again)
    assert (list(left), taken) == (claims, []) and "tried again in another guest: it stands still" in why
    left, _ = driver.find_survivors(left, "6.1", True, run, taken.append, again=again)
    assert list(left) == claims[1:] and [each.verdict for each in taken] == ["not tested here"]
    # what is not emulated stands still for a reason
    left, _ = driver.find_survivors(left, "6.1", False, run, taken.append, again=again)
    assert len(taken) == 2


def test_a_guest_that_dies_when_all_is_done_takes_no_verdict_along() -> None:
    claims = list(model.every_claim().values())[:1]
    taken: list[Result] = []

    def run(group: Sequence[Claim], take: Callable[[Result], None]) -> None:
        take(Result(group[0], "confirmed", "seen"))
        raise GuestError("it is gone")

    assert driver.find_survivors(claims, "6.1", True, run, taken.append) == ((), "")
    assert [each.verdict for each in taken] == ["confirmed"]


@pytest.mark.parametrize(
    ("code", "epitaph", "kind", "words"),
    [
        (2, "exit code 2\n    hwrx: there is no place 'x'\n  remedy: choose of: y", UsageError, "no place 'x'"),
        (-9, "killed by SIGKILL", GuestError, "it ended before its time: killed by SIGKILL"),
        (1, "exit code 1\n    Traceback\n    KeyError: 'x'", GuestError, "it ended before its time: KeyError: 'x'"),
        (None, "its guest is gone", GuestError, "the guest did not survive it: Kernel panic - not syncing: crash"),
    ],
)
def test_what_a_user_asks_in_vain_is_told_from_what_kills_the_experiments(
    code: int | None, epitaph: str, kind: type[HwrxError], words: str
) -> None:
    log = "[    1.0] all is well\n[    2.0] Kernel panic - not syncing: crash\n[    2.1] CPU: 0 PID: 7"
    error = inquest.ended_early("it", code, epitaph, log)
    assert type(error) is kind and words in str(error)
    assert error.remedy == ("choose of: y" if kind is UsageError else "")


def test_of_a_guests_log_the_last_line_stands_for_its_end_where_none_tells_more() -> None:
    assert inquest.last_words("[    1.0] all is well\n") == "all is well"
    assert inquest.last_words("") == "it printed nothing"


def test_the_driver_reads_what_the_experiments_say() -> None:
    result = results()[0]
    lines = [b"a tool said this", b'{"starting":"x"}', msgspec.json.encode(inside.Line(result=result))]
    said: list[str] = []
    taken: list[Result] = []
    driver._follow(lines, said.append, taken.append)
    assert said == ["testing: x"] and taken == [result]
    with pytest.raises(MachineError, match="none of theirs"):
        driver._follow([b'{"starting": 1}'], said.append, taken.append)


# --- the run directory, the page, the command -------------------------------------------------------------------------


def test_a_ledger_is_read_back_and_makes_the_same_page(tmp_path: pathlib.Path) -> None:
    claims = [each.claim for each in results()]
    with driver.Ledger.create(tmp_path / "run", claims, ["hwrx"]) as ledger:
        for each in results():
            ledger.add(each)
    about, read = driver.load_results(tmp_path / "run")
    assert about["status"] == "complete"
    assert read == results()
    html = page.render_page(about, read)
    assert html == page.render_page(*driver.load_results(tmp_path / "run"))
    assert html.count("<svg") == 2 * len(read)
    assert "words &amp; figures" in html and "a &lt;b&gt;" in html and "<b>" not in html
    assert not re.search(r'(?:src|href)="(?!#)', html), "the page opens without a network"
    with pytest.raises(StoreError, match="holds a ledger already"):
        driver.Ledger.create(tmp_path / "run", claims, [])
    with (tmp_path / "run" / driver.RESULTS).open("ab") as file:
        file.write(b'{"half": ')
    assert driver.load_results(tmp_path / "run")[1] == read


def test_a_ledger_that_broke_off_says_so(tmp_path: pathlib.Path) -> None:
    claims = [each.claim for each in results()]
    for stop, status in ((KeyboardInterrupt, "interrupted"), (RuntimeError, "partial")):
        with pytest.raises(stop), driver.Ledger.create(tmp_path / status, claims, ["hwrx"]) as ledger:
            ledger.add(results()[0])
            raise stop
        about, read = driver.load_results(tmp_path / status)
        assert about["status"] == status and len(read) == 1
        assert f"this run is {status}" in page.render_page(about, read)


def test_what_is_no_ledger_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StoreError, match="holds no ledger of claims"):
        driver.load_results(tmp_path)


def test_claims_are_grouped_by_clock_and_topology() -> None:
    groups = driver.sorted_for(list(CLAIMS.values()))
    assert [(clock, base) for clock, base, _ in groups] == [("wall", "pair"), ("icount", "pair")]
    for _, _, group in groups:
        topologies = [claim.topology for claim in group]
        assert topologies == sorted(topologies, key=driver.ORDER.index)
    assert sum(len(group) for _, _, group in groups) == len(CLAIMS)


def test_the_command_lists_and_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(cli, ["claims", "list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in CLAIMS)
    as_json = runner.invoke(cli, ["claims", "list", "--json"])
    assert {each["name"] for each in msgspec.json.decode(as_json.output)} == set(CLAIMS)
    two = [*CLAIMS][:2]
    for words, message in (
        (["nonsense"], "there is no claim 'nonsense'"),
        (["run", *two, "--set", "size=1"], "--set changes one claim's experiment"),
        (["run", two[0], "--set", "nosuch=1"], "has no parameter 'nosuch'"),
        (["run", two[0], "--here", "--kernel", "6.1"], "leave one out"),
    ):
        monkeypatch.setattr("os.geteuid", lambda: 0)
        done = runner.invoke(cli, ["claims", *words, "--out", str(tmp_path / "out")])
        assert isinstance(done.exception, UsageError)
        assert message in str(done.exception)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    refused = runner.invoke(cli, ["claims", "run", two[0], "--here"])
    assert "need root" in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_the_examples_of_help_and_readme_name_claims_that_are_there() -> None:
    texts = [CliRunner().invoke(cli, ["claims", *words, "--help"]).output for words in ([], ["run"])]
    texts.append((pathlib.Path(__file__).parents[2] / "README.md").read_text())
    named = {name for text in texts for name in re.findall(r"hwrx claims run ([a-z][a-z-]+)\b(?!\.)", text)}
    assert named and named <= CLAIMS.keys()


def test_the_page_in_markdown_has_a_column_for_each_run_and_says_how_each_was_made(tmp_path: pathlib.Path) -> None:
    names = [each.claim.name for each in results()]
    old = make_claims(tmp_path / "old", "6.1.0-9", dict.fromkeys(names, "refuted"))
    new = make_claims(tmp_path / "new", "6.12.0-1", {**dict.fromkeys(names[:-1], "refuted"), names[0]: "confirmed"})
    target = tmp_path / "RESULTS.md"
    done = CliRunner().invoke(cli, ["claims", "page", str(old), str(new), "--to", "md", "--out", str(target)])
    assert done.exit_code == 0, done.output
    text = target.read_text()
    rows = {line.split("|")[-2].strip(" `"): line.split(" | ") for line in text.splitlines() if line.endswith("` |")}
    assert rows.keys() == set(names)
    assert rows[names[0]][1:3] == ["refuted", "confirmed"]
    assert rows[names[-1]][1:3] == ["refuted", "–"]
    assert "| What is said | 6.1.0-9 | 6.12.0-1 | What was seen | Its name |" in text
    assert "`hwrx claims run --kernel 6.12.0-1` | 6.12.0-1 | QEMU 7.2, emulated, 2 CPUs, clock wall | abc1234 |" in text
    assert "/somewhere" not in text and str(tmp_path) not in text
    assert "| Words & figures. |" in text


def test_words_of_a_claim_are_no_markdown(tmp_path: pathlib.Path) -> None:
    first = results()[0]
    odd = msgspec.structs.replace(first, words="a | b_c <i>*x*\n`y`")
    text = markdown.render_markdown([({}, [odd])])
    (row,) = [line for line in text.splitlines() if first.claim.name in line]
    assert r"A \| b\_c \<i\>\*x\* \`y\`" in row


def test_an_html_page_is_of_one_run(tmp_path: pathlib.Path) -> None:
    done = CliRunner().invoke(cli, ["claims", "page", str(tmp_path), str(tmp_path)])
    assert isinstance(done.exception, UsageError) and "--to md" in done.exception.remedy
