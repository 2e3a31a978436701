"""The terminal's first ten lines: the answer, in 80 columns, for somebody who has never seen it."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

import made_runs
import msgspec
import pytest

import hwrx
from hwrx.control.messages import Setting
from hwrx.report import answer, figures, html, tables, terminal, words
from hwrx.report.model import Row, Summary
from hwrx.stats import Estimate

PATHS = ["udp", "tcp", "rdma-send"]
COUNTED = {**made_runs.MANIFEST, "clock": "icount"}


def made(root: pathlib.Path, spread: float = 0.02, **options: Any) -> Summary:
    plan = made_runs.layout(**{"paths": PATHS, "sizes": [64, 1400, 4096], "messages": 120, **options})
    with hwrx.runs.store.Writer.create(root, plan, made_runs.MANIFEST) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial, seed=trial.number if spread > 0.1 else 0, spread=spread)
    return hwrx.load(writer.path).summary()


def counted(summary: Summary, costs: dict[str, tuple[int, int]], half: float = 0.002) -> Summary:
    """Give rows costs in instructions, by the byte and by the word, as a run that counts them has."""

    def known(value: float) -> Estimate:
        return Estimate(value=value, low=value * (1 - half), high=value * (1 + half), trials=3)

    rows: list[Row] = []
    for row in summary.rows:
        price = row.swept.get("copies_priced", "byte") == "word"
        cost = costs[row.path][price]
        ratio = None if row.path == "udp" else known(cost / costs["udp"][price])
        rows.append(msgspec.structs.replace(row, cost=known(cost), cost_ratio=ratio))
    return msgspec.structs.replace(summary, rows=rows)


ONE = Estimate(value=1.0, low=1.0, high=1.0, trials=3)


def shown(summary: Summary) -> list[str]:
    buffer = io.StringIO()
    terminal.show_summary(summary, buffer, width=80, page=pathlib.Path("runs/made/report.html"))
    return buffer.getvalue().splitlines()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return made(tmp_path_factory.mktemp("plain"), topology="pair")


def test_the_first_ten_lines_say_what_was_measured_on_what_and_every_paths_ratio(plain: Summary) -> None:
    lines = shown(plain)
    assert max(map(len, lines)) <= 80
    first = lines[:10]
    assert first[0].startswith("Half a round trip of a message: median µs")
    assert "veth pair with SoftRoCE on each end" in " ".join(first[:2])
    assert "Linux 6.1.0-test" in " ".join(first[:3])
    (heads,) = [line for line in first if line.startswith("path")]
    assert heads.split() == ["path", *["64", "B", "1400", "B", "4", "KiB"] * 2]
    for path in PATHS:
        assert any(line.startswith(path) for line in first)
    (send,) = [line for line in first if line.startswith("rdma-send")]
    base, row = (next(r for r in plain.rows if (r.path, r.size) == (p, 64)) for p in ("udp", "rdma-send"))
    assert row.ratio is not None
    assert base.quantiles["p50"] is not None
    assert f"{row.ratio.value:.2f}±" in send
    assert "not told" not in send
    assert "report: runs/made/report.html" in lines[:14]
    assert any("--trace counts them" in line for line in lines[:12])


def test_where_nothing_can_be_told_apart_the_first_line_says_so_and_why(tmp_path: pathlib.Path) -> None:
    summary = made(tmp_path, spread=3.0, sizes=[64], topology="pair")
    lines = shown(summary)
    assert lines[0].startswith("NOTHING IS TOLD APART from udp: repeats of one and the same path differ as much")
    assert "--clock icount" in " ".join(" ".join(lines[:4]).split())
    assert summary.answer.startswith("NOTHING IS TOLD APART")
    for line in lines[:10]:
        if line.startswith(("tcp", "rdma-send")):
            assert line.split()[2:] == ["not", "told"], "no ratio of 1.77 that lies anywhere between 0 and 2,000"
    assert "NOTHING IS TOLD APART" in html.render_html(summary)


def test_one_repeat_says_that_it_has_no_interval(tmp_path: pathlib.Path) -> None:
    lines = shown(made(tmp_path, sizes=[64], repeats=1))
    assert "1 repeat: no intervals." in lines[:10]
    assert not any("±" in line for line in lines[:8])


def test_counted_costs_stand_with_both_prices_of_a_copy_and_with_copies(tmp_path: pathlib.Path) -> None:
    def interval(setting: Setting, way: str, stage: str) -> int:
        return 100

    plan = made_runs.layout(
        paths=PATHS, sizes=[64, 1400], messages=60, clock="icount", sweep={"copies_priced": ["byte", "word"]},
        topology="pair", boot=["init_on_alloc=0"],
    )  # fmt: skip
    with hwrx.runs.store.Writer.create(tmp_path, plan, COUNTED) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial)
            if trial.setting.copies_priced == "byte":  # one price is traced
                copies = 2 if trial.setting.size == 64 else 1
                made_runs.trace(writer, trial, interval, lambda setting, copies=copies: copies)  # type: ignore[misc]
    costs = {"udp": (17_263, 12_838), "tcp": (18_500, 12_840), "rdma-send": (34_525, 34_000)}
    summary = counted(hwrx.load(writer.path).summary(), costs)
    lines = shown(summary)
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Half a round trip of a message: guest instructions executed at both ends")
    assert "booted with init_on_alloc=0." in " ".join(" ".join(lines[:4]).split())
    (head,) = [line for line in lines[:10] if "byte|word" in line]
    (tcp,) = [line for line in lines[:10] if line.startswith("tcp")]
    assert tcp.split() == ["tcp", "18.5k", "18.5k", "1.07|1.00", "1.07|1.00", *["1+2", "1+1"], "0+0"], head
    assert any("±" in line and "every" in line.lower() for line in lines[:12])
    # virtual times hold waiting, and are left to the report
    assert not any("round trip of a ping-pong" in line for line in lines)
    found = answer.answer_sentence(summary)
    assert found.startswith("At 64 B, half a round trip over udp costs 17.3k or 12.8k guest instructions")
    assert "over rdma-send 2.00 or 2.65 times as many" in found
    assert "over tcp 1.07 or 1.00 times as many" in found


def test_withheld_rates_are_one_warning_where_costs_were_counted(plain: Summary) -> None:
    reasons = [f"it moved within the trial by {number}" for number in range(len(plain.rows))]
    rows = [
        msgspec.structs.replace(row, pattern="stream", withheld={"messages/s": reason})
        for row, reason in zip(plain.rows, reasons, strict=True)
    ]
    assert sum("withheld" in line for line in words.of_rows(rows)) == len(rows)
    costs = [msgspec.structs.replace(row, counted=True, cost=ONE) for row in rows]
    (line,) = [line for line in words.of_rows(costs) if "withheld" in line]
    assert "what a message costs stands" in line


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (1.243, 1.238, 1.248, "1.24±.01"),
        (1.243, 1.242, 1.244, "1.243±.001"),
        (2.0, 1.3, 3.4, "1.3–3.4"),
        (1.77, 0.0, 2002.59, "not told"),
        (1.002, 0.998, 1.006, "1.002±.004"),
        (12.3, 11.9, 12.7, "12.30±.40"),
    ],
)
def test_a_ratio_says_how_sure_it_is(value: float, low: float, high: float, said: str) -> None:
    assert answer.ratio_words(Estimate(value=value, low=low, high=high, trials=3)) == said


def test_what_is_lost_late_or_left_out_is_a_line(plain: Summary) -> None:
    rows = [msgspec.structs.replace(row, tally={**row.tally, "lost": 3, "late": 2}) for row in plain.rows]
    summary = msgspec.structs.replace(
        plain, rows=rows, skipped=[("nic-ring 4096 B pingpong event", "one frame a message; more words")]
    )
    (found,) = answer.answers_of(summary)
    assert any(note.startswith("lost: udp event 64 B 3,") for note in found.notes)
    assert any(note.startswith("late, and counted with their true times: udp event 64 B") for note in found.notes)
    assert "left out: nic-ring: one frame a message" in found.notes


def test_a_withheld_rate_says_why_and_a_stream_has_no_quantiles(tmp_path: pathlib.Path) -> None:
    summary = made(tmp_path, paths=["udp", "tcp"], sizes=[64, 1024], patterns=["stream"], repeats=2)
    rows = [
        msgspec.structs.replace(
            row, messages_per_s=None, bytes_per_s=None, ratio=None, withheld={"messages/s": "too short"}
        )
        for row in summary.rows
    ]
    withheld = msgspec.structs.replace(summary, rows=rows)
    (found,) = answer.answers_of(withheld)
    assert "withheld: udp event 64 B, udp event 1 KiB, tcp event 64 B and 1 more (too short)." in found.notes
    assert found.lines() == [], "a table of dashes"
    assert "throughput" not in figures.figure_names(withheld)
    assert html.render_html(withheld)
    parsed = json.loads(tables.to_json(withheld))
    assert {row["withheld_messages/s"] for row in parsed["rows"]} == {"too short"}
    # a gap between deliveries is what batching makes it: its quantiles are no figures of the path
    assert not [key for row in parsed["rows"] for key in row if key.startswith(("p50_us", "p99_us"))]
    assert "p50_us" not in tables.to_csv(summary).splitlines()[0]
    rates = next(table for table in tables.report_tables(withheld) if table.name == "throughput")
    assert "too short" in rates.caption


def test_a_stream_that_was_never_steady_has_no_cost_either(tmp_path: pathlib.Path) -> None:
    plain = made(tmp_path, paths=["udp", "tcp", "rdma-send"], sizes=[64], patterns=["stream"], repeats=2)
    summary = counted(plain, {"udp": (10_000, 0), "tcp": (175, 0), "rdma-send": (20_000, 0)})
    (tcp,) = [place for place, row in enumerate(summary.rows) if row.path == "tcp"]
    rows = [msgspec.structs.replace(row, withheld={}) for row in summary.rows]
    rows[tcp] = msgspec.structs.replace(rows[tcp], withheld={"cost": "the buffers held all"})
    (found,) = answer.answers_of(msgspec.structs.replace(summary, rows=rows))
    assert found.rows == [["udp", "10.0k", "1"], ["tcp", "–", "–"], ["rdma-send", "20.0k", "2.000±.004"]]
    assert "withheld: tcp event 64 B (the buffers held all)." in found.notes
    rows[tcp] = msgspec.structs.replace(rows[tcp], withheld={"messages/s": "it moved"})
    (found,) = answer.answers_of(msgspec.structs.replace(summary, rows=rows))
    assert not any("withheld" in note for note in found.notes), "what a message costs is known however fast they came"
    rows[0] = msgspec.structs.replace(rows[0], withheld={"cost": "too short"})
    (found,) = answer.answers_of(msgspec.structs.replace(summary, rows=rows))
    assert found.heads == [("", "path"), ("instructions", "64 B")], "nothing to hold the others against"


@pytest.mark.parametrize("settle", [0, 1000])
def test_a_stream_that_settles_has_a_cost_though_it_has_no_rate(tmp_path: pathlib.Path, settle: int) -> None:
    asked = {"topology": "nic", "clock": "icount", "pattern": {"stream": {"settle": settle}}}
    summary = made(tmp_path, paths=["udp"], sizes=[64], patterns=["stream"], messages=10, repeats=2, **asked)
    (row,) = summary.rows
    assert "messages/s" in row.withheld, "ten calls are no rate"
    assert ("cost" in row.withheld) == (not settle)


def test_processor_time_and_what_was_late_have_their_columns(plain: Summary) -> None:
    known = Estimate(value=4.5, low=4.4, high=4.6, trials=3)
    rows = [
        msgspec.structs.replace(row, cpu={"user": known, "busy": known}, tally={**row.tally, "late": 7})
        for row in plain.rows
    ]
    made = tables.report_tables(msgspec.structs.replace(plain, rows=rows))
    cpu = next(table for table in made if table.name == "processor")
    assert [name for name, _ in cpu.columns][-2:] == ["of it user", "busy"]
    assert "In µs" in cpu.caption
    assert {cells[-1] for _, cells in cpu.rows} == {("4.50", "±2.2 %")}
    quality = next(table for table in made if table.name == "quality")
    place = [name for name, _ in quality.columns].index("late")
    assert {cells[place][0] for _, cells in quality.rows} == {"7"}
    without = msgspec.structs.replace(plain, rows=[msgspec.structs.replace(row, cpu={}) for row in plain.rows])
    assert not [table for table in tables.report_tables(without) if table.name == "processor"]


def test_of_many_conditions_a_few_stand_in_it_and_it_says_so(tmp_path: pathlib.Path) -> None:
    summary = made(tmp_path, sizes=[64], repeats=2, topology="pair", sweep={"senders": [1, 2, 3, 4, 5, 6]})
    (found,) = answer.answers_of(summary)
    assert len(found.rows) <= answer.LINES
    assert any(note.startswith(f"{len(found.rows)} of 18 rows stand here") for note in found.notes)
    assert max(map(len, found.lines())) <= 80


def test_a_run_of_one_path_alone_has_its_sentence(tmp_path: pathlib.Path) -> None:
    summary = made(tmp_path, paths=["udp"], sizes=[64])
    assert answer.answers_of(summary) == []
    assert shown(summary)[0].startswith("At 64 B, half a round trip over udp takes ")
