"""Take messages apart: run a ping-pong in a guest whose emulator writes down what it executes, and add it up.

A half round trip is the figure, as everywhere: a message and its answer, halved; of a path on which the client alone
works (READ) it is the whole. What is shown is of the messages in the state that most were in: they repeat to the digit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import paths
from hwrx.anatomy import building, followed, layout
from hwrx.anatomy.layers import UNKNOWN, layer_of
from hwrx.anatomy.machine_events import EventFinder, interrupts_beyond
from hwrx.anatomy.model import ByAddress, Dissection, Handling, Part, State
from hwrx.anatomy.stacks import Piece, Unwinder
from hwrx.anatomy.stamps import stamp_stages
from hwrx.anatomy.symbols import NO_SYMBOL, Function, Symbols, kernel_pieces, process_pieces
from hwrx.anatomy.trace import Trace
from hwrx.control.messages import Setting
from hwrx.errors import GuestError, UsageError
from hwrx.lab import emulator_user
from hwrx.lab.vm import Guest
from hwrx.runs import planning, testbed
from hwrx.runs.experiment import Experiment
from hwrx.runs.schedule import Measured, Pair
from hwrx.runs.testbed import GuestBed

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# recorded of a round trip of rxe at its longest, and between two; and of each of its bytes, which are copied one by one
WORDS_A_MESSAGE, WORDS_A_BYTE = 40_000, 16
# the same with its check, accesses to memory included: rxe's at 4 KiB takes 900,000
FOLLOWED_A_MESSAGE, FOLLOWED_A_BYTE = 1_500_000, 300
FEWEST_WORDS, MOST_WORDS = 1 << 24, 1 << 30  # of 8 bytes; the file is as large as what is in it
LOOKED_AT = 6  # messages that are followed: of either direction half
BLOCKS = 1 << 22  # distinct ones: a guest that runs five paths has 400,000, and the file is as large as what is in it
INTERRUPT_STUBS = ("irq_entries_start", "spurious_entries_start")
LOOPS = "cython_ext.loops."
HALT = 0xF4  # Intel SDM, HLT
SHOWN_STATES = 8
BEFORE = 5  # messages
SYMBOLS_WITHIN = 300.0  # seconds: an emulated guest prints 50,000 names in 2 to 5
# those of the agents, which alone have mapped the loop
MAPS = 'for each in /proc/[0-9]*/maps; do if grep -q /cython_ext/loops/ "$each"; then cat "$each"; fi; done'


class Taken(Struct, frozen=True):
    """A trial, and the plugin's words before it."""

    setting: Setting
    measured: Measured
    since: int


class Observed(Struct, frozen=True):
    """A guest's trials, and what it says of itself: /proc/kallsyms, maps of its agents, /proc/iomem."""

    taken: list[Taken]
    kallsyms: str
    maps: str
    iomem: str


Say = Callable[[str, str], None]


def dissect_paths(plan: Experiment, say: Say, *, copies: bool = False) -> list[Dissection]:
    """Take the messages of each setting of an experiment apart.

    :param plan: whose clock counts instructions; ping-pong, on one topology. Repeats are not looked at.
    :param say: told the stage and what is being done.
    :param copies: follow the bytes of some more messages of each setting by their physical address, too.
    :raises UsageError: if nothing is a ping-pong, or no path can be had on the topology.
    :raises MachineError: if this machine has no emulator with plugins, or no compiler for one.
    :raises GuestError: if the guest does not come up, or more ran than the plugin's file has room for.
    """
    layout_of_run = planning.plan_run(plan, testbed.setting_checker(plan, testbed.Wanted()))
    for skipped in layout_of_run.skipped:
        raise UsageError(f"{skipped.label}: {skipped.reason}")
    settings = dissectible(layout_of_run)
    if not settings:
        raise UsageError("the anatomy is of a ping-pong, message by message", remedy="")
    return dissect_settings(plan, settings, say, copies=copies)


def dissectible(layout_of_run: planning.Plan) -> list[Setting]:
    """Return the settings of a plan whose messages can be taken apart: of ping-pongs."""
    return [one for one in layout_of_run.settings if one.pattern == "pingpong"]


