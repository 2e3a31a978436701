"""From a run's trials to rows: one row for each setting of each path, over all repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from hwrx import paths as delivery
from hwrx import stats
from hwrx.modes import State
from hwrx.paths import arrivals
from hwrx.report import processor
from hwrx.report.groups import Group, group_trials, is_outcome
from hwrx.report.model import SERIES, Row, name_of, scaled_estimate
from hwrx.runs import streams
from hwrx.runs.overrides import setting_of
from hwrx.stats import Digest, Floats

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


class Taken(Struct, kw_only=True):
    """What one trial's samples come to; see Row."""

    repeat: int
    trial: int
    digest: Digest
    series: Floats
    service: Digest | None = None
    rate: float | None = None
    withheld: str = ""  # why there is no rate
    no_cost: str = ""  # why what was counted is not what a message of a stream costs
    kept: float | None = None
    states: list[State] = []  # ns as timed, of a wall clock
    times: npt.NDArray[np.int64] | None = None  # the same as they are, if they repeat to the digit


def rows_of(run: Run, name: str) -> list[Row]:
    """The rows of a run, `name`d where there are several, in the order in which their first trials were run."""
    rows = [_row(run, name, group) for group in group_trials(run)]
    twins = processor.by_trial(run)
    return [_with_twin(row, twins) for row in rows] if twins else rows


def _with_twin(row: Row, twins: Mapping[int, dict[str, float]]) -> Row:
    """The row with what its twin that was counted by actor brought, if it has one."""
    found = next((twins[trial] for trial in row.trials if trial in twins), {})
    factor = 1.0 if row.counted else 1e-3
    told = {actor: processor.COUNTED_BELOW for actor in processor.ONLY_COUNTED if actor in row.cpu_missing and found}
    return structs.replace(
        row,
        cpu_counted={actor: factor * ns for actor, ns in found.items()},
        cpu_missing={**row.cpu_missing, **told},
    )


def _bytes_each(tally: Mapping[str, int], size: int) -> float:
    """Bytes of a message: all have `size`, or it is the mean of what was delivered."""
    return tally["bytes"] / tally["delivered"] if tally["delivered"] else size


def _row(run: Run, name: str, group: Group) -> Row:
    path, size, pattern, wait, load = group.path, group.size, group.pattern, group.wait, group.load
    swept, trials = group.swept, group.trials
    known = delivery.PATHS.get(path)
    half = pattern == "pingpong" and not (known is not None and known.full_rtt)
    in_order = sorted(trials, key=lambda trial: int(trial["repeat"]))
    factor = 0.5 if half else 1.0
    taken = [found for trial in in_order if (found := _taken(run, trial, factor)) is not None]
    digests = [of.digest for of in taken]
    service = [of.service for of in taken if of.service is not None]
    # of all trials or none: a mean over those that happened to be long enough would say something else
    reason = next((of.withheld for of in taken if of.withheld), "")
    rates = [of.rate for of in taken if of.rate is not None] if not reason else []
    kept = [of.kept for of in taken if of.kept is not None]
    level = stats.LEVEL if run.experiment.until is None else stats.SEQUENTIAL
    answered = (
        stats.interval_across(rates, level, max(_rate_step(of.digest, pattern) for of in taken)) if rates else None
    )
    by_trial = {trial["trial"]: trial for trial in trials}
    counted = run.manifest["clock"] == "icount"
    ways = 2 if pattern == "paced" or half else 1  # messages of a round trip; of a full one the answer is the message
    cpu = [processor.by_actor(by_trial[of.trial], ways) for of in taken]
    busy = processor.busy_time(cpu) if counted else []
    tally = _sum(trials)
    return Row(
        run=name,
        path=path,
        size=size,
        pattern=pattern,
        wait=wait,
        swept=swept,
        setting={
            field: value
            for field, value in msgspec.to_builtins(setting_of(trials[0])).items()
            if not is_outcome(trials[0], field)
        },
        trial_label=str(trials[0]["label"]),
        level=level,
        states=_states(taken, factor),
        groups=_groups(digests, rates, pattern),
        measures=_measures(pattern, half),
        digests=digests,
        rates=rates,
        service=service,
        repeats=[of.repeat for of in taken],
        trials=[of.trial for of in taken],
        busy=busy,
        series=[of.series for of in taken],
        failed=sum(trial["status"] != "ok" for trial in trials),
        samples=sum(found.count for found in digests),
        quantiles={name_of(p): stats.quantile_across(digests, p, level) for p in stats.NAMED},
        service_quantiles={name_of(p): stats.quantile_across(service, p, level) for p in stats.NAMED if service},
        messages_per_s=answered,
        bytes_per_s=None
        if answered is None
        else scaled_estimate(answered, _bytes_each(tally, size) if trials[0].get("mix") else size),
        withheld=_withheld(reason, next((of.no_cost for of in taken if of.no_cost), "") if busy else ""),
        rate=trials[0].get("rate"),
        load=load,
        kept=float(np.median(kept)) if kept else math.nan,
        tally=tally,
        cost=stats.interval_across(busy, level) if busy else None,
        cpu=processor.across_trials(cpu, 1.0 if counted else 1e-3, level),
        cpu_missing=processor.missing_actors(trials, run.manifest.get("counting", {})),
        counted=counted,
        resident=max((v for t in trials for f, v in t.items() if f.startswith("resident") and v), default=0),
        effective=min((found.effective[0.5] / found.count for found in digests), default=math.nan),
        warmup=max((found.warmup.samples for found in digests), default=0),
        settled=all(found.warmup.settled for found in digests),
    )


