"""The delivery paths: what each is called, what it does, which fields of a setting it reads, and what sets it up.

Each is registered where it is defined: in the `PATHS` of a module of `hwrx.paths.families`, which this module lists.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from hwrx import stages
from hwrx.control.messages import Pattern, Setting
from hwrx.errors import HwrxError, UsageError
from hwrx.paths import families, mixes, napi
from hwrx.paths.model import BY_PATTERN, NEEDS, Path
from hwrx.stages import Stage

if TYPE_CHECKING:
    from cython_ext.core.transport import Transport
    from hwrx.control.messages import Prepare

DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in msgspec.structs.fields(Setting) if field.default is not msgspec.NODEFAULT
}
MOST_BATCH = 256  # cython_ext.core.trial.MOST
# What is done to a path, or beside it, and not how it is set up: where a path cannot have it, it cannot be compared
# with one that can.
CONDITIONS = (
    "netem", "hook", "crowd", "crowd_on", "senders", "threaded_napi", "napi_defer_hard_irqs", "gro_flush_timeout"
)  # fmt: skip


def _registered() -> dict[str, tuple[Path, ModuleType]]:
    """Every path with the module of its family: those that need the least come first."""
    modules = [
        importlib.import_module(f"{families.__name__}.{each.name}") for each in pkgutil.iter_modules(families.__path__)
    ]
    found = [(path, module) for module in modules for path in module.PATHS]
    found.sort(key=lambda each: NEEDS.index(each[0].needs))
    by_name = {path.name: (path, module) for path, module in found}
    assert len(by_name) == len(found), "two paths have the same name"
    return by_name


_REGISTERED = _registered()
PATHS: dict[str, Path] = {name: path for name, (path, _) in _REGISTERED.items()}
_SELECTIVE = frozenset().union(
    *BY_PATTERN.values(), *(fields for path in PATHS.values() for fields in (path.reads, *path.reads_in.values()))
)


def find_path(name: str) -> Path:
    """Return the path called `name`; UsageError names the ones that exist."""
    try:
        return PATHS[name]
    except KeyError:
        raise UsageError(f"there is no path '{name}'", remedy=f"choose of: {', '.join(PATHS)}") from None


def reads_field(path: str, pattern: Pattern, field: str) -> bool:
    """Whether a path reads this field of a Setting in this pattern; UsageError if there is no such path."""
    found = find_path(path)
    return (
        field not in _SELECTIVE
        or field in BY_PATTERN[pattern]
        or field in found.reads
        or field in found.reads_in.get(pattern, frozenset())
    )


def settings_read(setting: Setting) -> dict[str, Any]:
    """Return the fields that a setting's path reads in its pattern, with their values: what tells two trials apart.

    A field that is left out had no influence, whatever its value.
    """
    return {
        name: getattr(setting, name)
        for name in setting.__struct_fields__
        if reads_field(setting.path, setting.pattern, name)
    }


def refuse_unread(path: str, pattern: Pattern, field: str) -> UsageError:
    """Return the error for a field that was asked for and that the path does not read in this pattern."""
    elsewhere = [other for other in BY_PATTERN if reads_field(path, other, field)]
    others = [name for name in PATHS if reads_field(name, pattern, field)]
    words = f"{path} does not read {field} in {pattern}"
    if elsewhere:
        words += f", only in {' and '.join(elsewhere)}"
    why, instead = find_path(path).unread.get((field, pattern), ("", ""))
    readers = f"; in {pattern} it is read by {', '.join(others)}" if others else ""
    return UsageError(
        f"{words}: {why}" if why else words, remedy=f"leave {field} out{f', {instead}' if instead else ''}{readers}"
    )


def check_setting(setting: Setting) -> None:
    """Raise UsageError if the path cannot do the setting, or does not read a field that differs from its default."""
    if setting.crowd and not reads_field(setting.path, setting.pattern, "crowd"):
        raise UsageError(f"a crowd stands in UDP's table, which {setting.path} does not use", remedy="leave crowd out")
    if setting.hook != "none" and not reads_field(setting.path, setting.pattern, "hook"):
        raise UsageError(
            f"a hook lies on the way to the kernel's sockets, not on that of {setting.path}", remedy="leave hook out"
        )
    if setting.netem and not reads_field(setting.path, setting.pattern, "netem"):
        raise UsageError(
            f"netem is a queueing discipline of the kernel, and what {setting.path} sends passes none",
            remedy="leave netem out, or choose packet-ring, a socket path or a verbs path",
        )
    if setting.senders > 1 and not reads_field(setting.path, setting.pattern, "senders"):
        raise UsageError(
            f"{setting.path} takes the device's queue for itself, so several senders cannot share the device",
            remedy="senders = 1, or choose packet-ring, a socket path or a verbs path",
        )
    if setting.senders > 1 and setting.pattern == "paced":
        raise UsageError("an open loop has one sender", remedy="pingpong or stream, or senders = 1")
    if setting.connections > 1:
        _check_connections(setting)
    if napi.asked_of_napi(setting) and not reads_field(setting.path, setting.pattern, "threaded_napi"):
        raise UsageError(
            f"threaded_napi, napi_defer_hard_irqs and gro_flush_timeout say how the kernel polls a device, which"
            f" {setting.path} does not leave to it",
            remedy="leave them out, or choose packet-ring, xdp, a socket path or a verbs path",
        )
    napi.check_napi(setting)
    if setting.duration is not None and setting.settle:
        raise UsageError(
            "settle stops the sender behind the last measured message, and with a duration nobody knows which that is",
            remedy="leave out either",
        )
    if setting.mix and reads_field(setting.path, setting.pattern, "mix"):
        mixes.check_mix(setting)
    if setting.batch > MOST_BATCH:
        raise UsageError(
            f"one call takes or sends at most {MOST_BATCH} messages, not {setting.batch}", remedy="a smaller batch"
        )
    for field, default in DEFAULTS.items():
        if getattr(setting, field) != default and not reads_field(setting.path, setting.pattern, field):
            raise refuse_unread(setting.path, setting.pattern, field)
    _REGISTERED[setting.path][1].check_setting(setting)


def _check_connections(setting: Setting) -> None:
    """UsageError for what is about a single connection; `connections` itself is refused where it is not read."""
    for field in ("window", "signal_every", "receives", "completions", "rest", "settle"):
        if getattr(setting, field) != DEFAULTS[field] and reads_field(setting.path, setting.pattern, field):
            raise UsageError(
                f"{field} is of a single connection: each of several has one message under way",
                remedy=f"leave {field} out, or connections = 1",
            )


def open_endpoint(prepare: Prepare) -> Transport:
    """Create one end of a path; the caller closes it."""
    fetched = find_path(prepare.setting.path).full_rtt
    endpoint = cast("Transport", _REGISTERED[prepare.setting.path][1].open_endpoint(prepare))
    if prepare.setting.mix:
        try:
            endpoint.vary(mixes.draw_sizes(prepare.setting, prepare.repeat, prepare.seed, fetched=fetched))
        except BaseException:
            endpoint.close()
            raise
    return endpoint


def preload_endpoints() -> None:
    """Import what endpoints of all families need, as far as it is there: who is forked from this process has it."""
    for module in dict.fromkeys(module for _, module in _REGISTERED.values()):
        # what is missing is reported by the trial that wants it
        with contextlib.suppress(ImportError, HwrxError):
            getattr(module, "preload_endpoints", lambda: None)()


def release_held() -> None:
    """Let go of what paths hold in this process between two trials (`Prepare.hold`)."""
    for family in {module.__name__: module for _, module in _REGISTERED.values()}.values():
        if hasattr(family, "release_held"):
            family.release_held()


def holds(path: str, following: str | None) -> bool:
    """Whether a trial of a path leaves what it took from the kernel to the trial that follows it, if one does."""
    return find_path(path).holding and path == following


def default_topology(path: str) -> str:
    """Return the name of the topology on which a path can be tried if the user names none."""
    return {"nothing": "netns", "root": "netns", "verbs": "pair", "nic": "nic"}[find_path(path).needs]


# --- what a path's messages pass ------------------------------------------------------------------------------------


def way_of(path: str) -> str:
    """Return the way of `hwrx.stages` that a path's messages go; "" if there is no such path (in another's run)."""
    return PATHS[path].way if path in PATHS else ""


def path_stages(path: str) -> list[Stage]:
    """Return the stages of a path in packet order; empty if there is no such path."""
    return stages.way_stages(way_of(path))


def stage_chain(path: str) -> list[Stage]:
    """Return the stages of a path whose stamps follow each other, `posted` first and `delivered` last."""
    return stages.way_chain(way_of(path))


def probed_in_kernel(path: str) -> bool:
    """Whether anything on the path's way is the kernel's, and so wants programs to be attached."""
    return any(probe.kind != "user" for stage in path_stages(path) for probe in stage.probes)
