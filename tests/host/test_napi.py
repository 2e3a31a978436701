"""How a device is polled, as a trial asks for it: on the ends of a veth pair, and set back behind the trial."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from hwrx.control.messages import Prepare, Prepared, Release, Released, Role, Setting
from hwrx.control.peers import Peer
from hwrx.control.places import Place
from hwrx.errors import HwrxError, MachineError, UsageError
from hwrx.host import tools
from hwrx.paths import napi
from hwrx.wires import topology
from hwrx.wires.made import Made

ASKED = {"threaded": "1", "napi_defer_hard_irqs": "3", "gro_flush_timeout": "20000"}
SETTING = Setting(path="udp", threaded_napi=True, napi_defer_hard_irqs=3, gro_flush_timeout=20_000)


class End:
    """The client's end of a wire in its namespace, and an agent there."""

    def __init__(self, made: Made) -> None:
        self.name = made.peers["client"].removeprefix("netns:")
        self.place = made.places["client"]
        self.peer = Peer.start(made.peers["client"], "client")

    def run(self, *command: str) -> str:
        return tools.run_tool("ip", "netns", "exec", self.name, *command)

    def attributes(self) -> dict[str, str]:
        return {name: self.run("cat", f"/sys/class/net/{self.place.netdev}/{name}").strip() for name in ASKED}

    def prepare(self, setting: Setting, *, sender: int = 0, role: Role = "client", place: Place | None = None) -> Any:
        place = place or self.place
        asked = Prepare(trial=1, role=role, setting=setting, here=place, there=self.place, sender=sender)
        return self.peer.ask(asked, Prepared, limit=30)


@pytest.fixture
def end() -> Iterator[End]:
    with topology.build_topology("netns") as made:
        found = End(made)
        try:
            yield found
        finally:
            found.peer.close()


def test_a_trial_has_its_device_polled_as_it_asks_and_leaves_it_as_it_was(end: End) -> None:
    end.run("ethtool", "-K", str(end.place.netdev), "gro", "on")  # with it a veth has NAPI
    before = end.attributes()
    assert before != ASKED
    prepared = end.prepare(SETTING)
    assert end.attributes() == ASKED
    assert prepared.chosen["napi"] == {name: int(value) for name, value in ASKED.items()}
    assert f"napi/{end.place.netdev}-" in tools.run_tool("ps", "-eo", "comm"), "the thread that polls"
    end.peer.ask(Release(), Released, limit=30)
    assert end.attributes() == before
    # a trial that asks for nothing changes nothing, and says nothing
    assert "napi" not in end.prepare(Setting(path="udp")).chosen


def test_the_first_of_several_senders_does_it(end: End) -> None:
    end.run("ethtool", "-K", str(end.place.netdev), "gro", "on")
    before = end.attributes()
    assert "napi" not in end.prepare(SETTING, sender=1).chosen
    assert end.attributes() == before


def test_an_agent_that_is_killed_leaves_the_device_as_it_was(end: End) -> None:
    end.run("ethtool", "-K", str(end.place.netdev), "gro", "on")
    before = end.attributes()
    end.prepare(SETTING)
    end.peer.kill()
    deadline = time.monotonic() + 60
    while end.attributes() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert end.attributes() == before


def test_a_device_without_napi_is_refused_and_left_as_it_was(end: End) -> None:
    before = end.attributes()
    with pytest.raises(MachineError, match="not polled with NAPI") as caught:
        end.prepare(SETTING)
    assert "gro on" in (caught.value.remedy or "")
    with pytest.raises(MachineError, match="not polled with NAPI"):
        end.prepare(Setting(path="udp", gro_flush_timeout=1000))
    end.peer.ask(Release(), Released, limit=30)
    assert end.attributes() == before


def test_an_end_without_a_device_is_refused(end: End) -> None:
    with pytest.raises(UsageError, match="bound to none"):
        end.prepare(SETTING, place=Place(address=end.place.address))


def test_interrupts_cannot_be_put_off_for_no_time() -> None:
    with pytest.raises(HwrxError, match="gro_flush_timeout"):
        napi.check_napi(Setting(path="udp", napi_defer_hard_irqs=3))
    napi.check_napi(SETTING)
