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
from hwrx.report.summary import summarise_runs
from hwrx.runs import experiment, planning, reading
from hwrx.runs.store import Writer

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
) -> Path:
    """A run between four hosts whose flows are as they are told."""
    plan = planning.plan_run(experiment.parse_experiment(ASKED.format(traffic=traffic), source="test"))
    with Writer.create(folder, plan, {"machine": {}, "emulated": False}) as writer:
        for trial in plan.trials:
            found = flows_of(trial.setting.flows)
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
