"""The inventory: what a file may say, in words what it may not, and what is read from other people's files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hwrx.bench import check, install, wheels
from hwrx.bench.inventory import BenchHost, load_bench, parse_bench
from hwrx.cli import main
from hwrx.control.causes import find_remedy
from hwrx.control.environment import Host, parse_environment
from hwrx.control.messages import Hello, frame_message
from hwrx.control.nodes import expand_nodes, fold_nodes, parse_flows, write_flows
from hwrx.errors import MachineError, UsageError

GOOD = """
[defaults]
reach = "ssh:root@{host}"
hwrx = "/opt/hwrx/bin/hwrx"
[hosts."node[1-3]"]
address = "192.0.2.[1-3]"
netdev = "eth1"
cpus = [2, 3]
[hosts.sink]
reach = "srun --nodelist={host} {agent}"
address = "192.0.2.9"
numa = 1
power = {on = "switch {host} on"}
console = "sol {host}"
"""


def test_a_file_is_read_with_its_sets_and_defaults() -> None:
    bench = parse_bench(GOOD, source="bench.toml")
    assert list(bench.hosts) == ["node1", "node2", "node3", "sink"]
    assert bench.hosts["node2"].host == Host(
        name="node2",
        reach="ssh:root@node2",
        hwrx="/opt/hwrx/bin/hwrx",
        address="192.0.2.2",
        netdev="eth1",
        cpus=(2, 3),
    )
    sink = bench.hosts["sink"]
    assert (sink.power.on, sink.power.off, sink.console) == ("switch sink on", None, "sol sink")
    assert sink.host.agent_command() == ["srun", "--nodelist=sink", "/opt/hwrx/bin/hwrx", "agent"]
    assert [each.host.name for each in bench.find_hosts(["node[2-3]", "sink", "node2"])] == ["node2", "node3", "sink"]


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        ("[host.a]\n", "unknown key 'host'", "did you mean 'hosts'?"),
        ('[hosts.a]\nreech = "local"\n', "unknown key 'hosts.a.reech'", "did you mean 'reach'?"),
        ('[defaults]\naddres = "x"\n[hosts.a]\n', "unknown key 'defaults.addres'", "did you mean 'address'?"),
        ("[hosts.a]\nnuma = -1\n", "hosts.a.numa: -1 is not allowed", "a whole number from 0"),
        ('[hosts.a]\ncpus = ["x"]\n', 'hosts.a.cpus[0]: "x" is not allowed', "a whole number from 0"),
        ("[hosts.a]\npower = 3\n", "hosts.a.power: 3 is not allowed", "allowed: a table of on, off, cycle"),
        (f"[hosts.a]\ncpus = {list(range(1025))}\n", "hosts.a.cpus: ", "at most 1024 of them"),
        ('[hosts.a]\npower = {of = "x"}\n', "unknown key 'hosts.a.power.of'", "did you mean"),
        ('[hosts.a]\nreach = "carrier:pigeon"\n', "hosts.a.reach: 'carrier:pigeon' is no peer", "ssh:HOST"),
        ('[hosts.a]\naddress = "coop"\n', "'coop' is not an IP address", "192.0.2.7"),
        ('[hosts."n[1-3]"]\naddress = "192.0.2.[1-2]"\n', "is 2 values for 3 hosts", "as many as there are hosts"),
        ('[hosts."n[1-"]\n', "is not a set of hosts", "node[1-8]"),
        ('[hosts."n[1-99999999]"]\n', "is not a set of at most 4096 hosts", "node[1-8]"),
        ('[hosts."@all"]\n', "is not a set of at most", "node[1-8]"),
        ('[hosts."a b"]\n', "'a b' is not the name of a host", "letters, digits"),
        ('[hosts."n[1-2]"]\n[hosts.n2]\n', "'n2' stands in two tables", "one table"),
        ("", "it has no hosts", "hosts.NAME"),
        ("[hosts", "not valid TOML", ""),
    ],
)
def test_a_wrong_key_is_named_with_what_is_allowed(text: str, words: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bench(text, source="lab.toml")
    assert str(caught.value).startswith("lab.toml: ")
    assert words in str(caught.value)
    assert remedy in caught.value.remedy


def test_a_host_is_reached_by_its_name_if_nothing_else_is_said() -> None:
    bench = parse_bench('[hosts."n[1-2]"]\naddress = "192.0.2.[1-2]"\n', source="bench.toml")
    assert [each.host.reach for each in bench.hosts.values()] == ["ssh:n1", "ssh:n2"]
    assert bench.hosts["n2"].host.agent_command()[-3:] == ["--", "n2", "hwrx agent"]


@pytest.mark.parametrize(
    ("nodes", "key", "values", "where"),
    [
        ("server,client", "address", "10.0.0.[1-2]", "hosts.server,client:"),
        ("node[3,1]", "verbs", "mlx5_[0-1]", "hosts.node[3,1]:"),
        ("node[1,3]", "address", "10.0.0.[30,10]", "hosts.node[1,3].address:"),
        ("n[1-2]", "verbs", "mlx5_[1,0]", "hosts.n[1-2].verbs:"),
    ],
)
def test_values_that_would_go_to_other_hosts_than_those_in_their_place_are_refused(
    nodes: str, key: str, values: str, where: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bench(f'[hosts."{nodes}"]\n{key} = "{values}"\n', source="lab.toml")
    assert str(caught.value).startswith(f"lab.toml: {where} each is matched with the one in its place")
    assert "in the order in which sets are sorted" in caught.value.remedy


def test_values_go_to_the_hosts_in_their_place() -> None:
    for nodes, values, found in (
        ("client,server", "10.0.0.[1-2]", {"client": "10.0.0.1", "server": "10.0.0.2"}),
        ("r[1-2]n[09,10]", "10.0.[1-2].[9-10]", {f"r{r}n{n:02}": f"10.0.{r}.{n}" for r in (1, 2) for n in (9, 10)}),
        ("n[1-4]!n2", "10.0.0.[1,3-4]", {f"n{n}": f"10.0.0.{n}" for n in (1, 3, 4)}),
    ):
        hosts = parse_bench(f'[hosts."{nodes}"]\naddress = "{values}"\n', source="bench.toml").hosts
        assert {name: each.host.address for name, each in hosts.items()} == found
    # of one value for all the order is nobody's
    assert set(parse_bench('[hosts."server,client"]\nnetdev = "eth1"\n', source="bench.toml").hosts) == {
        "client",
        "server",
    }


def test_a_name_that_is_not_there_is_told_with_the_closest() -> None:
    with pytest.raises(UsageError, match="there is no 'node9'") as caught:
        parse_bench(GOOD, source="bench.toml").find_host("node9")
    assert "did you mean 'node" in caught.value.remedy
    with pytest.raises(UsageError, match="is 3 hosts, and one is wanted"):
        parse_bench(GOOD, source="bench.toml").find_host("node[1-3]")


def test_the_file_is_the_one_that_is_named_or_the_variables_or_the_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HWRX_BENCH", raising=False)
    with pytest.raises(UsageError, match=r"there is no inventory bench\.toml") as caught:
        load_bench()
    assert "--bench FILE" in caught.value.remedy
    for name in ("bench", "other", "third"):
        (tmp_path / f"{name}.toml").write_text(f"[hosts.{name}]\n")
    assert list(load_bench().hosts) == ["bench"]
    monkeypatch.setenv("HWRX_BENCH", "other.toml")
    assert list(load_bench().hosts) == ["other"]
    assert list(load_bench(Path("third.toml")).hosts) == ["third"]


# --- other people's files ------------------------------------------------------------------------------------------

NET_CONFIG = """
# the kernel's driver tests
NETIF=eth0
LOCAL_V4="192.0.2.1"  LOCAL_X=1
"""


def test_the_net_config_of_the_kernels_driver_tests_is_read() -> None:
    text = (
        'NETIF=eth0 # ours\nLOCAL_V6="2001:db8::1"\nREMOTE_V6="2001:db8::2"\nREMOTE_TYPE=ssh\nREMOTE_ARGS="root@far"\n'
    )
    bench = parse_bench(text, source="net.config", kind=".config")
    assert bench.hosts["local"].host == Host(name="local", reach="local", address="2001:db8::1", netdev="eth0")
    assert bench.hosts["remote"].host == Host(name="remote", reach="ssh:root@far", address="2001:db8::2")
    with pytest.raises(UsageError, match=r"net\.config: line 4 is not NAME=value"):
        parse_bench(NET_CONFIG, source="net.config", kind=".config")
    with pytest.raises(UsageError, match="REMOTE_TYPE is missing"):
        parse_bench("NETIF=eth0\n", source="net.config", kind=".config")
    with pytest.raises(UsageError, match="REMOTE_TYPE: there is no 'telnet'"):
        parse_bench("REMOTE_TYPE=telnet\nREMOTE_ARGS=x\n", source="net.config", kind=".config")


LABGRID = """
targets:
  main:
    resources:
      NetworkService: {address: 192.0.2.7, username: root}
      NetworkInterface: {ifname: eth1}
  second:
    resources:
    - NetworkService: {address: !template $LG_HOST, username: lab, port: 2222}
    - cls: NetworkInterface
      ifname: eth2
    drivers: {SSHDriver: {}}
