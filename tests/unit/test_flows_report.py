"""Flows between hosts in a report: counts added, figures by median, and the pairs that stand out among all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwrx.cli import main
from hwrx.report import flows
from hwrx.report.cells import Table
from hwrx.report.summary import summarise_runs
from hwrx.runs import experiment, planning, reading
from hwrx.runs.store import Writer
from hwrx.runs.trials import Trial

NAMES = ["h1", "h2", "h3", "h4"]
ASKED = 'topology = "hosts"\npaths = ["udp"]\nrepeats = 2\nclients = ["h[1-4]"]\ntraffic = "{traffic}"\n'


def flow(client: str, server: str, half: float, **changes: Any) -> dict[str, Any]:
    counts = {"posted": 100, "expected": 100, "delivered": 98, "lost": 2, "lost_at_socket": 1}
    return {"client": client, "server": server, **counts, "p50_ns": 2000 * half, "messages_per_s": 5e4, **changes}


def written(
    folder: Path,
    traffic: str,
    flows_of: Callable[[str], list[dict[str, Any]]],
    drops: list[dict[str, Any]] | None = None,
    more: str = "",
    swept: Callable[[Trial, dict[str, Any]], dict[str, Any]] | None = None,
) -> Path:
    """A run between four hosts whose flows are as they are told."""
    plan = planning.plan_run(experiment.parse_experiment(ASKED.format(traffic=traffic) + more, source="test"))
    with Writer.create(folder, plan, {"machine": {}, "emulated": False}) as writer:
        for trial in plan.trials:
            found = flows_of(trial.setting.flows) * trial.setting.senders
            if swept is not None:
                found = [swept(trial, each) for each in found]
            ns = np.full(50, 40_000, dtype=np.int64)
            extra = {"by_flow": found, "flow_count": sum("gone" not in each for each in found), "by_host": drops or []}
            tally = {"posted": 100, "expected": 100, "delivered": 98, "lost": 2, "duplicated": 0}
            sequence = np.arange(50, dtype=np.uint32)
            writer.add_trial(trial, status="ok", tally=tally, sequence=sequence, ns=ns, extra=extra)
    return writer.path


def pairs(slow: dict[tuple[str, str], float]) -> Callable[[str], list[dict[str, Any]]]:
    def found(words: str) -> list[dict[str, Any]]:
        client, _, server = words.partition(">")
        return [flow(client, server, slow.get((client, server), 20 + 0.1 * NAMES.index(client)))]

    return found


def test_a_slow_pair_stands_out_of_the_matrix_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path, "pairs", pairs({("h2", "h3"): 31.0}))
    rows = flows.flow_rows(summarise_runs([reading.load_run(run)]))
    assert [((row.client, row.server), round(factor, 2)) for row, factor in flows.find_outliers(rows)] == [
        (("h2", "h3"), 1.53)
    ]
    matrix, table = flows.flow_tables(summarise_runs([reading.load_run(run)]))
    assert [name for name, _ in matrix.columns] == ["from \\ to", *NAMES]
    assert matrix.rows[1][1] == [("h2", ""), ("20.1", ""), ("–", ""), ("31.0", "!"), ("20.1", "")]
    assert "h2 to h3 1.53 times the median" in matrix.caption
    assert len(table.rows) == 12 and "flows" not in [name for name, _ in table.columns]
    assert main(["report", str(run)]) == 0
    assert "31.0 !" in capsys.readouterr().out


def test_what_devices_dropped_stands_beside_the_flows(tmp_path: Path) -> None:
    drops = [{"host": "h2", "rx_dropped": 3, "on_the_wire": 1}]
    table = flows.flow_tables(summarise_runs([reading.load_run(written(tmp_path, "pairs", pairs({}), drops))]))[-1]
    # of two repeats of twelve pairs, each of which says so
    assert "counted as lost meanwhile, of whatever traffic: h2 on_the_wire 24, rx_dropped 72." in table.caption
    quiet = flows.flow_tables(summarise_runs([reading.load_run(written(tmp_path / "q", "pairs", pairs({})))]))[-1]
    assert "counted as lost" not in quiet.caption


def test_pairs_that_differ_a_little_do_not_stand_out(tmp_path: Path) -> None:
    run = written(tmp_path, "pairs", pairs({("h2", "h3"): 22.0}))
    assert flows.find_outliers(flows.flow_rows(summarise_runs([reading.load_run(run)]))) == []
    assert "No pair stands out" in flows.flow_tables(summarise_runs([reading.load_run(run)]))[0].caption


def test_flows_that_are_measured_together_are_a_table_with_those_that_lost_an_end(tmp_path: Path) -> None:
    def together(words: str) -> list[dict[str, Any]]:
        gone = {"client": "h1", "server": "h2", "posted": 7, "gone": "peer h1 (client) is gone: killed by SIGKILL"}
        return [gone, *(flow(a, b, 20.0) for a in NAMES for b in NAMES if a != b and (a, b) != ("h1", "h2"))]

    run = written(tmp_path, "all-to-all", together)
    (table,) = flows.flow_tables(summarise_runs([reading.load_run(run)]))
    first = [text for text, _ in table.rows[0][1]]
    assert first[:4] == ["64 B", "udp", "h[1-4]>h[1-4]", "h1"]
    assert first[5:] == ["0", "0", "0", "–", "–", "peer h1 (client) is gone: killed by SIGKILL"]
    assert [text for text, _ in table.rows[1][1]][4:] == ["h3", "200", "196", "4", "2", "20.0", ""]
    assert main(["report", str(run), "--to", "json"]) == 0
    told = json.loads((run / "summary.json").read_text())["flows"]
    assert len(told) == 12 and told[0]["gone"][0].startswith("peer h1")


def tables_of(*runs: Path) -> list[Table]:
    return flows.flow_tables(summarise_runs([reading.load_run(run) for run in runs]))


def cells_of(table: Table, *names: str) -> list[list[str]]:
    places = [[name for name, _ in table.columns].index(name) for name in names]
    return [[row[place][0] for place in places] for _, row in table.rows]


def test_what_a_sweep_tells_apart_is_a_row_and_a_matrix_of_its_own(tmp_path: Path) -> None:
    """Two rates, one of which every pair takes ten times as long at."""
    more = 'patterns = ["paced"]\n[sweep]\nrate = [4000, 500]\n'

    def slower(trial: Trial, told: dict[str, Any]) -> dict[str, Any]:
        return {**told, "p50_ns": 150_000 if trial.setting.rate == 4000 else 1_500_000}

    slow, fast, table = tables_of(written(tmp_path, "pairs", pairs({}), more=more, swept=slower))
    assert len({each.name for each in (slow, fast, table)}) == 3
    assert "udp 64 B, paced, waiting by event, 500 a second offered;" in slow.caption and slow.rows[0][1][2] == (
        "1.50k",
        "",
    )
    assert "4,000 a second offered;" in fast.caption and fast.rows[0][1][2] == ("150", "")
    found = cells_of(table, "offered [1/s]", "from", "to", "sent", "p50 [µs]")
    assert len(found) == 24
    assert found[0] == ["500", "h1", "h2", "200", "1.50k"] and found[-1] == ["4,000", "h4", "h3", "200", "150"]


def test_what_several_senders_of_a_pair_send_is_added(tmp_path: Path) -> None:
    more = 'patterns = ["stream"]\n[sweep]\nsenders = [1, 4]\n'

    def lost(trial: Trial, told: dict[str, Any]) -> dict[str, Any]:
        """Lose an end of one pair, and all of another."""
        if trial.setting.flows == "h1>h3" or (trial.setting.flows == "h1>h4" and trial.repeat == 0):
            return {**told, "gone": "peer h1 (client) is gone"}
        return told

    one, four, table = tables_of(written(tmp_path, "pairs", pairs({}), more=more, swept=lost))
    assert "1 sender;" in one.caption and "4 senders;" in four.caption
    assert [text for text, _ in one.rows[0][1]] == ["h1", "–", "50.0k", "–", "50.0k"]
    assert [text for text, _ in four.rows[0][1]] == ["h1", "–", "200k", "–", "200k"]
    found = cells_of(table, "senders", "from", "to", "sent", "rate [1/s]")
    assert found[0] == ["1", "h1", "h2", "200", "50.0k"] and found[12] == ["4", "h1", "h2", "800", "200k"]


def test_the_rate_of_a_pair_of_which_a_sender_is_lost_is_not_told(tmp_path: Path) -> None:
    def lost(words: str) -> list[dict[str, Any]]:
        client, _, server = words.partition(">")
        gone = {"client": client, "server": server, "gone": "peer h1 (client 2) is gone"}
        return [flow(client, server, 20), gone]

    more = 'patterns = ["stream"]\n'
    assert tables_of(written(tmp_path, "pairs", lost, more=more))[0].rows[0][1][2] == ("–", "")


def test_two_runs_and_two_ways_to_wait_are_told_apart(tmp_path: Path) -> None:
    more = 'waits = ["event", "poll"]\n'
    first = written(tmp_path / "a", "pairs", pairs({}), more=more)
    second = written(tmp_path / "b", "pairs", pairs({(a, b): 90.0 for a in NAMES for b in NAMES}), more=more)
    second = second.rename(second.with_name(f"{second.name}-later"))  # a run is named by the second
    *matrices, table = tables_of(first, second)
    assert [each.rows[0][1][2][0] for each in matrices] == ["20.0", "90.0"] * 2
    found = cells_of(table, "path", "wait", "from", "to", "sent", "p50 [µs]")
    assert len(found) == 48
    for name, figure in ((first.name, "20.0"), (second.name, "90.0")):
        for wait in ("event", "poll"):
            assert [f"udp {name}", wait, "h1", "h2", "200", figure] in found
