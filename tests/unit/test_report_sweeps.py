"""What a report makes of what the experiment varied: tables, figures and sentences of load, conditions and numbers."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

import made_runs
import numpy as np
import pytest

import hwrx
from hwrx.errors import UsageError
from hwrx.paths import arrivals
from hwrx.report import figures, html, tables, terminal
from hwrx.report.model import Row, Summary
from hwrx.runs import experiment, planning, store

SERVICE = 20_000  # ns, of the made-up server below: it can do 50,000 messages a second
LOADS = [0.2, 0.5, 0.8, 1.2]


def loaded(root: pathlib.Path) -> Summary:
    """A run of one server behind a line of 5 µs, at shares of what it can do: a queue, computed."""
    plan = planning.plan_run(
        experiment.from_options(
            name="load", paths=["udp", "tcp"], patterns=["paced"], load=LOADS, repeats=3, messages=2000, warmup=100,
            arrivals="poisson", seed=1, capacity={f"{path} 64 B event": 1e9 / SERVICE for path in ("udp", "tcp")},
        ),
        lambda setting: None,
    )  # fmt: skip
    with store.Writer.create(root, plan, made_runs.MANIFEST) as writer:
        for trial in plan.trials:
            due = arrivals.schedule_sends(trial.setting, trial.repeat, 0)
            ends = np.maximum.accumulate(due - SERVICE * np.arange(len(due))) + SERVICE * np.arange(1, len(due) + 1)
            ns = (ends - due)[100:2100] + 5_000
            sequence = np.arange(2000, dtype=np.uint32)
            service = np.full(2000, SERVICE + 5_000)
            writer.add_trial(trial, status="ok", tally={"delivered": 2000, "expected": 2116}, sequence=sequence, ns=ns,
                             service_ns=service)  # fmt: skip
    return hwrx.load(writer.path).summary()


def at(summary: Summary, load: float, path: str = "udp") -> Row:
    return next(row for row in summary.rows if (row.path, row.load) == (path, load))


def test_a_queue_below_capacity_is_that_of_theory_and_above_it_is_marked(tmp_path: pathlib.Path) -> None:
    summary = loaded(tmp_path)
    for load in LOADS[:3]:  # the mean wait of an M/D/1 queue: service x load / 2 (1 - load)
        mean = np.mean([digest.mean for digest in at(summary, load).digests])
        assert mean == pytest.approx(25 + 20 * load / (2 * (1 - load)), rel=0.12)
        assert not at(summary, load).saturated
    over = at(summary, 1.2)
    assert over.saturated
    assert over.messages_per_s is not None
    assert over.messages_per_s.value == pytest.approx(50_000, rel=0.02)
    assert over.ratio is None
    assert at(summary, 1.2, "tcp").ratio is None
    assert at(summary, 0.5, "tcp").ratio is not None
    table = tables.report_tables(summary)[0]
    assert [name for name, _ in table.columns][:4] == ["size", "path", "wait", "load"]
    marked = [cells[5][1] for _, cells in table.rows if cells[3][0] == "120 %"]
    assert marked == ["†", "†"]
    assert "grows with the trial's length" in table.caption
    assert "Poisson arrivals" in table.caption
    assert any(warning.startswith("more was offered than the path answered") for warning in summary.warnings)
    assert not any("did not settle" in warning and "120 %" in warning for warning in summary.warnings)


def test_the_answer_to_load_is_what_each_path_can_do_and_where_its_tail_begins(tmp_path: pathlib.Path) -> None:
    assert loaded(tmp_path).answer == (
        "At 64 B, udp keeps up with 50,000, tcp keeps up with 50,000 messages a second; p99 of the response time is "
        "more than twice that at 20 % load from udp 80 %, tcp 80 % of that on."
    )


def test_the_curve_of_load_stands_over_what_was_answered(tmp_path: pathlib.Path) -> None:
    summary = loaded(tmp_path)
    ax = figures.draw_figure(summary, "load").axes[0]
    places = np.sort(ax.lines[0].get_xdata())
    assert places[:3] == pytest.approx([10_000, 25_000, 40_000], rel=0.05)
    assert places[3] == pytest.approx(50_000, rel=0.05)
    low, high = ax.get_ylim()
    assert low < 25 < high < 2.5 * max(row.quantiles["p99"].value for row in summary.rows)  # type: ignore[union-attr]
    # a curve of eight lines a panel at most
    assert len({line.get_label() for line in figures.draw_figure(summary, "cdf").axes[0].lines}) <= 8


@pytest.fixture
def spoiled(tmp_path: pathlib.Path) -> Summary:
    return swept(tmp_path, netem=["", "loss 1%", "delay 1ms reorder 5%"])


def swept(root: pathlib.Path, **sweep: list[Any]) -> Summary:
    made = made_runs.make(root, patterns=["pingpong", "stream"], sizes=[64], sweep=sweep, topology="pair")
    return hwrx.load(made).summary()


def test_conditions_come_in_the_experiments_order_with_a_column_of_their_own(spoiled: Summary) -> None:
    latency = tables.report_tables(spoiled)[0]
    assert [name for name, _ in latency.columns][:4] == ["size", "path", "wait", "netem"]
    assert [(first, cells[1][0], cells[3][0]) for first, cells in latency.rows] == [
        (True, "udp", "none"),
        (False, "rdma-send", "none"),
        (True, "udp", "loss 1%"),
        (False, "rdma-send", "loss 1%"),
        (True, "udp", "delay 1ms reorder 5%"),
        (False, "rdma-send", "delay 1ms reorder 5%"),
    ]
    assert spoiled.rows[2].label == "udp loss 1%"
    buffer = io.StringIO()
    terminal.show_summary(spoiled, buffer, width=80)
    assert max(map(len, buffer.getvalue().splitlines())) <= 80
    assert "loss 1%" in buffer.getvalue()
    assert "× udp" in buffer.getvalue()


def test_each_condition_is_a_line_of_its_figure(spoiled: Summary) -> None:
    assert "conditions" in figures.figure_names(spoiled)
    assert "sweep" not in figures.figure_names(spoiled)
    latency, rates = figures.draw_figure(spoiled, "conditions").axes
    assert [label.get_text() for label in latency.get_yticklabels()] == ["none", "loss 1%", "delay 1ms reorder 5%"]
    assert "messages/s" in rates.get_xlabel()
    assert 'id="figure-conditions"' in html.render_html(spoiled)


def test_a_field_swept_through_numbers_is_an_axis(tmp_path: pathlib.Path) -> None:
    summary = swept(tmp_path, senders=[1, 2, 8])
    assert "sweep" in figures.figure_names(summary)
    latency, rates = figures.draw_figure(summary, "sweep").axes
    assert list(latency.lines[0].get_xdata()) == [1, 2, 8]
    assert rates.get_xlabel() == "senders"
    one, eight = (
        next(r for r in summary.rows if (r.path, r.pattern, r.swept["senders"]) == ("udp", "pingpong", count))
        for count in (1, 8)
    )
    assert one.messages_per_s is not None
    assert eight.messages_per_s is not None
    # a round trip of each of eight at a time
    assert eight.messages_per_s.value == pytest.approx(8 * one.messages_per_s.value, rel=0.2)


def test_words_beside_numbers_tell_the_lines_over_the_numbers_apart(tmp_path: pathlib.Path) -> None:
    summary = swept(tmp_path, crowd=[0, 64, 1024], crowd_on=["spread", "chain"])
    assert "sweep" in figures.figure_names(summary)
    assert "conditions" not in figures.figure_names(summary)
    ax = figures.draw_figure(summary, "sweep").axes[0]
    _, labels = ax.get_legend_handles_labels()
    assert set(labels) == {f"udp {where}" for where in ("spread", "chain")}
    assert "Not read by rdma-send: crowd" in figures.draw_figure(summary, "sweep").get_supxlabel().replace("\n", " ")
    assert list(ax.lines[0].get_xdata()) == [0, 64, 1024]
    assert ax.get_xlim()[0] < 0
    assert figures.render_figure(figures.draw_figure(summary, "sweep"), "svg")


def test_the_answer_to_a_sweep_is_one_sentence_however_much_was_swept(spoiled: Summary) -> None:
    assert spoiled.answer.startswith("At 64 B, half a round trip over udp takes ")
    assert spoiled.answer.count("95 % interval") == 1
    assert "; the longest p99: " in spoiled.answer


def test_packets_sent_again_are_in_the_table_of_quality(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(sizes=[64], repeats=1, paths=["tcp"])
    with store.Writer.create(tmp_path, plan, {}) as writer:
        count = plan.trials[0].setting.messages
        writer.add_trial(plan.trials[0], status="ok", tally={"resent": 17}, sequence=np.arange(count, dtype=np.uint32),
                         ns=np.full(count, 1000))  # fmt: skip
    summary = hwrx.load(writer.path).summary()
    quality = next(table for table in tables.report_tables(summary) if table.name == "quality")
    place = [name for name, _ in quality.columns].index("sent again")
    assert quality.rows[0][1][place][0] == "17"
    assert json.loads(tables.to_json(summary))["rows"][0]["resent"] == 17


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[setting]\nnetem = "loss"', r"setting.netem: \"loss\" is not allowed.*\n.*netem's words, such as 'loss 1%'"),
        ('[setting]\nnetem = "loss 1%; reboot"', r"setting.netem: .* is not allowed"),
        ('topology = "here"\n[sweep]\nnetem = ["loss 1%"]', r"netem: .* the topology 'here' has none.*\n.*\"pair\""),
        ("trace = true\n[sweep]\nsenders = [1, 2]", r"trace: it follows the messages of one sender"),
        ("[sweep]\nsenders = [0]", r"sweep.senders\[0\]: 0 is not allowed.*\n.*from 1 to 64"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        experiment.parse_experiment(f'paths = ["udp"]\n{text}', source="f")


def test_an_open_loop_of_several_senders_is_left_out_with_the_reason() -> None:
    asked = experiment.from_options(
        name="x", paths=["udp"], patterns=["paced", "stream"], rate=10.0, sweep={"senders": [1, 2]}, repeats=1
    )
    plan = planning.plan_run(asked)
    assert len(plan.trials) == 3
    assert [(skip.label, skip.reason) for skip in plan.skipped] == [
        ("udp 64 B paced event senders=2", "an open loop has one sender")
    ]
