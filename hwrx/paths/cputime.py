"""Processor time by actor, of exactly the measured messages: what an agent's meter found, and both ends put together.

An end's own thread is known to the nanosecond wherever hwrx runs: `thread`. Softirqs and interrupts that ran in its
context are part of that, for the kernel charges them to whoever they interrupt. So is, of an end that sleeps until a
message comes, the time that its idle CPU takes to get up: the kernel counts from the wake-up by another CPU on, for it
does not read the clock again (`rq_clock_skip_update` in kernel/sched/core.c); a virtual CPU takes some 10 µs. And so
is, of an end that shares its CPU with other programs, some of their time, as the counted twins show. Whose
else a CPU's time was is known if nobody else has a claim on the machine, which is so in a guest that hwrx started
(`alone`): `worker` is then the time of the kernel's threads that work for messages (ksoftirqd, and the kworkers that
are bound to no CPU, as rxe's queue has them), `housekeeping` that of the kworkers of one CPU, where drivers' watchdogs
and the kernel's statistics run and no path's messages do, and of the kernel's threads that look after memory. If such a
guest has one CPU, `idle` is what the kernel calls so (interrupts excluded, the idle loop's own instructions included),
`busy` the rest of what has passed less the housekeeping, and `other` what of `busy` is neither thread nor worker:
interrupts that found the CPU idle, and other tasks.

An exchange that is checked and not timed counts as one message more, without the filling and verifying of its bytes.
Figures are nanoseconds; where a guest counts instructions they are instructions, for that is its nanosecond. What is
not known is missing with its reason. The split of `thread` into `user` and `system` comes from samples that the kernel
takes at its tick (cputime_adjust of kernel/sched/cputime.c), so that it is given from a hundred samples on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwrx import paths
from hwrx.control.messages import Done, Role, Setting

if TYPE_CHECKING:
    from cython_ext.core.meter import Meter

# in the order of a table: whose time it is
ACTORS = ("thread", "user", "system", "softirq", "interrupt", "worker", "other", "housekeeping", "idle", "busy")
TIMERS = "/proc/timer_list"
WORKERS = (b"kworker/", b"ksoftirqd/")
# They look at memory every few seconds, on nobody's behalf: khugepaged for pages to put together (a huge page that it
# fills is 3 million instructions), kcompactd for room to do so
KEEPERS = (b"khugepaged", b"kcompactd")
# compiled where agents are forked from: every repeat has new ones
OF_ONE_CPU = re.compile(rb"kworker/\d")
IDLE = re.compile(r"^\s*\.(?:idle|iowait)_sleeptime\s*: (\d+) nsecs$", re.MULTILINE)
FEWEST_TICKS = 100
READINGS = ("began", "ended")  # of a meter, in their order
COUNTERS = ("worker", "housekeeping", "idle")  # of the machine
CHARGED = "the kernel charges them to whoever they interrupt"
# what the programs that count by actor know both ends' threads by (role_of of cputime.h)
COUNTED_NAMES: dict[Role, str] = {"client": "hwrx-send", "server": "hwrx-read"}


# --- in the agent --------------------------------------------------------------------------------------------------


def meter_files(alone: bool) -> list[str]:
    """Name the files that an end's meter reads: none unless the machine is the trial's `alone`."""
    return [TIMERS, *_workers()] if alone else []


def time_used(meter: Meter, alone: bool, rest: int = 0) -> dict[str, int]:
    """What one end used, in ns, as `Done.cpu`; empty unless both readings were taken.

    `messages` that lie between the readings, `elapsed`, `away` (on the bytes of checks, and in neither `elapsed` nor
    `thread`), `thread`, `user`, `system`, `tick`; of a machine that is the
    trial's `alone` also `worker`, `housekeeping`, and `idle` if it has one CPU and the kernel tells. The
    `rest` that the end took before each message, in instructions of a guest that counts them, is left out. Of such a
    machine there is also what clock and counters said at the two readings: `began`, `ended`, `idle_began`, ….
    """
    found = meter.found()
    if found is None:
        return {}
    for clock in ("elapsed", "thread"):
        found[clock] -= rest * (found["messages"] - found["beside"])
    if alone:
        said = meter.said()
        timers = said.pop(TIMERS, None)
        ran = {path: (_run_time(before), _run_time(after)) for path, (before, after) in said.items()}
        # those that were started meanwhile
        ran |= {path: (0, _run_time(_read(path))) for path in _workers() if path not in meter.paths}
        keeping = {path for path in ran if _keeps_house(path)}
        for place, name in enumerate(READINGS):
            found[name] = meter.times[place]
            found[f"housekeeping_{name}"] = sum(ran[path][place] for path in keeping)
            found[f"worker_{name}"] = sum(times[place] for path, times in ran.items() if path not in keeping)
        if timers is not None:
            before, after = (idle_times(text.decode()) for text in timers)
            if len(before) == len(after) == 1:
                found["idle_began"], found["idle_ended"] = before[0], after[0]
        found |= _between(found, found)
    return found


def _between(first: Mapping[str, int], last: Mapping[str, int]) -> dict[str, int]:
    """What the machine's counters say of the time from one end's first reading to the last of it, or of the other."""
    counted = [name for name in COUNTERS if f"{name}_began" in first and f"{name}_ended" in last]
    return {name: last[f"{name}_ended"] - first[f"{name}_began"] for name in counted}


def rename_thread(name: str) -> str:
    """Give the calling thread a name (15 bytes of it), and return the one that it had."""
    file = Path("/proc/thread-self/comm")
    before = file.read_text(encoding="utf-8").rstrip("\n")
    file.write_text(name, encoding="utf-8")
    return before


def idle_times(timers: str) -> list[int]:
    """Return how long each CPU has been idle, in ns, of the text of /proc/timer_list.

    It is brought up to date when a CPU stops to be idle, so it is exact for the one that reads it, and no other.
    """
    found = IDLE.findall(timers)
    return [int(a) + int(b) for a, b in zip(found[::2], found[1::2], strict=False)]


def _workers() -> Iterator[str]:
    for name in os.listdir("/proc"):  # noqa: PTH208 -- paths of objects take three times as many instructions
        if name.isdecimal() and _read(f"/proc/{name}/comm").startswith(WORKERS + KEEPERS):
            yield f"/proc/{name}/schedstat"


def _keeps_house(schedstat: str) -> bool:
    """Whether it works for no message: also a kworker of one CPU ("kworker/0:1"; "kworker/u4:0" is bound to none)."""
    name = _read(schedstat.removesuffix("schedstat") + "comm")
    return name.startswith(KEEPERS) or OF_ONE_CPU.match(name) is not None


def _read(path: str) -> bytes:
    """Return what a small file of procfs says: there are a hundred of them to read, on an emulated CPU."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it has ended
        return b""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _run_time(schedstat: bytes) -> int:
    """The first of its numbers: ns on a CPU."""
    return int((schedstat.split() or [b"0"])[0])


