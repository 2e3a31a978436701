"""What became of each flow between hosts, and of each pair measured alone a matrix, with those that stand out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from hwrx.host.decoding import UNREADABLE
from hwrx.host.outside import clean_text
from hwrx.paths import PATHS
from hwrx.report import numbers
from hwrx.report.cells import Cell, Kind, Table, swept_cell
from hwrx.report.groups import Group, group_trials
from hwrx.report.model import Summary, swept_words
from hwrx.report.numbers import WITHHELD, compact_number, size_of_rows

# A pair stands out if it is this many median absolute deviations from the median of all pairs, and this far at least
DEVIATIONS, LEAST = 5.0, 0.2
FEWEST = 4  # pairs: of fewer nobody is "most of them"


Told = dict[str, Any]  # of a flow, as `hwrx.runs.fleet` writes it
Key = tuple[Any, ...]  # of a setting, or of a flow in it


class FlowRow(Struct, frozen=True, kw_only=True):
    """A flow of a setting, its repeats together: counts added, of figures the median.

    Of several senders between two hosts the counts and the rate are all of theirs. `run` is empty if there is only one;
    `swept` has what tells the setting from others, as of `hwrx.report.model.Row`, but for the `flows`.
    """

    run: str
    path: str
    size: int  # of the longest message, if they are a mix
    pattern: str
    wait: str
    load: float | None
    swept: dict[str, Any]
    flows: str
    client: str
    server: str
    posted: int
    delivered: int
    lost: int
    at_socket: int | None  # of the lost: those that the receiving socket had no room for
    figure: float | None  # µs one way (of READ both ways), median; of a stream messages a second
    figures: list[float]  # of each repeat
    gone: list[str]  # why an end was lost, of each trial in which one was

    @property
    def setting(self) -> Key:
        """All that tells it from others but the flows: no figure and no table of pairs takes two of them together."""
        return self.path, self.size, self.pattern, self.wait, self.load, tuple(self.swept.items()), self.run


def flow_rows(summary: Summary) -> list[FlowRow]:
    """Return the flows of the runs between hosts; empty if there is none."""
    found: list[FlowRow] = []
    for run in summary.runs:
        name = run.path.name if len(summary.runs) > 1 else ""
        for group in group_trials(run):
            for words in dict.fromkeys(str(trial.get("flows") or "") for trial in group.trials):
                trials = [trial for trial in group.trials if str(trial.get("flows") or "") == words]
                found += _rows_of_flows(name, group, words, trials)
    return sorted(found, key=lambda row: _order((row.setting, row.flows, row.client, row.server)))


def _rows_of_flows(name: str, group: Group, words: str, trials: Sequence[Told]) -> list[FlowRow]:
    """Return a row for each pair of hosts that a setting's trials had flows between."""
    gathered: dict[tuple[str, str], list[list[Told]]] = {}
    for trial in trials:
        told: dict[tuple[str, str], list[Told]] = {}
        for flow in _read_told(trial.get("by_flow"), {"client", "server"}):
            told.setdefault((str(flow["client"]), str(flow["server"])), []).append(flow)
        for ends, flows in told.items():
            gathered.setdefault(ends, []).append(flows)
    return [_flow_row(name, group, words, ends, repeats) for ends, repeats in gathered.items()]


def _order(value: object) -> tuple[Any, ...]:
    """Return what sorts numbers by what they are, and all else by its words."""
    if isinstance(value, tuple):
        return tuple(map(_order, value))
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


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


def _flow_row(name: str, group: Group, words: str, ends: tuple[str, str], repeats: Sequence[Sequence[Told]]) -> FlowRow:
    """Make a row of what each repeat tells of the senders between two hosts."""
    flows = [flow for senders in repeats for flow in senders]
    whole = [flow for flow in flows if "gone" not in flow]
    figures = [figure for senders in repeats if (figure := _figure(group, senders)) is not None]
    counts = {each: sum(int(flow.get(each, 0)) for flow in whole) for each in ("posted", "delivered", "lost")}
    told = [int(flow["lost_at_socket"]) for flow in whole if "lost_at_socket" in flow]
    return FlowRow(
        run=name,
        path=group.path,
        size=group.size,
        pattern=group.pattern,
        wait=group.wait,
        load=group.load,
        swept={key: value for key, value in group.swept.items() if key != "flows"},
        flows=words,
        client=ends[0],
        server=ends[1],
        **counts,
        at_socket=sum(told) if told else None,
        figure=statistics.median(figures) if figures else None,
        figures=figures,
        gone=[clean_text(str(flow["gone"])) for flow in flows if "gone" in flow],
    )


