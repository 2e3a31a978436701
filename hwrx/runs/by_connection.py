"""Many connections of a process: what was sent, taken and answered on each, whether that adds up, and how it ran."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

Int64s = npt.NDArray[np.int64]


class ByConnection(Struct, frozen=True, kw_only=True):
    """One number for each connection, of all messages of a trial; `p50_ns` of the measured ones.

    sent: by the client. answered: of these, with an answer, late ones among them. received: by the server; None of a
    one-sided path, whose server has no part. p50_ns: half of the round trips (of WRITE: of the times until the
    completion) were shorter; NaN for a connection without any measured message.
    """

    sent: Int64s
    answered: Int64s
    received: Int64s | None
    p50_ns: npt.NDArray[np.float64]
    setup_s: float = 0.0  # that both ends took to make and to connect them

    def open_accounts(self, *, whole: bool) -> Int64s:
        """Return the connections whose account does not close.

        Whatever is sent is answered or lost, on the way there or on the way back, and nobody receives more than was
        sent. `whole`: nothing can be lost, and the trial ended well, so that each number is the same.
        """
        received = self.answered if self.received is None else self.received
        fits = (self.answered <= received) & (received <= self.sent)
        if whole:
            fits &= self.answered == self.sent
        return np.flatnonzero(~fits)

    def problems(self, *, whole: bool) -> list[str]:
        """Say which accounts do not close; empty if each does. `whole`: as of `open_accounts`."""
        found = self.open_accounts(whole=whole)
        return [f"the account of {len(found)} connections does not close: {found[:5].tolist()}"] if len(found) else []

    def facts(self) -> dict[str, float | dict[str, float]]:
        """What joins the trial's row: the smallest, the middle and the largest connection."""
        timed = self.p50_ns[~np.isnan(self.p50_ns)]
        found: dict[str, float | dict[str, float]] = {"setup_s": self.setup_s, "answered": _spread(self.answered)}
        if len(timed):
            found["p50"] = {f"{name}_ns": value for name, value in _spread(timed).items()}
        return found

    def table(self, trial: int) -> pa.Table:
        """Return the rows of the run's table `connections`."""
        count = len(self.sent)
        received = pa.nulls(count, pa.int64()) if self.received is None else pa.array(self.received)
        return pa.table(
            {
                "trial": pa.array(np.full(count, trial, np.int32)),
                "connection": pa.array(np.arange(count, dtype=np.int32)),
                "sent": pa.array(self.sent),
                "received": received,
                "answered": pa.array(self.answered),
                "unanswered": pa.array(self.sent - self.answered),
                "p50_ns": pa.array(self.p50_ns, from_pandas=True),
            }
        )


def _spread(values: Int64s | npt.NDArray[np.float64]) -> dict[str, float]:
    return {"least": float(values.min()), "median": float(np.median(values)), "most": float(values.max())}


def account_connections(
    connection: Int64s, got: Int64s, ns: Int64s, *, sent: Int64s, answered: Int64s, received: Int64s | None
) -> ByConnection:
    """Put together what both ends counted.

    :param connection: of each measured message, the connection that it went on
    :param got: numbers of those that were answered, from 0
    :param ns: how long each of these took
    :param sent, answered, received: by connection: see ByConnection
    :return: a number for each connection
    """
    on = connection[got]
    order = np.argsort(on, kind="stable")
    ends = np.searchsorted(on[order], np.arange(len(sent) + 1))
    middle = [np.median(ns[order[a:b]]) if a < b else np.nan for a, b in itertools.pairwise(ends)]
    return ByConnection(sent=sent, answered=answered, received=received, p50_ns=np.array(middle, dtype=np.float64))


def join_connections(each: Sequence[ByConnection]) -> ByConnection:
    """Put several senders' connections behind each other; those of a sender keep their order.

    :param each: at least one account, all of one setting: of either all or none the server counted what it received
    :return: as many connections as all have together
    """
    received = [one.received for one in each if one.received is not None]
    return ByConnection(
        sent=np.concatenate([one.sent for one in each]),
        answered=np.concatenate([one.answered for one in each]),
        received=np.concatenate(received) if received else None,
        p50_ns=np.concatenate([one.p50_ns for one in each]),
        setup_s=each[0].setup_s,  # they are made at the same time
    )
