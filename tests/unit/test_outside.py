"""Words and bytes from outside: shown without power over the terminal, read without an error that nobody expects."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrx.control import messages, places
from hwrx.control.messages import LARGEST_WORDS, MOST_WAITING, Done, Failed, Frames, Hello, Moved, frame_message
from hwrx.control.peers import Peer, ProcessChannel
from hwrx.errors import GuestError, PathError, PeerError, UsageError
from hwrx.host.outside import LONGEST_NAME, clean_name, clean_text, describe_status, name_signal
from hwrx.lab import guest, mux
from hwrx.lab.mux import Kind, pack_frame
from hwrx.lab.port import Port

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENT = [sys.executable, "-P", "-m", "hwrx", "agent"]
LIMIT = 60  # seconds, against hanging
NOT_UTF8 = b'{"type":"connect","remote":{"a":"\xff\xfe"}}'
DEEP = b'{"type":"connect","remote":{"a":' + b"[" * 1000 + b"]" * 1000 + b"}}"


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


# --- words -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None)) | st.binary(max_size=200))
def test_nothing_that_moves_a_cursor_or_turns_a_line_is_left(words: str | bytes) -> None:
    for kept, shown in (("\n\t", clean_text(words)), ("", clean_name(words))):
        left = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
        assert left <= set(kept)
        shown.encode("utf-8")


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=LONGEST_NAME))
def test_words_that_do_no_harm_are_shown_as_they_are(words: str) -> None:
    assert clean_name(words) == words
    assert clean_text(f"{words}\n\t{words}") == f"{words}\n\t{words}"


def test_what_was_there_can_be_read_from_its_escapes() -> None:
    assert clean_text("\x1b[31mred\x1b[0m \x9b \u202e") == r"\x1b[31mred\x1b[0m \x9b \u202e"
    assert clean_text(b"\xff\xfeb\x07") == r"\xff\xfeb\x07"
    assert clean_name(os.fsdecode(b"caf\xe9\n")) == r"caf\udce9\n"
    assert clean_name("x" * 1000) == "x" * LONGEST_NAME + "… (800 characters more)"


def test_each_signal_has_a_name() -> None:
    assert describe_status(-9) == "killed by SIGKILL"
    assert describe_status(3) == "exit code 3"
    assert name_signal(signal.SIGRTMIN + 6) == "SIGRTMIN+6"
    assert len({name_signal(number) for number in range(1, 65)}) == 64


# --- control pipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [NOT_UTF8, DEEP, b'{"type":"\xff"}', b"[" * 5000, b"", b"{}"])
@pytest.mark.parametrize("side", ["to agent", "from agent"])
def test_what_cannot_be_decoded_is_no_message(body: bytes, side: str) -> None:
    with pytest.raises(PeerError, match="holds no message of hwrx"):
        Frames(side).feed(framed(body))  # type: ignore[arg-type]


def test_only_bytes_may_fill_a_whole_frame() -> None:
    lists = b'{"type":"prepared","chosen":{},"remote":{"a":[' + b"[]," * (LARGEST_WORDS // 3) + b"0]}}"
    with pytest.raises(PeerError, match="holds no message"):
        Frames("from agent").feed(framed(lists))
    with pytest.raises(PeerError, match=f"at most {LARGEST_WORDS} are allowed"):
        Frames("to agent").feed(framed(lists)[:8])
    with pytest.raises(PeerError, match=f"does not fit a frame of {LARGEST_WORDS}"):
        frame_message(Done(tally={}, ended="error", error="x" * LARGEST_WORDS))


@pytest.mark.parametrize("body", [NOT_UTF8, DEEP])
def test_an_agent_that_reads_no_message_says_so_and_ends_though_its_pipe_stays_open(body: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(AGENT, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as agent:
        ours.settimeout(LIMIT)
        ours.sendall(frame_message(Hello()))
        (hello,) = Frames("from agent").feed(ours.recv(1 << 16))
        assert isinstance(hello, Hello)
        ours.sendall(framed(body))
        assert agent.wait(LIMIT) == 0
        (failed,) = Frames("from agent").feed(ours.recv(1 << 16))
    assert "holds no message of hwrx" in failed.message


def test_an_agent_keeps_few_messages_that_it_has_not_answered() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(AGENT, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as agent:
        ours.settimeout(LIMIT)
        many = frame_message(Hello()) * 100_000
        sent = 0
        with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
            theirs.close()
            ours.setblocking(True)
            ours.settimeout(5)  # nobody reads what it answers: it stands still, or has ended
            while sent < len(many):
                sent += ours.send(many[sent : sent + (1 << 16)])
        ours.settimeout(LIMIT)
        frames, said = Frames("from agent"), []
        while data := _received(ours):
            said += frames.feed(data)
        assert agent.wait(LIMIT) == 0
    assert f"more than {MOST_WAITING} messages" in said[-1].message


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except ConnectionResetError:
        return b""


def test_a_message_that_is_well_formed_and_nonsense_is_answered() -> None:
    with Peer.start("local", "agent") as peer:
        place = places.Place()
        setting = messages.Setting(path="udp")
        ask = messages.Prepare(trial=1 << 70, role="client", setting=setting, here=place, there=place)
        with pytest.raises(PathError, match="agent: "):
            peer.ask(ask, messages.Prepared)
        assert peer.ask(Hello(), Hello)


def test_a_peer_that_answers_what_nobody_asked_is_named() -> None:
    program = f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({frame_message(Moved(1))!r} * 1000)"
    channel = ProcessChannel([sys.executable, "-c", program], "chatty")
    peer = Peer(channel, "chatty")
    try:
        with pytest.raises(PeerError, match=r"peer chatty: it sent .* nothing had asked for"):
            peer.ask(Hello(), Hello, LIMIT)
    finally:
        peer.kill()


def test_a_peers_words_have_no_power_over_the_terminal() -> None:
    failed = frame_message(Failed(kind="PathError", message="\x1b[2Jgone", remedy="\x1b]0;title\x07"))
    program = f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({failed!r})"
    peer = Peer(ProcessChannel([sys.executable, "-c", program], "rude"), "rude")
    try:
        with pytest.raises(PathError) as caught:
            peer.ask(Hello(), Hello, LIMIT)
    finally:
        peer.kill()
    assert "\x1b" not in str(caught.value)
    assert r"\x1b[2Jgone" in str(caught.value)


def test_a_process_that_a_real_time_signal_ended_has_its_last_words() -> None:
    channel = ProcessChannel(["sh", "-c", "printf '\\033[1mwords' >&2; kill -40 $$"], "real-time")
    try:
        channel.process.wait(LIMIT)
        assert channel.epitaph() == "killed by SIGRTMIN+6\n    \\x1b[1mwords"
    finally:
        channel.close()


# --- a guest's port --------------------------------------------------------------------------------------------------


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(Kind.READY, b"{}"), (Kind.READY, b'"\xff'), (Kind.FAILED, b"[" * 2000), (Kind.FAILED, b"3"), (Kind.EXIT, b"\0")],
)
def test_a_guest_that_talks_nonsense_is_a_problem_at_once(kind: Kind, payload: bytes) -> None:
    ours, theirs = socket.socketpair()
    port = Port(ours)
    port.start()
    with theirs:
        theirs.sendall(pack_frame(kind, 0, payload))
        wait_for(lambda: port.problem)
        assert kind.name in port.problem or "and not how" in port.problem
        port.close()


def test_a_failure_of_a_kind_that_nobody_knows_is_a_guests() -> None:
    ours, theirs = socket.socketpair()
    port = Port(ours)
    port.start()
    with theirs:
        theirs.sendall(pack_frame(Kind.FAILED, 0, guest.encode(guest.Problem("annotations", "\x1bno"))))
        assert port.ready.wait(LIMIT)
        port.close()
    assert port.failed == guest.Problem("GuestError", "\\x1bno")


def test_a_command_that_no_frame_can_hold_is_refused_before_it_is_sent() -> None:
    ours, theirs = socket.socketpair()
    port = Port(ours)
    port.start()
    with theirs:
        with pytest.raises(UsageError, match="at most 32768 fit"):
            port.open(guest.Open(argv=["x" * 40_000]))
        assert port.problem == ""
        port.close()


def test_who_asks_and_reads_no_answer_is_cut_off() -> None:
    ours, theirs = socket.socketpair()
    side = mux.Mux(ours.fileno(), lambda frame: side.send(Kind.PONG, 0, frame.payload))
    ping = pack_frame(Kind.PING, 0, bytes(mux.LARGEST))
    with ours, theirs, pytest.raises(GuestError, match="reads no answer"):
        theirs.settimeout(LIMIT)
        for _ in range(1000):
            theirs.sendall(ping)
            side.step(1)


class Serving:
    """A supervisor of this machine's, driven from the other end of its port."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.supervisor = guest.Supervisor(self.ours.fileno())
        self.splitter = mux.Splitter()
        self.said: list[mux.Frame] = []

    def until(self, kind: Kind) -> mux.Frame:
        deadline = time.monotonic() + LIMIT
        self.theirs.setblocking(False)
        while True:
            for frame in self.said:
                if frame.kind is kind:
                    self.said.clear()
                    return frame
            assert time.monotonic() < deadline
            self.supervisor.mux.step(0.01)
            try:
                self.said += self.splitter.feed(self.theirs.recv(1 << 16))
            except BlockingIOError:
                continue


