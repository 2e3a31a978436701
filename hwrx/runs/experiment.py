"""An experiment: one question, asked of every path in every setting, repeated, in an order that favours none of them.

It is described by a TOML file (lab/experiments has examples) or by command-line options, and becomes a list of trials.
Each setting is put together from, in this order, the later one winning: `[setting]`, `[pattern.NAME]`, `[size.N]`,
`[pattern.NAME.N]`, `[sweep]`, the lists `paths`, `patterns`, `sizes` and `waits`, `[path.NAME]`, `[path.NAME.PATTERN]`
and `[path.NAME.PATTERN.N]`, where N is a size in bytes. A path's own `sizes`, `patterns` and `waits` in `[path.NAME]`
stand instead of the experiment's.
"""

from __future__ import annotations

import itertools
import pathlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hwrx import paths as delivery
from hwrx.control.guest_boot import BOOT_FIELDS
from hwrx.control.messages import Clock, MessageSize, Mix, Pattern, Rate, Seed, Wait
from hwrx.control.nodes import Traffic
from hwrx.errors import UsageError
from hwrx.host import toml_text
from hwrx.host.outside import clean_name
from hwrx.machine.placement import Wish
from hwrx.paths import mixes
from hwrx.runs import checked, traffic
from hwrx.runs.overrides import (
    LISTED,
    SETTING_FIELDS,
    Overrides,
    all_fields,
    check_by_size,
    check_overrides,
    check_size,
    check_until,
)
from hwrx.wires import topology as topologies

# auto: icount in a guest that is emulated, wall elsewhere; decided before the plan (hwrx.runs.testbed.settle_clock)
WantedClock = Literal[Clock, "auto"]
BootWord = Annotated[str, Meta(pattern=r"^[!-~]{1,200}$", description="printable characters, no blank")]
# a version or a path; never an option of the tools that it is handed to
Kernel = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]{0,4000}$",
        description="a version, or the path of a vmlinuz or of a built tree",
    ),
]
Name = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="1 to 64 letters, digits, '.', '_', '-'; no blank"),
]

Nodes = Annotated[
    str, Meta(min_length=1, max_length=10_000, description="a host of the inventory, or a set: node[1-8]")
]

COUNTED = ("copies_priced", "rest", "settle")  # of a setting: about counted instructions
OWN_LISTS = ("sizes", "patterns", "waits")  # that a path may have instead of the experiment's


