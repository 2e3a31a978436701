"""What became of each flow between hosts, and of each pair measured alone a matrix, with those that stand out."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from hwrx.host.decoding import UNREADABLE
from hwrx.host.outside import clean_text
from hwrx.paths import PATHS, mixes
from hwrx.report.cells import Cell, Kind, Table
from hwrx.report.model import Summary
from hwrx.report.numbers import WITHHELD, compact_number, size_words

# A pair stands out if it is this many median absolute deviations from the median of all pairs, and this far at least
DEVIATIONS, LEAST = 5.0, 0.2
FEWEST = 4  # pairs: of fewer nobody is "most of them"


Told = dict[str, Any]  # of a flow, as `hwrx.runs.fleet` writes it
Key = tuple[Any, ...]  # of a setting, or of a flow in it


class FlowRow(Struct, frozen=True, kw_only=True):
    """A flow of a setting, its repeats together: counts added, of figures the median."""

    path: str
    size: int  # of the longest message, if they are a mix
    pattern: str
    wait: str
    flows: str
    mix: str = ""  # what the mix is called
    client: str
    server: str
    posted: int
    delivered: int
    lost: int
    at_socket: int | None  # of the lost: those that the receiving socket had no room for
    figure: float | None  # µs one way (of READ both ways), median; of a stream messages a second
    figures: list[float]  # of each repeat
    gone: list[str]  # why an end was lost, of each trial in which one was


def flow_rows(summary: Summary) -> list[FlowRow]:
    """Return the flows of the runs between hosts; empty if there is none."""
    gathered: dict[Key, list[Told]] = {}
    labels = mixes.tell_apart(str(trial.get("mix") or "") for run in summary.runs for trial in run.rows)
    for run in summary.runs:
        for trial in run.rows:
            key = tuple(trial.get(name) for name in ("path", "size", "pattern", "wait", "flows"))
            key += (labels.get(str(trial.get("mix")), ""),)
            for flow in _read_told(trial.get("by_flow"), {"client", "server"}):
                gathered.setdefault((*key, str(flow["client"]), str(flow["server"])), []).append(flow)
    return [_flow_row(key, flows) for key, flows in sorted(gathered.items(), key=lambda item: tuple(map(str, item[0])))]


def _read_told(text: object, keys: set[str]) -> Iterable[Told]:
    """Yield what a trial's row says of its flows, or of its hosts; nothing if it is not that."""
    if not isinstance(text, str):
        return
    try:
        found = msgspec.json.decode(text, type=list[Told])
        yield from (each for each in found if keys <= each.keys())
    except UNREADABLE:
        return


def _drop_words(summary: Summary) -> str:
    """Say what network devices dropped while the trials ran, host by host."""
    found: dict[str, Counter[str]] = {}
    for run in summary.runs:
        for trial in run.rows:
            for host in _read_told(trial.get("by_host"), {"host"}):
                counts = {key: count for key, count in host.items() if isinstance(count, int)}
                found.setdefault(clean_text(str(host["host"])), Counter()).update(counts)
    told = "; ".join(
        f"{name} {', '.join(f'{clean_text(key)} {count}' for key, count in sorted(counts.items()))}"
        for name, counts in sorted(found.items())
    )
    return f" Packets that network devices counted as lost meanwhile, of whatever traffic: {told}." if told else ""


def _flow_row(key: Key, flows: Sequence[Told]) -> FlowRow:
    path, size, pattern, wait, words, mix, client, server = key
    whole = [flow for flow in flows if "gone" not in flow]
    name, factor = ("messages_per_s", 1.0) if pattern == "stream" else ("p50_ns", 1e-3)
    if pattern == "pingpong" and not (path in PATHS and PATHS[path].full_rtt):
        factor /= 2
    figures = [flow[name] * factor for flow in whole if flow.get(name)]
    counts = {each: sum(int(flow.get(each, 0)) for flow in whole) for each in ("posted", "delivered", "lost")}
    told = [int(flow["lost_at_socket"]) for flow in whole if "lost_at_socket" in flow]
    return FlowRow(
        path=str(path),
        size=int(size),
        mix=str(mix),
        pattern=str(pattern),
        wait=str(wait),
        flows=str(words or ""),
        client=client,
        server=server,
        **counts,
        at_socket=sum(told) if told else None,
        figure=statistics.median(figures) if figures else None,
        figures=figures,
        gone=[clean_text(str(flow["gone"])) for flow in flows if "gone" in flow],
    )


def flow_tables(summary: Summary) -> list[Table]:
    """Return the flows as a table, and of each pair alone a matrix; nothing of runs that are not between hosts."""
    rows = flow_rows(summary)
    if not rows:
        return []
    alone = [row for row in rows if len([each for each in rows if _setting(each) == _setting(row)]) == 1]
    matrices = [
        _matrix(several) for several in _grouped(alone, ("path", "size", "mix", "pattern", "wait")) if len(several) >= 2
    ]
    return [*matrices, _flow_table(rows, _drop_words(summary))]