def dissect_settings(
    plan: Experiment, settings: Sequence[Setting], say: Say, *, copies: bool = False
) -> list[Dissection]:
    """Take the messages of these settings apart, in a guest for each way in which they want it booted."""
    found: dict[Setting, Dissection] = {}
    for boot in dict.fromkeys(setting.boot for setting in settings):
        mine = [setting for setting in settings if setting.boot == boot]
        found.update(zip(mine, _in_one_guest(plan, mine, say, copies), strict=True))
    return [
        msgspec.structs.replace(found[setting], label=planning.label_of(setting, plan), boot=setting.boot)
        for setting in settings
    ]


def _in_one_guest(plan: Experiment, settings: Sequence[Setting], say: Say, copies: bool) -> list[Dissection]:
    """Take the messages of settings apart that are booted alike."""
    # both by descriptors, so that QEMU may read and write them, whoever it runs as
    with building.find_or_build().open("rb") as plugin, unnamed_file() as written:
        file = Path(f"/proc/self/fd/{written}")
        words = words_for(settings, copies)
        loaded = ["-plugin", f"/proc/self/fd/{plugin.fileno()},into={file},words={words},blocks={BLOCKS}"]
        inherited = (plugin.fileno(), written)
        boot = settings[0].boot
        with testbed.opened_bed(plan, testbed.Wanted(), say, qemu=loaded, boot=boot, descriptors=inherited) as bed:
            assert isinstance(bed, GuestBed)
            observed = _observe(bed, settings, file, say, copies)
        # the guest has ended: an emulator that waits takes a processor
        say("anatomy", "naming and adding up")
        pieces = [*kernel_pieces(observed.kallsyms), *process_pieces(observed.maps)]
        return list(_added_up(file, observed, copies, Symbols(pieces)))


def _observe(bed: GuestBed, settings: Sequence[Setting], file: Path, say: Say, copies: bool) -> Observed:
    taken: list[Taken] = []
    maps: list[str] = []

    def take(setting: Setting) -> None:
        since = layout.read_header(file)["words"]
        measured = pair.measure(len(taken), setting, lambda peers: maps.append(_ask(bed.guest, MAPS)))
        taken.append(Taken(setting, measured, since))

    with Pair(bed) as pair:
        for setting in settings:
            say("trial", f"{setting.path} {setting.size} B")
            take(setting)
        if copies:
            layout.want_memory(file, True)
            # what is filled before the plugin looks at memory is not seen: of the first trial it may be the source
            for setting in [settings[0], *settings]:
                say("copies", f"{setting.path} {setting.size} B")
                take(followed_setting(setting))
        kallsyms = _ask(bed.guest, "echo 0 > /proc/sys/kernel/kptr_restrict; cat /proc/kallsyms")
        iomem = _ask(bed.guest, "cat /proc/iomem")
    return Observed(taken, kallsyms, "\n".join(maps), iomem)


def words_for(settings: Sequence[Setting], copies: bool) -> int:
    """Return for how many words the plugin's file is to have room."""
    words = sum(one.total * (WORDS_A_MESSAGE + WORDS_A_BYTE * one.size) for one in settings)
    if copies:
        followed = [followed_setting(one) for one in [settings[0], *settings]]
        words += sum(one.total * (FOLLOWED_A_MESSAGE + FOLLOWED_A_BYTE * one.size) for one in followed)
    return min(max(words, FEWEST_WORDS), MOST_WORDS)


def followed_setting(setting: Setting) -> Setting:
    """Return the setting of a trial whose messages are followed: few, and each of them filled and verified."""
    return msgspec.structs.replace(setting, messages=8, warmup=4, cooldown=2, check_every=1, limit=SYMBOLS_WITHIN)


