"""From runs to figures of merit: the one place where samples become what tables, pictures and sentences show."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from hwrx import arrivals, precision, stats
from hwrx import paths as delivery
from hwrx.experiment import LISTED, SETTING_FIELDS, capacity_key
from hwrx.messages import Setting
from hwrx.report import words
from hwrx.stats import Digest, Estimate

if TYPE_CHECKING:
    from hwrx.runs import Run

BASELINE = "udp"
KEPT_UP = 0.97  # of the rate offered must be answered by a path that keeps up with it
# fields of Setting that tell two rows of a table apart, besides those that always do
TELLING = tuple(name for name in SETTING_FIELDS if name not in (*LISTED, "messages", "warmup", "cooldown", "limit"))


class Row(Struct, kw_only=True):
    """One path in one setting, over all repeats. Times are µs; of a ping-pong they are half a round trip.

    `digests` holds the trials in the order of their `repeats`; what they measure is the row's `measures`.
    """

    run: str
    path: str
    size: int
    pattern: str
    wait: str
    swept: dict[str, Any]
    measures: str
    digests: list[Digest]
    service: list[Digest]
    repeats: list[int]
    failed: int
    samples: int
    quantiles: dict[str, Estimate | None]
    service_quantiles: dict[str, Estimate | None]
    messages_per_s: Estimate | None
    bytes_per_s: Estimate | None
    rate: float | None = None  # paced: messages a second that were meant to be sent
    load: float | None = None  # the same as a share of what the path can do, where the experiment asks for shares
    kept: float = math.nan  # paced: answers a second over messages a second that were due; the median trial
    ratio: Estimate | None = None  # to the baseline: of p50, or of messages/s of a stream
    shift: list[tuple[float, Estimate]] = []  # the same at each decile and at p99: how the whole distribution moved
    tally: dict[str, int] = {}
    cpu_us: float | None = None  # of both endpoints' threads, a message
    resident: int = 0
    effective: float = math.nan  # share of the samples that count, at p50; the worst trial's
    warmup: int = 0  # samples of a transient that remained; the worst trial's
    settled: bool = True
    converged: bool | None = None  # None: the experiment asked for no width of the interval

    @property
    def label(self) -> str:
        """Path, run where there are several, and what is swept: a row's name within one size, pattern and wait."""
        load = [f"at {100 * self.load:.3g} % load"] if self.load is not None else []
        return " ".join([self.curve, *load, *(f"{key} {v}" for key, v in self.swept.items() if key == "rate" and v)])

    @property
    def curve(self) -> str:
        """The same without the load or rate: the name of what has a row at each of them."""
        words = [swept_words(key, value) for key, value in self.swept.items() if key != "rate"]
        return " ".join([self.name, *filter(None, words)])

    @property
    def name(self) -> str:
        """Path, and run where there are several: its name in a table that has columns for all else."""
        return f"{self.path} {self.run}".strip()

    @property
    def saturated(self) -> bool:
        """Whether an open loop was offered more than the path answered: its times grow with the trial's length."""
        return self.kept < KEPT_UP

    @property
    def lost_share(self) -> float:
        """Messages that never came, of those that were expected."""
        expected = self.tally.get("expected") or self.tally.get("posted") or 0
        return self.tally.get("lost", 0) / expected if expected else 0.0


class Cost(Struct, frozen=True, kw_only=True):
    """What a path's messages cost by their size: the line through p50 against size, fitted in each repeat alone.

    `byte` is its slope in ns (in virtual time: guest instructions) a byte one way, `message` where it begins, µs.
    """

    row: str
    wait: str
    sizes: list[int]
    byte: Estimate
    message: Estimate


class Summary(Struct, kw_only=True):
    """What the runs say. `label` is the caption that each table and picture carries."""

    runs: list[Any]
    rows: list[Row]
    baseline: str
    label: str
    answer: str
    warnings: list[str]
    skipped: list[tuple[str, str]]
    costs: list[Cost] = []

    def of(self, pattern: str) -> list[Row]:
        """The rows of one pattern that have samples, by size, then in the experiment's order of paths."""
        return [row for row in self.rows if row.pattern == pattern and row.digests]

    def swept(self, rows: Sequence[Row]) -> list[str]:
        """The swept fields that tell the rows of a table apart; the rate of an open loop has a column anyway."""
        return list(dict.fromkeys(key for row in rows for key in row.swept if key != "rate"))

    def sizes(self, pattern: str) -> list[int]:
        """The message sizes of a pattern, ascending."""
        return sorted({row.size for row in self.of(pattern)})


