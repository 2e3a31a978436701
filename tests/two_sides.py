"""Both ends of a path in this process: each end's loop in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from cython_ext.core.transport import Transport
from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from hwrx.control.messages import Prepare, Role, Setting, Wait
from hwrx.control.places import Place
from hwrx.paths import arrivals, find_path, mixes, open_endpoint

TRIAL = 7
WAITS: tuple[Wait, ...] = ("block", "epoll", "select", "busy-poll", "spin")
# what only a lossy, hostile or broken wire brings about
ODDITIES = ("lost", "duplicated", "reordered", "corrupt", "stale", "wrong_size")


def endpoint(role: Role, setting: Setting, place: Place | None = None) -> Transport:
    place = place or Place()
    return open_endpoint(Prepare(trial=TRIAL, role=role, setting=setting, here=place, there=place))


def received_by(transport: Any) -> np.ndarray:
    """What stands in a socket's buffer of received bytes, in place. `transport` is one that has such a buffer."""
    return np.frombuffer(transport.received, np.uint8)


def trial_of(setting: Setting) -> Trial:
    return Trial(
        messages=setting.messages,
        warmup=setting.warmup,
        cooldown=setting.cooldown,
        size=setting.size,
        sizes=mixes.draw_sizes(setting, 0, 0, fetched=find_path(setting.path).full_rtt) if setting.mix else None,
        trial=TRIAL,
        batch=setting.batch,
        check_every=setting.check_every,
        due=arrivals.schedule_sends(setting, 0, 0) if setting.rate else None,
        limit_ns=round(setting.limit * 1e9),
        patience_ns=round(setting.patience * 1e9),
    )


class Side(threading.Thread):
    """One end's loop; `verdict` is its status in words, `counts` what it saw."""

    def __init__(self, transport: Transport, setting: Setting, role: Role) -> None:
        super().__init__()
        self.trial = trial_of(setting)
        self.verdict = ""
        self._transport, self._setting, self._role = transport, setting, role
        self.start()

    def run(self) -> None:
        asked = self._setting
        status = loop.run(self.trial, self._transport, asked.pattern, self._role, asked.rest, asked.settle)
        self.verdict = loop.ENDED.get(status) or self._transport.explain(status)

    @property
    def counts(self) -> dict[str, int]:
        self.join(timeout=60)
        assert not self.is_alive()
        return self.trial.counts()


def both(setting: Setting, place: Place | None = None, places: Mapping[Role, Place] | None = None) -> tuple[Side, Side]:
    """Run a trial between two ends in this process, to its end; the client's side, and the server's."""
    places = places or {"client": place or Place(), "server": place or Place()}
    with (
        endpoint("client", setting, places["client"]) as client,
        endpoint("server", setting, places["server"]) as server,
    ):
        return connected(client, server, setting)


def connected(client: Transport, server: Transport, setting: Setting) -> tuple[Side, Side]:
    """Connect two ends and run a trial between them, to its end; the client's side, and the server's."""
    ours, theirs = client.describe(), server.describe()
    client.connect(theirs)
    server.connect(ours)
    sides = Side(server, setting, "server"), Side(client, setting, "client")
    for side in sides:
        side.join(timeout=120)
        assert not side.is_alive()
    return sides[1], sides[0]


def clean(counts: dict[str, int]) -> bool:
    return not any(counts[oddity] for oddity in ODDITIES) and counts["delivered"] == counts["expected"]