def _added_up(file: Path, observed: Observed, copies: bool, symbols: Symbols) -> Iterator[Dissection]:
    taken = observed.taken
    whole = layout.read_words(file)
    entries = entries_of(whole, symbols)
    owners = symbols.find(whole.instructions["address"])
    until = [one.since for one in taken[1:]] + [len(whole.kinds)]
    own = [
        msgspec.structs.replace(whole, kinds=whole.kinds[one.since : end], values=whole.values[one.since : end])
        for one, end in zip(taken, until, strict=True)
    ]
    # with copies: the settings, the first again to wake the plugin, and the settings again
    plain = (len(taken) - 1) // 2 if copies else len(taken)
    for number, (one, recording) in enumerate(zip(taken[:plain], own, strict=False)):
        trace = Trace(recording, entries)
        found = _dissection(one.setting, one.measured, trace, symbols, observed, entries, woke=number == 0)
        if copies:
            handled = _by_address(one.setting, own[plain + 1 + number], owners, symbols.functions)
            found = msgspec.structs.replace(found, copies=handled)
        yield found


def _by_address(
    setting: Setting, recording: layout.Recording, owners: Int64s, functions: Sequence[Function]
) -> ByAddress | None:
    """Follow the bytes of a trial's messages, and return what became of most of them; None if none was verified."""
    pull = paths.find_path(setting.path).full_rtt
    messages = followed.find_messages(recording, pull)
    # the last but one and those before it: behind the last one the loop ends, and waits for what is still under way
    messages = messages[-LOOKED_AT - 2 : -2]
    source = followed.find_sources(recording, 0, messages[0][0], setting.size) if pull and messages else {}
    named = [function.name.split(".")[0] for function in functions]
    follower = followed.Follower(
        recording,
        owners,
        setting.size,
        crossings={number for number, name in enumerate(named) if name in followed.CROSSINGS},
        own={number for number, function in enumerate(functions) if function.of.startswith(LOOPS)},
    )
    found = [one for first, last in messages if (one := follower.follow(first, last, source)) is not None]
    if not found:
        return None
    most, alike = Counter(found).most_common(1)[0]
    return ByAddress(
        messages=len(found),
        in_place=sum(one.elsewhere == 0 for one in found),
        alike=alike,
        sender=most.copies("sender"),
        receiver=most.copies("receiver"),
        sender_passes=most.passes("sender"),
        receiver_passes=most.passes("receiver"),
        landed=most.landed / setting.size,
        handled=[
            Handling(
                one.side,
                functions[one.function].name,
                functions[one.function].of,
                one.copied / setting.size,
                one.passed / setting.size,
            )
            for one in most.handled
        ],
    )


