"""Our own queue pair over the kernel's packet ring, between two network namespaces: no NIC of ours, so it is copied."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hwrx.control.messages import Connect, Done, Prepare, Prepared, Ready, Release, Released, Role, Setting, Start
from hwrx.control.peers import Peer, wait_for_replies
from hwrx.errors import UsageError
from hwrx.wires import topology

MESSAGES = 200
OTHER: dict[Role, Role] = {"client": "server", "server": "client"}


class Shared:
    """Two agents on a veth pair."""

    def __init__(self, made: topology.Made) -> None:
        self.places = made.places
        self.peers = {role: Peer.start(made.peers[role], role) for role in OTHER}

    def prepare(self, setting: Setting) -> dict[Role, Prepared]:
        return {
            role: peer.ask(
                Prepare(trial=1, role=role, setting=setting, here=self.places[role], there=self.places[OTHER[role]]),
                Prepared,
            )
            for role, peer in self.peers.items()
        }

    def run(self, setting: Setting) -> dict[Role, Done]:
        said = self.prepare(setting)
        for role, peer in self.peers.items():
            peer.send(Connect(said[OTHER[role]].remote))
        wait_for_replies(dict.fromkeys(self.peers.values(), Ready), 30)
        for role in ("server", "client"):
            self.peers[role].send(Start())  # type: ignore[index]
        done = wait_for_replies(dict.fromkeys(self.peers.values(), Done), 60)
        found = {role: done[peer] for role, peer in self.peers.items()}
        for peer in self.peers.values():
            peer.ask(Release(), Released)
        return found


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with topology.netns() as made:
        agents = Shared(made)
        yield agents
        for peer in agents.peers.values():
            peer.close()


@pytest.mark.parametrize("size", [64, 5000])
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["roce-send", "roce-write", "roce-write-imm", "roce-read"])
def test_every_verb_over_a_ring_that_the_kernel_fills(shared: Shared, path: str, pattern: str, size: int) -> None:
    setting = Setting(
        path=path, pattern=pattern, size=size, messages=MESSAGES, warmup=0, cooldown=0, window=16, check_every=1,
        limit=20.0, patience=5.0,
    )  # fmt: skip
    done = shared.run(setting)
    assert done["client"].ended == "complete", (done["client"].error, done["server"].error)
    seen = done["server" if pattern == "stream" and path in ("roce-send", "roce-write-imm") else "client"].tally
    assert (seen["delivered"], seen["corrupt"], seen["lost"]) == (MESSAGES, 0, 0)
    receiver = done["client" if path == "roce-read" else "server"]
    # the kernel into its ring; what is in one packet is delivered there
    assert receiver.tally["cpu_copied_bytes"] >= MESSAGES * size
    in_frames = path == "roce-send" and size == 64
    assert (receiver.tally.get("roce_in_frames", 0) > 0) == in_frames
    assert (receiver.tally.get("roce_copied", 0) > 0) != in_frames


def test_an_mtu_that_the_device_does_not_have_is_refused(shared: Shared) -> None:
    with pytest.raises(UsageError, match=r"packets of 4096 bytes do not fit hwrx\d, whose MTU is 1500"):
        shared.prepare(Setting(path="roce-send", mtu=4096))