class Until(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Repeat until the interval of a quantile (of a stream's rate) is no wider than ±`width` in every row.

    Intervals are then made so that they hold the truth in at least 95 of 100 runs, although the runs end when they do.
    """

    width: Annotated[float, Meta(gt=0, lt=1)]  # relative: 0.05 is ±5 %
    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    repeats: Annotated[int, Meta(ge=2, le=10_000)] = 30  # at most


class Experiment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file or the options ask for. Sizes are bytes, times seconds."""

    name: Name
    question: Annotated[str, Meta(max_length=20_000)] = ""
    topology: topologies.Name = "netns"
    clock: WantedClock = "wall"
    kernel: Kernel | None = None  # of the guest; None: the lab's own
    boot: Annotated[tuple[BootWord, ...], Meta(max_length=50)] = ()  # words for the guest's kernel command line
    wire_mtu: Annotated[int, Meta(ge=1280, le=65535)] | None = None  # of the wire's two ends; None: 1500
    # CPU of the client and of the server: see hwrx.machine.placement, which chooses those that are not given
    cpu: Annotated[tuple[Annotated[int, Meta(ge=0, le=8191)], ...], Meta(max_length=2)] | Literal["any"] = ()
    numa: Annotated[int, Meta(ge=0, le=1023)] | None = None  # node from which hwrx takes CPUs
    # hosts of the inventory that send, or guests of topology wire; those that receive; which to which (control.nodes)
    clients: Annotated[tuple[Nodes, ...], Meta(max_length=1000)] = ()
    servers: Annotated[tuple[Nodes, ...], Meta(max_length=1000)] = ()  # (): the clients themselves
    traffic: Traffic = "incast"
    paths: Annotated[tuple[str, ...], Meta(min_length=1)]
    # a number of bytes, or a distribution that each message's size is drawn from: see hwrx.paths.mixes
    sizes: Annotated[tuple[MessageSize | Mix, ...], Meta(min_length=1, max_length=1000)] = (64,)
    patterns: Annotated[tuple[Pattern, ...], Meta(min_length=1)] = ("pingpong",)
    waits: Annotated[tuple[Wait, ...], Meta(min_length=1)] = ("event",)
    repeats: Annotated[int, Meta(ge=1, le=10_000)] = 3
    seed: Seed | None = None  # None: drawn when the trials are, and stored
    trace: bool = False
    anatomy: bool = False  # take ping-pongs' messages apart, each instruction and each byte: in one guest more
    budget: Annotated[float, Meta(ge=0.001, le=1e9)] | None = None  # seconds that the whole run may take
    # paced: rates as shares of what each path can do, which is measured before the first trial and kept in `capacity`
    load: Annotated[tuple[Annotated[float, Meta(ge=0.001, le=10)], ...], Meta(max_length=100)] = ()
    capacity: dict[str, Rate] = {}  # `capacity_key` -> messages a second
    until: Until | None = None  # more repeats than `repeats`, as the figures need them
    setting: Overrides = {}
    sweep: dict[str, list[Any]] = {}
    pattern: dict[str, Overrides] = {}
    size: dict[str, Overrides] = {}
    path: dict[str, Overrides] = {}

    @property
    def between_machines(self) -> bool:
        """Whether each end is on a machine of its own, with a clock of its own."""
        return topologies.KNOWN[self.topology].many

    @property
    def between_guests(self) -> bool:
        """Whether each end is in a guest of its own, which hwrx boots."""
        return self.between_machines and topologies.KNOWN[self.topology].where == "guest"


# --- from a file, from options -------------------------------------------------------------------------------------


def load_experiment(path: pathlib.Path | str) -> Experiment:
    """Read an experiment file; UsageError names the file, the key and what is allowed there."""
    file = pathlib.Path(path)
    return parse_experiment(_read_text(file), source=str(file), name=file.stem)


def load_with_table(path: pathlib.Path, table: str) -> tuple[Experiment, dict[str, object] | None]:
    """Read an experiment file that has a table beside the experiment; return that one as it stands, None without it.

    :raises UsageError: as `load_experiment`, and if the table is not one.
    """
    text = _read_text(path)
    content = toml_text.parse_toml(text, str(path))
    more = content.pop(table, None)
    if more is not None and not isinstance(more, dict):
        raise UsageError(f"{path}: {table}: {str(more)[:60]} is not allowed", remedy="allowed: a table")
    content.setdefault("question", _header(text))
    content.setdefault("name", path.stem)
    return build_experiment(content, source=str(path)), more


def names_topology(file: pathlib.Path) -> bool:
    """Whether an experiment file says what lies between the two ends, and does not leave that to the options.

    :raises UsageError: if it cannot be read
    """
    return "topology" in toml_text.parse_toml(_read_text(file), str(file))


def _read_text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # editors of Windows put a byte order mark in front
    except FileNotFoundError:
        raise UsageError(
            f"there is no experiment file {file}", remedy="give the path of a .toml file, or describe it by options"
        ) from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a directory, not an experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error


def parse_experiment(text: str, *, source: str, name: str = "experiment") -> Experiment:
    """Parse an experiment's TOML; `source` is what errors call it, `name` stands in for a missing `name`."""
    content = toml_text.parse_toml(text, source)
    if "campaign" in content:
        raise UsageError(
            f"{source} is a campaign: an experiment in several cells", remedy=f"hwrx campaign run {clean_name(source)}"
        )
    if "question" not in content:
        content["question"] = _header(text)
    content.setdefault("name", name)
    return build_experiment(content, source=source)


def from_options(*, name: str = "compare", source: str = "the options", **options: object) -> Experiment:
    """Build an experiment from command-line options; those that are None were not given.

    An option is either a field of Experiment (`paths`, `sizes`, `repeats`, …) or of Setting (`messages`, `window`, …).
    """
    content: dict[str, Any] = {"name": name}
    setting: dict[str, Any] = {}
    for key, value in options.items():
        if value is None:
            continue
        if key in SETTING_FIELDS and key not in LISTED:
            setting[key] = value
        else:
            content[key] = list(value) if isinstance(value, tuple) else value
    if setting:
        content["setting"] = {**content.get("setting", {}), **setting}
    return build_experiment(content, source=source)


def override_experiment(experiment: Experiment, *, source: str = "the options", **options: object) -> Experiment:
    """Return the experiment with the options that are not None put over it: over its sweep and overrides, too."""
    if options.get("clock") == "wall" and experiment.clock == "auto":
        experiment = without_counting(experiment)
    content = {**_content(experiment), "name": experiment.name}
    own = {key: value for key, value in options.items() if value is not None and key not in SETTING_FIELDS}
    setting = {key: value for key, value in options.items() if value is not None and key in SETTING_FIELDS}
    content.update({key: list(value) if isinstance(value, tuple) else value for key, value in own.items()})
    if setting:
        content = {**_without(content, setting), "setting": {**experiment.setting, **setting}}
    return build_experiment(content, source=source)


def described_experiment(file: pathlib.Path | None, options: dict[str, Any]) -> Experiment:
    """Return the experiment of a file with options put over it, or the one that the options alone describe."""
    options, swept = split_axes(options)
    if file is None:
        return from_options(**{**options, "sweep": {**(options.get("sweep") or {}), **swept} or None})
    found = override_experiment(load_experiment(file), **options)
    return override_experiment(found, sweep={**found.sweep, **swept}) if swept else found


def split_axes(options: Overrides) -> tuple[Overrides, dict[str, list[str] | list[int]]]:
    """Return options with single values of the machine's axes, and apart from them the axes of several."""
    given = {name: options[name] for name in BOOT_FIELDS if options.get(name) is not None}
    swept = {name: values for name, values in given.items() if len(values) > 1}
    return {**options, **{name: None if name in swept else values[0] for name, values in given.items()}}, swept


def without_counting(experiment: Experiment) -> Experiment:
    """Return the experiment by the wall clock, without what only a guest that counts instructions heeds."""
    content = {key: value for key, value in _content(experiment).items() if key != "boot"} | {"clock": "wall"}
    setting = {key: value for key, value in experiment.setting.items() if key not in COUNTED}
    return build_experiment({**_without(content, COUNTED), "setting": setting}, source=experiment.name)


def _without(content: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Take keys of a setting out of whatever wins over `[setting]`."""

    def pruned(table: dict[str, Any]) -> dict[str, Any]:
        inner = {key: pruned(value) if isinstance(value, dict) else value for key, value in table.items()}
        return {key: value for key, value in inner.items() if key not in keys and value != {}}

    over: dict[str, Any] = {
        name: pruned(content[name]) for name in ("sweep", "pattern", "size", "path") if name in content
    }
    return {**content, **over}


def build_experiment(content: Mapping[str, Any], *, source: str) -> Experiment:
    """Check a parsed file or options; UsageError names `source`, the key and what is allowed."""
    fields = {field.name: field for field in msgspec.structs.fields(Experiment)}
    content = _with_mixes(content, source)
    for key, value in content.items():
        if key not in fields:
            raise checked.unknown_field(source, key, fields)
        if key == "until" and isinstance(value, dict):
            check_until(source, value, Until)
        for inner, values in value.items() if key == "sweep" and isinstance(value, dict) else ():
            checked.convert_field(source, f"sweep.{inner}", values, list[Any])
        checked.convert_field(source, key, value, fields[key].type)
    if "paths" not in content:
        raise UsageError(
            f"{source}: the key 'paths' is missing", remedy=f"a list of some of: {', '.join(delivery.PATHS)}"
        )
    experiment = msgspec.convert(dict(content), Experiment, strict=True)
    _check_together(source, experiment)
    for index, name in enumerate(experiment.paths):
        checked.check_known(source, f"paths[{index}]", name, delivery.PATHS)
    check_overrides(source, "setting", experiment.setting)
    for pattern, fields_of in experiment.pattern.items():
        checked.check_known(source, f"pattern.{pattern}", pattern, checked.literals_of(Pattern))
        check_by_size(source, f"pattern.{pattern}", fields_of)
    for size, fields_of in experiment.size.items():
        check_size(source, "size", size)
        check_overrides(source, f"size.{size}", fields_of)
    for path, fields_of in experiment.path.items():
        checked.check_known(source, f"path.{path}", path, delivery.PATHS)
        lists = {key: value for key, value in fields_of.items() if key in OWN_LISTS}
        for key, value in lists.items():
            checked.convert_field(source, f"path.{path}.{key}", value, fields[key].type)
        own = {key: value for key, value in fields_of.items() if key not in (*checked.literals_of(Pattern), *OWN_LISTS)}
        check_overrides(source, f"path.{path}", own, also=(*OWN_LISTS, *checked.literals_of(Pattern)))
        for pattern in fields_of.keys() - own.keys() - lists.keys():
            checked.convert_field(source, f"path.{path}.{pattern}", fields_of[pattern], Overrides)
            check_by_size(source, f"path.{path}.{pattern}", fields_of[pattern])
    for key, values in experiment.sweep.items():
        if key in LISTED:
            raise UsageError(f"{source}: sweep.{key}: several values of '{key}' belong into the list '{LISTED[key]}'")
        if key not in SETTING_FIELDS:
            raise checked.unknown_field(source, f"sweep.{key}", SETTING_FIELDS, key=key)
        if not values:
            raise UsageError(f"{source}: sweep.{key}: the list is empty", remedy="leave the key out, or give values")
        for index, value in enumerate(values):
            checked.convert_field(source, f"sweep.{key}[{index}]", value, SETTING_FIELDS[key])
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """Return the experiment as TOML that `loads` reads back to the same."""
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in experiment.question)
    return "".join(f"# {line}\n" for line in printable.split("\n")) + toml_text.to_toml(_content(experiment))


def with_seed(experiment: Experiment) -> Experiment:
    """Return the experiment with a seed: its own, or one drawn now."""
    drawn = secrets.randbelow(2**32)
    return experiment if experiment.seed is not None else msgspec.structs.replace(experiment, seed=drawn)


def boot_actions(experiment: Experiment) -> list[str]:
    """Say which of this machine's files a guest of the experiment boots; empty if the lab's own kernels."""
    kernel = experiment.kernel or ""
    return [f"the kernel {clean_name(kernel)}, which is to be booted"] if "/" in kernel else []


def given_fields(experiment: Experiment) -> set[str]:
    """Return the fields of a setting that are given anywhere in an experiment."""
    tables = (*experiment.pattern.values(), *experiment.size.values(), *experiment.path.values())
    inner = (each for table in experiment.path.values() for each in table.values() if isinstance(each, dict))
    return {*experiment.setting, *experiment.sweep, *(key for each in (*tables, *inner) for key in all_fields(each))}


def wish_of(experiment: Experiment) -> Wish:
    """Return which CPUs the experiment asks for."""
    return Wish(cpu=experiment.cpu, numa=experiment.numa)


def _with_mixes(content: Mapping[str, object], source: str) -> dict[str, object]:
    """Return the content with each distribution of sizes as weights: a file of them is read here, once."""

    def resolved(where: str, table: Mapping[str, object]) -> dict[str, object]:
        sizes = table.get("sizes")
        if not isinstance(sizes, list | tuple):
            return dict(table)
        found: list[object] = list(sizes)
        for index, size in enumerate(sizes):
            if isinstance(size, str):
                try:
                    found[index] = mixes.parse_mix(size, pathlib.Path(source).parent).words
                except UsageError as error:
                    raise UsageError(f"{source}: {where}sizes[{index}]: {error.args[0]}", remedy=error.remedy) from None
        return {**table, "sizes": found}

    own = content.get("path")
    if isinstance(own, dict):
        tables = {
            name: resolved(f"path.{name}.", table) if isinstance(table, dict) else table for name, table in own.items()
        }
        content = {**content, "path": tables}
    return resolved("", content)


# --- inside --------------------------------------------------------------------------------------------------------


def _content(experiment: Experiment) -> dict[str, Any]:
    """Return the fields that are set, as plain data."""
    content: dict[str, Any] = msgspec.to_builtins(experiment)
    return {key: value for key, value in content.items() if value not in (None, {}, (), [])}


def _header(text: str) -> str:
    """Return the comment at the top of a file: the experiment's question."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.lstrip().splitlines())
    return "\n".join(line.lstrip("#").strip() for line in lines).strip()


def _check_together(source: str, experiment: Experiment) -> None:
    """What is right alone and not beside something else."""
    given = given_fields(experiment)
    traffic.check_traffic(source, experiment, given)
    if experiment.load and "rate" in given:
        raise UsageError(f"{source}: load: it sets the rate of each trial, so that 'rate' cannot be given beside it")
    if experiment.load and "paced" not in experiment.patterns:
        raise UsageError(f"{source}: load: it needs the pattern 'paced'", remedy='patterns = ["paced"]')
    if "netem" in given and experiment.topology not in topologies.WITH_NETEM:
        raise UsageError(
            f"{source}: netem: it spoils a wire that hwrx makes, and the topology '{experiment.topology}' has none",
            remedy=" or ".join(f'topology = "{name}"' for name in topologies.WITH_NETEM),
        )
    for key in COUNTED if experiment.clock == "wall" else ():
        if key in given:
            raise UsageError(
                f"{source}: {key}: it is about counted instructions, and the clock is 'wall'",
                remedy=f'clock = "icount" or "auto", or leave {key} out',
            )
    for key in BOOT_FIELDS:
        if key in experiment.sweep and (experiment.load or experiment.until):
            raise UsageError(
                f"{source}: sweep.{key}: each value has a guest of its own; load and until are found out in one",
                remedy="give one value in [setting]",
            )
    if "iommu" in given and experiment.topology not in topologies.WITH_IOMMU:
        raise UsageError(
            f"{source}: iommu: a guest of the topology '{experiment.topology}' has none",
            remedy=" or ".join(f'topology = "{name}"' for name in topologies.WITH_IOMMU),
        )
    if experiment.anatomy and experiment.clock == "wall":
        raise UsageError(
            f"{source}: anatomy: it is of an emulated guest that counts instructions, and the clock is 'wall'",
            remedy='clock = "icount", or leave anatomy out',
        )
    if experiment.anatomy and "pingpong" not in experiment.patterns:
        raise UsageError(
            f"{source}: anatomy: it takes ping-pongs apart, message by message", remedy='patterns = ["pingpong"]'
        )
    for key in ("anatomy", "trace"):
        if getattr(experiment, key) and "duration" in given:
            raise UsageError(
                f"{source}: {key}: it follows messages of a number that is known beforehand",
                remedy="give 'messages' instead of 'duration'",
            )
        if getattr(experiment, key) and "connections" in given:
            raise UsageError(
                f"{source}: {key}: it follows the messages of one connection", remedy="leave 'connections' out"
            )
    if experiment.trace and "senders" in given:
        raise UsageError(f"{source}: trace: it follows the messages of one sender", remedy="leave 'senders' out")