def _withheld(rate: str, cost: str) -> dict[str, str]:
    """The figures that a row has not, each with the reason; empty: it has it."""
    return {figure: reason for figure, reason in (("messages/s", rate), ("cost", cost)) if reason}


def _taken(run: Run, trial: dict[str, Any], factor: float) -> Taken | None:
    """Digest a trial, its times made `factor` of what was timed; None where it has nothing to show."""
    if trial["status"] != "ok" or not trial["samples"]:
        return None
    samples = run.trial_samples(trial["trial"])
    pattern = trial["pattern"]
    # the first delivery of a stream has none before it
    ns = samples.ns[1:] if pattern == "stream" else samples.ns
    if not len(ns):
        return None
    rate = kept = service = None
    withheld = no_cost = ""
    if samples.service_ns is not None:
        service = _in_us(stats.digest_samples(samples.service_ns), 1.0)
    # before the digest sorts the times
    if pattern == "stream":
        of_stream = _steady_rate(run, trial, samples.ns)
        if isinstance(of_stream, streams.Rate):
            rate = of_stream.value
        else:
            withheld = of_stream.reason
            # what a stream that settles cost is known whatever its rate: all of it was done for its messages
            no_cost = "" if of_stream.moved or trial.get("settle") else of_stream.reason
    elif pattern == "paced":
        # a run that does not say what was offered is one that did not draw arrivals from its seed either
        sent = trial.get("offered_messages")
        seed = run.experiment.seed if sent is not None else None
        due = arrivals.intended_times(setting_of(trial), int(trial["repeat"]), seed, samples.sequence)
        rate = stats.answered_within(due, ns)
        if sent is None:
            offered = stats.answered_within(due, np.zeros_like(due))
        else:
            offered = (sent - 1) / trial["offered_ns"] * 1e9 if sent > 1 and trial["offered_ns"] else None
        kept = rate / offered if rate and offered else None
    series = _series(ns) * (factor / 1e3)
    states: list[State] = []
    times = None
    if pattern != "stream":  # how long after its neighbour a message of a stream comes is no way that it went
        if run.manifest["clock"] == "icount":
            times = ns.copy()
        else:
            states = stats.find_states(ns, exact=False)
    found = stats.digest_samples(ns)
    if pattern == "pingpong" and found.mean > 0:
        many = trial.get("flow_count") or trial.get("senders") or 1
        rate = trial.get("answered_per_s")
        if rate is None and trial.get("lost"):
            withheld = (
                "messages were lost, each for the client's patience, and the run does not say how fast others came"
            )
        elif rate is None:
            rate = 1e9 / found.mean * many * (trial.get("connections") or 1)
    return Taken(
        repeat=int(trial["repeat"]),
        trial=trial["trial"],
        digest=_in_us(found, factor),
        series=series,
        service=service,
        rate=rate,
        withheld=withheld,
        no_cost=no_cost,
        kept=kept,
        states=states,
        times=times,
    )


