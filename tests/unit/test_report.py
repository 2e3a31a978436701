"""Reports: the figures are right, every form of them can be made, again and identically, and says where it is from."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
import shutil
from typing import Any

import made_runs
import numpy as np
import pytest
import scipy.stats

import hwrx
from hwrx.cli import main
from hwrx.errors import MachineError, UsageError
from hwrx.report import about, figures, html, latex, style, tables, terminal
from hwrx.report.model import Summary
from hwrx.report.numbers import size_words, time_words
from hwrx.report.provenance import label_of_run
from hwrx.report.summary import summarise_runs
from hwrx.runs import store

EMULATED = "EMULATED guest: compare within the run only"
PATHS = ["udp", "tcp", "rdma-write", "rdma-read"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return made_runs.make(
        tmp_path_factory.mktemp("runs"),
        paths=PATHS,
        patterns=["pingpong", "stream"],
        path={"rdma-write": {"pingpong": {"wait": "poll"}}},
        topology="pair",
    )


@pytest.fixture(scope="module")
def summary(path: pathlib.Path) -> Summary:
    return hwrx.load(path).summary()


def row(summary: Summary, path: str, size: int = 64, pattern: str = "pingpong"):  # type: ignore[no-untyped-def]
    return next(r for r in summary.rows if (r.path, r.size, r.pattern) == (path, size, pattern))


def of_trials(path: pathlib.Path, name: str, pattern: str = "pingpong") -> list[np.ndarray]:
    run = hwrx.load(path)
    found = [
        (t["repeat"], s.ns) for t, s in run.each_trial() if (t["path"], t["size"], t["pattern"]) == (name, 64, pattern)
    ]
    return [ns for _, ns in sorted(found, key=lambda pair: pair[0])]


def test_a_round_trip_is_halved_but_that_of_read_is_not(path: pathlib.Path, summary: Summary) -> None:
    for name, factor in (("udp", 0.5), ("rdma-read", 1.0)):
        expected = scipy.stats.gmean([np.quantile(ns, 0.5, method="median_unbiased") for ns in of_trials(path, name)])
        assert row(summary, name).quantiles["p50"].value == pytest.approx(expected * factor / 1e3)
    assert row(summary, "udp").measures == "half round trip"
    assert row(summary, "rdma-read").measures == "FULL round trip"


def test_rate_of_a_stream_leaves_the_first_row_out(path: pathlib.Path, summary: Summary) -> None:
    expected = scipy.stats.gmean([(len(ns) - 1) / ns[1:].sum() * 1e9 for ns in of_trials(path, "tcp", "stream")])
    rate = row(summary, "tcp", pattern="stream")
    assert rate.messages_per_s.value == pytest.approx(expected)
    assert rate.bytes_per_s.value == pytest.approx(expected * 64)
    assert rate.samples == 3 * 1199


def test_ratio_is_to_udp_pair_by_pair_and_finds_it_where_it_waits_otherwise(
    path: pathlib.Path, summary: Summary
) -> None:
    pairs = zip(of_trials(path, "rdma-write"), of_trials(path, "udp"), strict=True)
    expected = scipy.stats.gmean([np.quantile(a, 0.5) / np.quantile(b, 0.5) for a, b in pairs])
    found = row(summary, "rdma-write")
    assert found.wait == "poll"
    assert found.ratio.value == pytest.approx(expected, rel=1e-3)
    assert found.ratio.low < expected < found.ratio.high
    assert row(summary, "udp").ratio is None


def test_p999_of_too_few_samples_is_withheld_in_every_table(summary: Summary) -> None:
    assert row(summary, "udp").quantiles["p99.9"] is None
    assert row(summary, "udp").quantiles["p99"] is not None
    names = [name for name, _ in tables.report_tables(summary)[0].columns]
    assert "p99 [µs]" in names
    assert "p99.9 [µs]" not in names, "a column of nothing but dashes"
    assert '"p99.9_us": null' in tables.to_json(summary)


def test_the_answer_is_one_sentence_with_figures(summary: Summary) -> None:
    assert re.fullmatch(
        r"At 64 B, half a round trip over udp takes [\d.]+ µs at the median; tcp 1\.1\d times as long \(95 % interval "
        r"1\.\d\d–1\.\d\d\); .*rdma-write, waiting by poll, .* times as long .*; rdma-read .*for a FULL round trip.*\.",
        summary.answer,
    ), summary.answer


def test_rxe_is_explained_and_never_called_zero_copy(summary: Summary, path: pathlib.Path) -> None:
    page = html.render_html(summary)
    assert "the CPU does the HCA" in page
    assert "zero-copy" not in page.lower()
    assert "zero copy" not in page.lower()
    sockets = hwrx.load(made_runs.make(path.parent / "sockets", paths=["udp", "tcp"])).summary()
    assert about.about_row(sockets) == [about.HOW]


def test_every_table_and_picture_says_that_the_guest_is_emulated(summary: Summary, tmp_path: pathlib.Path) -> None:
    assert all(EMULATED in table.caption for table in tables.report_tables(summary))
    buffer = io.StringIO()
    terminal.show_summary(summary, buffer, width=400)
    assert " ".join(buffer.getvalue().split()).count(EMULATED) == 2
    page = html.render_html(summary)
    captions = re.findall(r'<p class="caption"[^>]*>(.*?)</p>|<figcaption>(.*?)</figcaption>', page, re.DOTALL)
    assert len(captions) == 6 + len(figures.figure_names(summary))  # two answers and four tables
    assert all(EMULATED in "".join(caption) for caption in captions)
    for name in figures.figure_names(summary):
        drawn = figures.draw_figure(summary, name)
        assert EMULATED in drawn.get_supxlabel()
    assert all(EMULATED in line["measured_on"] for line in csv.DictReader(io.StringIO(tables.to_csv(summary))))
    assert json.loads(tables.to_json(summary))["label"].startswith(EMULATED)
    for file in latex.write_all(summary, tmp_path):
        assert EMULATED in file.read_text()


def test_labels_tell_clocks_and_states_apart(tmp_path: pathlib.Path) -> None:
    real = {"emulated": False, "machine": {"kernel": {"release": "6.12.1"}}}
    assert (
        label_of_run(hwrx.load(made_runs.make(tmp_path, manifest=real))) == "wall clock, Linux 6.12.1, topology netns"
    )
    virtual = hwrx.load(made_runs.make(tmp_path, manifest={"emulated": True}, clock="icount"))
    assert label_of_run(virtual) == "virtual time, 1 ns = 1 guest instruction, topology netns"
    with store.Writer.create(tmp_path, made_runs.layout(), real) as writer:
        made_runs.add(writer, made_runs.layout().trials[0])
    assert label_of_run(hwrx.load(writer.path)).endswith("PARTIAL run")


def test_terminal_fits_80_columns_and_has_no_colours_in_a_file(summary: Summary) -> None:
    buffer = io.StringIO()
    terminal.show_summary(summary, buffer, width=80)
    shown = buffer.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "…" not in shown
    for word in (*PATHS, "poll", "p99", "× udp", "messages/s"):
        assert word in shown


def test_every_figure_is_drawn_in_every_format_the_same_each_time(path: pathlib.Path, summary: Summary) -> None:
    assert figures.figure_names(summary) == ["cdf", "latency", "ratio", "shift", "time", "throughput"]
    again = hwrx.load(path).summary()
    for name in figures.figure_names(summary):
        drawn = figures.draw_figure(summary, name)
        one = figures.render_figure(drawn, "pdf")
        assert one == figures.render_figure(figures.draw_figure(again, name), "pdf")
        assert drawn.get_size_inches()[0] == figures.COLUMN
        assert figures.render_figure(figures.draw_figure(summary, name), "svg") == figures.render_figure(
            figures.draw_figure(again, name), "svg"
        )
        assert b"FontFile2" in one  # TrueType, embedded


def test_load_and_waits_have_their_figures(tmp_path: pathlib.Path) -> None:
    load = made_runs.make(tmp_path, patterns=["paced"], sweep={"rate": [100.0, 1000.0]}, sizes=[64])
    summary = hwrx.load(load).summary()
    assert figures.figure_names(summary) == ["cdf", "time", "load"]
    assert {r.swept["rate"] for r in summary.rows} == {100.0, 1000.0}
    assert row(summary, "udp", pattern="paced").service_quantiles["p50"] is not None
    assert "(" in tables.report_tables(summary)[0].rows[0][1][5][1]
    waits = hwrx.load(made_runs.make(tmp_path, waits=["event", "poll"], sizes=[64])).summary()
    assert "waits" in figures.figure_names(waits)
    assert re.fullmatch(
        r"At 64 B, half a round trip over udp, waiting by event, takes .* at the median; rdma-send 2.\d\d times .*; "
        r"over udp, waiting by poll, takes .* at the median; rdma-send .* times as long .*",
        waits.answer,
    ), waits.answer
    ax: Any = figures.draw_figure(waits, "cdf").axes[0]  # the dashes of a line have no public name
    looks = {(line.get_label(), line.get_marker(), str(line._dash_pattern)) for line in ax.lines}
    assert {label for label, _, _ in looks} == {f"{p} {w}" for p in ("udp", "rdma-send") for w in ("event", "poll")}
    assert len({(marker, dash) for _, marker, dash in looks}) == 4
    for s in (summary, waits):
        for name in figures.figure_names(s):
            assert figures.render_figure(figures.draw_figure(s, name), "svg")


def test_cost_of_a_byte_is_the_slope_over_size(tmp_path: pathlib.Path) -> None:
    """A made-up round trip takes SPEED * (1 + size / 20,000) ns: udp 5 ns a byte one way, 100 µs a message."""
    made = made_runs.make(tmp_path, sizes=[64, 1024, 16384, 65536], messages=4000, repeats=4)
    summary = hwrx.load(made).summary()
    udp = next(cost for cost in summary.costs if cost.row == "udp")
    assert udp.byte.low < 5 < udp.byte.high
    assert udp.byte.value == pytest.approx(5, rel=0.05)
    assert udp.message.value == pytest.approx(100, rel=0.05)
    table = next(table for table in tables.report_tables(summary) if table.name == "cost")
    assert EMULATED in table.caption
    assert "cost" in figures.figure_names(summary)
    assert figures.render_figure(figures.draw_figure(summary, "cost"), "svg")
    assert json.loads(tables.to_json(summary))["costs"][0]["byte_ns"] == udp.byte.value


def test_the_shift_is_the_ratio_at_each_decile_and_its_figure_shows_it(path: pathlib.Path, summary: Summary) -> None:
    found = row(summary, "tcp")
    assert [p for p, _ in found.shift] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]
    for p, estimate in found.shift:
        pairs = zip(of_trials(path, "tcp"), of_trials(path, "udp"), strict=True)
        expected = scipy.stats.gmean(
            [np.divide(*(np.quantile(ns, p, method="median_unbiased") for ns in pair)) for pair in pairs]
        )
        assert estimate.value == pytest.approx(expected, rel=1e-3)
    assert found.shift[4][1] == found.ratio
    ax: Any = figures.draw_figure(summary, "shift").axes[0]
    handles, labels = ax.get_legend_handles_labels()
    assert list(handles[labels.index("tcp")].lines[0].get_ydata()) == [estimate.value for _, estimate in found.shift]
    assert (
        json.loads(tables.to_json(summary))["rows"][summary.rows.index(found)]["shift_p99"] == found.shift[-1][1].value
    )


def test_no_two_paths_look_alike_even_in_grey(summary: Summary) -> None:
    looks = [look[1:] for look in style.LOOKS.values()]
    assert len({marker for marker, _ in looks}) == len(looks)
    assert len({str(line) for _, line in looks}) >= len(looks) - 1


def test_unknown_figures_are_named(summary: Summary, path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"no figure 'pie'.*\n.*cdf, latency"):
        hwrx.load(path).figure("pie")
    with pytest.raises(UsageError, match=r"nothing to draw the figure 'load' from.*\n.*cdf"):
        figures.draw_figure(summary, "load")


def test_page_needs_nothing_from_elsewhere_and_is_the_same_each_time(path: pathlib.Path, summary: Summary) -> None:
    page = html.render_html(summary)
    assert page == html.render_html(hwrx.load(path).summary())
    assert not re.search(r'(src|href)="(?!#)', page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count("<svg") == 2 * len(figures.figure_names(summary))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in page
    assert "made up for a test" in page  # the manifest
    assert "rdma-write.pingpong" in page  # the experiment


def test_page_shows_markup_in_names_as_text(tmp_path: pathlib.Path) -> None:
    evil = {"machine": {"cpu": "<script>alert(1)</script>"}, "warnings": ["<img src=x>"]}
    page = html.render_html(hwrx.load(made_runs.make(tmp_path, manifest=evil, question="<b>why?</b>")).summary())
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;b&gt;why?" in page


def test_csv_and_json_hold_every_row_with_its_interval(summary: Summary) -> None:
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(summary))))
    parsed = json.loads(tables.to_json(summary))
    assert len(lines) == len(parsed["rows"]) == len(summary.rows) == 16
    udp = row(summary, "udp").quantiles["p50"]
    assert float(lines[0]["p50_us_low"]) == udp.low < float(lines[0]["p50_us"]) == udp.value
    assert parsed["rows"][0]["p50_us_high"] == udp.high
    assert parsed["runs"][0]["manifest"]["machine"]["cpu"] == "made up for a test"


def test_every_latex_table_compiles(summary: Summary, tmp_path: pathlib.Path, needs) -> None:  # type: ignore[no-untyped-def]
    needs("pdflatex")
    latex.check_latex(latex.write_all(summary, tmp_path))


def test_latex_escapes_what_tex_would_take_as_its_own(tmp_path: pathlib.Path) -> None:
    assert latex.escape_latex("50 % of a_b & c\\d #1 {x} µs ×2 ±3 –") == (
        r"50 \% of a\_b \& c\textbackslash{}d \#1 \{x\} \textmu{}s $\times$2 $\pm$3 --"
    )
    assert latex.escape_latex("off → on ≥ 3 · 2|1 …") == (
        r"off $\rightarrow$ on $\geq$ 3 $\cdot$ 2\textbar{}1 \ldots{}"
    )
    assert latex.escape_latex("日 é") == "U+65E5 e", "what the fonts lack is told, not lost"


def test_no_latex_is_said_in_words_and_the_tables_are_there(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert (
        main(["report", str(path), "--to", "latex", "--check-latex", "--out", str(tmp_path)]) == MachineError.exit_code
    )
    assert "there is no LaTeX on this machine" in capsys.readouterr().err
    assert (tmp_path / "tables" / "latency.tex").exists()


def test_report_command_writes_what_it_is_asked_for(
    path: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = [word for kind in ("html", "pdf", "svg", "latex", "csv", "json") for word in ("--to", kind)]
    assert main(["report", str(path), *formats, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.split()
    assert {pathlib.Path(line).relative_to(tmp_path).as_posix() for line in printed} >= {
        "report.html",
        "figures/cdf.pdf",
        "figures/cdf.svg",
        "tables/latency.tex",
        "summary.csv",
        "summary.json",
    }
    assert all(pathlib.Path(line).stat().st_size for line in printed)
    assert main(["report", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"]


def test_report_command_says_what_it_cannot_read(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "there is no run" in capsys.readouterr().err


def test_failed_trials_and_lost_messages_are_warnings(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(sizes=[64])
    with store.Writer.create(tmp_path, plan, {}) as writer:
        for trial in plan.trials[:-1]:
            made_runs.add(writer, trial)
        writer.add_trial(
            plan.trials[-1], status="failed", error="the cable is out\n  remedy: plug it in", tally={"lost": 7}
        )
    summary = hwrx.load(writer.path).summary()
    name = plan.trials[-1].label
    assert f"trial 5 ({name}) failed: the cable is out" in summary.warnings
    assert any("messages were lost: " in warning and warning.endswith(" 7") for warning in summary.warnings)


def test_a_run_without_samples_still_has_a_report(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(sizes=[64])
    with store.Writer.create(tmp_path, plan, {}) as writer:
        for trial in plan.trials:
            writer.add_trial(trial, status="failed", error="no device")
    summary = hwrx.load(writer.path).summary()
    assert summary.answer == "No trial was measured."
    assert figures.figure_names(summary) == []
    assert "No trial was measured." in html.render_html(summary)
    terminal.show_summary(summary, io.StringIO(), width=80)


def test_two_runs_stand_side_by_side_each_with_its_own_ratios(tmp_path: pathlib.Path) -> None:
    one, two = (hwrx.load(made_runs.make(tmp_path, seed=seed, sizes=[64])) for seed in (1, 2))
    both = summarise_runs([one, two])
    assert len(both.rows) == 4
    assert {r.run for r in both.rows} == {one.path.name, two.path.name}
    alone = one.summary()
    ours = next(r for r in both.rows if r.run == one.path.name and r.path == "rdma-send")
    assert ours.ratio == next(r for r in alone.rows if r.path == "rdma-send").ratio
    for name in figures.figure_names(both):
        assert figures.render_figure(figures.draw_figure(both, name), "svg")


@pytest.mark.parametrize(
    ("us", "words"), [(0.0123, "12.3 ns"), (1.234, "1.23 µs"), (4567.0, "4.57 ms"), (2.5e6, "2.5 s")]
)
def test_times_have_units(us: float, words: str) -> None:
    assert time_words(us) == words


@pytest.mark.parametrize(("size", "words"), [(64, "64 B"), (1400, "1,400 B"), (4096, "4 KiB"), (1 << 20, "1 MiB")])
def test_sizes_have_units(size: int, words: str) -> None:
    assert size_words(size) == words
