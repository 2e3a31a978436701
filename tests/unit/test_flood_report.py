"""What is told of floods: kept in a run directory, made again from it, the same each time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from made_floods import FLOODS, KEPT, make_floods

import hwrx
from hwrx.drops.books import Balance, Row
from hwrx.errors import StoreError, UsageError
from hwrx.flood import keep, page, pictures, result, words
from hwrx.report.provenance import label_of_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_floods(tmp_path_factory.mktemp("runs"))
    page.write_page(hwrx.load(made), KEPT)
    return made


def test_a_run_of_floods_holds_every_message_and_everything_over_time(run: Path) -> None:
    found = hwrx.load(run)
    assert found.status == "complete"
    assert [row["lost"] for row in found.rows] == [40, 0]
    arrivals, timeline = found.table("arrivals"), found.table("timeline")
    assert arrivals is not None
    assert timeline is not None
    assert arrivals.num_rows == 200
    assert arrivals["taken_ns"].null_count == 40
    assert "ns of CPU 1: sender, system" in timeline["series"].to_pylist()
    assert keep.load_floods(run) == KEPT


def test_the_page_is_made_again_to_the_byte_and_needs_no_network(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert page.render_page(hwrx.load(run), keep.load_floods(run), label_of_run(hwrx.load(run))) == text
    assert not re.findall(r"(?:src|href)=\"https?:", text)
    for flood in KEPT:
        assert words.answer_of(flood).replace("'", "&#39;") in text


def test_every_picture_that_the_floods_fill_is_there_and_no_other(run: Path) -> None:
    assert pictures.picture_names(FLOODS) == ["time-0", "time-1", "time-2", "time-3", "curve", "visits"]
    assert pictures.picture_names([FLOODS[0]] * 9) == ["time-0", "time-3", "time-5", "time-8", "visits"]
    assert {file.stem for file in (run / "figures").iterdir()} == set(pictures.picture_names(KEPT))
    with pytest.raises(UsageError, match="no picture 'nonsense'"):
        pictures.draw_picture(FLOODS, "nonsense", "")


def test_the_tables_say_what_was_found() -> None:
    found = {table.name: table for table in words.tables_of(FLOODS)}
    assert [row[1][5][0] for row in found["outcome"].rows] == ["0", "10", "40", "0"]
    assert all(row[1][-4][0] == "100.0%" for row in found["cpus"].rows)
    assert [row[1][4][0] for row in found["contexts"].rows[:2]] == ["36.0%", "64.0%"]
    assert "Jain's index 0.6923" in found["sockets"].rows[4][1][0][0]  # 50 and 10: 60² / (2 · 2600)
    assert ["rxe0", "rcvd_rnr_err", "4"] in [[cell[0] for cell in cells[1:]] for _, cells in found["told"].rows]
    assert words.answer_of(FLOODS[1]).endswith(
        "loss began with message 90, 3.00 ms after the first, at: receive-buffer."
    )


def test_what_a_reliable_connection_drops_is_sent_again_and_lost_only_with_the_connection() -> None:
    drops = [Row("rxe", "sentence", 900, ["in rxe_rcv: 900"], None, "")]
    well = result._reliable(Balance(100, 100, drops, [], -900, []), "")
    assert (well.rows, well.unexplained, [row.count for row in well.beside]) == ([], 0, [900])
    ended = result._reliable(Balance(100, 60, drops, [], -860, []), "a completion queue overran")
    assert ([(row.place, row.count) for row in ended.rows], ended.unexplained) == ([("queue-pair", 40)], 0)
    missing = result._reliable(Balance(100, 60, [], [], 40, []), "")
    assert missing.unexplained == 40


def test_what_was_written_over_is_lost_though_the_connection_lives() -> None:
    rows = [Row("wire", "sentence", 9, [], None, ""), Row("overwritten", "sentence", 30, [], None, "")]
    found = result._reliable(Balance(100, 70, rows, [], -9, []), "")
    assert ([row.place for row in found.rows], found.unexplained) == (["overwritten"], 0)
    assert [row.place for row in found.beside] == ["wire"]
    assert result._reliable(Balance(100, 60, rows, [], 1, []), "").unexplained == 10
    ended = result._reliable(Balance(100, 60, rows, [], 1, []), "the queue pair failed")
    assert [(row.place, row.count) for row in ended.rows] == [("overwritten", 30), ("queue-pair", 10)]


def test_a_datagram_that_a_broken_queue_pair_had_is_lost_with_it() -> None:
    rows = [Row("no-receive", "sentence", 30, [], None, ""), Row("queue-pair", "sentence", 5, [], None, "")]
    found = result._datagrams(Balance(100, 60, rows, [], 5, []), "a completion queue overran")
    assert [(row.place, row.count) for row in found.rows] == [("no-receive", 30), ("queue-pair", 10)]
    assert found.unexplained == 0
    assert result._datagrams(Balance(100, 60, rows, [], 5, []), "").unexplained == 5


def test_what_is_no_run_of_floods_is_told_in_words(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no flood"):
        keep.load_floods(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / keep.FILE).read_text()
    (copy / keep.FILE).write_text(text.replace('"delivered": 60', '"delivered": 61', 1))
    with pytest.raises(StoreError, match=r"floods.json is damaged"):
        keep.load_floods(copy)
