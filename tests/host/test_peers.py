"""Peers: real agent processes that die, fall silent or speak something else."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwrx.control.environment import Host, parse_environment
from hwrx.control.messages import (
    Connect,
    Described,
    Done,
    Hello,
    Prepare,
    Prepared,
    Ready,
    Release,
    Released,
    Setting,
    Start,
    frame_message,
)
from hwrx.control.peers import Peer, ProcessChannel, wait_for_replies
from hwrx.control.places import Place
from hwrx.errors import PeerError, UsageError
from hwrx.runs.fleet import Fleet
from hwrx.runs.hosts import HostsBed

FD_SETSIZE = 1024  # descriptors that select(2) knows
LIMIT = 60.0  # seconds, against hanging


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer.start("local", "client") as peer:
        yield peer


def process_of(peer: Peer) -> ProcessChannel:
    channel = peer._channel
    assert isinstance(channel, ProcessChannel)
    return channel


def wait_for_loop(pid: int) -> None:
    """Wait until an agent's main thread sleeps in a loop, for a message; before, it sleeps for a request (a futex)."""
    deadline = time.monotonic() + LIMIT
    while (where := Path(f"/proc/{pid}/wchan").read_text()) in ("", "0") or "futex" in where:
        assert time.monotonic() < deadline, where
        time.sleep(0.01)


def speaking(program: str) -> Peer:
    """A peer behind whose pipe something else than an agent runs."""
    return Peer(ProcessChannel([sys.executable, "-c", program], "odd"), "odd")


def test_an_agent_that_is_killed_is_named_with_its_signal(peer: Peer) -> None:
    os.kill(process_of(peer).process.pid, signal.SIGKILL)
    with pytest.raises(PeerError, match=r"peer client is gone: killed by SIGKILL"):
        peer.ask(Release(), Released)


def test_an_agent_ends_when_its_controller_goes_away(peer: Peer) -> None:
    pid = process_of(peer).process.pid
    peer.close()
    assert not Path(f"/proc/{pid}").exists()


def test_an_agent_in_the_middle_of_a_loop_dies_with_its_pipe() -> None:
    server = Peer.start("local", "server")
    channel = process_of(server)
    setting = Setting(path="udp", limit=600)
    server.ask(Prepare(trial=1, role="server", setting=setting, here=Place(), there=Place()), Prepared)
    server.send(Start())  # it waits for a first message that never comes
    wait_for_loop(channel.process.pid)
    channel._socket.close()
    assert channel.process.wait(timeout=LIMIT) == 3
    channel._errors.close()


GIVES_BACK_SLOWLY = """
import pathlib, sys, time
from hwrx import paths
from hwrx.paths import agent

class Endpoint:
    def describe(self): return {}
    def chosen(self): return {}
    def interrupt(self): return False
    def close(self): time.sleep(0.5); pathlib.Path(sys.argv[1], "closed").touch()

def give_back():
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "given back").touch()

paths.open_endpoint = lambda prepare: (time.sleep(float(sys.argv[2])), Endpoint())[1]
paths.release_held = give_back
agent.main()
"""


@pytest.mark.parametrize(
    ("asked", "slow"), [(None, 0), (Release(), 0), ("prepare", 0.5)], ids=["quit", "release", "prepare"]
)
def test_an_agent_whose_pipe_ends_gives_back_what_it_holds_first(
    asked: Release | str | None, slow: float, tmp_path: Path
) -> None:
    """It takes seconds to give a NIC back, and the pipe ends as soon as the agent was told to end."""
    channel = ProcessChannel([sys.executable, "-c", GIVES_BACK_SLOWLY, str(tmp_path), str(slow)], "slow")
    peer = Peer(channel, "slow")
    prepare = Prepare(trial=1, role="server", setting=Setting(path="udp"), here=Place(), there=Place(), hold=True)
    if asked == "prepare":
        peer.send(prepare)
        time.sleep(0.3)  # it is preparing
    else:
        peer.ask(prepare, Prepared)
    if isinstance(asked, Release):
        peer.send(asked)
        time.sleep(0.2)  # it is giving back
    peer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"closed", "given back"}
    assert channel.process.returncode == 0


def test_a_start_that_was_under_way_when_the_pipe_ended_is_not_begun() -> None:
    server = Peer.start("local", "server")
    channel = process_of(server)
    prepare = Prepare(trial=1, role="server", setting=Setting(path="udp", limit=600), here=Place(), there=Place())
    for message in (prepare, Start()):
        server.send(message)
    channel._socket.close()
    assert channel.process.wait(timeout=60) in (0, 3)
    channel._errors.close()