def _figure(group: Group, senders: Sequence[Told]) -> float | None:
    """Return one repeat's figure: the median sender's time; of a stream what all send together, if all are known."""
    if group.pattern == "stream":
        rates = [flow.get("messages_per_s") for flow in senders if "gone" not in flow]
        known = [float(rate) for rate in rates if rate]
        return sum(known) if known and len(known) == len(senders) else None
    full = group.path in PATHS and PATHS[group.path].full_rtt
    factor = 1e-3 if full or group.pattern != "pingpong" else 0.5e-3
    times = [factor * flow["p50_ns"] for flow in senders if "gone" not in flow and flow.get("p50_ns")]
    return statistics.median(times) if times else None


def flow_tables(summary: Summary) -> list[Table]:
    """Return the flows as a table, and of each pair alone a matrix; nothing of runs that are not between hosts."""
    rows = flow_rows(summary)
    if not rows:
        return []
    counts = Counter((row.setting, row.flows) for row in rows)
    alone = [row for row in rows if counts[row.setting, row.flows] == 1]
    matrices: list[Table] = []
    for pairs in _grouped(alone, lambda row: row.setting):
        if len(pairs) >= 2:
            matrices.append(_matrix(pairs, len(matrices) + 1))
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


def _grouped(rows: Sequence[FlowRow], key: Callable[[FlowRow], Key]) -> list[list[FlowRow]]:
    found: dict[Key, list[FlowRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _matrix(rows: Sequence[FlowRow], number: int) -> Table:
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
    words = [f"{first.path} {first.run}".strip() + f" {size_of_rows(first)}", first.pattern]
    words += [f"waiting by {first.wait}", "" if first.load is None else f"at {numbers.share_words(first.load)} load"]
    words += [f"{numbers.offered_words(rate)} a second offered" if (rate := first.swept.get("rate")) else ""]
    words += [swept_words(key, value) for key, value in first.swept.items() if key != "rate"]
    caption = (
        f"{', '.join(filter(None, words))}; each pair alone; {unit}. "
        + (f"Stand out (!): {said}{more}." if outliers else "No pair stands out.")
        + f" That is, in each repeat: {DEVIATIONS:g} median absolute deviations from the median of all pairs, and"
        f" {100 * LEAST:.0f} % at least; of fewer than {FEWEST} pairs none can."
    )
    cells = [(True, [(client, ""), *(cell(client, server) for server in servers)]) for client in clients]
    name = f"pairs{number if number > 1 else ''}-{first.path}-{first.size}-{first.pattern}-{first.wait}"
    return Table(name, "Pairs of hosts", caption, columns, cells, 1)


def _flow_table(rows: Sequence[FlowRow], drops: str) -> Table:
    together = any(row.flows != f"{row.client}>{row.server}" for row in rows)
    patterns = len({row.pattern for row in rows}) > 1
    waits = len({row.wait for row in rows}) > 1
    loads = any(row.load is not None for row in rows)
    swept = list(dict.fromkeys(key for row in rows for key in row.swept))
    columns: list[tuple[str, Kind]] = [("size", ""), ("path", "t")]
    columns += [("pattern", "t")] if patterns else []
    columns += [("wait", "t")] if waits else []
    columns += [("load", "")] if loads else []
    columns += [("offered [1/s]" if key == "rate" else key.replace("_", " "), "t") for key in swept]
    columns += [("flows", "t")] if together else []
    unit = "" if patterns else " [1/s]" if rows[0].pattern == "stream" else " [µs]"
    columns += [("from", "t"), ("to", "t"), ("sent", ""), ("delivered", ""), ("lost", ""), ("at socket", "")]
    name = "p50, rate" if patterns else "rate" if rows[0].pattern == "stream" else "p50"
    columns += [(name + unit, "")]
    lost_ends = any(row.gone for row in rows)
    columns += [("gone", "t")] if lost_ends else []
    cells: list[tuple[bool, list[Cell]]] = []
    for several in _grouped(rows, lambda row: (row.setting, row.flows)):
        for place, row in enumerate(several):
            socket = WITHHELD if row.at_socket is None else str(row.at_socket)
            figure = WITHHELD if row.figure is None else compact_number(row.figure)
            said = [size_of_rows(row), f"{row.path} {row.run}".strip(), *([row.pattern] if patterns else [])]
            said += [*([row.wait] if waits else []), *([numbers.share_words(row.load)] if loads else [])]
            said += [
                numbers.offered_words(row.swept.get(key)) if key == "rate" else swept_cell(row.swept.get(key))
                for key in swept
            ]
            said += [*([row.flows] if together else []), row.client, row.server]
            said += [str(row.posted), str(row.delivered), str(row.lost), socket, figure]
            said += ["; ".join(dict.fromkeys(row.gone))] if lost_ends else []
            cells.append((place == 0, [(text, "") for text in said]))
    caption = (
        "What became of each flow, all repeats together, warm-up and cool-down among the messages; of several senders "
        "between two hosts all of theirs. Lost at the "
        "socket: for want of room in the receiver's buffer; the others were lost on the way. Of a flow that lost an "
        "end nothing is counted. Clocks of two hosts are never compared." + drops
    )
    return Table("flows", "Flows", caption, columns, cells, 2, folded=len(cells) > 40)
