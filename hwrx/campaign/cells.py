"""The cells of a campaign: one experiment over kernels, boot words, hosts and settings, each combination a run.

A campaign is an experiment file with a table `[campaign]`:

    [campaign]
    kernels = ["6.1", "6.12", "6.12-rt", "~/linux", "6.1 init_on_alloc=1"]
    hosts = ["node1", "node2"]             # of a cluster: each cell runs on each

    [campaign.boots]                       # words for the guest's kernel command line, by a name for each
    plain = []
    zeroed = ["init_on_alloc=1"]

    [campaign.settings]                    # any key of the experiment, or of its [setting]
    messages = [60, 600]

Cells do not depend on each other. Those that count instructions have the same figures wherever they run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hwrx.errors import UsageError
from hwrx.host import toml_text
from hwrx.lab import kernel
from hwrx.runs import checked
from hwrx.runs import experiment as experiments
from hwrx.runs.experiment import BootWord, Experiment, Name
from hwrx.runs.overrides import SETTING_FIELDS

MOST_CELLS = 2000
# every packaged kernel of a flavour
ALL = {"all": "", **{f"all-{flavour}": flavour for flavour in kernel.FLAVOURS}}
_ONE_LINE = Annotated[str, Meta(pattern=r"^[!-~][ -~]{0,1000}$", description="printable characters on one line")]


class Axes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a campaign varies. An empty axis is not varied: the experiment says what it is."""

    kernels: Annotated[tuple[_ONE_LINE, ...], Meta(max_length=1000)] = ()
    boots: dict[Name, tuple[BootWord, ...]] = {}
    hosts: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()
    settings: dict[str, list[Any]] = {}

    @property
    def names(self) -> list[str]:
        """The axes that have values, in the order of a cell's words."""
        given = {"kernel": self.kernels, "boot": self.boots, "host": self.hosts}
        return [*(name for name, values in given.items() if values), *self.settings]


class Cell(Struct, frozen=True, kw_only=True):
    """One combination: what it is called, its values by axis, and its experiment, as TOML."""

    number: int  # from 1
    values: dict[str, str]
    experiment: str
    host: str = ""

    @property
    def name(self) -> str:
        """Its values in one line, as in "6.12-rt, zeroed, messages 60"."""
        return ", ".join(
            value if axis in ("kernel", "boot", "host") else f"{axis} {value}" for axis, value in self.values.items()
        )

    @property
    def folder(self) -> str:
        """Name of its folder in the campaign's."""
        return f"{self.number:03}-{re.sub(r'[^A-Za-z0-9.+=-]+', '_', self.name)[:60].strip('_')}"


def load_campaign(path: Path) -> tuple[Experiment, Axes]:
    """Read an experiment file with a table `[campaign]`.

    :raises UsageError: if it cannot be read, or a key or value is not allowed; the error names it.
    """
    experiment, content = experiments.load_with_table(path, "campaign")
    if content is None:
        raise UsageError(
            f"{path} varies nothing: it has no table [campaign]",
            remedy='kernels = ["6.1", "6.12"] in [campaign], or hwrx compare runs it once',
        )
    return experiment, parse_axes(content, str(path))


def parse_axes(content: Mapping[str, object], source: str) -> Axes:
    """Check a table `[campaign]`, and write out the kernels that `all` means.

    :raises UsageError: if a key or value is not allowed.
    """
    fields = {field.name: field for field in msgspec.structs.fields(Axes)}
    for key, value in content.items():
        if key not in fields:
            raise checked.unknown_field(source, f"campaign.{key}", fields, key=key)
        checked.convert_field(source, f"campaign.{key}", value, fields[key].type)
    axes = msgspec.convert(dict(content), Axes)
    for key, values in axes.settings.items():
        known = {field.name for field in msgspec.structs.fields(Experiment)} - {"name", "question", "boot", "kernel"}
        checked.check_known(source, "campaign.settings", key, sorted(known | SETTING_FIELDS.keys()))
        if not values:
            raise UsageError(f"{source}: campaign.settings.{key}: the list is empty", remedy="give values")
    return msgspec.structs.replace(axes, kernels=tuple(listed_kernels(axes.kernels)))


def listed_kernels(kernels: Sequence[str]) -> list[str]:
    """Return the kernels of a list, with `all`, `all-rt` and `all-cloud` written out, each once.

    :raises UsageError: if `all` is asked for and the distribution's tools name no kernel.
    """
    found: list[str] = []
    for each in kernels:
        name, words = kernel_and_words(each)
        if name not in ALL:
            found.append(each)
            continue
        packaged = kernel.packaged_kernels(ALL[name])
        if not packaged:
            raise UsageError(f"apt offers no kernel package for '{name}'", remedy="apt-get update, or name kernels")
        found += [" ".join((one, *words)) for one in packaged]
    return list(dict.fromkeys(found))


def kernel_and_words(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the kernel and the boot words of an entry such as "6.1 init_on_alloc=1"."""
    if Path(text).expanduser().exists():  # a path may have blanks
        return text, ()
    name, *words = text.split()
    return name, tuple(words)


def plan_cells(experiment: Experiment, axes: Axes, source: str = "the campaign") -> list[Cell]:
    """Return every combination once, kernels outermost, in the file's order.

    :raises UsageError: if an experiment with these values is not a valid one, or there are too many.
    """
    lists: list[list[_Choice]] = []
    if axes.kernels:
        lists.append([_of_kernel(each) for each in axes.kernels])
    if axes.boots:
        lists.append([_Choice(axis="boot", value=name, boot=words) for name, words in axes.boots.items()])
    if axes.hosts:
        lists.append([_Choice(axis="host", value=name, host=name) for name in axes.hosts])
    for key, values in axes.settings.items():
        lists.append([_Choice(axis=key, value=_shown(value), options={key: value}) for value in values])
    if not lists:
        raise UsageError(f"{source}: it varies nothing", remedy='kernels = ["6.1", "6.12"] in [campaign]')
    count = 1
    for values in lists:
        count *= len(values)
    if count > MOST_CELLS:
        raise UsageError(f"{source}: {count:,} cells are more than {MOST_CELLS:,}", remedy="shorten its lists")
    # one seed for all cells: they differ in what is varied, and not in the order of their trials
    experiment = experiments.with_seed(experiment)
    return [
        _make_cell(number, experiment, combination, source)
        for number, combination in enumerate(itertools.product(*lists), 1)
    ]


class _Choice(Struct, frozen=True, kw_only=True):
    """A value of an axis, and what it makes of the experiment."""

    axis: str
    value: str
    boot: tuple[str, ...] = ()
    host: str = ""
    options: dict[str, object] = {}


def _of_kernel(text: str) -> _Choice:
    name, words = kernel_and_words(text)
    return _Choice(axis="kernel", value=text, boot=words, options={"kernel": name})


def _make_cell(number: int, experiment: Experiment, combination: Sequence[_Choice], source: str) -> Cell:
    # of two words that contradict each other the kernel heeds the last
    boot = (*experiment.boot, *(word for each in combination for word in each.boot))
    options: dict[str, object] = {"boot": boot} if boot else {}
    for each in combination:
        options |= each.options
    values = {each.axis: each.value for each in combination}
    mine = experiments.override_experiment(experiment, source=f"{source}, cell {', '.join(values.values())}", **options)
    host = next((each.host for each in combination if each.host), "")
    return Cell(number=number, values=values, experiment=experiments.dump_experiment(mine), host=host)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else toml_text.to_toml({"v": value}).removeprefix("v = ").strip()