def _states(taken: Sequence[Taken], factor: float) -> list[State]:
    """The states of a row's messages: of exact times those of all trials together, else what most trials agree on."""
    exact = [of.times for of in taken if of.times is not None]
    found = stats.find_states(np.concatenate(exact), exact=True) if exact else []
    found = found or stats.join_states([of.states for of in taken])
    return [_state_in_us(state, factor / 1e3) for state in found]


def _state_in_us(state: State, factor: float) -> State:
    return msgspec.structs.replace(state, value=state.value * factor, low=state.low * factor, high=state.high * factor)


def _steady_rate(run: Run, trial: dict[str, Any], gaps: npt.NDArray[np.int64]) -> streams.Rate | streams.Withheld:
    """The rate of a stream from the times between its deliveries; of old runs without knowing when it was steady."""
    least = streams.STEADY_INSTRUCTIONS if run.manifest["clock"] == "icount" else streams.STEADY_NS
    begin, end = trial.get("steady_from_ns"), trial.get("steady_to_ns")
    if begin is not None and begin == end:
        length = "messages" if trial.get("duration") is None else "duration"
        return streams.Withheld(
            f"the buffers held all {len(gaps):,} messages at once: raise '{length}', at least tenfold"
        )
    if trial.get("check_every") == 1:
        return streams.Withheld("every message was filled and verified: a rate needs check_every = 0 or above 1")
    return streams.steady_rate(np.cumsum(gaps), begin=begin, end=end, least_ns=least, duration=trial.get("duration"))


def _series(ns: npt.NDArray[np.int64]) -> Floats:
    """Cut a trial into at most SERIES parts in the order of time: their medians and their largest, 2 x parts."""
    parts = np.array_split(ns, min(SERIES, len(ns)))
    return np.array([[float(np.median(part)) for part in parts], [float(part.max()) for part in parts]])


def _measures(pattern: str, half: bool) -> str:
    if pattern == "pingpong":
        return "half round trip" if half else "FULL round trip"
    return "gap between deliveries" if pattern == "stream" else "response time from the intended send"


def _in_us(found: Digest, factor: float) -> Digest:
    """From nanoseconds of what was timed to microseconds of what is shown. `total` and counts stay."""
    return msgspec.structs.replace(
        found,
        mean=found.mean * factor / 1e3,
        quantiles=np.asarray(found.quantiles * (factor / 1e3)),
        step=found.step * factor / 1e3,
    )


def _groups(digests: Sequence[Digest], rates: Sequence[float], pattern: str) -> list[State]:
    """The groups that the trials' medians (a stream's rates) fall into, if they do."""
    if pattern == "stream":
        return stats.trial_groups(rates)
    if not digests or not all(stats.shown_quantiles(of.count, 0.5) and of.quantile(0.5) > 0 for of in digests):
        return []
    medians = [of.quantile(0.5) for of in digests]
    return stats.trial_groups(medians, max(of.step / median for of, median in zip(digests, medians, strict=True)))


def _rate_step(found: Digest, pattern: str) -> float:
    """How well a trial's rate is known by its clock, relative to it: a span, or a mean, is right to a step."""
    whole = found.mean if pattern == "pingpong" else found.mean * found.count
    return found.step / whole if whole > 0 else 0.0


def _sum(trials: list[dict[str, Any]]) -> dict[str, int]:
    names = ("posted", "expected", "delivered", "bytes", "lost", "duplicated", "reordered", "corrupt", "stale",
             "wrong_size", "checked", "unchecked", "late", "slides", "sent_late", "window_full",
             "resent")  # fmt: skip
    return {name: sum(int(trial.get(name) or 0) for trial in trials) for name in names}