def test_a_silent_peer_ends_within_the_limit() -> None:
    odd = speaking("import time; time.sleep(600)")
    with pytest.raises(PeerError, match="no answer from odd"):
        odd.ask(Hello(), Hello, limit=0.3)
    odd.kill()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('Welcome to this host, you have mail')", "no frame of hwrx"),
        ("import sys; sys.stdout.buffer.write(bytes([255]*4))", "announces 4294967295 bytes"),
        ("import sys; sys.stdout.buffer.write(bytes([0,0,0,9]) + b'{}')", "in the middle of a message"),
        ("import sys; sys.stdout.buffer.write(bytes([0,0,0,2]) + b'{}')", "holds no message of hwrx"),
        ("raise SystemExit('cannot import hwrx')", "exit code 1\n    cannot import hwrx"),
    ],
)
def test_something_else_than_an_agent_is_named(program: str, words: str) -> None:
    odd = speaking(program)
    with pytest.raises(PeerError) as caught:
        odd.ask(Hello(), Hello, limit=20)
    odd.kill()
    assert words in str(caught.value)
    assert "odd" in str(caught.value)


def test_another_version_of_the_protocol_is_refused() -> None:
    reply = frame_message(Hello(version=99, hwrx="9.9.9"))
    program = f"import sys; sys.stdout.buffer.write({reply!r})"
    with pytest.raises(PeerError, match="version 99"):
        Peer.greet(ProcessChannel([sys.executable, "-c", program], "odd"), "odd")


def test_garbage_sent_to_an_agent_is_answered_and_ends_it(peer: Peer) -> None:
    peer._channel.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(PeerError, match="no frame of hwrx"):
        wait_for_replies({peer: Ready}, 20)


def test_what_an_agent_cannot_do_comes_back_as_the_same_error(peer: Peer) -> None:
    setting = Setting(path="carrier-pigeon")
    with pytest.raises(UsageError, match="there is no path 'carrier-pigeon'") as caught:
        peer.ask(Prepare(trial=1, role="client", setting=setting, here=Place(), there=Place()), Prepared)
    assert "udp" in caught.value.remedy
    with pytest.raises(PeerError, match="before anything was prepared"):
        peer.ask(Start(), Done)
    assert peer.ask(Release(), Released) == Released()  # and it lives on


def test_a_reply_of_the_wrong_kind_is_named(peer: Peer) -> None:
    with pytest.raises(PeerError, match="answered with Released instead of Described"):
        peer.ask(Release(), Described)


def test_a_trial_that_was_broken_off_leaves_no_reply_for_the_next(peer: Peer) -> None:
    prepare = Prepare(trial=1, role="client", setting=Setting(path="udp"), here=Place(), there=Place())
    remote = peer.ask(prepare, Prepared).remote
    peer.send(Connect(remote))  # its Ready is never read: the other end has failed
    peer.send(Release())
    peer.settle(Released, 20)
    peer.ask(prepare, Prepared)


@pytest.mark.parametrize("spec", ["", "carrier:pigeon", "ssh:", "netns:", "ssh:-oProxyCommand=x"])
def test_a_peer_that_cannot_be_is_refused_in_words(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_environment(spec)
    assert "write" in caught.value.remedy


def test_a_command_template_starts_an_agent() -> None:
    with Peer.start("env HWRX_SOMETHING=1 {agent}", "templated") as peer:
        assert peer.ask(Release(), Released) == Released()


def test_a_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(PeerError, match="there is no command `no-such-launcher`"):
        Peer.start("no-such-launcher {agent}", "x")


def test_the_peak_of_an_agent_is_not_that_of_the_process_that_started_it() -> None:
    ballast = b"x" * (300 << 20)
    words = "from hwrx.paths.agent import peak_resident; print(peak_resident())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert 1 << 20 < int(done.stdout) < len(ballast)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Have more files open than select(2) knows numbers of, so that each one that follows has a higher number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # root may raise the hard limit as well, and these tests need root anyway
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * FD_SETSIZE), max(hard, 2 * FD_SETSIZE)))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while opened[-1] < FD_SETSIZE:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_more_agents_than_select_knows_descriptors_of_are_heard() -> None:
    """Two agents are enough, if other files have all lower numbers; their death is noticed between trials, too."""
    hosts = [Host(name=name, reach="local", address="127.0.0.1") for name in ("a", "b")]
    with Fleet(HostsBed(hosts)) as agents:
        setting = Setting(path="udp", flows="a>b", messages=20)
        assert agents.measure(0, setting).between["flow_count"] == 1
        process = process_of(agents._agents["client", "a", 0]).process
        assert min(peer.fileno() for peer in agents._agents.values()) >= FD_SETSIZE
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=LIMIT)
        assert agents.measure(1, setting).between["flow_count"] == 1
