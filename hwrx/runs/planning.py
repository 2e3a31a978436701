"""From an experiment to its trials: every combination once a repeat, in an order that favours none of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import msgspec
from msgspec import Struct

from hwrx import paths as delivery
from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Pattern, Setting
from hwrx.errors import UsageError
from hwrx.machine.placement import POLLING
from hwrx.paths import mixes
from hwrx.runs import streams, traffic
from hwrx.runs.experiment import OWN_LISTS, Experiment, with_seed
from hwrx.runs.overrides import (
    Overrides,
    all_fields,
    plain_fields,
)
from hwrx.runs.trials import Skipped, Trial
from hwrx.wires import topology as topologies

# Measured messages that there is memory for if a duration ends a trial: 24 bytes each, at each end
MOST_TIMED = 1 << 20
MOST_TRIALS = 1_000_000  # of a plan: some 100 bytes of memory and a second of time each


class Plan(Struct, frozen=True, kw_only=True):
    """The trials of an experiment in the order in which they run, and what was left out."""

    experiment: Experiment
    settings: list[Setting]  # each once, in the file's order
    trials: list[Trial]
    skipped: list[Skipped]


def plan_run(experiment: Experiment, check: Callable[[Setting], None] = delivery.check_setting) -> Plan:
    """Lay out the run: each repeat holds every setting once, in an order drawn from the experiment's seed.

    `check` raises UsageError where a path cannot do a setting; such combinations are listed with the reason. A value
    that is given to all paths goes to those that read it; UsageError if none does, or if a path's own table holds a
    field that it does not read. Trials of a path that takes a NIC from the kernel follow each other. The order is
    drawn with random.Random's `random()` alone, the one method whose sequence Python promises to keep.
    """
    experiment = with_seed(experiment)
    _check_read(experiment)
    able: list[Setting] = []
    skipped: list[Skipped] = []
    remedies: dict[str, None] = {}
    for number, setting in enumerate(_settings(experiment)):
        if number * experiment.repeats >= MOST_TRIALS:
            raise UsageError(
                f"experiment '{experiment.name}' has more than {MOST_TRIALS} trials",
                remedy="shorten the lists of sizes and of values in [sweep], or lower 'repeats'",
            )
        try:
            check(setting)
            _check_cpus(setting, experiment)
            _check_memory(setting, experiment)
        except UsageError as error:
            skipped.append(Skipped(label=label_of(setting, experiment), reason=error.args[0]))
            remedies[error.remedy] = None
        else:
            able.append(setting)
    if not able:
        reasons = "; ".join(f"{skip.label}: {skip.reason}" for skip in skipped)
        raise UsageError(
            f"experiment '{experiment.name}' has no trial that its paths can do: {reasons}",
            remedy="; or ".join(filter(None, remedies)),
        )
    order = _order(experiment, able, experiment.repeats)
    return Plan(experiment=experiment, settings=able, trials=order, skipped=skipped)


def boots_of(layout: Plan) -> list[Boot]:
    """Return what a plan's guests are booted with, each once, as the experiment has them."""
    return list(dict.fromkeys(setting.boot for setting in layout.settings))


def uncalibrated_settings(layout: Plan) -> list[Setting]:
    """Return a setting to measure each capacity with that `load` needs and the experiment does not know yet.

    Its rate is beyond what any path can do, so that messages go as fast as they are answered, `window` at a time.
    """
    experiment = layout.experiment
    found: dict[str, Setting] = {}
    for setting in layout.settings if experiment.load else ():
        if setting.pattern == "paced" and known_capacity(setting, experiment) is None:
            found.setdefault(capacity_key(setting, experiment), msgspec.structs.replace(setting, rate=1e9))
    return list(found.values())


def capacity_key(setting: Setting, experiment: Experiment) -> str:
    """Name what a capacity belongs to: of one mix of sizes it is not another's, whatever they are called.

    Nor is it that of other flows, or of another value of a swept field. An experiment of one flow that sweeps nothing
    has names without either, as all had once.
    """
    return " ".join([setting.path, _size_key(setting), setting.wait, *_conditions(setting, experiment)])


def known_capacity(setting: Setting, experiment: Experiment) -> float | None:
    """Return the capacity that an experiment knows for a setting; also by the label of its mix alone, as it once was.

    In messages a second of each flow; None if it has to be measured.
    """
    return _look_up(setting, experiment, _conditions(setting, experiment))


def used_capacity(setting: Setting, experiment: Experiment) -> float | None:
    """Return the capacity that a run's rates are shares of: in older runs all flows and swept values shared one."""
    found = known_capacity(setting, experiment)
    return _look_up(setting, experiment, []) if found is None else found


