"""Interrupts, address spaces and devices that messages met, from the words of the emulator's plugin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from made_recordings import place, recorded

from hwrx.anatomy.layout import (
    AT,
    INTERRUPT_ENDS,
    INTERRUPTS,
    LOADS_CR3,
    OF_DEVICE,
    RAN,
    STORES,
    USES_PORT,
    VECTOR,
    WHERE,
)
from hwrx.anatomy.machine_events import EventFinder, interrupts_beyond
from hwrx.anatomy.model import Interrupt, MachineEvents, Touched
from hwrx.anatomy.symbols import Function

NOP = b"\x90"
NAMES = ["udp_rcv", "asm_common_interrupt", "__handle_irq_event_percpu", "__x86_indirect_thunk_rax", "e1000_intr"]
NAMES += ["asm_sysvec_apic_timer_interrupt"]
FUNCTIONS = [Function(name, "[e1000e]" if name == "e1000_intr" else "vmlinux") for name in NAMES]
RUNS, COMMON, DISPATCHES, THUNK, HANDLER, TIMER = range(len(NAMES))  # a block of one instruction for each
IOMEM = "fe000000-feffffff : PCI Bus 0000:00\n  feb40000-feb5ffff : 0000:00:03.0\n    feb40000-feb5ffff : e1000e\n"

DEVICE = [(RAN, COMMON), (VECTOR, 0x2E), (INTERRUPTS, place(COMMON, 0)), (RAN, DISPATCHES), (RAN, THUNK)]
DEVICE += [(RAN, HANDLER), (INTERRUPT_ENDS, place(COMMON, 0))]
TICK = [(RAN, TIMER), (INTERRUPTS, place(TIMER, 0)), (INTERRUPT_ENDS, place(TIMER, 0))]
SPACE = [(RAN, RUNS), (LOADS_CR3, place(RUNS, 0))]
BELL = [(STORES, 0x7000), (WHERE, OF_DEVICE | 0xFEB43818), (AT, place(HANDLER, 0))]
MEMORY = [(STORES, 0x8000), (WHERE, 0x1000), (AT, place(HANDLER, 0))]


def events_of(messages: Sequence[Sequence[tuple[int, int]]]) -> MachineEvents:
    words = [word for message in messages for word in message]
    ends = np.cumsum([len(message) for message in messages])
    recording = recorded([(0xFFFFFFFF81000000 + 16 * number, [NOP]) for number in range(len(NAMES))], words)
    finder = EventFinder(recording, np.arange(len(NAMES)), FUNCTIONS, IOMEM)
    bounds = np.stack([np.concatenate(([0], ends[:-1])), ends], axis=1)
    return finder.find_events(bounds, np.ones(len(messages), bool))


def test_an_interrupt_has_its_vector_and_the_handler_that_the_kernel_calls() -> None:
    found = events_of([[(RAN, RUNS), *DEVICE], [*DEVICE, *TICK], [(RAN, RUNS)]])
    assert found.interrupts == [
        Interrupt(0x2E, "e1000_intr [e1000e]", [0, 1]),
        Interrupt(None, "sysvec_apic_timer_interrupt", [1]),
    ]


def test_address_spaces_and_ports_are_counted_of_each_message() -> None:
    found = events_of([[*SPACE, *SPACE, (USES_PORT, place(RUNS, 0))], SPACE])
    assert (found.cr3_loads, found.ports) == (1.5, 0.5)


def test_accesses_to_a_device_have_its_name_and_those_to_memory_are_none() -> None:
    found = events_of([[(RAN, RUNS), *BELL, *MEMORY], [(RAN, RUNS), *BELL]])
    assert found.touched == [Touched(0xFEB43818, "e1000e", True, "e1000_intr [e1000e]", 1.0)]


def test_the_local_apic_is_known_where_the_kernel_does_not_name_it() -> None:
    ends = [(STORES, 0x9000), (WHERE, OF_DEVICE | 0xFEE000B0), (AT, place(TIMER, 0))]
    (touched,) = events_of([[(RAN, RUNS), *ends]]).touched
    assert touched.device == "Local APIC"


@pytest.mark.parametrize(("state", "came"), [([False, True, False], ["tick"]), ([True, False, False], [])])
def test_a_state_names_the_interrupts_that_the_commonest_one_has_not(state: list[bool], came: list[str]) -> None:
    interrupts = [Interrupt(0x2E, "intr", [0, 1, 2]), Interrupt(None, "tick", [1])]
    assert interrupts_beyond(interrupts, np.array(state), np.array([True, False, True])) == came
