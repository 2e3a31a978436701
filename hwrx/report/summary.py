"""From runs to figures of merit: the one place where samples become what tables, pictures and sentences show."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from hwrx import paths as delivery
from hwrx import precision, stats
from hwrx.experiment import LISTED, SETTING_FIELDS, capacity_key
from hwrx.messages import Setting
from hwrx.stats import Digest, Estimate

if TYPE_CHECKING:
    from hwrx.runs import Run

BASELINE = "udp"
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
    ratio: Estimate | None = None  # to the baseline: of p50, or of messages/s of a stream
    tally: dict[str, int] = {}
    cpu_us: float | None = None  # of both endpoints' threads, a message
    resident: int = 0
    effective: float = math.nan  # share of the samples that count, at p50; the worst trial's
    warmup: int = 0  # samples of a transient that remained; the worst trial's
    settled: bool = True
    converged: bool | None = None  # None: the experiment asked for no width of the interval

    @property
    def label(self) -> str:
        """Path, manner of waiting and what is swept: a row's name within one size and pattern."""
        swept = [f"{key} {value}" for key, value in self.swept.items() if value is not None]
        return " ".join([self.path, *([self.run] if self.run else []), *swept])

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

    def sizes(self, pattern: str) -> list[int]:
        """The message sizes of a pattern, ascending."""
        return sorted({row.size for row in self.of(pattern)})


def summarise(runs: Sequence[Run]) -> Summary:
    """Digest the runs, one trial in memory at a time."""
    rows: list[Row] = []
    for run in runs:
        rows += _rows(run, run.path.name if len(runs) > 1 else "")
    order = {path: place for place, path in enumerate(dict.fromkeys(row.path for row in _by_experiment(runs, rows)))}
    rows.sort(
        key=lambda row: (row.pattern, row.size, order[row.path], row.wait, row.rate or 0.0, str(row.swept), row.run)
    )
    baseline = BASELINE if any(row.path == BASELINE for row in rows) else next(iter(order), BASELINE)
    _relate(rows, baseline)
    for run in runs:
        _judge(run, [row for row in rows if row.run in ("", run.path.name)])
    warnings = [warning for run in runs for warning in _run_warnings(run)]
    warnings += _row_warnings(rows)
    return Summary(
        runs=list(runs),
        rows=rows,
        baseline=baseline,
        label="; ".join(dict.fromkeys(label(run) for run in runs)),
        answer=_answer(rows, baseline),
        warnings=warnings,
        costs=_costs(rows),
        skipped=[(skip["label"], skip["reason"]) for run in runs for skip in run.manifest.get("skipped", [])],
    )


def label(run: Run) -> str:
    """Say on what the run was measured: what each caption needs so that nobody takes it for something else."""
    words = []
    if run.manifest["clock"] == "icount":
        words.append("virtual time, 1 ns = 1 guest instruction")
    elif run.emulated:
        words.append("EMULATED guest: compare within the run only")
    else:
        words.append("wall clock")
    if kernel := kernel_of(run):
        words.append(f"Linux {kernel}")
    words.append(f"topology {run.manifest['topology']}")
    if run.status != "complete":
        words.append(f"{run.status.upper()} run")
    return ", ".join(words)


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


def _rows(run: Run, name: str) -> list[Row]:
    trials: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    run_load = run.experiment.load
    swept = [field for field in TELLING if len({trial.get(field) for trial in run.rows}) > 1]
    # a field that a path's own table sets tells nothing apart: it is the same for all rows of that path
    swept = [field for field in swept if _varies(run.rows, field)]
    if run_load:
        swept = ["load", *(field for field in swept if field != "rate")]
    for trial in run.rows:
        values = tuple(_load(run, trial) if field == "load" else trial.get(field) for field in swept)
        trials[trial["path"], trial["size"], trial["pattern"], trial["wait"], values].append(trial)
    return [_row(run, name, key[:4], dict(zip(swept, key[4], strict=True)), of_key) for key, of_key in trials.items()]


def _load(run: Run, trial: dict[str, Any]) -> str | None:
    """The share of its path's capacity that a trial of an experiment with `load` was sent at."""
    setting = msgspec.convert({key: trial[key] for key in SETTING_FIELDS if key in trial}, Setting)
    capacity = run.experiment.capacity.get(capacity_key(setting))
    return f"{100 * setting.rate / capacity:.3g} %" if setting.rate and capacity else None