def find_outliers(rows: Sequence[FlowRow]) -> list[tuple[FlowRow, float]]:
    """Return the pairs that stand out among those of one setting, the worst first, as multiples of the median.

    Each repeat of such a pair lies so far off, and to the same side.
    """
    known = [(row, row.figure) for row in rows if row.figure is not None]
    if len(known) < FEWEST:
        return []
    middle = statistics.median(figure for _, figure in known)
    spread = statistics.median(abs(figure - middle) for _, figure in known)
    far = max(DEVIATIONS * spread, LEAST * middle)
    found = [
        (row, figure / middle)
        for row, figure in known
        if min(row.figures) > middle + far or max(row.figures) < middle - far
    ]
    return sorted(found, key=lambda pair: -abs(pair[1] - 1))


def _size(row: FlowRow) -> str:
    return row.mix or size_words(row.size)


def _setting(row: FlowRow) -> Key:
    return row.path, row.size, row.mix, row.pattern, row.wait, row.flows


def _grouped(rows: Sequence[FlowRow], names: Sequence[str]) -> list[list[FlowRow]]:
    found: dict[Key, list[FlowRow]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return list(found.values())


def _matrix(rows: Sequence[FlowRow]) -> Table:
    first = rows[0]
    unit = "messages/s" if first.pattern == "stream" else "µs, median"
    clients = list(dict.fromkeys(row.client for row in rows))
    servers = sorted(dict.fromkeys(row.server for row in rows))
    found = {(row.client, row.server): row.figure for row in rows}
    outliers = find_outliers(rows)
    marked = {(row.client, row.server) for row, _ in outliers}
    columns: list[tuple[str, Kind]] = [("from \\ to", "t"), *((server, "") for server in servers)]

    def cell(client: str, server: str) -> Cell:
        figure = found.get((client, server))
        return (WITHHELD if figure is None else compact_number(figure), "!" if (client, server) in marked else "")

    said = "; ".join(f"{row.client} to {row.server} {factor:.2f} times the median" for row, factor in outliers[:5])
    more = f"; {len(outliers) - 5} more" if len(outliers) > 5 else ""
    caption = (
        f"{first.path} {_size(first)}, {first.pattern}, waiting by {first.wait}; each pair alone; {unit}. "
        + (f"Stand out (!): {said}{more}." if outliers else "No pair stands out.")
        + f" That is, in each repeat: {DEVIATIONS:g} median absolute deviations from the median of all pairs, and"
        f" {100 * LEAST:.0f} % at least; of fewer than {FEWEST} pairs none can."
    )
    cells = [(True, [(client, ""), *(cell(client, server) for server in servers)]) for client in clients]
    size = (
        f"{first.size}-{re.sub('[^A-Za-z0-9]+', '-', first.mix)}" if first.mix else first.size
    )  # part of a file's name
    name = f"pairs-{first.path}-{size}-{first.pattern}-{first.wait}"
    return Table(name, "Pairs of hosts", caption, columns, cells, 1)


def _flow_table(rows: Sequence[FlowRow], drops: str) -> Table:
    together = any(row.flows != f"{row.client}>{row.server}" for row in rows)
    patterns = len({row.pattern for row in rows}) > 1
    columns: list[tuple[str, Kind]] = [("size", ""), ("path", "t")]
    columns += [("pattern", "t")] if patterns else []
    columns += [("flows", "t")] if together else []
    unit = "" if patterns else " [1/s]" if rows[0].pattern == "stream" else " [µs]"
    columns += [("from", "t"), ("to", "t"), ("sent", ""), ("delivered", ""), ("lost", ""), ("at socket", "")]
    name = "p50, rate" if patterns else "rate" if rows[0].pattern == "stream" else "p50"
    columns += [(name + unit, "")]
    lost_ends = any(row.gone for row in rows)
    columns += [("gone", "t")] if lost_ends else []
    cells: list[tuple[bool, list[Cell]]] = []
    for several in _grouped(rows, ("path", "size", "mix", "pattern", "wait", "flows")):
        for place, row in enumerate(several):
            socket = WITHHELD if row.at_socket is None else str(row.at_socket)
            figure = WITHHELD if row.figure is None else compact_number(row.figure)
            said = [_size(row), row.path, *([row.pattern] if patterns else [])]
            said += [*([row.flows] if together else []), row.client, row.server]
            said += [str(row.posted), str(row.delivered), str(row.lost), socket, figure]
            said += ["; ".join(dict.fromkeys(row.gone))] if lost_ends else []
            cells.append((place == 0, [(text, "") for text in said]))
    caption = (
        "What became of each flow, all repeats together, warm-up and cool-down among the messages. Lost at the "
        "socket: for want of room in the receiver's buffer; the others were lost on the way. Of a flow that lost an "
        "end nothing is counted. Clocks of two hosts are never compared." + drops
    )
    return Table("flows", "Flows", caption, columns, cells, 2, folded=len(cells) > 40)
