"""README.md and the guide: the command line takes every command, experiments make plans, links lead somewhere."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil

import click
import made_claims
import made_floods
import made_runs
import pages
import pytest
from pages import GUIDE, PAGES, ROOT, Block, every_block

from hwrx import paths
from hwrx.claims import model
from hwrx.cli import main
from hwrx.commands import flood, lookup
from hwrx.drops import run as drops
from hwrx.errors import UsageError
from hwrx.wires.topology import TOPOLOGIES

WORDS = [(block, words) for block in every_block("sh", *pages.NEEDS) for words in pages.find_commands(block.text)]
CALLS = [(block, words[1:]) for block, words in WORDS if words[0] == "hwrx"]
CALLS += [(block, ["compare", "first.toml", *words[1:]]) for block, words in WORDS if words[0] == "./lab/run"]
SCRIPTS = [(block, words) for block, words in WORDS if words[0].startswith(("./lab/", "lab/"))]


NOT_OF_A_FLOOD = ("target", "here", "guest", "kernel", "out", "as_json", "hostnames")


def plan_of(words: list[str]) -> list[str] | None:
    """The words that plan an experiment instead of running it; None if the command is of another kind."""
    words = words if words[:2] != ["lab", "run"] else ["compare", *words[2:]]
    if words[0] != "compare" or "--resume" in words:
        return None
    clock = [] if {"--clock", "--device", "--peer", "--here"} & set(words) else ["--clock", "icount"]
    # which clock `auto` means is found out by booting a guest
    auto = any(word.endswith("first.toml") for word in words)
    return [*words, *(clock if auto else []), "--dry-run"]


def ids(value: object) -> str:
    return str(value) if isinstance(value, Block) else "-".join(value[:4]) if isinstance(value, list) else ""


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "words"), CALLS, ids=ids)
def test_the_command_line_takes_each_command_of_the_pages(block: Block, words: list[str]) -> None:
    try:
        with contextlib.suppress(click.exceptions.Exit):  # --help
            pages.parse_command(words)
    except click.ClickException as error:
        pytest.fail(f"{block}: hwrx {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize(
    ("block", "words"), [(block, words) for block, words in CALLS if plan_of(words)], ids=ids
)  # fmt: skip
def test_each_comparison_of_the_pages_can_be_planned(
    block: Block, words: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages.furnish(tmp_path, block.page)
    monkeypatch.chdir(tmp_path)
    if words[1] == "first.toml":
        words = [words[0], "lab/experiments/first.toml", *words[2:]]
        if {"wall", "--here"} & set(words):  # what ./lab/run itself makes of these
            words[1] = "lab/experiments/verbs-sockets.toml"
    planned = plan_of(words)
    assert planned is not None
    assert main(planned) == 0, f"{block}: hwrx {' '.join(planned)}"


def test_a_wrong_command_on_a_page_is_seen() -> None:
    for wrong in ("compare --pathz udp", "drops --gast", "flood udp --burst many", "nosuch", "lab shell pair --frob",
                  "claims page", "report runs/latest --to paper", "compare --cpu one,two"):  # fmt: skip
        with pytest.raises(click.ClickException):
            pages.parse_command(wrong.split())
    with pytest.raises(UsageError):
        from hwrx.cli import cli

        cli.main(["compare", "--paths", "upd", "--dry-run"], standalone_mode=False)


def test_each_block_says_what_it_needs_in_a_known_word_and_uses_known_programs() -> None:
    for page in PAGES:
        for block in pages.find_blocks(page):
            assert block.language in ("sh", "python", "toml", "text"), block
            assert block.language in ("toml", "text") or block.needs in pages.NEEDS, block
    for block, words in WORDS:
        ours = words[0] == "hwrx" or (ROOT / words[0]).is_file()
        assert ours or words[0] in pages.OTHERS, f"{block}: {words[0]}"


@pytest.mark.parametrize(("block", "words"), SCRIPTS, ids=ids)
def test_each_script_of_the_pages_is_there_and_takes_its_options(block: Block, words: list[str]) -> None:
    script = ROOT / words[0]
    assert os.access(script, os.X_OK), block
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
    if not options or words[0].startswith("./lab/"):  # ./lab/run's are those of compare, ./lab/test's pytest's
        assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests/")), block
        return
    source = (ROOT / re.findall(r"lab/bench/\w+\.py", script.read_text())[-1]).read_text()
    for option in options:
        assert f'"{option}"' in source, f"{block}: {words[0]} has no option {option}"


def test_floods_places_and_paths_that_the_pages_name_can_be_had() -> None:
    """What the command line takes as a word, and a command refuses only when it begins."""
    for block, words in CALLS:
        given = pages.parse_command(words).params if words[0] in ("flood", "drops", "walk", "stages", "lookup") else {}
        try:
            if words[0] == "flood" and not given["target"].startswith("runs/"):
                asked = {key: value for key, value in given.items() if key not in NOT_OF_A_FLOOD}
                assert flood.specs_of(given["target"], **asked)
            elif words[0] == "drops":
                drops.check_place(given["places"] or ["nothing"], given["messages"])
            elif words[0] in ("walk", "stages"):
                names = given.get("names") or [given["path"]]
                assert [paths.find_path(name).name for name in names] == list(names)
            elif words[0] == "lookup" and given["target"]:
                assert lookup.parse_endpoint(given["target"])
        except UsageError as error:
            pytest.fail(f"{block}: hwrx {' '.join(words)}: {error}")


def test_every_command_in_the_journeys_tables_is_one() -> None:
    """Also those in running text: what the command line takes, and claims and topologies that there are."""
    text = (GUIDE / "journey.md").read_text()
    named = [words for code in re.findall(r"`(hwrx [^`]+)`", text) for words in pages.find_commands(code)]
    assert len(named) >= 40
    known = model.every_claim()
    for words in named:
        try:
            given = pages.parse_command(words[1:]).params
        except click.ClickException as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")
        if words[1:3] == ["claims", "run"]:
            assert set(given["names"]) <= set(known), words
        if words[1] == "walk":
            assert given["topology"] in (None, *TOPOLOGIES), words


def test_claims_that_the_pages_name_are_there() -> None:
    known = model.every_claim()
    for block, words in CALLS:
        if words[:2] == ["claims", "run"]:
            names = pages.parse_command(words).params["names"]
            assert all(name in known or name == "my.toml" for name in names), block
    text = (GUIDE / "claims.md").read_text() + (ROOT / "README.md").read_text()
    said = re.findall(r"\b(\d+) (?:such statements|statements|take)\b", text)
    assert {int(number) for number in said} == {len(known)}


def test_every_experiment_that_is_shipped_stands_in_the_guide() -> None:
    text = (GUIDE / "experiments.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)`", text, flags=re.MULTILINE)) == {
        file.stem for file in (ROOT / "lab/experiments").glob("*.toml")
    }


# --- commands that read runs ----------------------------------------------------------------------------------------


def make_run(name: str, folder: pathlib.Path) -> None:
    """Make the run that the pages call `name`."""
    if name == "latest":
        shutil.copytree(ROOT / "tests/data/format-1", folder / "old")  # a traced run
        (folder / "latest").unlink(missing_ok=True)
        (folder / "latest").symlink_to("old")
    elif name == "flood":
        made_floods.make_floods(folder).rename(folder / name)
    elif name.startswith("claims"):
        made_claims.make_claims(folder / name, "6.1.0", dict.fromkeys(made_claims.CLAIMS, "confirmed"))
    else:
        made_runs.make(folder, ord(name[-1]), paths=["udp"], sizes=[64], messages=200).rename(folder / name)


READING = [page for page in PAGES if any(block.needs == "run" for block in pages.find_blocks(page))]


@pytest.mark.parametrize("page", READING, ids=lambda page: page.stem)
def test_commands_of_the_pages_that_read_runs_do(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block for block in pages.find_blocks(page) if block.needs == "run"]
    named = {name for block in blocks for name in re.findall(r"\bruns/([\w-]+)", block.text)}
    for name in sorted(named, key=lambda name: name == "latest"):  # each run that is made is the latest for a while
        make_run(name, tmp_path / "runs")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        pages.call_block(block)


# --- links and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for link in pages.find_links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in pages.anchors(target), f"{page.name}: {link}"


def test_the_guide_links_to_each_of_its_pages() -> None:
    assert set(pages.find_links(GUIDE / "README.md")) >= {page.name for page in GUIDE.glob("*.md")} - {"README.md"}


def test_files_that_the_pages_name_are_there() -> None:
    """Also in running text: `hwrx/cli.py`, `lab/bench/trace`."""
    for page in PAGES:
        for name in re.findall(r"`((?:hwrx|cython_ext|lab|tests)/[^\s`*]*)`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_readme_is_one_page() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