def _look_up(setting: Setting, experiment: Experiment, conditions: list[str]) -> float | None:
    sizes = [_size_key(setting), *([mixes.read_mix(setting.mix).label] if setting.mix else [])]
    keys = [" ".join([setting.path, size, setting.wait, *conditions]) for size in sizes]
    return next((experiment.capacity[key] for key in keys if key in experiment.capacity), None)


def _size_key(setting: Setting) -> str:
    return mixes.own_label(setting.mix) if setting.mix else f"{setting.size} B"


def _conditions(setting: Setting, experiment: Experiment) -> list[str]:
    """Return what tells a capacity from others of its path, size and wait."""
    several = len(traffic.flows_of(experiment)) > 1 or traffic.count_connections(setting) > 1
    names = [setting.flows] if several and "flows" not in experiment.sweep else []
    return [*names, *_swept_words(setting, experiment)]


def _swept_words(setting: Setting, experiment: Experiment) -> list[str]:
    return [
        f"{name}={getattr(setting, name)}"
        for name in experiment.sweep
        if _concerns(setting.path, setting.pattern, name)
    ]


def _size_label(setting: Setting, experiment: Experiment) -> str:
    """Name the size of a setting's messages, or the mix of their sizes as it is told from the experiment's others."""
    if not setting.mix:
        return f"{setting.size} B"
    sizes = [*experiment.sizes, *(size for own in experiment.path.values() for size in own.get("sizes", ()))]
    return mixes.tell_apart([setting.mix, *(size for size in sizes if isinstance(size, str))])[setting.mix]


def repeat_plan(layout: Plan, repeats: int) -> Plan:
    """Return the plan with another number of repeats. The trials that both have are the same in both."""
    return msgspec.structs.replace(layout, trials=_order(layout.experiment, layout.settings, repeats))


def trials_of(experiment: Experiment, check: Callable[[Setting], None] = delivery.check_setting) -> list[Trial]:
    """Return the trials of `plan`."""
    return plan_run(experiment, check).trials


def _settings(experiment: Experiment) -> Iterable[Setting]:
    """Every combination once, in the file's order."""
    seen: set[Setting] = set()
    names = list(experiment.sweep)
    flows = traffic.flows_of(experiment)
    for path, pattern, size, wait in _combinations(experiment):
        own = experiment.path.get(path, {})
        mix = mixes.read_mix(size) if isinstance(size, str) else None
        shares: tuple[float | None, ...] = experiment.load if pattern == "paced" and experiment.load else (None,)
        for who, share, *values in itertools.product(flows, shares, *experiment.sweep.values()):
            common = {
                **_defaults(experiment),
                **experiment.setting,
                **plain_fields(experiment.pattern.get(pattern, {})),
                **experiment.size.get(str(size), {}),
                **experiment.pattern.get(pattern, {}).get(str(size), {}),
                **dict(zip(names, values, strict=True)),
                **({"flows": who} if who else {}),
            }
            given = {
                **{key: value for key, value in common.items() if _concerns(path, pattern, key)},
                "path": path,
                "pattern": pattern,
                "size": mix.sizes[-1] if mix else size,
                "mix": mix.words if mix else "",
                "wait": wait,
                **{key: value for key, value in plain_fields(own).items() if key not in OWN_LISTS},
                **plain_fields(own.get(pattern, {})),
                **own.get(pattern, {}).get(str(size), {}),
            }
            setting = msgspec.convert({**_lengths(given, size, experiment), **given}, Setting)
            if share is not None:
                guessed = 1 / topologies.KNOWN[experiment.topology].guess.message
                rate = known_capacity(setting, experiment)
                setting = msgspec.structs.replace(setting, rate=share * (guessed if rate is None else rate))
            if setting not in seen:  # two combinations that an override makes one
                seen.add(setting)
                yield setting


def _lengths(given: Mapping[str, object], size: int | str, experiment: Experiment) -> dict[str, int]:
    """Return how many messages a setting of these fields has if they do not say, unless it is Setting's default.

    Of many connections each has a message under way. Those that are sent before any is answered wait for one another as
    none does later; and what is sent for messages behind the measured ones stands in for what was sent before them. So
    there are as many before, and behind, as there are connections.
    """
    found: dict[str, int] = {}
    if given.get("duration") is not None:
        found["messages"] = MOST_TIMED
    elif given["pattern"] == "stream":
        mean = _mean_size(size)
        found["messages"] = streams.stream_length(mean, clock=experiment.clock, topology=experiment.topology)
    connections = given.get("connections")
    if isinstance(connections, int) and connections > 1:
        usual = Setting(path=str(given["path"]))
        found |= {"warmup": max(usual.warmup, connections), "cooldown": max(usual.cooldown, connections)}
    return found


def _concerns(path: str, pattern: str, field: str) -> bool:
    """Whether a value that is given to all paths goes to this one. Conditions do, to be refused if it cannot be."""
    return field in delivery.CONDITIONS or delivery.reads_field(path, cast("Pattern", pattern), field)


