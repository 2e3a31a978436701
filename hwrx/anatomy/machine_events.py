"""What of the machine a message met: interrupts and exceptions, address spaces, devices that were told something.

From the plugin's own words for them. Counts are of a message and its answer.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hwrx.anatomy.layout import (
    AT,
    INDEX,
    INTERRUPT_ENDS,
    INTERRUPTS,
    LOADS_CR3,
    OF_DEVICE,
    PAGE,
    PHYSICAL,
    RAN,
    STORES,
    USES_PORT,
    VECTOR,
    WHERE,
    Recording,
)
from hwrx.anatomy.model import Interrupt, MachineEvents, Touched
from hwrx.anatomy.stacks import THUNKS
from hwrx.anatomy.symbols import Function

Int64s = npt.NDArray[np.int64]
DISPATCHER = "__handle_irq_event_percpu"  # calls the handlers of an interrupt's line (kernel/irq/handle.c)
STUB = 8  # words in which an interrupt's vector stands before it
SEARCHED = 4000  # words after an interrupt in which its handler is looked for
BLOCK = (1 << 32) - 1
LOCAL_APIC = 0xFEE00000  # Intel SDM 11.4.1; /proc/iomem does not have it on every kernel
_REGION = re.compile(r"^\s*([0-9a-f]+)-([0-9a-f]+) : (.*)$", re.MULTILINE)


class EventFinder:
    """Looks for the machine's words in a recording."""

    def __init__(self, recording: Recording, owners: Int64s, functions: Sequence[Function], iomem: str) -> None:
        """Take what `Symbols.find` says of the recording's instructions, and the guest's /proc/iomem."""
        self._recording = recording
        self._owners = owners
        self._functions = functions
        self._regions = [(int(first, 16), int(last, 16), name) for first, last, name in _REGION.findall(iomem)]

    def find_events(self, bounds: Int64s, common: npt.NDArray[np.bool_]) -> MachineEvents:
        """Return what messages met.

        :param bounds: the first word of each, and the one behind its last; shape (messages, 2)
        :param common: which of them are in the commonest state, of which counts are averages; shape (messages,)
        """
        return MachineEvents(
            cr3_loads=float(self._count(LOADS_CR3, bounds)[common].mean()),
            ports=float(self._count(USES_PORT, bounds)[common].mean()),
            interrupts=self._interrupts(bounds),
            touched=self._touched(bounds[common]),
        )

    def _count(self, kind: int, bounds: Int64s) -> Int64s:
        """How many words of a kind each message has; shape (messages,)."""
        first, last = np.searchsorted(np.flatnonzero(self._recording.kinds == kind), bounds).T
        return np.asarray(last - first)

    def _function_at(self, value: int) -> Function:
        """The function of an instruction, by the value of a word that has its place."""
        first = int(self._recording.blocks["first"][value & BLOCK])
        return self._functions[int(self._owners[first + (value >> int(INDEX))])]

    def _interrupts(self, bounds: Int64s) -> list[Interrupt]:
        words = np.flatnonzero(self._recording.kinds == INTERRUPTS)
        came: defaultdict[tuple[int | None, str], list[int]] = defaultdict(list)
        for message, (first, last) in enumerate(np.searchsorted(words, bounds).tolist()):
            for word in words[first:last].tolist():
                came[self._vector_of(word), self._handler_of(word)].append(message)
        return [
            Interrupt(vector=vector, handler=handler, messages=messages)
            for (vector, handler), messages in sorted(came.items(), key=lambda item: -len(item[1]))
        ]

    def _vector_of(self, word: int) -> int | None:
        """The vector that was pushed last, if nothing but code lies between."""
        kinds = self._recording.kinds[max(word - STUB, 0) : word]
        said = np.flatnonzero(np.isin(kinds, (VECTOR, INTERRUPTS, INTERRUPT_ENDS)))
        if not len(said) or kinds[said[-1]] != VECTOR:
            return None
        return int(self._recording.values[word - len(kinds) + said[-1]])

    def _handler_of(self, word: int) -> str:
        """The handler that the kernel calls for a device's interrupt; of others the entry says it."""
        kinds = self._recording.kinds[word : word + SEARCHED]
        ends = np.flatnonzero(kinds == INTERRUPT_ENDS)
        ran = np.flatnonzero(kinds[: ends[0] if len(ends) else None] == RAN) + word
        dispatched = False
        for value in self._recording.values[ran].tolist():
            function = self._function_at(value)
            if function.name == DISPATCHER:
                dispatched = True
            elif dispatched and not function.name.startswith(THUNKS):
                return str(function)
        return self._function_at(int(self._recording.values[word])).name.removeprefix("asm_")

    def _touched(self, bounds: Int64s) -> list[Touched]:
        where = np.flatnonzero(self._recording.kinds == WHERE)
        where = where[self._recording.values[where] & np.uint64(OF_DEVICE) != 0]
        times: Counter[tuple[int, bool, str]] = Counter()
        for first, last in np.searchsorted(where, bounds).tolist():
            for word in where[first:last].tolist():
                address = int(self._recording.values[word]) & PHYSICAL
                assert self._recording.kinds[word + 1] == AT  # as the plugin writes them
                function = self._function_at(int(self._recording.values[word + 1]))
                times[address, bool(self._recording.kinds[word - 1] == STORES), str(function)] += 1
        return [
            Touched(
                address=address, device=self._device_at(address), store=store, function=function, times=n / len(bounds)
            )
            for (address, store, function), n in sorted(times.items())
        ]

    def _device_at(self, address: int) -> str:
        """The innermost region of /proc/iomem; the last one that has the address, as they are nested."""
        if address & ~(PAGE - 1) == LOCAL_APIC:
            return "Local APIC"
        return next((name for first, last, name in reversed(self._regions) if first <= address <= last), "")


def interrupts_beyond(
    interrupts: Sequence[Interrupt], state: npt.NDArray[np.bool_], common: npt.NDArray[np.bool_]
) -> list[str]:
    """Name the handlers that ran more often in the messages of a state than in those of the commonest one."""
    found = []
    for each in interrupts:
        times = np.bincount(each.messages, minlength=len(state))
        if times[state].mean() > times[common].mean():
            found.append(each.handler)
    return found