"""


def test_a_labgrid_environment_is_read() -> None:
    bench = parse_bench(LABGRID, source="env.yaml", kind=".yaml")
    assert bench.hosts["main"].host == Host(name="main", reach="ssh:root@192.0.2.7", netdev="eth1")
    assert bench.hosts["second"].host == Host(name="second", reach="ssh:ssh://lab@$LG_HOST:2222", netdev="eth2")
    third = "targets: {third: {resources: {NetworkService: {address: 'fe80::7%eth0', username: lab, port: 2222}}}}"
    command = parse_bench(third, source="env.yaml", kind=".yaml").hosts["third"].host.agent_command()
    assert [command[0], *command[-5:-1]] == ["ssh", "-p", "2222", "--", "lab@fe80::7%eth0"]
    assert "BatchMode=yes" in command and command[-1] == "hwrx agent"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("options: {}", "it has no targets"),
        ("targets: {main: {resources: {RemotePlace: {name: x}}}}", "labgrid's coordinator only"),
        ("targets: {main: {resources: {}}}", "nothing says how it is reached"),
        ("targets: {main: {resources: {NetworkService: {address: -oProxyCommand=x}}}}", "has no address"),
        ("targets: !!python/object/apply:os.system ['touch /nowhere']", "not valid YAML"),
    ],
)
def test_what_is_not_such_an_environment_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_bench(text, source="env.yaml", kind=".yaml")


# --- who sends to whom ---------------------------------------------------------------------------------------------


def test_flows_are_written_and_read_back() -> None:
    three = ["n1", "n2", "n3"]
    assert write_flows("incast", three, ["n3"]) == ["n[1-2]>n3"]
    assert parse_flows("n[1-2]>n3") == [("n1", "n3"), ("n2", "n3")]
    assert write_flows("all-to-all", three, three) == ["n[1-3]>n[1-3]"]
    assert len(parse_flows("n[1-3]>n[1-3]")) == 6
    assert write_flows("pairs", ["n1", "n2"], ["n1", "n2"]) == ["n1>n2", "n2>n1"]
    assert parse_flows("a<>b") == [("a", "b"), ("b", "a")]
    assert write_flows("matched", three, ["m1", "m2", "m3"]) == ["n[1-3]>>m[1-3]"]
    assert parse_flows("n[1-3]>>m[1-3]") == [("n1", "m1"), ("n2", "m2"), ("n3", "m3")]
    assert parse_flows("n[1-2]<>>m[1-2]")[2:] == [("m1", "n1"), ("m2", "n2")]
    assert write_flows("matched-pairs", three, ["m1", "m2", "m3"]) == ["n1>m1", "n2>m2", "n3>m3"]
    with pytest.raises(UsageError, match="sorted otherwise than n2, n1"):
        write_flows("matched", ["n2", "n1"], ["m1", "m2"])
    assert expand_nodes(fold_nodes(["r1n01", "r1n02", "x"]), "test") == ["r1n01", "r1n02", "x"]


@pytest.mark.parametrize("words", ["", "a", "a>", ">b", "a>a", "<>", "n[1-100]>m[1-100]", "a[1-2]>>b", "a>>a"])
def test_what_says_no_flow_is_refused(words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flows(words)
    assert caught.value.remedy


# --- how a host is reached -----------------------------------------------------------------------------------------


def test_a_command_through_ssh_is_quoted_for_the_shell_there() -> None:
    words = ["python3", "-c", "print('a b')", "x"]
    for reach in ("ssh:box", "ssh -F config box {agent}"):
        *_, last = parse_environment(reach).run_command(words)
        there = subprocess.run(["sh", "-c", f"set -- {last}; printf '%s\\n' \"$@\""], stdout=-1, text=True, check=True)
        assert there.stdout.splitlines() == words
    assert parse_environment("srun -w box {agent}").run_command(words) == ["srun", "-w", "box", *words]
    assert parse_environment("netns:x").agent_command("/opt/hwrx") == ["ip", "netns", "exec", "x", "/opt/hwrx", "agent"]
    assert parse_environment("local").agent_command()[0] == sys.executable


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("ssh: Could not resolve hostname nodex: Name or service not known", "is the name right"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection timed out", "is the host up"),
        ("kex_exchange_identification: read: Connection reset by peer", "MaxStartups"),
        ("root@box: Permission denied (publickey).", "ssh-copy-id"),
        ("Host key verification failed.", "look at the key"),
        ("bash: line 1: hwrx: command not found", "hwrx bench install"),
        ("/usr/bin/python3: No module named hwrx", "hwrx bench install"),
        ("bash: /opt/hwrx/bin/python: cannot execute binary file: Exec format error", "another architecture"),
        ('Cannot open network namespace "x": No such file or directory', "ip netns list"),
        ("something that nobody has seen", ""),
    ],
)
def test_the_remedy_is_by_what_was_said(said: str, remedy: str) -> None:
    found = find_remedy(said)
    assert remedy in found and bool(remedy) == bool(found)


# --- whether two may be compared -----------------------------------------------------------------------------------


def report(name: str, **changes: object) -> check.HostReport:
    machine = {
        "kernel": {"release": "6.1", "architecture": "x86_64", "clocksource": "tsc"},
        "cpu": {"model": "A", "online": 8, "nodes": 1, "governor": "performance"},
        "versions": {"hwrx": "0.1.0", "libibverbs": "1"},
        "nics": [{"name": "eth1", "driver": "mlx5_core", "mtu": 1500, "speed_mbps": 100000, "state": "up"}],
        "verbs": [{"name": "mlx5_0", "driver": "mlx5"}],
    }
    return check.HostReport(name=name, reached=True, machine=machine | changes)


def host(name: str, **fields: object) -> BenchHost:
    known = {"name": name, "reach": "local", "address": "192.0.2.1", "netdev": "eth1", **fields}
    return BenchHost(host=msgspec.convert(known, Host))


def judged(first: check.HostReport, second: check.HostReport, **fields: object) -> check.PairReport:
    (pair,) = check.judge_pairs([host("a"), host("b", **fields)], [first, second])
    return pair


def test_two_hosts_that_are_alike_may_be_compared_and_others_with_the_reasons() -> None:
    assert judged(report("a"), report("b")).verdict == "yes"
    other = report("b", kernel={"release": "6.12", "architecture": "aarch64", "clocksource": "tsc"})
    pair = judged(report("a"), other)
    assert (pair.verdict, pair.reasons) == (
        "with care",
        ["architecture: x86_64 and aarch64", "kernel: 6.1 and 6.12"],
    )
    jumbo = report("b", nics=[{"name": "eth1", "driver": "ice", "mtu": 9000, "speed_mbps": 25000, "state": "up"}])
    pair = judged(report("a"), jumbo)
    assert pair.verdict == "no" and "MTU: 1500 and 9000" in pair.reasons
    assert {"device: mlx5_core and ice", "speed in Mb/s: 100000 and 25000"} < set(pair.reasons)
    nodes = report("b", cpu={"model": "A", "online": 8, "nodes": 2, "governor": "performance"})
    assert judged(report("a"), nodes).reasons == ["b: several NUMA nodes; give `numa` or `cpus`"]
    assert judged(report("a"), nodes, numa=1).reasons == []
    assert judged(report("a"), report("b"), address="2001:db8::1").reasons == ["their addresses are of two families"]
    silent = check.HostReport(name="b", reached=False, error="gone")
    assert check.judge_pairs([host("a"), host("b")], [report("a"), silent]) == []


def test_a_cpu_is_looked_for_among_those_that_are_online_by_their_numbers() -> None:
    threads_off = {"model": "A", "online": 4, "online_cpus": [0, 2, 4, 6], "nodes": 1, "governor": "performance"}
    (lack,) = check._lacks(host("a", cpus=[4, 5]).host, report("a", cpu=threads_off).machine)
    assert lack == "there is no CPU 5 (online: 0,2,4,6)"
    # an agent that says only how many there are
    assert list(check._lacks(host("a", cpus=[7]).host, report("a").machine)) == []
    assert list(check._lacks(host("a", cpus=[8]).host, report("a").machine)) == ["there is no CPU 8 (online: 0-7)"]


def test_a_host_that_is_gone_after_its_greeting_takes_no_others_answer_with_it(tmp_path: Path) -> None:
    brief = tmp_path / "brief"
    greeting = frame_message(Hello())
    brief.write_text(f"import sys\nsys.stdout.buffer.write({greeting!r})\nsys.stdout.flush()\nsys.exit(3)\n")
    reached = {"brief": f"{sys.executable} {brief} {{agent}}", "here": "local"}
    reached["slow"] = "sh -c 'sleep 2; exec \"$@\"' sh {agent}"  # by then the first one is gone
    hosts = [host(name, reach=reach) for name, reach in reached.items()]
    found = {each.name: each for each in check.check_hosts(hosts)}
    assert not found["brief"].reached and "brief is gone" in found["brief"].error
    assert found["here"].reached and found["slow"].reached
    assert found["here"].machine["cpu"]["online_cpus"]


# --- what is put there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "riscv64"}, "is riscv64, and what is built here is for"),
        ({"python": (3, 6)}, "has Python 3.6"),
        ({"libc": ("glibc", "2.17")}, "has glibc 2.17; what is built here needs glibc"),
        ({"libc": ("", "")}, "an unknown C library"),
        ({"taken": True}, "holds something else"),
        ({"writable": False}, "cannot be written"),
    ],
)
def test_a_host_that_could_not_run_it_is_refused_before_anything_is_sent(
    changes: dict[str, object], words: str
) -> None:
    import platform

    fits = install.Found(
        architecture=platform.machine(),
        python=sys.version_info[:2],
        libc=platform.libc_ver(),
        folder="/opt/hwrx",
        writable=True,
        free=1 << 40,
        taken=False,
    )
    install.check_host("box", fits)
    with pytest.raises(MachineError, match=words) as caught:
        install.check_host("box", msgspec.structs.replace(fits, **changes))
    assert caught.value.remedy


def test_a_package_is_packed_as_it_is_installed(tmp_path: Path) -> None:
    """pip itself takes the wheel, and puts the same files there."""
    known = {each.name.lower(): each for each in wheels.find_needs()}
    assert {"numpy", "msgspec", "clustershell", "pip"} <= known.keys() and "hwrx" not in known
    packed = wheels.pack_distribution(known["click"], tmp_path)
    assert packed is not None
    there = tmp_path / "there"
    pip = [sys.executable, "-P", "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--root-user-action=ignore", "--target", str(there), str(packed)], check=True)
    import click

    original = Path(click.__file__)
    assert (there / "click" / original.name).read_bytes() == original.read_bytes()


# --- the commands --------------------------------------------------------------------------------------------------


def test_power_and_console_say_what_they_run_and_run_it_only_then(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    file = tmp_path / "bench.toml"
    file.write_text(
        f'[hosts.box]\nreach = "local"\npower = {{on = "touch {mark}", off = "false"}}\nconsole = "echo {{host}}"\n'
    )
    bench = ["--bench", str(file)]
    assert main(["bench", "power", "box", "on", "--dry-run", *bench]) == 0
    assert f"would run: touch {mark}" in capfd.readouterr().err and not mark.exists()
    assert main(["bench", "power", "box", "on", *bench]) == 0
    assert mark.exists()
    with pytest.raises(SystemExit) as ended:
        main(["bench", "power", "box", "off", *bench])
    assert ended.value.code == 1
    assert main(["bench", "power", "box", "cycle", *bench]) == 2
    assert 'power = {cycle = "COMMAND"}' in capfd.readouterr().err
    assert main(["bench", "console", "box", *bench]) == 0
    said = capfd.readouterr()
    assert said.out == "box\n" and "running: echo box" in said.err