def _check_read(experiment: Experiment) -> None:
    """UsageError if a field was given that no path, or not the path whose own it is, reads."""
    together = {(path, pattern) for path, pattern, _, _ in _combinations(experiment)}
    for field in (*experiment.setting, *experiment.sweep):
        if not any(_concerns(path, pattern, field) for path, pattern in together):
            path, pattern = min(together)
            raise delivery.refuse_unread(path, cast("Pattern", pattern), field)
    for path, fields in experiment.path.items():
        own = {pattern for name, pattern in together if name == path}
        for field, value in fields.items():
            inner = all_fields(value) if isinstance(value, dict) else []
            for name in inner:
                if not delivery.reads_field(path, cast("Pattern", field), name):
                    raise delivery.refuse_unread(path, cast("Pattern", field), name)
            if inner or field in OWN_LISTS or not own or any(delivery.reads_field(path, p, field) for p in own):  # type: ignore[arg-type]
                continue
            raise delivery.refuse_unread(path, cast("Pattern", min(own)), field)


def _check_cpus(setting: Setting, experiment: Experiment) -> None:
    """Raise UsageError if two ends that poll would share a CPU. What only a machine knows is seen when it is there."""
    if setting.wait not in POLLING:
        return
    if experiment.clock == "icount":
        raise UsageError(
            f"a guest that counts instructions has one CPU, and two ends that wait by {setting.wait} take it from each"
            " other",
            remedy="wait by event, or use the clock wall",
        )
    one_machine = not experiment.between_machines
    if one_machine and len(experiment.cpu) == 2 and experiment.cpu[0] == experiment.cpu[1]:
        raise UsageError(
            f"both ends are to share CPU {experiment.cpu[0]}, and two ends that wait by {setting.wait} take it from"
            " each other",
            remedy="wait by event, or give two CPUs: --cpu CLIENT,SERVER",
        )


def _check_memory(setting: Setting, experiment: Experiment) -> None:
    """Raise UsageError if more messages of an open loop are due in its duration than it may have."""
    if setting.pattern != "paced" or setting.duration is None or setting.rate is None:
        return
    if experiment.load and known_capacity(setting, experiment) is None:
        return  # the rate is a guess until the capacity has been measured
    due = setting.rate * setting.duration
    if due > setting.messages:
        raise UsageError(
            f"in {setting.duration:g} s at {setting.rate:,.6g} a second {due:,.0f} messages are due, and there is"
            f" memory for {setting.messages:,}",
            remedy=f"messages = {math.ceil(due)}, for 24 bytes each at each end; or lower 'rate' or 'duration'",
        )


def _defaults(experiment: Experiment) -> Overrides:
    """Return the fields of Setting whose default depends on the experiment.

    A guest that counts instructions has one CPU. Under the scheduler's usual policy the woken end preempts the other
    or does not, as their past shares of the CPU have it, and p50 is then whichever of the two is more frequent.
    """
    return {"schedule": "batch"} if experiment.clock == "icount" else {}


def _mean_size(size: int | str) -> int:
    return round(mixes.read_mix(size).mean) if isinstance(size, str) else size


def _combinations(experiment: Experiment) -> Iterable[tuple[str, str, int | str, str]]:
    for path in experiment.paths:
        own = experiment.path.get(path, {})
        lists = (own.get(name, getattr(experiment, name)) for name in ("patterns", "sizes", "waits"))
        yield from ((path, *values) for values in itertools.product(*lists))


def _order(experiment: Experiment, settings: list[Setting], repeats: int) -> list[Trial]:
    draw = random.Random(experiment.seed)
    order: list[Trial] = []
    for repeat in range(repeats):
        drawn = sorted(((draw.random(), setting) for setting in settings), key=lambda pair: pair[0])
        for setting in _held_together([setting for _, setting in drawn]):
            label = label_of(setting, experiment)
            order.append(Trial(number=len(order), repeat=repeat, setting=setting, label=label))
    return order


def label_of(setting: Setting, experiment: Experiment) -> str:
    """Name a setting: what is listed always, and what is swept."""
    swept = _swept_words(setting, experiment)
    if experiment.clients:
        swept.insert(0, setting.flows)
    if experiment.load and setting.pattern == "paced":
        swept.insert(0, f"rate={setting.rate:.0f}")
    return " ".join([setting.path, _size_label(setting, experiment), setting.pattern, setting.wait, *swept])


def _held_together(drawn: list[Setting]) -> list[Setting]:
    """Put the trials of paths that hold a NIC behind the first of them: to take it and give it back takes long."""
    holding = [setting for setting in drawn if delivery.find_path(setting.path).holding]
    first = drawn.index(holding[0]) if holding else 0
    return [
        *drawn[:first],
        *holding,
        *(setting for setting in drawn[first:] if not delivery.find_path(setting.path).holding),
    ]
