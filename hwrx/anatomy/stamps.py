"""The stages of one message from its instructions: where each of them begins or ends, to the instruction.

The catalogue (hwrx.stages) says which function's entry or return a stage is; here it is looked up in the order of
execution. So a stage costs what it costs where nobody looks, and one has its place of which no probe can tell whose
message it serves: the interrupt's handler, the softirq that it raises.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from msgspec import Struct

from hwrx import paths
from hwrx.anatomy.model import Direction, Stamp
from hwrx.anatomy.stacks import Piece
from hwrx.anatomy.symbols import Function
from hwrx.stages import Stage

EXIT = " (exit)"
USER = "user thread"
# the functions beneath which the kernel works for nobody's system call
CONTEXTS = {
    "softirq": ("__do_softirq", "handle_softirqs"),
    "hard IRQ": ("asm_common_interrupt", "asm_sysvec_apic_timer_interrupt"),
    "kernel worker": ("kthread", "worker_thread", "ret_from_fork_asm", "ret_from_fork"),
}
SERVER = "answering_server"
# a tracepoint is no instruction while nobody listens: the function that has it, or that it announces
TRACEPOINTS = {
    "net_dev_queue": "__dev_queue_xmit",
    "net_dev_start_xmit": "dev_hard_start_xmit",
    "netif_rx": "netif_rx_internal, __netif_rx, netif_rx",
    "softirq_entry": "net_rx_action",
    "napi_gro_receive_entry": "napi_gro_receive",
    "netif_receive_skb": "__netif_receive_skb_core",
    "sched_waking": "try_to_wake_up",
    "sched_switch": "__switch_to_asm",
}
# and what no probe can tie to a message, but one message's instructions can
UNPROBED = {
    "irq_handler_entry": "__handle_irq_event_percpu",
    "softirq_raise": "__napi_schedule, ____napi_schedule",
    "build_skb": "build_skb, napi_build_skb, __napi_alloc_skb",
}


class Point(Struct, frozen=True):
    """Functions whose entry, or return, is a stage."""

    functions: frozenset[str]
    returns: bool


def point_of(stage: Stage) -> Point | None:
    """Return where a stage is in the code; None if it is nowhere there: an endpoint's own, or inside a device."""
    if stage.name in UNPROBED:
        return Point(_names(UNPROBED[stage.name]), False)
    for probe in stage.probes:
        if probe.kind in ("fentry", "fexit"):
            functions = [name for name in probe.target.split(", ") if not name.endswith(EXIT)]
            return Point(frozenset(functions), probe.kind == "fexit")
        if probe.kind == "tp_btf" and probe.target in TRACEPOINTS:
            return Point(_names(TRACEPOINTS[probe.target]), False)
    return None


def actor_of(stack: Sequence[Function]) -> str:
    """Return who runs this stack, in the catalogue's words: the innermost context counts."""
    for function in reversed(stack):
        for actor, names in CONTEXTS.items():
            if function.name in names:
                return actor
    return USER


def stamp_stages(path: str, pieces: Sequence[Piece]) -> list[Stamp]:
    """Return the stages of a message and its answer in their order; of a path that fetches, of the whole of it.

    A stage that the message skips has no stamp. Of a message of several packets the first one's are taken.

    :param pieces: of the message, in the order of execution
    """
    way = paths.way_of(path)
    points = [
        (stage, point, stage.conditional(way))
        for stage in paths.path_stages(path)
        if (point := point_of(stage)) is not None
    ]
    begins = [0, *itertools.accumulate(piece.instructions for piece in pieces)]
    found: list[Stamp] = []
    start = 0
    directions: tuple[Direction, ...] = ("there",) if paths.find_path(path).full_rtt else ("there", "back")
    for direction in directions:
        end = _delivered(pieces, [point for _, point, _ in points], start)
        if direction == directions[-1]:
            end = len(pieces)
        reached: list[tuple[int, str]] = []
        at = start
        for number, (stage, point, skipped) in enumerate(points):
            until = end
            if skipped:  # not if the message is already further: another packet has come there, its acknowledgement
                further = [each for _, each, also in points[number + 1 :] if not also]
                until = min((next(_places(pieces, each, at, end), end) for each in further), default=end)
            place = next(_places(pieces, point, at, until), None)
            if place is not None:
                reached.append((place, stage.name))
                # what follows a stage outside of the chain may come before it: kernels differ in that
                at = place if stage.chain else at
        posted = last = begins[start]
        found.append(Stamp("posted", direction, 0, 0, USER))
        for place, name in sorted(reached, key=lambda each: each[0]):
            actor = actor_of(pieces[place].stack)
            found.append(Stamp(name, direction, begins[place] - posted, begins[place] - last, actor))
            last = begins[place]
        found.append(Stamp("delivered", direction, begins[end] - posted, begins[end] - last, USER))
        start = end
    return found


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split(", "))


def _delivered(pieces: Sequence[Piece], points: Sequence[Point], start: int) -> int:
    """Return the piece in which the server's loop has the message, before it answers."""
    first = next(
        (point for point in points if next(_places(pieces, point, start, len(pieces)), None) is not None), None
    )
    again = list(itertools.islice(_places(pieces, first, start, len(pieces)), 2)) if first is not None else []
    at = again[1] if len(again) == 2 else len(pieces)
    # back over the system call by which it answers, and over what user space does before
    while at > start and pieces[at - 1].stack[-1].in_kernel and _in_server(pieces[at - 1]):
        at -= 1
    begins = at
    while begins > start and not pieces[begins - 1].stack[-1].in_kernel and _in_server(pieces[begins - 1]):
        begins -= 1
    own = (place for place in range(begins, at) if pieces[place].stack[-1].name == SERVER)
    return next(own, begins)


def _in_server(piece: Piece) -> bool:
    return any(function.name == SERVER for function in piece.stack)


def _places(pieces: Sequence[Piece], point: Point, first: int, end: int) -> Iterator[int]:
    """Yield the pieces that begin with one of the functions entered, or having returned."""
    for place in range(max(first, 1), end):
        before, now = pieces[place - 1].stack, pieces[place].stack
        if point.returns:
            depth = _depth(before, point.functions)
            if depth is not None and now == before[: len(now)] and len(now) <= depth:
                yield place
        else:
            depth = _depth(now, point.functions)
            if depth is not None and now[: depth + 1] != before[: depth + 1]:
                yield place


def _depth(stack: Sequence[Function], functions: Collection[str]) -> int | None:
    """How deep the innermost of these functions is in a stack; without what a compiler appends to a name."""
    for depth in range(len(stack) - 1, -1, -1):
        if stack[depth].name.split(".")[0] in functions:
            return depth
    return None
