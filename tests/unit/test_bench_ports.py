"""Ports of a host, and what the commands plan between hosts: each port by itself, all in turn or together."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from hwrx.bench.inventory import parse_bench
from hwrx.cli import main
from hwrx.errors import UsageError
from hwrx.runs.experiment import Experiment
from hwrx.runs.hosts import place_of_host


def test_each_port_of_a_host_is_a_host_of_its_own() -> None:
    bench = parse_bench(
        """
        [hosts.twin]
        reach = "local"
        cpus = [2]
        ports = [{verbs = "mlx5_0"}, {verbs = "mlx5_0", port = 2, address = "192.0.2.20", netdev = "eth2"}]
        """,
        source="bench.toml",
    )
    assert list(bench.hosts) == ["twin", "twin-port1", "twin-port2"]
    first, second = bench.find_host("twin").ports
    assert (first.verbs, first.port, first.address) == ("mlx5_0", 1, "")
    assert (second.verbs, second.port, second.address, second.netdev) == ("mlx5_0", 2, "192.0.2.20", "eth2")
    assert second.reach == "local" and second.cpus == (2,)
    assert place_of_host(second).port == 2


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ('["mlx5_0"]', r"hosts.twin.ports\[1\]: .*mlx5_0.* is not allowed"),
        ('[{verbs = "a"}, 3]', r"hosts.twin.ports\[2\]: 3 is not allowed"),
        ('"mlx5_0"', "hosts.twin.ports: .*mlx5_0.* is not allowed"),
        ("[" + 257 * '{verbs = "a"}, ' + "]", r"hosts.twin.ports: (.|\n)* is not allowed(.|\n)*at most 256 of them"),
        ('[{verbs = "a"}, {device = "b"}]', r"hosts.twin.ports\[2\].device"),
        ('[{verbs = "a", port = 0}]', r"ports\[1\].port: 0 is not allowed"),
        ('[{netdev = "eth1"}]', "neither a verbs device nor an address"),
        ('[{address = "nowhere"}]', "'nowhere' is not an IP address"),
        ('[{verbs = "a"}]\n[hosts.twin-port1]\nreach = "local"', "'twin-port1' is a port of 'twin'"),
    ],
)
def test_ports_that_are_wrong_are_refused_by_their_place(ports: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_bench(f'[hosts.twin]\nreach = "local"\nports = {ports}\n', source="bench.toml")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--client", "a"], "--all-ports is between two hosts"),
        (["--client", "a", "--server", "plain"], "the host 'plain' has no list of its ports"),
        (["--client", "a", "--server", "b"], "2 ports of 'a' and 1 of 'b' are not pairs"),
        (["--client", "a", "--server", "a"], "are not pairs"),
    ],
)
def test_ports_that_are_no_pairs_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.toml"
    file.write_text(
        '[hosts.a]\nports = [{verbs = "x"}, {verbs = "y"}]\n[hosts.b]\nports = [{verbs = "z"}]\n[hosts.plain]\n'
    )
    asked = ["compare", "--paths", "rdma-send", "--dry-run", "--all-ports", "turn", "--bench", str(file)]
    assert main([*asked, *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and "remedy: " in printed


@pytest.mark.parametrize(
    ("how", "flows"), [("together", ["a-port[1-2]>>b-port[1-2]"]), ("turn", ["a-port1>b-port1", "a-port2>b-port2"])]
)
def test_all_ports_are_planned_in_turn_or_together(
    how: str, flows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.toml"
    file.write_text("".join(f'[hosts.{name}]\nports = [{{verbs = "x"}}, {{verbs = "y"}}]\n' for name in "ab"))
    words = ["compare", "--paths", "rdma-send", "--repeats", "1", "--dry-run", "--bench", str(file)]
    assert main([*words, "--client", "a", "--server", "b", "--all-ports", how]) == 0
    printed = capsys.readouterr().out
    assert all(f"rdma-send 64 B pingpong event {each}" in printed for each in flows)
    assert f"{len(flows)} trial" in printed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--clients", "a"], "--all-ports says who sends to whom, and so does --clients"),
        (["--servers", "b"], "and so does --servers"),
        (["--traffic", "all-to-all"], "and so does --traffic"),
        (["--topology", "wire"], "--all-ports is between hosts of the inventory, and the topology is 'wire'"),
    ],
)
def test_all_ports_go_with_nothing_that_says_otherwise_who_sends_to_whom(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.toml"
    file.write_text("".join(f'[hosts.{name}]\nports = [{{address = "192.0.2.1"}}]\n' for name in "ab"))
    words = [
        "--paths",
        "udp",
        "--dry-run",
        "--bench",
        str(file),
        "--client",
        "a",
        "--server",
        "b",
        "--all-ports",
        "turn",
    ]
    assert main(["compare", *words, *more]) == 2
    printed = capsys.readouterr().err
    assert said in printed and "remedy: " in printed


@pytest.mark.parametrize("more", [["--topology", "wire"], ["--client", "a", "--server", "b", "--all-ports", "turn"]])
def test_a_run_is_resumed_with_no_other_ends(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--resume", "run", *more]) == 2
    assert "give neither a file nor options with it" in capsys.readouterr().err


def test_clients_do_not_replace_the_topology_that_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned: list[Experiment] = []
    command = importlib.import_module("hwrx.commands.compare")
    monkeypatch.setattr(command, "run_and_report", lambda experiment, *more, **named: planned.append(experiment))
    bench, file = tmp_path / "bench.toml", tmp_path / "asked.toml"
    bench.write_text('[hosts."h[1-2]"]\naddress = "192.0.2.[1-2]"\n')
    words = ["compare", str(file), "--clients", "h1", "--servers", "h2", "--bench", str(bench)]
    for named, found in (('topology = "wire"\n', "wire"), ("", "hosts")):
        file.write_text(f'{named}paths = ["udp"]\n')
        assert main(words) == 0
        assert planned.pop().topology == found
    file.write_text('topology = "netns"\npaths = ["udp"]\n')
    assert main(words) == 2
    assert "clients: they are hosts, and the topology is 'netns'" in capsys.readouterr().err
