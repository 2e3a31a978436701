"""Which functions a message passes, in what order, and in whose context: messages one at a time, under the tracer."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Sequence

from hwrx.claims.figures import Parameters, give_figures, words_of
from hwrx.claims.ftrace import Call, Ftrace
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Step, Steps
from hwrx.claims.session import Sent, Session, one_by_one
from hwrx.errors import UsageError
from hwrx.paths import hooks

OF_EACH = ("share", "calls", "hard", "soft", "reader", "other", "elsewhere")  # figures of each function
SLACK = 2.0  # µs: the tracer's times are cut to the microsecond


def _names_of(given: Parameters) -> list[str]:
    watched = [*(each.split("|")[0] for each in words_of(given, "watch")), "woken"]
    ordered = ["in_order", "seen_whole"] if words_of(given, "order") else []
    return [f"{name}_{figure}" for name in watched for figure in OF_EACH] + ordered


@give_figures("messages", "delivered", more=_names_of)
def functions(
    session: Session,
    watch: list[str] = ["ip_rcv_core|ip_rcv", "udp_rcv"],  # noqa: B006 - a default that says the kind, never changed
    order: list[str] = [],  # noqa: B006
    begin: str = "",
    switch_on: list[str] = [],  # noqa: B006
    messages: int = 60,
    size: int = 64,
    reader: str = "recv",
) -> Measurement:
    """Watch kernel functions while messages come one at a time to a reader that sleeps.

    `order`: functions of `watch` that are to follow each other, by their first calls; "F<C": calls of F by C alone (a
    hook is asked more than once on the way); "woken" is the reader's wake-up. `begin`: what a
    message met before this function, on the sender's side, is left out. `switch_on`: hooks of `hwrx.paths.hooks` on the
    receiver's side. Figures of each function F: F_share (of the messages that it handled), F_calls a message, and the
    shares of its calls in a hard interrupt, a softirq, the reader's thread and another's: F_hard, F_soft, F_reader,
    F_other.
    """
    names = [each.split("|")[0] for each in watch]
    if missing := [each for each in order if each.partition("<")[0] not in names and each != "woken"]:
        raise UsageError(f"the order asks for {missing[0]}, which is not watched", remedy="add it to watch")
    if begin and begin not in names:
        raise UsageError(f"the way is to begin at {begin}, which is not watched", remedy="add it to watch")
    if reader not in ("recv", "epoll"):
        raise UsageError(f"a reader cannot wait by '{reader}'", remedy="recv or epoll")
    wire = session.wire
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(wire.socket("server"))
        sender = stack.enter_context(wire.socket("client"))
        with wire.inside("server"):
            for hook in switch_on:
                hooks.put_hook(hook, target, wire.netdev("server"), stack, first=True)
        tracer = Ftrace(watch, ["sched/sched_waking"])
        with tracer:
            times, tid = one_by_one(wire, messages, size, reader=target, sender=sender, manner=reader)
        with wire.inside("server"):
            stack.close()
    return reckon_functions(times, tid, tracer.calls, names, order, begin)


def reckon_functions(
    times: Sequence[Sent], tid: int, calls: Sequence[Call], names: Sequence[str], order: Sequence[str], begin: str = ""
) -> Measurement:
    """Give each call to the message in whose time it fell, and count."""
    whole = [each for each in times if each.received]
    mine = [_from(begin, each) for each in _by_message(whole, tid, calls)]
    figures: dict[str, float | int | bool | str | None] = {"messages": len(times), "delivered": len(whole)}
    for name in (*names, "woken"):
        figures |= _of_function(name, mine, tid)
    if order:
        figures["in_order"] = _share([_in_order(each, order) for each in mine])
        figures["seen_whole"] = _share([None not in _first_places(each, order) for each in mine])
    return Measurement(figures, Steps(_typical(mine, whole, tid), "one message, from the send call to the reader"))


def _by_message(whole: Sequence[Sent], tid: int, calls: Sequence[Call]) -> list[list[Call]]:
    """Return the calls of each message, in the order of time; of the reader's wake-ups the first."""
    starts = [each.sent / 1000 - SLACK for each in whole]
    mine: list[list[Call]] = [[] for _ in whole]
    for call in calls:
        place = bisect.bisect_right(starts, call.at) - 1
        if place < 0 or call.at > whole[place].received / 1000 + SLACK:
            continue
        if call.name == "sched_waking":
            if f"pid={tid} " not in call.detail:
                continue
            if any(each.name == "woken" for each in mine[place]):
                continue  # the reader waits again, for this program's own next step
            call = Call("woken", call.at, call.cpu, call.context, call.task, call.tid, call.detail)
        mine[place].append(call)
    return mine


def _from(begin: str, calls: list[Call]) -> list[Call]:
    """Leave out what came before the first call of `begin`."""
    place = next((place for place, call in enumerate(calls) if call.name == begin), 0)
    return calls[place:]


def _of_function(name: str, mine: Sequence[Sequence[Call]], tid: int) -> dict[str, float | int | bool | str | None]:
    all_ = [call for each in mine for call in each if call.name == name]
    count = len(all_)

    def of(*contexts: str) -> float | None:
        return sum(_context(call, tid) in contexts for call in all_) / count if count else None

    return {
        f"{name}_share": _share([any(call.name == name for call in each) for each in mine]),
        f"{name}_calls": count / len(mine) if mine else None,
        f"{name}_hard": of("hard IRQ"),
        f"{name}_soft": of("softirq"),
        f"{name}_reader": of("reader"),
        f"{name}_other": of("thread"),
        f"{name}_elsewhere": sum(call.tid != tid for call in all_) / count if count else None,
    }


def _context(call: Call, tid: int) -> str:
    return "reader" if call.context == "thread" and call.tid == tid else call.context


def _in_order(calls: Sequence[Call], order: Sequence[str]) -> bool:
    """Whether the first calls of the named functions follow each other."""
    places = [place for place in _first_places(calls, order) if place is not None]
    return len(places) == len(order) and places == sorted(places)


def _first_places(calls: Sequence[Call], order: Sequence[str]) -> list[int | None]:
    """Where the first call of each is; the tracer notes the caller, which may have a suffix (.part.0, .constprop.0)."""
    found: list[int | None] = []
    for each in order:
        name, _, caller = each.partition("<")
        fits = (place for place, call in enumerate(calls)
                if call.name == name and (not caller or call.detail.partition(".")[0] == caller))  # fmt: skip
        found.append(next(fits, None))
    return found


def _share(yes: Sequence[bool]) -> float | None:
    return sum(yes) / len(yes) if yes else None


def _typical(mine: Sequence[Sequence[Call]], whole: Sequence[Sent], tid: int) -> list[Step]:
    """The steps of the message whose way took the median time; of repeated calls of a function the first."""
    if not whole:
        return []
    place = sorted(range(len(whole)), key=lambda at: whole[at].received - whole[at].sent)[len(whole) // 2]
    start = whole[place].sent / 1000
    seen: set[str] = set()
    steps = []
    for call in mine[place]:
        if call.name not in seen:
            seen.add(call.name)
            name = "the reader is woken" if call.name == "woken" else call.name
            steps.append(Step(name, max(0.0, call.at - start), call.cpu, _context(call, tid)))
    steps.append(Step("the reader has it", (whole[place].received - whole[place].sent) / 1000, None, "reader"))
    return steps