def summarise(runs: Sequence[Run]) -> Summary:
    """Digest the runs, one trial in memory at a time."""
    rows: list[Row] = []
    for run in runs:
        rows += _rows(run, run.path.name if len(runs) > 1 else "")
    order = {path: place for place, path in enumerate(dict.fromkeys(row.path for row in _by_experiment(runs, rows)))}
    steps = _steps(runs)
    rows.sort(
        key=lambda row: (
            row.pattern, row.size, [_step(steps, key, value) for key, value in row.swept.items() if key != "rate"],
            order[row.path], row.wait, row.rate or 0.0, row.run,
        )
    )  # fmt: skip
    baseline = BASELINE if any(row.path == BASELINE for row in rows) else next(iter(order), BASELINE)
    _relate(rows, baseline)
    for run in runs:
        _judge(run, [row for row in rows if row.run in ("", run.path.name)])
    warnings = [warning for run in runs for warning in words.of_run(run)]
    warnings += words.of_rows(rows)
    return Summary(
        runs=list(runs),
        rows=rows,
        baseline=baseline,
        label="; ".join(dict.fromkeys(label(run) for run in runs)),
        answer=words.answer(rows, baseline),
        warnings=warnings,
        costs=_costs(rows),
        skipped=[(skip["label"], skip["reason"]) for run in runs for skip in run.manifest.get("skipped", [])],
    )


def label(run: Run) -> str:
    """Say on what the run was measured: what each caption needs so that nobody takes it for something else."""
    said = []
    if run.manifest["clock"] == "icount":
        said.append("virtual time, 1 ns = 1 guest instruction")
    elif run.emulated:
        said.append("EMULATED guest: compare within the run only")
    else:
        said.append("wall clock")
    if kernel := kernel_of(run):
        said.append(f"Linux {kernel}")
    said.append(f"topology {run.manifest['topology']}")
    if run.status != "complete":
        said.append(f"{run.status.upper()} run")
    return ", ".join(said)


def kernel_of(run: Run) -> str:
    """The release of the kernel that the messages crossed; empty where the manifest does not say."""
    kernel = find(run.manifest.get("machine"), "kernel")
    if isinstance(kernel, dict):
        kernel = kernel.get("release")
    return str(kernel or "")


def find(tree: Any, key: str) -> Any:
    """Return the first value of `key` anywhere in nested dictionaries, nearest to the top first."""
    level = [tree]
    while level:
        for node in level:
            if isinstance(node, dict) and node.get(key) is not None:
                return node[key]
        level = [value for node in level if isinstance(node, dict) for value in node.values()]
    return None


def software_rdma(run: Run) -> bool:
    """Whether the run's verbs paths crossed SoftRoCE: its device says so, or the lab's guest has no other."""
    if not any(delivery.PATHS[p].needs == "verbs" for p in run.experiment.paths if p in delivery.PATHS):
        return False
    text = msgspec.json.encode(run.manifest).decode()
    return "rxe" in text or run.manifest["topology"] in ("pair", "wire")


# --- rows ----------------------------------------------------------------------------------------------------------


def _by_experiment(runs: Sequence[Run], rows: list[Row]) -> Iterable[Row]:
    wanted = {path: place for run in reversed(runs) for place, path in enumerate(run.experiment.paths)}
    return sorted(rows, key=lambda row: wanted.get(row.path, len(wanted)))