def _varies(trials: list[dict[str, Any]], field: str) -> bool:
    groups: dict[tuple[Any, ...], set[Any]] = collections.defaultdict(set)
    for trial in trials:
        groups[trial["path"], trial["size"], trial["pattern"], trial["wait"]].add(trial.get(field))
    return any(len(values) > 1 for values in groups.values())


def _row(run: Run, name: str, key: tuple[Any, ...], swept: dict[str, Any], trials: list[dict[str, Any]]) -> Row:
    path, size, pattern, wait = key
    known = delivery.PATHS.get(path)
    half = pattern == "pingpong" and not (known is not None and known.full_rtt)
    digests: list[Digest] = []
    service: list[Digest] = []
    rates: list[float] = []
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
        if pattern == "paced" and (paced_at := stats.answered(samples.sequence, ns, float(trial["rate"]))):
            rates.append(paced_at)  # before the digest sorts the times
        found = stats.digest(ns)
        if pattern == "stream" and found.total > 0:
            rates.append(found.count / found.total * 1e9)
        elif pattern == "pingpong" and found.mean > 0:
            rates.append(1e9 / found.mean)
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
        tally=tally,
        cpu_us=cpu / delivered / 1e3 if cpu and delivered else None,
        resident=max((v for t in trials for f, v in t.items() if f.startswith("resident") and v), default=0),
        effective=min((found.effective[0.5] / found.count for found in digests), default=math.nan),
        warmup=max((found.warmup.samples for found in digests), default=0),
        settled=all(found.warmup.settled for found in digests),
    )


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
             "wrong_size", "checked")  # fmt: skip
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
            if (base.run, base.pattern, base.size, base.swept) == (row.run, row.pattern, row.size, row.swept)
            and base.path == baseline
            and base.digests
        ]
        same = [base for base in candidates if base.wait == row.wait]
        if row.path != baseline and (base := next(iter(same or candidates), None)) is not None:
            row.ratio = _ratio(row, base)


def _ratio(row: Row, base: Row) -> Estimate | None:
    common = sorted(set(row.repeats) & set(base.repeats))
    if not common:
        return None
    a = [digest for digest, repeat in zip(row.digests, row.repeats, strict=True) if repeat in common]
    b = [digest for digest, repeat in zip(base.digests, base.repeats, strict=True) if repeat in common]
    if row.pattern == "stream":
        if any(not digest.total for digest in (*a, *b)):
            return None
        return stats.ratio_across([x.count / x.total for x in a], [x.count / x.total for x in b], paired=True)
    return stats.quantile_ratio(a, b, 0.5, paired=True)


# --- words ---------------------------------------------------------------------------------------------------------


def _answer(rows: list[Row], baseline: str) -> str:
    """One sentence: the paths at the smallest size, against the baseline."""
    for pattern in ("pingpong", "stream", "paced"):
        sizes = sorted({row.size for row in rows if row.pattern == pattern and row.digests})
        if sizes:
            return _sentence([row for row in rows if row.pattern == pattern and row.size == sizes[0]], baseline)
    return "No trial was measured."


def _sentence(rows: list[Row], baseline: str) -> str:
    rows = [row for row in rows if row.digests]
    if rows[0].pattern == "stream":
        return _rate_sentence(rows, baseline)
    bases = [row for row in rows if row.path == baseline and row.quantiles["p50"]]
    if not bases:
        return f"Too few messages of {size_words(rows[0].size)} were measured for a median."
    waits = {row.wait for row in bases}
    parts = []
    for place, base in enumerate(bases):
        median = base.quantiles["p50"]
        assert median is not None
        manner = f", waiting by {base.wait}," if len(waits) > 1 else ""
        what = f"{_article(base.measures)} " if not place else ""
        parts.append(f"{what}over {base.label}{manner} takes {time_words(median.value)} at the median")
        # a row that waits as no baseline row does was held against the first
        parts += [
            _against(row, base)
            for row in rows
            if row.ratio is not None
            and row.swept == base.swept
            and row.run == base.run
            and (row.wait == base.wait or (row.wait not in waits and base is bases[0]))
        ]
    return f"At {size_words(rows[0].size)}, {'; '.join(parts)}."