# --- both ends -----------------------------------------------------------------------------------------------------


def account_time(setting: Setting, client: Done, server: Done, alone: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Put both ends of a trial together: time by actor over the measured messages, and why an actor is missing.

    Also `client` and `server`, what each end's meter found. What concerns the machine is counted once, by the end that
    sees the messages arrive. All is brought to the number of measured messages, `setting.messages` (of several senders:
    of all together): a receiver of batches may have been read a few messages later.
    """
    ends: dict[Role, Mapping[str, int]] = {"client": client.cpu, "server": server.cpu}
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    absent = [role for role, end in ends.items() if not end and not is_passive(setting, role)]
    if absent:
        return {}, dict.fromkeys(
            ("thread", "busy"), f"of the measured messages the {absent[0]} did not see the last, or less than two"
        )
    if setting.cooldown < setting.connections > 1:
        # each connection has one under way: the last of the measured ones were sent before the first of them came back
        return {}, dict.fromkeys(
            ("thread", "busy"),
            f"of {setting.connections} connections with {setting.cooldown} messages behind the measured ones fewer are"
            " sent meanwhile than come; set cooldown to as many as there are connections",
        )
    known = [end for end in ends.values() if end]
    found["thread"] = sum(_scaled(end["thread"], end, setting) for end in known)
    ticks = sum((end["user"] + end["system"]) / end["tick"] for end in known)
    if ticks >= FEWEST_TICKS:
        shares = [(end, end["thread"] / ((end["user"] + end["system"]) or 1)) for end in known]
        for actor in ("user", "system"):
            found[actor] = sum(_scaled(round(end[actor] * share), end, setting) for end, share in shares)
    else:
        missing["user"] = missing["system"] = (
            f"the kernel divides a thread's time by looking at its tick, and a trial had less than {FEWEST_TICKS} of "
            "those; measure more messages"
        )
    missing["softirq"] = missing["interrupt"] = f"{CHARGED}; --trace tells them apart"
    _machine(setting, ends, alone, found, missing)
    found |= {role: dict(end) for role, end in ends.items() if end}
    return found, missing


def add_ends(ends: Sequence[Mapping[str, int]], measured: Sequence[int]) -> dict[str, int]:
    """Add up what several senders, or their receivers, used; nothing unless it is known of each.

    Each is first brought to the messages that were `measured` of its sender: its meter may have read a few more or
    less, and if a time ended the trial no two senders have as many. The sum is that of all their `messages`.
    """
    if not all(ends):
        return {}
    if len(ends) == 1:
        return dict(ends[0])
    added = {
        name: sum(round(end[name] * count / end["messages"]) for end, count in zip(ends, measured, strict=True))
        for name in ("thread", "user", "system")
    }
    return {**ends[0], **added, "messages": sum(measured)}


def is_passive(setting: Setting, role: Role) -> bool:
    """Whether an end's thread has no part in the messages: RDMA reads and writes its memory without it."""
    known = paths.find_path(setting.path)
    return role == "server" and (known.full_rtt or (setting.pattern == "stream" and known.stream_seen_by == "client"))


def observing_end(setting: Setting) -> Role:
    """Return the end that sees the messages arrive."""
    return paths.find_path(setting.path).stream_seen_by if setting.pattern == "stream" else "client"


def _machine(
    setting: Setting,
    ends: Mapping[Role, Mapping[str, int]],
    alone: bool,
    found: dict[str, Any],
    missing: dict[str, str],
) -> None:
    """Add what is known of the machine as a whole."""
    end = _whole(setting, ends)
    if not alone:
        reason = "others use this machine, too; measure in a guest"
    elif setting.senders > 1:
        reason = "several senders are measured from different messages on"
    elif setting.connections > 1:
        reason = "messages of other connections are under way where the measured ones begin and end"
    else:
        found["worker"] = _scaled(end["worker"], end, setting)
        found["housekeeping"] = _scaled(end["housekeeping"], end, setting)
        if "idle" in end:
            found["idle"] = _scaled(end["idle"], end, setting)
            # both ends fill and verify what is only to be checked; this end's meter left out its own part of that
            checking = sum(ends[role].get("away", 0) for role in ends if role != observing_end(setting))
            found["busy"] = _scaled(end["elapsed"] - checking, end, setting) - found["idle"] - found["housekeeping"]
            # the ends of a stream are measured a few messages apart
            found["other"] = max(0, found["busy"] - found["thread"] - found["worker"])
            return
        reason = "the kernel does not tell exactly how long one of several CPUs is idle"
    missing |= dict.fromkeys((a for a in ("worker", "other", "housekeeping", "idle", "busy") if a not in found), reason)


def _whole(setting: Setting, ends: Mapping[Role, Mapping[str, int]]) -> Mapping[str, int]:
    """Return the readings that the machine's time is taken from: the observer's.

    Of a stream that settles it begins with the sender's first reading, which is after its sleep: whatever ran while
    the messages slept is not theirs.
    """
    last, first = ends[observing_end(setting)], ends["client"]
    if not setting.settle or last is first or not ("ended" in last and "began" in first):
        return last
    return {**last, "elapsed": last["ended"] - first["began"], **_between(first, last)}


def _scaled(value: int, end: Mapping[str, int], setting: Setting) -> int:
    return round(value * setting.messages / end["messages"])
