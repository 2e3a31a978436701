"""Where provoked losses are found: the experiments of `hwrx drops`, with functions watched beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from hwrx.claims.figures import Parameters, give_figures, words_of
from hwrx.claims.ftrace import Call, Ftrace
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import Session
from hwrx.drops import provoke
from hwrx.drops.books import Balance, Books
from hwrx.drops.scene import Names, Scene
from hwrx.errors import UsageError

MOST_WATCHED = 2000  # messages: what the function tracer's buffers hold


def _names_of(given: Parameters) -> list[str]:
    watched = [each.split("|")[0] for each in words_of(given, "watch")]
    return [*(f"{name}_calls" for name in watched), *(["in_order"] if len(watched) == 2 else [])]


@give_figures("sent", "delivered", "lost", "lost_here", "unexplained", more=_names_of)
def balance(
    session: Session,
    place: str = "no-socket",
    messages: int = 1000,
    watch: list[str] = [],  # noqa: B006 - a default that says the kind, never changed
) -> Measurement:
    """Provoke one place of `hwrx drops` (its --list has them) and close the balance.

    Figures: `sent`, `delivered`, `lost`, `lost_here`, `unexplained`, and F_calls a sent message of each function F
    of `watch`; where two are watched `in_order`, the share of the second's calls that come, on their CPU, after a call
    of the first of their own.
    """
    if watch and messages > MOST_WATCHED:
        raise UsageError(f"with functions watched at most {MOST_WATCHED} messages can be sent", remedy="or watch none")
    with contextlib.ExitStack() as stack:
        tracer = stack.enter_context(Ftrace(watch)) if watch else None
        found = provoke.provoke_drops(place, _names(session), messages, 1)
    figures = reckon_balance(found, place)
    for name in (each.split("|")[0] for each in watch):
        calls = sum(call.name == name for call in tracer.calls) if tracer else 0
        figures[f"{name}_calls"] = calls / found.sent if found.sent else None
    if len(watch) == 2:
        first, second = (each.split("|")[0] for each in watch)
        figures["in_order"] = share_after(tracer.calls if tracer else [], first, second)
    rows = [("sent", float(found.sent)), ("delivered", float(found.delivered))]
    rows += [(f"lost: {row.sentence}", float(row.count)) for row in found.rows]
    rows += [("unexplained", float(found.unexplained))]
    notes = [f"{row.place}: {', '.join(row.how)}" for row in (*found.rows, *found.beside) if row.how]
    return Measurement(figures, Bars(rows, "messages", [0, 2, *[3] * len(found.rows), 5]), notes=notes + found.notes)


def share_after(calls: Sequence[Call], first: str, second: str) -> float | None:
    """Return the share of the second's calls that have a call of the first before them, on their CPU, of their own."""
    open_: set[int] = set()
    good: list[bool] = []
    for call in calls:
        if call.name == first:
            open_.add(call.cpu)
        elif call.name == second:
            good.append(call.cpu in open_)
            open_.discard(call.cpu)
    return sum(good) / len(good) if good else None


def reckon_balance(found: Balance, place: str) -> dict[str, float | int | bool | str | None]:
    """Return the figures of a balance."""
    return {
        "sent": found.sent,
        "delivered": found.delivered,
        "lost": found.lost,
        "lost_here": sum(row.count for row in found.rows if row.place == place),
        "unexplained": found.unexplained,
    }


@give_figures("filled", "more", "by_filter", "by_buffer")
def contest(session: Session, messages: int = 200) -> Measurement:
    """Fill a socket's buffer, then attach a filter that refuses everything, and send more: which of the two refuses?

    Figures: `filled` (messages that the full buffer refused before there was a filter), `more` (sent after that), and
    of those `by_filter` and `by_buffer`.
    """
    names = _names(session)
    with (
        Books(1, [names["client"], names["server"]]) as books,
        Scene(names, 1) as scene,
        contextlib.ExitStack() as stack,
    ):
        provoke.PROVOKED["receive-buffer"](scene, stack, books)
        scene.reads_at_last = False
        scene.run(messages)
        before = {drop.place: drop.count for drop in books.drops()}
        provoke.PROVOKED["filter"](scene, stack, books)
        sent_before = scene.tally.sent
        scene.run(messages)
        more = scene.tally.sent - sent_before
        after = {drop.place: drop.count for drop in books.drops()}
        by = {place: after.get(place, 0) - before.get(place, 0) for place in ("filter", "receive-buffer")}
    figures: dict[str, float | int | bool | str | None] = {
        "filled": before.get("receive-buffer", 0),
        "more": more,
        "by_filter": by["filter"],
        "by_buffer": by["receive-buffer"],
    }
    rows = [("refused by the filter", float(by["filter"])), ("refused by the full buffer", float(by["receive-buffer"]))]
    return Measurement(figures, Bars(rows, f"of {more} messages to a socket whose buffer was full", [0, 3]))


def _names(session: Session) -> Names:
    spaces = session.wire.spaces
    if None in spaces.values():
        raise UsageError("losses are provoked between two namespaces", remedy='topology = "netns"')
    return {role: space for role, space in spaces.items() if space is not None}