def _against(row: Row, base: Row) -> str:
    assert row.ratio is not None
    manner = "" if row.wait == base.wait else f", waiting by {row.wait},"
    note = "" if row.measures == base.measures else f" for a {row.measures}"
    told = "" if row.ratio.low > 1 or row.ratio.high < 1 else ", not told apart from it"
    return f"{row.label}{manner} {row.ratio.value:.2f} times as long ({ratio_interval(row.ratio)}){note}{told}"


def _rate_sentence(rows: list[Row], baseline: str) -> str:
    rated = [row for row in rows if row.messages_per_s is not None]
    if not rated:
        return "No stream delivered two messages."
    best = max(rated, key=lambda row: row.messages_per_s.value if row.messages_per_s else 0.0)
    assert best.messages_per_s is not None
    against = f", {best.ratio.value:.2f} times {baseline}'s ({ratio_interval(best.ratio)})" if best.ratio else ""
    rate = f"{best.messages_per_s.value:,.0f} messages of {size_words(best.size)} a second"
    return f"{best.label} streams fastest: {rate}{against}."


def _article(words: str) -> str:
    if words == "half round trip":
        return "half a round trip"
    return f"a {words}"


def ratio_interval(ratio: Estimate) -> str:
    """95 % interval in words, or why there is none."""
    return "one trial, no interval" if math.isnan(ratio.low) else f"95 % interval {ratio.low:.2f}–{ratio.high:.2f}"


def time_words(us: float) -> str:
    """A time with three digits and a unit."""
    if us < 1:
        return f"{us * 1000:.3g} ns"
    if us < 1000:
        return f"{us:.3g} µs"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def size_words(size: int) -> str:
    """A size in B, KiB or MiB where it divides."""
    for unit, bytes_of in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_of and size % bytes_of == 0:
            return f"{size // bytes_of} {unit}"
    return f"{size:,} B"


def _run_warnings(run: Run) -> list[str]:
    warnings = []
    if run.status != "complete":
        warnings.append(f"run {run.path.name} is {run.status}: {run.reason}; figures stand on what was measured")
    failed = [trial for trial in run.rows if trial["status"] != "ok"]
    for trial in failed[:5]:
        error = str(trial["error"]).splitlines()[0] if trial["error"] else "no reason was given"
        warnings.append(f"trial {trial['trial']} ({trial['label']}) failed: {error}")
    if len(failed) > 5:
        warnings.append(f"{len(failed) - 5} more trials failed; trials.parquet has the reasons")
    if run.emulated and run.manifest["clock"] == "wall":
        warnings.append(
            "the machine was emulated in software: its times are not those of any hardware, and move by a factor of "
            "two on a busy host; only ratios within this run mean something"
        )
    for words in run.manifest.get("warnings", []):
        warnings.append(str(words))
    return warnings


def _row_warnings(rows: list[Row]) -> list[str]:
    """What is wrong with rows, one line a kind: the rows that have it, the worst first."""
    found: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
    for row in rows:
        name = f"{row.label} {size_words(row.size)} {row.pattern}"
        for count, words in _FAULTS.items():
            if share := row.tally.get(count, 0):
                found[f"messages {words}"].append((share, f"{name} {share:,}"))
        trial = max((digest.count for digest in row.digests), default=0)
        if not row.settled:
            found["a trial did not settle; take more warm-up, or look for what drifts"].append((trial, name))
        elif trial and row.warmup > max(50, 0.05 * trial):
            words = "samples that are still warm-up stand at a trial's beginning; raise 'warmup'"
            found[words].append((row.warmup, f"{name} {row.warmup:,}"))
        if row.converged is False:
            words = "DID NOT CONVERGE: the 95 % interval is wider than the experiment asked; raise 'budget' or "
            found[words + "'until.repeats'"].append((1.0, name))
        if row.effective < 0.1 and row.pattern != "stream":
            words = "neighbouring samples are alike, so that they say as much as fewer independent ones would (the "
            words += "intervals take that into account)"
            found[words].append((1 - row.effective, f"{name} {row.effective * trial:,.0f} of {trial:,}"))
    lines = []
    for words, of in found.items():
        of.sort(key=lambda pair: -pair[0])
        more = f" and {len(of) - 3} more" if len(of) > 3 else ""
        lines.append(f"{words}: {', '.join(name for _, name in of[:3])}{more}")
    return lines


_FAULTS = {
    "lost": "were lost",
    "duplicated": "came twice",
    "reordered": "came out of order",
    "corrupt": "were CORRUPT",
    "wrong_size": "had the wrong size",
}