def test_a_supervisor_outlives_signals_that_do_not_exist_and_requests_that_are_none() -> None:
    serving = Serving()
    with serving.ours, serving.theirs:
        serving.theirs.sendall(pack_frame(Kind.OPEN, 1, guest.encode(guest.Open(argv=["sleep", "1000"]))))
        serving.theirs.sendall(pack_frame(Kind.KILL, 1, bytes([200])))
        for body in (b'{"argv":["\xff"]}', b"[" * 2000, b'{"argv":3}', b""):
            serving.theirs.sendall(pack_frame(Kind.OPEN, 2, body))
            assert b"request to start a process is none" in serving.until(Kind.FAILED).payload
        serving.theirs.sendall(pack_frame(Kind.PING))
        serving.until(Kind.PONG)
        serving.theirs.sendall(pack_frame(Kind.KILL, 1, bytes([9])))
        assert int.from_bytes(serving.until(Kind.EXIT).payload[:4], signed=True) == -9
        serving.supervisor.mux.close()


@pytest.mark.parametrize("character", ["\0", "\x1b", '"', "µ", "\U0001f600"])
def test_however_long_a_guests_error_is_it_can_be_read(character: str) -> None:
    serving = Serving()
    with serving.ours, serving.theirs:
        serving.supervisor.report(PathError(character * 50_000, remedy=character * 50_000))
        problem = msgspec.json.decode(serving.until(Kind.FAILED).payload, type=guest.Problem)
    assert problem.kind == "PathError"
    assert "characters more" in problem.message


# --- anything at all -------------------------------------------------------------------------------------------------


def test_bytes_that_nobody_meant_are_taken_or_refused() -> None:
    bench = [sys.executable, "-P", str(ROOT / "lab/bench/fuzz.py"), "--inputs", "120000", "--json", "--seed", "5"]
    done = subprocess.run(bench, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"to-agent", "from-agent", "frames", "port", "supervisor", "packets", "roce", "queue-pair"}
    for name, of in found.items():
        assert of["taken"] > 0
        assert of["taken"] + of.get("refused", 0) == of["inputs"] == 15000
        assert name in ("packets", "roce", "queue-pair") or of["refused"] > 0
