"""Waiting for the loops of a trial: as long as something moves, and no longer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hwrx.control import endings
from hwrx.control.endings import LeftAloneError, all_done
from hwrx.control.messages import Done, Frames, FromAgent, Hello, Look, Moved, Setting, Stop, ToAgent, frame_message
from hwrx.control.peers import Peer
from hwrx.errors import HwrxError, PeerError, SilenceError

SETTING = Setting(path="udp", limit=0.2)
Say = Callable[[FromAgent], None]
Pairing = Callable[["Line", "Line"], dict[endings.Role, Peer]]


class Line:
    """A channel to a made-up agent, which `answers` messages in a thread."""

    def __init__(self, answers: Callable[[ToAgent, Say], None]) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.heard: list[ToAgent] = []
        self._answers = answers
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.kill()
        self._thread.join(10)
        self.ours.close()
        self.theirs.close()

    def _serve(self) -> None:
        frames = Frames("to agent")
        with contextlib.suppress(OSError):  # the controller's end has been closed
            while data := self.theirs.recv(1 << 16):
                for message in frames.feed(data):
                    self._take(message)

    def _take(self, message: ToAgent) -> None:
        self.heard.append(message)
        if isinstance(message, Hello):
            self.say(Hello())
        else:
            self._answers(message, self.say)

    def say(self, message: FromAgent) -> None:
        self.theirs.sendall(frame_message(message))

    def fileno(self) -> int:
        return self.ours.fileno()

    def recv(self, most: int) -> bytes:
        return self.ours.recv(most)

    def sendall(self, data: bytes) -> None:
        self.ours.sendall(data)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.theirs.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.ours.close()

    def epitaph(self) -> str:
        return "ended"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "LOOK_EVERY", 0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is to pass, and longer than the thread of an agent that does answer waits for a CPU."""
    for name in ("GRACE", "ANSWER_WITHIN"):
        monkeypatch.setattr(endings, name, 1.5)


def done(ended: str = "complete") -> Done:
    return Done(tally={}, ended=ended)  # type: ignore[arg-type]


def grows() -> Callable[[ToAgent, Say], None]:
    count = iter(range(1_000_000))

    def answer(message: ToAgent, say: Say) -> None:
        if isinstance(message, Look):
            say(Moved(next(count)))

    return answer


def stands(message: ToAgent, say: Say) -> None:
    if isinstance(message, Look):
        say(Moved(7))


def is_mute(message: ToAgent, say: Say) -> None:
    pass


@pytest.fixture
def pair_of() -> Iterator[Pairing]:
    lines: list[Line] = []

    def greeted(server: Line, client: Line) -> dict[endings.Role, Peer]:
        lines.extend((server, client))
        return {"server": Peer.greet(server, "server"), "client": Peer.greet(client, "client")}

    yield greeted
    for line in lines:
        line.end()


def later(seconds: float, *deeds: Callable[[], None]) -> None:
    def wait() -> None:
        time.sleep(seconds)
        for deed in deeds:
            deed()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.usefixtures("impatient")
def test_a_trial_may_take_as_long_as_its_messages_move(pair_of: Pairing) -> None:
    server, client = Line(grows()), Line(grows())
    peers = pair_of(server, client)
    later(4.0, lambda: server.say(done()), lambda: client.say(done()))  # far beyond the limit and all grace
    ends = all_done([peers], SETTING)
    assert {peer.name: one.ended for peer, one in ends.items()} == {"server": "complete", "client": "complete"}
    assert any(isinstance(message, Look) for message in server.heard)
    assert not any(peer.has_reply for peer in peers.values())  # the next question gets its own answer


def test_an_end_is_told_that_the_other_has_ended(pair_of: Pairing) -> None:
    told = threading.Event()

    def waits(message: ToAgent, say: Say) -> None:
        stands(message, say)
        if isinstance(message, Stop):
            told.set()
            say(done("finished"))

    server, client = Line(waits), Line(stands)
    peers = pair_of(server, client)
    client.say(done())
    ends = all_done([peers], SETTING)
    assert told.is_set()
    assert ends[peers["server"]].ended == "finished"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ended", ["complete", "error"])
def test_one_that_waits_in_vain_is_named_with_the_end_of_the_other(pair_of: Pairing, ended: str) -> None:
    server, client = Line(stands), Line(stands)
    peers = pair_of(server, client)
    client.say(done(ended))
    with pytest.raises(LeftAloneError, match=r"client .*, and server waited in vain") as left:
        all_done([peers], SETTING)
    assert left.value.silent is peers["server"]


@pytest.mark.usefixtures("impatient")
def test_one_that_waits_but_moves_is_left_to_it(pair_of: Pairing) -> None:
    server, client = Line(grows()), Line(stands)
    peers = pair_of(server, client)
    client.say(done())
    later(4.0, lambda: server.say(done()))
    assert len(all_done([peers], SETTING)) == 2


@pytest.mark.usefixtures("impatient")
def test_an_agent_that_does_not_answer_any_more_is_named(pair_of: Pairing) -> None:
    peers = pair_of(Line(grows()), Line(is_mute))
    with pytest.raises(SilenceError, match=r"client has not answered for 1\.5 s"):
        all_done([peers], SETTING)


@pytest.mark.usefixtures("impatient")
def test_two_that_stand_still_and_do_not_end_are_an_error_of_ours(pair_of: Pairing) -> None:
    peers = pair_of(Line(stands), Line(stands))
    with pytest.raises(SilenceError, match="neither server nor client has come further"):
        all_done([peers], SETTING)


def test_an_agent_that_died_is_told_at_once(pair_of: Pairing) -> None:
    server, client = Line(grows()), Line(grows())
    peers = pair_of(server, client)
    server.kill()
    with pytest.raises(PeerError, match="server is gone"):
        all_done([peers], SETTING)


def test_an_agent_that_dies_when_it_is_done_and_was_still_asked_is_lost_and_no_other(pair_of: Pairing) -> None:
    """It is asked how far it has come while its last word is on its way."""
    server, client = Line(is_mute), Line(stands)
    peers = pair_of(server, client)

    def done_when_asked(message: ToAgent, say: Say) -> None:
        if isinstance(message, Look):
            say(done())
            server.kill()
            later(0.2, lambda: client.say(done()))

    server._answers = done_when_asked
    gone: dict[Peer, HwrxError] = {}
    ended = all_done([peers], SETTING, bereave=gone.__setitem__)
    assert list(ended) == [peers["client"]]
    assert list(gone) == [peers["server"]] and "server is gone" in str(gone[peers["server"]])
