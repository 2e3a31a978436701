"""Many hosts at the same time: every message accounted for, whoever dies named at once, the others' figures kept."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from many_hosts import bridged_namespaces

from hwrx.bench.inventory import load_bench
from hwrx.campaign import measuring
from hwrx.cli import main
from hwrx.control.environment import Host
from hwrx.control.messages import Done, Setting
from hwrx.control.peers import Peer, ProcessChannel
from hwrx.errors import PeerError, TrialError, UsageError
from hwrx.host import tools
from hwrx.runs import experiment, fleet, reading, traffic
from hwrx.runs.hosts import End, HostsBed
from hwrx.runs.schedule import Link
from hwrx.runs.testbed import Wanted

NAMED_WITHIN = 2.0  # seconds from an end's death until it is named


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with bridged_namespaces(9, tmp_path_factory.mktemp("bench")) as file:
        yield file


def hosts_of(bench: Path, *names: str) -> tuple[Host, ...]:
    return tuple(each.host for each in load_bench(bench).find_hosts(names))


def measured(bench: Path, folder: Path, text: str) -> list[dict[str, Any]]:
    """Run an experiment, and return its trials with their flows."""
    asked = experiment.parse_experiment(f'topology = "hosts"\nrepeats = 1\n{text}', source="test")
    wanted = Wanted(hosts=hosts_of(bench, *traffic.hosts_of(asked)))
    layout = measuring.settle_plan(asked, wanted, lambda stage, words: None)
    outcome, path = measuring.measure_plan(layout, wanted, folder)
    assert outcome.failed == []
    rows = reading.load_run(path).rows
    for row in rows:
        row["by_flow"] = json.loads(row["by_flow"])
    return rows


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_every_message_of_eight_that_send_to_one_is_accounted_for(bench: Path, tmp_path: Path, path: str) -> None:
    rows = measured(
        bench,
        tmp_path,
        f'paths = ["{path}"]\npatterns = ["pingpong", "stream"]\nclients = ["h[1-8]"]\nservers = ["h9"]\n'
        "[setting]\nmessages = 400\ncheck_every = 1\n[pattern.stream]\nmessages = 3000\nbatch = 64\n",
    )
    assert len(rows) == 2
    for row in rows:
        flows = row["by_flow"]
        assert {(flow["client"], flow["server"]) for flow in flows} == {(f"h{k}", "h9") for k in range(1, 9)}
        sent = row["messages"] + row["warmup"] + row["cooldown"]
        for flow in flows:
            assert flow["posted"] == flow["expected"] == flow["delivered"] + flow["lost"] == sent
            assert flow.get("lost_at_socket", 0) <= flow["lost"] or row["pattern"] == "pingpong"
            assert flow["corrupt"] == 0
        for name in ("posted", "expected", "delivered", "lost"):
            assert row[name] == sum(flow[name] for flow in flows)
        assert row["flow_count"] == row["start_senders"] == 8
        assert row["start_within_ns"] > row["start_longest_round_trip_ns"] > 0


def test_each_flow_of_a_trial_that_goes_on_for_a_time_is_held_against_what_was_sent(
    bench: Path, tmp_path: Path
) -> None:
    """There is memory for a thousand times as many messages as the time is enough for."""
    rows = measured(
        bench,
        tmp_path,
        'paths = ["udp"]\npatterns = ["pingpong", "stream"]\nclients = ["h[1-2]"]\nservers = ["h9"]\n'
        "[setting]\nmessages = 400_000\nduration = 0.2\n",
    )
    assert {row["pattern"] for row in rows} == {"pingpong", "stream"}
    for row in rows:
        assert row["messages"] < 400_000
        assert len(row["by_flow"]) == 2
        for flow in row["by_flow"]:
            assert flow["posted"] == flow["expected"] == flow["delivered"] + flow["lost"] < 400_000
        for name in ("posted", "expected", "delivered", "lost"):
            assert row[name] == sum(flow[name] for flow in row["by_flow"])


def test_what_is_lost_on_the_way_is_told_by_sender(needs: Callable[..., None], bench: Path, tmp_path: Path) -> None:
    """Each seventh packet of one sender is thrown away by its own device: the others lose nothing."""
    needs("nft")
    rules = (
        "table netdev t { chain c { type filter hook egress device eth0 priority 0; "
        "udp dport > 0 numgen inc mod 7 == 3 drop; }; }"
    )
    (host,) = hosts_of(bench, "h2")
    inside = ["ip", "netns", "exec", host.reach.removeprefix("netns:")]
    tools.run_tool(*inside, "nft", rules)
    try:
        (row,) = measured(
            bench,
            tmp_path,
            'paths = ["udp"]\npatterns = ["stream"]\nclients = ["h[1-4]"]\nservers = ["h9"]\n'
            "[setting]\nmessages = 2000\nlimit = 3.0\npatience = 0.05\n",
        )
    finally:
        tools.run_tool(*inside, "nft", "delete table netdev t")
    lost = {flow["client"]: flow["lost"] for flow in row["by_flow"]}
    assert row["lost"] == lost["h2"] > 100
    assert {client for client, count in lost.items() if count} == {"h2"}
    assert all(flow["lost_at_socket"] == 0 for flow in row["by_flow"])


def test_what_a_device_drops_is_told_of_its_host_and_of_no_other(bench: Path, tmp_path: Path) -> None:
    """A veth takes no packet that is longer than its own MTU, and counts it (net/core/dev.c, is_skb_forwardable)."""
    (host,) = hosts_of(bench, "h3")
    inside = ["ip", "-n", host.reach.removeprefix("netns:"), "link", "set", "eth0", "mtu"]
    tools.run_tool(*inside, "1000")
    setting = Setting(path="udp", pattern="stream", size=1400, flows="h[1-2]>>h[3-4]", messages=200, limit=3.0)
    try:
        with fleet.Fleet(HostsBed(hosts_of(bench, "h[1-4]"))) as agents:
            found = agents.measure(0, setting)
            (told,) = found.between["by_host"]
            assert agents.measure(1, Setting(path="udp", flows="h[1-2]>>h[3-4]", messages=20)).between["by_host"] == []
    finally:
        tools.run_tool(*inside, "1500")
    lost = {flow["server"]: flow["lost"] for flow in found.between["by_flow"]}
    assert lost == {"h3": 316, "h4": 0}
    # the first ones may have waited for the host's hardware address, in a queue that holds less than a hundred
    assert told["host"] == "h3" and told["rx_dropped"] > 200


@pytest.mark.parametrize(
    ("kind", "flows"),
    [
        ("pairs", ["h1>h2", "h1>h3", "h2>h1", "h2>h3", "h3>h1", "h3>h2"]),
        ("all-to-all", ["h[1-3]>h[1-3]"]),
        ("bidirectional", ["h2<>h1", "h3<>h1", "h3<>h2"]),
    ],
)
def test_each_traffic_is_measured_as_what_it_says(bench: Path, tmp_path: Path, kind: str, flows: list[str]) -> None:
    rows = measured(
        bench,
        tmp_path,
        f'paths = ["udp"]\nclients = ["h[1-3]"]\ntraffic = "{kind}"\n[setting]\nmessages = 50\nwarmup = 5\n',
    )
    assert sorted(row["flows"] for row in rows) == sorted(flows)
    assert {row["flow_count"] for row in rows} == {{"pairs": 1, "all-to-all": 6, "bidirectional": 2}[kind]}
    assert all(flow["delivered"] == 71 for row in rows for flow in row["by_flow"])


def test_the_account_holds_the_connections_of_every_flow(bench: Path, tmp_path: Path) -> None:
    text = 'paths = ["udp"]\nclients = ["h[1-2]"]\nservers = ["h9"]\n[setting]\nmessages = 50\nconnections = 3\n'
    (row,) = measured(bench, tmp_path, text + "patience = 20.0\n")
    (folder,) = {entry.resolve() for entry in tmp_path.iterdir()}  # `latest` is a link
    each = reading.load_run(folder).table("connections")
    assert each is not None
    assert each["connection"].to_pylist() == list(range(6))
    sent = each["sent"].to_pylist()
    assert sent == each["received"].to_pylist() == each["answered"].to_pylist()
    assert sum(sent[:3]) == sum(sent[3:]) == row["posted"] // 2


class Told:
    """What a run says of ends that are gone, with the moment."""

    def __init__(self) -> None:
        self.words: list[tuple[float, str]] = []

    def __call__(self, words: str) -> None:
        self.words.append((time.monotonic(), words))


def killed_in_a_trial(agents: fleet.Fleet, victim: tuple[str, str, int], setting: Setting, told: Told) -> float:
    """Kill an agent once the trial runs; return when."""
    agents.heed(told)
    moments: list[float] = []

    def kill() -> None:
        time.sleep(0.5)
        channel = agents._agents[victim]._channel  # type: ignore[index]
        assert isinstance(channel, ProcessChannel)
        moments.append(time.monotonic())
        os.kill(channel.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    agents.measure(0, setting)  # all agents are there
    killer.start()
    try:
        agents.found = agents.measure(1, setting_for_long(setting))  # type: ignore[attr-defined]
    finally:
        killer.join()
    return moments[0]


def setting_for_long(setting: Setting) -> Setting:
    return Setting(path=setting.path, flows=setting.flows, messages=20_000, limit=20.0)


@pytest.mark.parametrize(
    ("path", "victim"), [("udp", ("client", "h3", 0)), ("tcp", ("server", "h9", 4))], ids=["a sender", "a receiver"]
)
def test_an_end_that_is_killed_is_named_at_once_and_the_others_figures_are_kept(
    bench: Path, path: str, victim: tuple[str, str, int]
) -> None:
    bed = HostsBed(hosts_of(bench, "h[1-9]"))
    told = Told()
    with fleet.Fleet(bed) as agents:
        setting = Setting(path=path, flows="h[1-8]>h9", messages=20)
        moment = killed_in_a_trial(agents, victim, setting, told)
        found = agents.found  # type: ignore[attr-defined]
        when, words = told.words[0]
        assert when - moment < NAMED_WITHIN
        assert victim[1] in words and "killed by SIGKILL" in words
        flows = {flow["client"]: flow for flow in found.between["by_flow"]}
        (gone,) = [flow for flow in flows.values() if "gone" in flow]
        assert gone["client"] == ("h3" if victim[0] == "client" else "h5")
        whole = [flow for flow in flows.values() if flow is not gone]
        assert len(whole) == found.between["flow_count"] == 7
        assert all(flow["posted"] == flow["delivered"] + flow["lost"] == 20_116 for flow in whole)
        assert len(found.ns) == sum(flow["delivered"] - 116 for flow in whole) or path == "udp"
        assert found.lost[-1] == "the figures are of 7 of 8 flows"
        # another one stands in its place in the next trial
        again = agents.measure(2, setting)
        assert again.between["flow_count"] == 8 and again.lost == []


def test_an_end_that_died_between_two_trials_is_started_anew(bench: Path) -> None:
    with fleet.Fleet(HostsBed(hosts_of(bench, "h1", "h2"))) as agents:
        setting = Setting(path="udp", flows="h1>h2", messages=20)
        agents.measure(0, setting)
        channel = agents._agents["client", "h1", 0]._channel
        assert isinstance(channel, ProcessChannel)
        os.kill(channel.process.pid, signal.SIGKILL)
        channel.process.wait(timeout=60)
        assert agents.measure(1, setting).between["flow_count"] == 1


def test_an_end_that_dies_while_flows_are_set_up_is_left_out_and_the_others_are_measured(bench: Path) -> None:
    told = Told()
    with fleet.Fleet(HostsBed(hosts_of(bench, "h[1-3]"))) as agents:
        agents.heed(told)
        setting = Setting(path="udp", flows="h[1-2]>h3", messages=20)
        found = agents._links(setting)
        channel = agents._agents["client", "h2", 0]._channel
        assert isinstance(channel, ProcessChannel)
        os.kill(channel.process.pid, signal.SIGKILL)
        channel.process.wait(timeout=60)
        agents._links = lambda asked: found  # type: ignore[method-assign]
        measured = agents.measure(0, setting)
        assert measured.between["flow_count"] == 1
        assert "gone" not in measured.between["by_flow"][0]
        assert "h2 (client) is gone" in measured.between["by_flow"][1]["gone"]
        assert "h2 (client) is gone" in told.words[0][1]
        assert measured.lost[-1] == "the figures are of 1 of 2 flows"
        del agents._links  # type: ignore[method-assign]
        assert agents.measure(1, setting).between["flow_count"] == 2


def killed(agents: fleet.Fleet, victim: End) -> None:
    channel = agents._agents[victim]._channel
    assert isinstance(channel, ProcessChannel)
    os.kill(channel.process.pid, signal.SIGKILL)
    channel.process.wait(timeout=60)


@pytest.mark.parametrize("victim", [("client", "h2", 0), ("server", "h3", 1)], ids=["a sender", "a receiver"])
@pytest.mark.parametrize("moment", ["ready", "told to begin", "done", "measured"])
def test_an_end_that_dies_at_any_moment_of_a_trial_ends_its_own_flow_alone(
    bench: Path, monkeypatch: pytest.MonkeyPatch, moment: str, victim: End
) -> None:
    told = Told()
    with fleet.Fleet(HostsBed(hosts_of(bench, "h[1-3]"))) as agents:
        agents.heed(told)
        setting = Setting(path="udp", pattern="stream", flows="h[1-2]>h3", messages=20)

        def kill_at(now: str) -> None:
            if now == moment:
                killed(agents, victim)

        def round_trip(peer: Peer) -> int:
            way = original(peer)
            if peer is agents._agents["client", "h2", 0]:
                kill_at("told to begin")
            return way

        def all_done(links: Sequence[Link], asked: Setting) -> dict[Peer, Done]:
            done = fleet.Fleet._all_done(agents, links, asked)
            kill_at("done")
            return done

        original = fleet._round_trip
        monkeypatch.setattr(fleet, "_round_trip", round_trip)
        monkeypatch.setattr(agents, "_all_done", all_done)
        found = agents.measure(
            0, setting, before=lambda peers: kill_at("ready"), look=lambda peers: kill_at("measured")
        )
        monkeypatch.undo()
        assert f"{victim[1]} ({victim[0]}" in told.words[0][1] and "killed by SIGKILL" in told.words[0][1]
        flows = {flow["client"]: flow for flow in found.between["by_flow"]}
        assert flows["h1"]["posted"] == flows["h1"]["delivered"] + flows["h1"]["lost"] == 136
        if moment == "measured":
            assert found.lost == [] and found.between["flow_count"] == 2
        else:
            assert found.lost[-1] == "the figures are of 1 of 2 flows" and found.between["flow_count"] == 1
            assert "killed by SIGKILL" in flows["h2"]["gone"]
        again = agents.measure(1, setting)
        assert again.between["flow_count"] == 2 and again.lost == []


def test_a_host_that_cannot_be_reached_is_named_and_nothing_is_left(bench: Path) -> None:
    hosts = (*hosts_of(bench, "h1"), Host(name="h2", reach="netns:hwrx-no-such", address="198.18.80.2"))
    with fleet.Fleet(HostsBed(hosts)) as agents, pytest.raises(PeerError, match=r"h2 \(server\) is gone") as caught:
        agents.measure(0, Setting(path="udp", flows="h1>h2", messages=20))
    assert "ip netns list" in caught.value.remedy


def vanishing_host(folder: Path, name: str, times: int) -> Host:
    """Return a host here that can be reached so many times, and then no more."""
    script = folder / "reach"
    script.write_text(
        f'echo >> {folder}/count\n[ "$(wc -l < {folder}/count)" -le {times} ] || {{ echo no route >&2; exit 255; }}\n'
        'exec "$@"\n'
    )
    return Host(name=name, reach=f"sh {script} {{agent}}", address="127.0.0.1")


@pytest.mark.parametrize("renewed", [False, True], ids=["its agent died", "the agents are new"])
def test_a_host_that_can_no_longer_be_reached_is_left_out_and_the_others_go_on(tmp_path: Path, renewed: bool) -> None:
    here = [Host(name=name, reach="local", address="127.0.0.1") for name in ("h1", "h3")]
    bed, told = HostsBed([*here, vanishing_host(tmp_path, "h2", 1)]), Told()
    with fleet.Fleet(bed) as agents:
        agents.heed(told)
        setting = Setting(path="udp", flows="h[1-2]>h3", messages=20)
        assert agents.measure(0, setting).lost == []
        if renewed:
            agents.renew()
        else:
            killed(agents, ("client", "h2", 0))
        for number in (1, 2):
            found = agents.measure(number, setting)
            whole, gone = found.between["by_flow"]
            assert whole["client"] == "h1" and whole["posted"] == whole["delivered"] + whole["lost"]
            assert gone["client"] == "h2" and "no route" in gone["gone"]
            assert found.lost[-1] == "the figures are of 1 of 2 flows" and "h2 (client) is gone" in found.lost[0]
            assert "h2 (client) is gone" in told.words[number - 1][1]
        with pytest.raises(TrialError, match=r"no flow has both its ends: peer h2 \(client\) is gone"):
            agents.measure(3, Setting(path="udp", flows="h2>h3", messages=20))
        assert agents.measure(4, Setting(path="udp", flows="h1>h3", messages=20)).lost == []
    # what is measured of a path before the trials is measured with all
    with (
        fleet.open_agents(bed, needs_all=True) as all_of_them,
        pytest.raises(PeerError, match=r"h2 \(client\) is gone"),
    ):
        all_of_them.measure(0, setting)


def test_two_hosts_of_the_inventory_are_a_client_and_a_server(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--paths", "udp", "--messages", "50", "--repeats", "1", "--runs", str(tmp_path), "--json"]
    assert main([*words, "--bench", str(bench), "--client", "h1", "--server", "h2"]) == 0
    run = reading.load_run(tmp_path / "latest")
    assert run.manifest["wire"] == "h1 to h2, hosts of the inventory"
    assert run.manifest["topology"] == "hosts"
    assert run.rows[0]["delivered"] == 50 + 116
    # one end is here, which no route leads to
    capsys.readouterr()
    assert main([*words, "--bench", str(bench), "--client", "h1", "--server", "h10"]) == 2
    assert "there is no 'h10'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--client", "h1", "--server", "h2", "--peer", "local"], "the ends are hosts of the inventory"),
        (["--clients", "h[1-2]", "--servers", "h3", "--trace"], "trace: it is of two ends on one kernel"),
        (["--clients", "h[1-2]"], "servers: an incast needs a host that receives"),
        (["--clients", "h1", "--servers", "h1"], "none of them sends to another host"),
        (["--clients", "h[1-", "--servers", "h1"], "is not a set of hosts"),
        (["--servers", "h1"], "servers: it needs hosts that send"),
        (["--clients", "h[1-2]", "--servers", "h3", "--cpu", "1"], "each host has CPUs of its own"),
        (["--clients", "h[1-2]", "--servers", "h3", "--topology", "netns"], "the topology is 'netns'"),
    ],
)
def test_what_hosts_cannot_do_is_refused(
    bench: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--paths", "udp", "--dry-run", "--bench", str(bench), *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and "remedy: " in printed


def test_a_host_without_address_and_device_is_refused(bench: Path) -> None:
    with pytest.raises(UsageError, match="neither an address nor a verbs device"):
        HostsBed([Host(name="h1", reach="local")]).place_of(("client", "h1", 0))