def _dissection(
    setting: Setting,
    measured: Measured,
    trace: Trace,
    symbols: Symbols,
    observed: Observed,
    entries: npt.NDArray[np.uint64],
    *,
    woke: bool,
) -> Dissection:
    full = paths.find_path(setting.path).full_rtt
    halves = 1 if full else 2
    numbers = number_messages(setting, measured.sequence, len(trace), woke=woke, lost=trace.recording.lost)
    seen = (numbers >= 0) & (numbers < len(trace))
    numbers, ns = numbers[seen], measured.ns[seen]
    if not len(numbers) or not (seen.all() or woke or trace.recording.lost):
        raise GuestError(
            f"{setting.path}: the plugin saw {len(trace)} of {setting.total} messages", remedy="take fewer (--messages)"
        )
    totals = trace.totals()[numbers]
    owners = symbols.find(trace.recording.instructions["address"])
    stopped = trace.meets(HALT)[numbers]
    levels, counts = np.unique(totals, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    profiles = [
        _profile(trace, numbers[totals == levels[each]], owners, len(symbols.functions)) / halves
        for each in order[:SHOWN_STATES]
    ]
    parts = sorted(_parts(profiles[0], symbols.functions), key=lambda part: -part.instructions)
    total = float(profiles[0].sum())
    unwinder = Unwinder(trace.recording, owners, symbols.functions, set(entries.tolist()))
    pieces = _pieces(unwinder, trace, int(numbers[totals == levels[order[0]]][-1]))
    common = totals == levels[order[0]]
    events = EventFinder(trace.recording, owners, symbols.functions, observed.iomem)
    machine = events.find_events(trace.bounds[numbers], common)
    layers: dict[str, float] = {}
    for part in parts:
        layers[part.layer] = layers.get(part.layer, 0.0) + part.instructions
    return Dissection(
        label="",
        path=setting.path,
        size=setting.size,
        whole=full,
        messages=len(numbers),
        instructions=total,
        named=1 - sum(part.instructions for part in parts if part.function == NO_SYMBOL) / total,
        layered=1 - layers.get(UNKNOWN, 0.0) / total,
        awake=int((~stopped).sum()),
        exact=int((totals == ns)[~stopped].sum()),
        beyond=int((totals > ns)[stopped].sum()),
        halted=float(np.mean(np.where(stopped, ns - totals, 0.0))) / halves,
        lost=trace.recording.lost,
        unseen=int((~seen).sum()),
        parts=parts,
        layers=dict(sorted(layers.items(), key=lambda item: -item[1])),
        states=[
            State(
                float(levels[each]) / halves,
                int(counts[each]),
                _moved(profile, profiles[0], symbols.functions),
                interrupts_beyond(machine.interrupts, totals == levels[each], common),
            )
            for each, profile in zip(order, profiles, strict=False)
        ],
        pieces=pieces,
        calls=unwinder.calls,
        unmatched=unwinder.unmatched,
        stamps=stamp_stages(setting.path, pieces),
        machine=machine,
    )


def number_messages(
    setting: Setting, sequence: npt.NDArray[np.uint32], recorded: int, *, woke: bool, lost: int
) -> Int64s:
    """Return which of a trial's `recorded` messages the measured ones are; what is below 0 or beyond was not seen.

    Measured ones count from behind the warm-up. The first message of a guest wakes the plugin (`woke`), and is not
    seen; if the file was full (`lost`), the last ones are not, either.
    """
    missed = setting.total - recorded
    if lost:
        missed = min(missed, int(woke))
    return sequence.astype(np.int64) + setting.warmup - missed


def _pieces(unwinder: Unwinder, trace: Trace, message: int) -> list[Piece]:
    """Follow a message's calls, and those of the ones before it: they tell whom each task had called when it began."""
    first, last, executed = trace.span(message)
    unwinder.follow(trace.span(max(0, message - BEFORE))[0], first)
    unwinder.calls = unwinder.unmatched = 0
    return unwinder.follow(first, last, executed)


def _profile(trace: Trace, numbers: Int64s, owners: Int64s, functions: int) -> Floats:
    """Instructions by function, on average over these messages; shape (functions,)."""
    counts = trace.count_instructions(numbers)
    return np.bincount(owners, weights=counts, minlength=functions) / len(numbers)


def _parts(profile: Floats, functions: Sequence[Function]) -> list[Part]:
    return [_part(functions[int(each)], float(profile[each])) for each in np.flatnonzero(profile)]


def _part(function: Function, instructions: float) -> Part:
    return Part(function.name, function.of, layer_of(function), instructions)


def _moved(profile: Floats, most: Floats, functions: Sequence[Function]) -> list[Part]:
    """The functions in which a state differs most from that of most messages."""
    apart = profile - most
    order = np.argsort(-np.abs(apart), kind="stable")[:5]
    return [_part(functions[int(each)], float(apart[each])) for each in order if apart[each]]


def entries_of(recording: layout.Recording, symbols: Symbols) -> npt.NDArray[np.uint64]:
    """Return the addresses at which the kernel takes interrupts and exceptions (arch/x86/entry/entry_64.S)."""
    begins = recording.blocks["address"]
    owners = symbols.find(begins)
    # a stub for each vector, one behind the other
    stubs = [number for number, function in enumerate(symbols.functions) if function.name in INTERRUPT_STUBS]
    handlers = symbols.starts_of(lambda function: function.of == "vmlinux" and function.name.startswith("asm_"))
    return np.union1d(begins[np.isin(owners, stubs)], handlers)


def _ask(guest: Guest, script: str) -> str:
    return guest.run(["sh", "-c", script], limit=SYMBOLS_WITHIN).stdout


@contextlib.contextmanager
def unnamed_file() -> Iterator[int]:
    """A file that QEMU's user may open again. It has no name, so nothing is left of it, whatever ends us."""
    user = emulator_user.find_emulator_user()
    with tempfile.TemporaryFile(prefix="hwrx-anatomy-") as file:
        if user is not None:
            os.fchown(file.fileno(), user.uid, user.gid)
        yield file.fileno()