def _steps(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The values of each swept field in the order in which the experiments list them."""
    found: dict[str, list[Any]] = collections.defaultdict(list)
    for run in runs:
        for key, values in run.experiment.sweep.items():
            found[key] += [value for value in values if value not in found[key]]
    return found


def _step(steps: dict[str, list[Any]], key: str, value: Any) -> tuple[str, int, str]:
    """Where a row stands among those of other values; a field that a path's own table sets comes by its words."""
    listed = steps.get(key, [])
    return key, listed.index(value) if value in listed else len(listed), str(value)


def _rows(run: Run, name: str) -> list[Row]:
    trials: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    swept = [field for field in TELLING if len({trial.get(field) for trial in run.rows}) > 1]
    # a field that a path's own table sets tells nothing apart: it is the same for all rows of that path
    swept = [field for field in swept if _varies(run.rows, field)]
    if run.experiment.load:  # the rates of a share are each path's own; the share is what its rows have in common
        swept = [field for field in swept if field != "rate"]
    for trial in run.rows:
        values = tuple(trial.get(field) for field in swept)
        key = trial["path"], trial["size"], trial["pattern"], trial["wait"], _load(run, trial), values
        trials[key].append(trial)
    return [_row(run, name, key[:5], dict(zip(swept, key[5], strict=True)), of_key) for key, of_key in trials.items()]


def _setting(trial: dict[str, Any]) -> Setting:
    return msgspec.convert({key: trial[key] for key in SETTING_FIELDS if key in trial}, Setting)


def _load(run: Run, trial: dict[str, Any]) -> float | None:
    """The share of its path's capacity that a trial of an experiment with `load` was sent at."""
    if not run.experiment.load or not trial.get("rate"):
        return None
    capacity = run.experiment.capacity.get(capacity_key(_setting(trial)))
    return round(trial["rate"] / capacity, 4) if capacity else None


def _varies(trials: list[dict[str, Any]], field: str) -> bool:
    groups: dict[tuple[Any, ...], set[Any]] = collections.defaultdict(set)
    for trial in trials:
        groups[trial["path"], trial["size"], trial["pattern"], trial["wait"]].add(trial.get(field))
    return any(len(values) > 1 for values in groups.values())


def _row(run: Run, name: str, key: tuple[Any, ...], swept: dict[str, Any], trials: list[dict[str, Any]]) -> Row:
    path, size, pattern, wait, load = key
    known = delivery.PATHS.get(path)
    half = pattern == "pingpong" and not (known is not None and known.full_rtt)
    digests: list[Digest] = []
    service: list[Digest] = []
    rates: list[float] = []
    kept: list[float] = []
    repeats: list[int] = []
    for trial in sorted(trials, key=lambda trial: int(trial["repeat"])):
        if trial["status"] != "ok" or not trial["samples"]:
            continue
        samples = run.trial_samples(trial["trial"])
        # the first delivery of a stream has none before it
        ns = samples.ns[1:] if pattern == "stream" else samples.ns
        if not len(ns):
            continue
        if samples.service_ns is not None:
            service.append(_in_us(stats.digest(samples.service_ns), 1.0))
        if pattern == "paced":  # before the digest sorts the times
            due = arrivals.intended(_setting(trial), int(trial["repeat"]), samples.sequence)
            offered = stats.answered(due, np.zeros_like(due))
            if (at_rate := stats.answered(due, ns)) and offered:
                rates.append(at_rate)
                kept.append(at_rate / offered)
        found = stats.digest(ns)
        if pattern == "stream" and found.total > 0:
            rates.append(found.count / found.total * 1e9)
        elif pattern == "pingpong" and found.mean > 0:
            rates.append(1e9 / found.mean * (trial.get("senders") or 1))
        digests.append(_in_us(found, 0.5 if half else 1.0))
        repeats.append(int(trial["repeat"]))
    tally = _sum(trials)
    answered = stats.across(rates) if rates else None
    delivered = sum(trial["samples"] for trial in trials if trial["status"] == "ok")
    cpu = sum(value for trial in trials for field, value in trial.items() if field.startswith("cpu_ns_") and value)
    return Row(
        run=name,
        path=path,
        size=size,
        pattern=pattern,
        wait=wait,
        swept=swept,
        measures=_measures(pattern, half),
        digests=digests,
        service=service,
        repeats=repeats,
        failed=sum(trial["status"] != "ok" for trial in trials),
        samples=sum(found.count for found in digests),
        quantiles={name_of(p): _positive(stats.quantile_across(digests, p)) for p in stats.NAMED},
        service_quantiles={name_of(p): stats.quantile_across(service, p) for p in stats.NAMED} if service else {},
        messages_per_s=answered,
        bytes_per_s=None if answered is None else scaled(answered, size),
        rate=trials[0].get("rate"),
        load=load,
        kept=float(np.median(kept)) if kept else math.nan,
        tally=tally,
        cpu_us=cpu / delivered / 1e3 if cpu and delivered else None,
        resident=max((v for t in trials for f, v in t.items() if f.startswith("resident") and v), default=0),
        effective=min((found.effective[0.5] / found.count for found in digests), default=math.nan),
        warmup=max((found.warmup.samples for found in digests), default=0),
        settled=all(found.warmup.settled for found in digests),
    )


def swept_words(key: str, value: Any) -> str:
    """A swept field's value where it stands alone: "8 senders", "loss 1%", "window 64"; empty where nothing is set."""
    if value is None or value == "":
        return ""
    if key == "senders":
        return f"{value} sender{'s' * (value != 1)}"
    return str(value) if isinstance(value, str) else f"{key} {value}"


def name_of(p: float) -> str:
    """0.5 -> p50, 0.999 -> p99.9."""
    return f"p{100 * p:g}"


def _positive(estimate: Estimate | None) -> Estimate | None:
    """Of a batch all messages but one are delivered at the same time: a gap of 0 has no logarithm to average."""
    return estimate if estimate is not None and estimate.value >= 1e-3 else None


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The same in another unit."""
    return msgspec.structs.replace(
        estimate, value=estimate.value * factor, low=estimate.low * factor, high=estimate.high * factor
    )


def _measures(pattern: str, half: bool) -> str:
    if pattern == "pingpong":
        return "half round trip" if half else "FULL round trip"
    return "gap between deliveries" if pattern == "stream" else "response time from the intended send"


def _in_us(found: Digest, factor: float) -> Digest:
    """From nanoseconds of what was timed to microseconds of what is shown. `total` and counts stay."""
    return msgspec.structs.replace(
        found, mean=found.mean * factor / 1e3, quantiles=np.asarray(found.quantiles * (factor / 1e3))
    )


def _sum(trials: list[dict[str, Any]]) -> dict[str, int]:
    names = ("posted", "expected", "delivered", "bytes", "lost", "duplicated", "reordered", "corrupt", "stale",
             "wrong_size", "checked",
             "resent")  # fmt: skip
    return {name: sum(int(trial.get(name) or 0) for trial in trials) for name in names}


def _costs(rows: list[Row]) -> list[Cost]:
    """Fit p50 of a ping-pong against size, by least squares, where a path was measured at four sizes or more.

    In each repeat alone: so the interval is that of the slope across repeats. A half round trip crosses the path once,
    a full one (READ) carries the payload once too.
    """
    groups: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.pattern == "pingpong" and row.digests:
            groups[row.label, row.wait].append(row)
    costs = []
    for (name, wait), of in groups.items():
        common = set.intersection(*(set(row.repeats) for row in of))
        if len(of) < 4 or not common or any(row.quantiles["p50"] is None for row in of):
            continue
        sizes = np.array([row.size for row in of], float)
        lines = []
        for repeat in sorted(common):
            medians = np.array([row.digests[row.repeats.index(repeat)].quantile(0.5) for row in of])
            # relative errors are alike at all sizes, so each point weighs by its inverse
            lines.append(np.polyfit(sizes, medians, 1, w=1 / medians))
        slopes, starts = np.array(lines).T
        costs.append(
            Cost(
                row=name,
                wait=wait,
                sizes=[row.size for row in of],
                byte=stats.mean_across([float(slope * 1e3) for slope in slopes]),
                message=stats.mean_across([float(start) for start in starts]),
            )
        )
    return costs


def _judge(run: Run, rows: list[Row]) -> None:
    """Mark the rows whose interval is wider than the experiment asked."""
    if run.experiment.until is not None:
        for row in rows:
            row.converged = precision.converged(row, run.experiment.until) if row.digests else None


def _relate(rows: list[Row], baseline: str) -> None:
    """Set each row's ratio to the baseline's row of the same run, pattern, size and sweep.

    Where the baseline waits in the same manner it is that row; else the one that it has.
    """
    for row in rows:
        if not row.digests:
            continue
        candidates = [
            base
            for base in rows
            if (base.run, base.pattern, base.size, base.swept, base.load)
            == (row.run, row.pattern, row.size, row.swept, row.load)
            and base.path == baseline
            and base.digests
            and not base.saturated
        ]
        same = [base for base in candidates if base.wait == row.wait]
        if row.path != baseline and not row.saturated and (base := next(iter(same or candidates), None)) is not None:
            _compare(row, base)


def _compare(row: Row, base: Row) -> None:
    """Hold a row against the baseline's, trial by trial of the repeats that both have."""
    common = sorted(set(row.repeats) & set(base.repeats))
    if not common:
        return
    a = [digest for digest, repeat in zip(row.digests, row.repeats, strict=True) if repeat in common]
    b = [digest for digest, repeat in zip(base.digests, base.repeats, strict=True) if repeat in common]
    if row.pattern != "stream":
        row.ratio = stats.quantile_ratio(a, b, 0.5, paired=True)
        row.shift = stats.shift(a, b, paired=True)
    elif all(digest.total for digest in (*a, *b)):
        row.ratio = stats.ratio_across([x.count / x.total for x in a], [x.count / x.total for x in b], paired=True)
